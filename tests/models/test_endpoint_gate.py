import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion, failure

from spot.errors import StoppedEarly
from spot.models.base import Body, NoMore, Reply, Request, Usage
from spot.models.endpoint import dispatch
from spot.models.endpoint.model import EndpointModel, RetryPolicy
from spot.schema import Message, Sampling

QUICK = RetryPolicy(tries=3, first_wait=0.01, longest_wait=0.02, longest_retry_after=2)


def ask(*questions: str) -> list[Request]:
    return [Request(id=text, messages=(Message(role="user", content=text),), seed=1) for text in questions]


def echo(seen: Seen) -> Answer:
    return completion(seen.question.upper())


class Book:
    """A gate that writes down what it is told; `end` is raised instead of an admission when it says so."""

    proven = False
    doubtful: frozenset[str] = frozenset()

    def __init__(self, end: Callable[[Request], Exception | None] = lambda _: None) -> None:
        self.admitted: list[str] = []
        self.refusals: list[tuple[str, bool | None]] = []
        self.bodies: list[bytes] = []
        self._end = end

    async def admit(self, request: Request, sampling: Sampling) -> None:
        assert sampling.max_new_tokens == 5
        await asyncio.sleep(0)
        if error := self._end(request):
            raise error
        self.admitted.append(request.id)

    async def received(self, request: Request, body: Body) -> None:
        self.bodies.append(body.content)

    def refused(self, request: Request, charged: bool | None) -> None:
        self.refusals.append((request.id, charged))

    @property
    def open(self) -> Counter[str]:
        """Tries that were admitted and of which nothing was told."""
        return Counter(self.admitted) - Counter(id for id, _ in self.refusals)


def collect(model: EndpointModel, requests: Sequence[Request]) -> dict[str, Reply]:
    async def run() -> None:
        async for group in model.generate(requests, Sampling(max_new_tokens=5)):
            replies.update({reply.id: reply for reply in group})

    replies: dict[str, Reply] = {}
    asyncio.run(run())
    return replies


def test_every_try_is_admitted_before_it_is_sent_and_told_when_it_comes_to_nothing() -> None:
    whole = completion("a" * 100).body
    faults = [failure(429), failure(500), failure(504), Answer(delay=0.6), Answer(body=whole, cut=50)]
    seen_admitted: list[int] = []

    def script(seen: Seen) -> Answer:
        seen_admitted.append(len(book.admitted))
        return faults[seen.number] if seen.number < len(faults) else echo(seen)

    book = Book()
    with FakeServer(script) as server:
        policy = RetryPolicy(tries=9, first_wait=0.01, longest_wait=0.02)
        collect(EndpointModel("m", server.url, timeout=0.3, retry=policy, gate=book), ask("a"))
    assert seen_admitted == [1, 2, 3, 4, 5, 6]
    # Turned down; turned down; a proxy gave up on somebody who may have worked; nobody knows; it worked for nothing.
    assert book.refusals == [("a", False), ("a", False), ("a", None), ("a", None), ("a", None)]
    assert book.open == {"a": 1}


def test_a_request_that_is_turned_down_is_told_before_its_error_reply() -> None:
    book = Book()
    script = lambda seen: failure(400, "too long") if seen.question == "b" else echo(seen)  # noqa: E731
    with FakeServer(script) as server:
        replies = collect(EndpointModel("m", server.url, gate=book), ask("a", "b"))
    assert replies["b"].error == "HTTP 400: too long"
    assert book.refusals == [("b", False)]


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 3, "completion_tokens": 0}])
def test_an_empty_answer_is_a_reply_that_was_received(usage: dict[str, int] | None) -> None:
    book = Book()
    body = {**json.loads(completion("").body), "usage": usage}
    with FakeServer(lambda _: Answer(body=json.dumps(body).encode())) as server:
        replies = collect(EndpointModel("m", server.url, gate=book), ask("a"))
    assert replies["a"].finish_reason == "error"
    assert replies["a"].usage == (Usage(3, 0) if usage else None)
    assert (book.refusals, [json.loads(sent)["usage"] for sent in book.bodies]) == ([], [usage])


