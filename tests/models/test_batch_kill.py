"""Killed before any step, the same command goes on: all replies, each paid once, and no phantom in the account."""

import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import httpx2
import pytest
from tests.batch_server import BatchServer, Held, complete, ends
from tests.batch_user import User, ask, texts
from tests.patience import one_step

from spot.errors import Interrupted
from spot.models.paid.batch import Limits
from spot.models.paid.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.kill, pytest.mark.timeout(0)]
QUESTIONS = ask(*"abcde")


def once_expired(server: BatchServer, batch: Held) -> None:
    """The batch that begins with `a` does only that; its rest, in a new batch, is done."""
    first = len(batch.rows) == 2 and batch.rows[0]["body"]["messages"][-1]["content"] == "a"
    (ends("expired", [0], "batch_expired") if first else complete)(server, batch)


def before_each_step(monkeypatch: pytest.MonkeyPatch, step: Callable[[], None]) -> None:
    """Call `step` before every request to the provider and before every commit."""
    send, transaction = httpx2.AsyncClient.send, Ledger.transaction

    async def sent(self: httpx2.AsyncClient, *arguments: Any, **options: Any) -> httpx2.Response:
        step()
        return await send(self, *arguments, **options)

    @contextmanager
    def committed(self: Ledger) -> Generator[Connection]:
        with transaction(self) as database:
            yield database
            step()

    monkeypatch.setattr(httpx2.AsyncClient, "send", sent)
    monkeypatch.setattr(Ledger, "transaction", committed)


class Countdown:
    """Does `act` at the n-th step, counted from 0; signals arrive in the main thread only."""

    def __init__(self, steps: int, act: Callable[[], None], main_only: bool = False) -> None:
        self.left = steps
        self.act = act
        self.main_only = main_only

    def __call__(self) -> None:
        if self.main_only and threading.current_thread() is not threading.main_thread():
            return
        self.left -= 1
        if self.left == -1:
            self.act()


def check(user: User, server: BatchServer) -> None:
    """The same command again, as often as it takes; then all is as if nothing had happened."""
    replies = user.run(QUESTIONS)
    for _ in range(9):
        if user.stopped is None:
            break
        replies = user.run(QUESTIONS)
    assert texts(replies) == {f"id-{name}": name.upper() for name in "abcde"}
    assert set(server.ran.values()) == {1}
    assert all(batch.status in ("completed", "expired") for batch in server.batches.values()), "one was forgotten"
    assert user.spent() == pytest.approx((15.0, 0.0))


def user_of(folder: Path, server: BatchServer, wait: bool) -> User:
    return User(folder, server.url, limits=Limits(requests=2), wait=wait)


@pytest.mark.parametrize(("wait", "stride"), [(True, 1), (False, 3)])
def test_killed_before_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool, stride: int) -> None:
    steps = 0
    for steps in range(0, 1000, stride):
        with one_step(), BatchServer(once_expired, polls=1) as server:
            user = user_of(tmp_path / str(steps), server, wait)
            pid = os.fork()
            if pid == 0:
                before_each_step(monkeypatch, Countdown(steps, lambda: os._exit(9)))
                for _ in range(9):
                    user.run(QUESTIONS)
                    if user.stopped is None:
                        os._exit(0)
                os._exit(1)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code in (0, 9)
            check(user, server)
        if code == 0:
            break
    assert steps > 30


def test_interrupted_before_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise Interrupted

    steps = 0
    for steps in range(0, 1000, 2):
        with one_step(), BatchServer(once_expired, polls=1) as server, monkeypatch.context() as patch:
            user = user_of(tmp_path / str(steps), server, True)
            before_each_step(patch, Countdown(steps, interrupt, main_only=True))
            interrupted = False
            try:
                user.run(QUESTIONS)
            except Interrupted:
                interrupted = True
            patch.undo()
            check(user, server)
        if not interrupted:
            break
    assert steps > 30
