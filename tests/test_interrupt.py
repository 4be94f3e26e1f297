"""Ctrl-C and SIGTERM while requests are under way: nothing more is sent, one line, exit code 3, at whatever moment."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion

from spot import interrupt
from spot.errors import Interrupted
from spot.models.paid.ledger import Ledger

pytestmark = pytest.mark.slow

TRIES = 8
ROWS = 400


def files(folder: Path) -> None:
    problem = '{{"id": "p{n}", "prompt": "What is {n} + 1?", "answer": "{right}"}}\n'
    attempt = (
        '{{"id": "p{n}#0", "problem_id": "p{n}", "sample": 0, "response": "It is \\\\boxed{{0}}.", "finish_reason": '
        '"stop", "verdict": {{"correct": false}}, "model": "m"}}\n'
    )
    (folder / "p.jsonl").write_text("".join(problem.format(n=n, right=n + 1) for n in range(ROWS)))
    (folder / "a.jsonl").write_text("".join(attempt.format(n=n) for n in range(ROWS)))


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_stops_everything(tmp_path: Path, ending: signal.Signals) -> None:
    asked = 0

    def answer(seen: Seen) -> Answer:
        nonlocal asked
        asked += 1
        return completion("no")

    files(tmp_path)
    rng = random.Random(int(ending))
    command = "rectify --problems p.jsonl --attempts a.jsonl rectify.model=m rectify.concurrency=16 "
    for number in range(TRIES):
        asked = 0
        with FakeServer(answer) as server:
            arguments = f"{command} --output r{number}.jsonl rectify.base_url={server.url}".split()
            process = subprocess.Popen(
                [sys.executable, "-m", "spot", *arguments], cwd=tmp_path, text=True, stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            while not asked:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.15))
            process.send_signal(ending)
            time.sleep(0.02)
            sent = asked
            _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors.count("\n")) == (3, 1) and errors.startswith("stopped: interrupted"), errors
        assert asked <= sent + 16  # those on their way; 20 ms are enough to hear
        with Ledger(tmp_path / f"r{number}.ledger.sqlite") as ledger:
            unknown = sum(row["sends"] - row["refused"] - row["replied"] for row in ledger.rows())
        assert unknown <= 16


def test_everything_below_is_closed_before_it_is_told() -> None:
    handlers = {ending: signal.getsignal(ending) for ending in interrupt.ENDINGS}
    closed: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            closed.append("work")

    async def main() -> None:
        await asyncio.gather(work(), work())

    try:
        interrupt.install()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted):
            interrupt.run(main())
        assert closed == ["work", "work"]
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    finally:
        for ending, handler in handlers.items():
            signal.signal(ending, handler)


def test_in_another_thread_and_without_our_handlers_it_is_plain_asyncio() -> None:
    async def seven() -> int:
        return 7

    results: list[int] = [interrupt.run(seven())]
    thread = threading.Thread(target=lambda: results.append(interrupt.run(seven())))
    thread.start()
    thread.join()
    assert results == [7, 7]
