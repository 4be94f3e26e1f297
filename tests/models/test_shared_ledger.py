"""Several that ask the same at once, by one ledger: each request is sent once, and everybody has its reply."""

import asyncio
import contextlib
import dataclasses
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.batch_server import BatchServer
from tests.batch_user import PRICE, SAMPLING, WAITS, User, ask, texts
from tests.fake_server import Answer, FakeServer, Seen, completion

from spot.errors import RunFailed, UserError
from spot.models.base import NoMore, Reply, Request, request_key
from spot.models.endpoint.model import EndpointModel, RetryPolicy
from spot.models.paid import gate
from spot.models.paid.batch import BatchModel
from spot.models.paid.ledger import Admit, Ledger, Refused
from spot.models.paid.recorded import RecordedModel

ONE = """
import asyncio, os, sys, time
from pathlib import Path
from spot.models.paid import gate
from tests.ledger_kills import ask
gate.ELSEWHERE_EVERY = 0.05
here = Path(sys.argv[2])
here.with_name(f"ready-{os.getpid()}").touch()
while len(list(here.parent.glob("ready-*"))) < 3:
    time.sleep(0.01)
asyncio.run(ask(sys.argv[1], Path(sys.argv[2]), 60, 2))
"""


def shout(seen: Seen) -> Answer:
    return completion(seen.question.upper())


def test_processes_side_by_side_send_every_request_once(tmp_path: Path) -> None:
    def slow(seen: Seen) -> Answer:
        time.sleep(0.1)
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
    monkeypatch.setattr(gate, "ELSEWHERE_EVERY", 0.01)

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


def theirs(ledger: Ledger) -> Ledger:
    """The same file in the eyes of another process, one that lives."""
    other = Ledger(ledger.path)
    other._owner = "elsewhere:1:1"  # pyright: ignore[reportPrivateUsage]
    return other


def test_what_was_given_up_is_asked_by_others_while_its_process_lives(tmp_path: Path) -> None:
    def hang(seen: Seen) -> Answer:
        time.sleep(0.5)
        return shout(seen)

    retry = RetryPolicy(tries=1, first_wait=0.01)
    with Ledger(tmp_path / "l.sqlite") as ledger, theirs(ledger) as other:
        with FakeServer(hang) as slow:

            async def go() -> dict[str, str]:
                impatient = EndpointModel("m", slow.url, timeout=0.1, retry=retry)
                first = RecordedModel(impatient, other, "rectify", PRICE)
                with contextlib.suppress(RunFailed):
                    await told(first, ask("a"))
                patient = EndpointModel("m", slow.url, timeout=5)
                return await told(RecordedModel(patient, ledger, "rectify", PRICE), ask("a"))

            assert asyncio.run(asyncio.wait_for(go(), 20)) == {"id-a": "A"}
        [row] = ledger.rows()
        assert (row["sends"], row["replied"]) == (2, 1)  # the first one stays possible spend
        assert ledger.spent()[1] > 0


class Full:
    """A turnstile that wants nothing."""

    async def enter(self, request: Request) -> None:
        raise NoMore


def test_when_nothing_more_is_wanted_nobody_is_waited_for(tmp_path: Path) -> None:
    with FakeServer(shout) as server, Ledger(tmp_path / "l.sqlite") as ledger, theirs(ledger) as other:
        model = RecordedModel(EndpointModel("m", server.url), ledger, "rectify", PRICE, None, Full())
        a, b = ask("a", "b")
        other.apply([Admit(model.entry(b, SAMPLING, request_key(model.fingerprint, b, SAMPLING)), None)])
        assert asyncio.run(asyncio.wait_for(told(model, [a, b]), 10)) == {}
        assert not server.seen


def test_room_that_another_may_give_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ELSEWHERE_EVERY", 0.02)
    with FakeServer(shout) as server, Ledger(tmp_path / "l.sqlite") as ledger, theirs(ledger) as other:
        [a] = ask("a")
        model = RecordedModel(EndpointModel("m", server.url), ledger, "rectify", PRICE)
        worst = model.entry(a, SAMPLING, "x").worst
        limited = RecordedModel(EndpointModel("m", server.url), ledger, "rectify", PRICE, 1.5 * worst)
        other.apply([Admit(dataclasses.replace(model.entry(a, SAMPLING, "x"), key="theirs"), None)])

        async def go() -> dict[str, str]:
            asking = asyncio.create_task(told(limited, ask("a")))
            await asyncio.sleep(0.2)
            assert not asking.done() and not server.seen
            other.apply([Refused("theirs", charged=False)])
            return await asyncio.wait_for(asking, 10)

        assert asyncio.run(go()) == {"id-a": "A"}


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