@pytest.mark.parametrize("error", [NoMore(), StoppedEarly("max_cost")])
def test_a_gate_that_closes_ends_the_run_after_what_is_in_flight(error: Exception) -> None:
    arrived = threading.Barrier(4, timeout=20)

    def slow(seen: Seen) -> Answer:
        arrived.wait()
        return echo(seen)

    book = Book(lambda _: error if len(book.admitted) == 4 else None)
    replies: dict[str, Reply] = {}

    async def run(model: EndpointModel) -> None:
        async for group in model.generate(ask(*map(str, range(30))), Sampling(max_new_tokens=5)):
            replies.update({reply.id: reply for reply in group})

    with FakeServer(slow) as server:
        model = EndpointModel("m", server.url, concurrency=8, gate=book)
        if isinstance(error, StoppedEarly):
            with pytest.raises(StoppedEarly, match="max_cost"):
                asyncio.run(run(model))
        else:
            asyncio.run(run(model))
        assert sorted(seen.question for seen in server.seen) == sorted(book.admitted) == sorted(replies)
    assert len(replies) == 4
    assert book.refusals == []


def test_after_the_end_nothing_is_tried_again() -> None:
    book = Book(lambda request: NoMore() if request.id == "b" else None)
    with FakeServer(lambda _: failure(500)) as server:
        assert collect(EndpointModel("m", server.url, concurrency=2, gate=book, retry=QUICK), ask("a", "b")) == {}
        assert len(server.seen) == 1
    assert book.refusals == [("a", False)]


class Slow(Book):
    """Takes its time with `late`, and closes for `last`."""

    def __init__(self) -> None:
        super().__init__(lambda request: NoMore() if request.id == "last" else None)
        self.let_in = asyncio.Event()

    async def admit(self, request: Request, sampling: Sampling) -> None:
        if request.id == "late":
            await self.let_in.wait()
        await super().admit(request, sampling)

    def refused(self, request: Request, charged: bool | None) -> None:
        super().refused(request, charged)


def test_what_was_admitted_too_late_is_told_and_not_sent() -> None:
    book = Slow()
    with FakeServer(echo) as server:

        async def run() -> None:
            asyncio.get_running_loop().call_later(0.2, book.let_in.set)
            async for _ in EndpointModel("m", server.url, gate=book).generate(
                ask("late", "last"), Sampling(max_new_tokens=5)
            ):
                pass

        asyncio.run(run())
        assert server.seen == []
    assert book.admitted == ["late"]
    assert book.refusals == [("late", False)]


def test_a_gate_that_never_decides_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "GRACE", 0.05)
    book = Slow()
    with FakeServer(echo) as server:
        replies = collect(EndpointModel("m", server.url, gate=book), ask("late", "a", "last"))
    assert set(replies) <= {"a"}
    assert book.open == Counter(replies.keys())


def test_what_is_called_off_is_told_as_unknown_and_what_was_not_sent_as_free() -> None:
    book = Book()
    release = threading.Event()

    def script(seen: Seen) -> Answer:
        if seen.question != "0":
            release.wait(20)
        return echo(seen)

    async def run(model: EndpointModel) -> None:
        stream = model.generate(ask(*map(str, range(20))), Sampling(max_new_tokens=5))
        group = await anext(stream)
        assert [reply.id for reply in group] == ["0"]
        await asyncio.sleep(0.1)
        await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]

    with FakeServer(script) as server:
        asyncio.run(run(EndpointModel("m", server.url, concurrency=4, gate=book)))
        release.set()
        assert len(server.seen) == len(book.admitted) == 4
    assert book.open == {"0": 1}
    assert {charged for _, charged in book.refusals} == {None}


def test_replies_that_came_and_are_not_wanted_any_more_are_told_as_unknown() -> None:
    book = Book()

    async def run(model: EndpointModel) -> int:
        stream = model.generate(ask(*map(str, range(20))), Sampling(max_new_tokens=5))
        taken = await anext(stream)
        await asyncio.sleep(0.3)  # the others come back meanwhile
        await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        return len(taken)

    with FakeServer(echo) as server:
        taken = asyncio.run(run(EndpointModel("m", server.url, concurrency=5, gate=book)))
        assert len(server.seen) == len(book.admitted) == 5
    assert sum(book.open.values()) == taken
