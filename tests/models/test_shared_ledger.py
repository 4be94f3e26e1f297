"""Several that ask the same at once, by one ledger: each request is sent once, and everybody has its reply."""

import asyncio
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.batch_server import BatchServer
from tests.batch_user import PRICE, SAMPLING, WAITS, User, ask, texts
from tests.fake_server import Answer, FakeServer, Seen, completion

from spot.errors import UserError
from spot.models import recorded
from spot.models.base import Reply, Request
from spot.models.batch import BatchModel
from spot.models.endpoint import EndpointModel
from spot.models.ledger import Ledger
from spot.models.recorded import RecordedModel

ONE = """
import asyncio, os, sys, time
from pathlib import Path
from spot.models import recorded
from tests.ledger_kills import ask
recorded.ELSEWHERE_EVERY = 0.05
here = Path(sys.argv[2])
here.with_name(f"ready-{os.getpid()}").touch()
while len(list(here.parent.glob("ready-*"))) < 3:
    time.sleep(0.01)
asyncio.run(ask(sys.argv[1], Path(sys.argv[2]), 60, 6))
"""


def shout(seen: Seen) -> Answer:
    return completion(seen.question.upper())


def test_processes_side_by_side_send_every_request_once(tmp_path: Path) -> None:
    def slow(seen: Seen) -> Answer:
        time.sleep(0.02)
        return shout(seen)

    path = tmp_path / "ledger.sqlite"
    with FakeServer(slow) as server:

        async def both() -> list[int]:
            command = [sys.executable, "-c", ONE, server.url, str(path)]
            processes = [await asyncio.create_subprocess_exec(*command) for _ in range(3)]
            return [await process.wait() for process in processes]

        assert asyncio.run(both()) == [0, 0, 0]
        assert Counter(seen.question for seen in server.seen) == Counter(f"question {n}" for n in range(60))
    with Ledger(path) as ledger:
        assert all((row["sends"], row["replied"]) == (1, 1) for row in ledger.rows())
        assert len({row["owner"] for row in ledger.rows()}) > 1


async def told(model: RecordedModel, requests: list[Request]) -> dict[str, str]:
    return {reply.id: reply.text async for group in model.generate(requests, SAMPLING) for reply in group}


class Late:
    """A turnstile that has everybody in only after `ready`, when what is on record has been looked for."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.waiting = 0

    async def enter(self, request: Request) -> None:
        self.waiting += 1
        await self.ready.wait()


@pytest.mark.parametrize("in_batches", [False, True])
def test_what_another_has_bought_since_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_batches: bool
) -> None:
    monkeypatch.setattr(recorded, "ELSEWHERE_EVERY", 0.01)

    async def go() -> None:
        late = Late()
        ours = EndpointModel("m", server.url, concurrency=4)
        model = BatchModel(ours, ledger, waits=WAITS) if in_batches else ours
        asking = asyncio.create_task(told(RecordedModel(model, ledger, "rectify", PRICE, None, late), ask("a", "b")))
        while late.waiting < 2:
            await asyncio.sleep(0.01)
        theirs = RecordedModel(EndpointModel("m", server.url), ledger, "rectify", PRICE)
        assert await told(theirs, ask("a")) == {"id-a": "A"}
        late.ready.set()
        assert await asking == {"id-a": "A", "id-b": "B"}

    with BatchServer() if in_batches else FakeServer(shout) as server, Ledger(tmp_path / "l.sqlite") as ledger:
        if in_batches:
            monkeypatch.setattr(EndpointModel, "generate", answered_at_once)
        asyncio.run(go())
        assert [(row["sends"], row["replied"], row["refused"]) for row in ledger.rows()] == [(1, 1, 0)] * 2
        assert ledger.spent()[1] == 0


async def answered_at_once(self: EndpointModel, requests: list[Request], sampling: object, done: object = ()) -> object:
    """In the place of a server that also answers at once, which the batch server does not."""
    for request in requests:
        assert self.gate is not None
        assert await self.gate.admit(request, SAMPLING) is None
        yield [Reply(request.id, request.messages[0].content.upper(), "stop")]


def test_what_is_in_a_batch_is_not_asked_at_once(tmp_path: Path) -> None:
    with BatchServer(polls=1) as server, Ledger(tmp_path / "ledger.sqlite") as ledger:
        user = User(tmp_path, server.url, wait=False)
        assert user.run(ask("a", "b")) == {}
        at_once = RecordedModel(EndpointModel("m", server.url, "SPOT_TEST_KEY"), ledger, "rectify", PRICE)
        before = len(server.seen)
        with pytest.raises(UserError, match=r"batch batch_0 holds requests .*rectify\.batch=true"):
            asyncio.run(told(at_once, ask("a", "b")))
        assert len(server.seen) == before
        assert texts(user.run(ask("a", "b"))) == {"id-a": "A", "id-b": "B"}
        assert asyncio.run(told(at_once, ask("a", "b"))) == {"id-a": "A", "id-b": "B"}
