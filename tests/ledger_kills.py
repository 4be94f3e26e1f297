"""Asks a server through the ledger, again and again, each go but the last killed (SIGKILL) after a random
number of requests.

`python ledger_kills.py URL LEDGER REQUESTS CONCURRENCY KILLS SEED` prints, as JSON, for each kill how many tries were
open then. Goes are forks of one process, which has loaded the libraries once.
"""

import asyncio
import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

from spot.models.base import Request
from spot.models.endpoint.model import EndpointModel, RetryPolicy
from spot.models.paid.ledger import Ledger, Prices
from spot.models.paid.recorded import RecordedModel
from spot.schema import Message, Sampling


async def ask(url: str, path: Path, count: int, concurrency: int) -> None:
    """All requests that have no reply yet."""
    requests = [Request(f"r{n}", (Message(role="user", content=f"question {n}"),), seed=n) for n in range(count)]
    model = EndpointModel("m", url, concurrency=concurrency, retry=RetryPolicy(first_wait=0.01))
    with Ledger(path) as ledger:
        recorded = RecordedModel(model, ledger, "rectify", Prices(1, 1))
        async for _ in recorded.generate(requests, Sampling(max_new_tokens=10)):
            pass


def open_tries(path: Path) -> int:
    """Tries whose outcome is not known."""
    with Ledger(path) as ledger:
        return sum(row["sends"] - row["refused"] - row["replied"] for row in ledger.rows())


def count_sends() -> mmap.mmap:
    """Counts the requests of this process and its forks, modulo 256, in its first byte."""
    sent, send = mmap.mmap(-1, 1), httpx2.AsyncClient.send

    async def counted(self: httpx2.AsyncClient, *arguments: Any, **options: Any) -> httpx2.Response:
        sent[0] = (sent[0] + 1) % 256
        return await send(self, *arguments, **options)

    httpx2.AsyncClient.send = counted
    return sent


def main() -> None:
    """Kill, look, go on; the last go ends by itself."""
    url, path = sys.argv[1], Path(sys.argv[2])
    count, concurrency, kills, seed = map(int, sys.argv[3:7])
    rng = random.Random(seed)
    sent = count_sends()
    unknown: list[int] = []
    while True:
        before = sent[0]
        child = os.fork()
        if child == 0:
            asyncio.run(ask(url, path, count, concurrency))
            os._exit(0)
        if len(unknown) == kills:
            _, status = os.waitpid(child, 0)
            print(json.dumps({"status": status, "unknown": unknown}))  # noqa: T201
            return
        # A number of requests, not of seconds: a child that starts late would be killed before it sends anything.
        number = rng.randint(0, 2 * concurrency)
        while (sent[0] - before) % 256 < number and os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ) is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        unknown.append(open_tries(path))


if __name__ == "__main__":
    main()
