import asyncio
from collections import Counter
from pathlib import Path

import pytest
from tests.fault_server import A_TENTH, FAULTS, FaultServer

from spot.models.base import Body, Reply, Request
from spot.models.endpoint.model import EndpointModel
from spot.schema import Message, Sampling


class Book:
    """Counts how many tries of each request ended so that the server may have answered them."""

    proven = False
    doubtful: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.admitted: Counter[str] = Counter()
        self.refused_free: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    async def admit(self, request: Request, sampling: Sampling) -> None:
        self.admitted[request.id] += 1

    async def received(self, request: Request, body: Body) -> None:
        return None

    def refused(self, request: Request, charged: bool | None) -> None:
        (self.unknown if charged is None else self.refused_free)[request.id] += 1


def run(model: EndpointModel, count: int) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}

    async def collect() -> None:
        questions = [f"question {number}" for number in range(count)]
        requests = [Request(text, (Message(role="user", content=text),), 1) for text in questions]
        async for group in model.generate(requests, Sampling(max_new_tokens=64)):
            for reply in group:
                assert reply.id not in replies
                replies[reply.id] = reply

    asyncio.run(collect())
    return replies


@pytest.mark.timeout(120)
def test_two_thousand_requests_among_all_faults_each_end_and_none_is_asked_again(tmp_path: Path) -> None:
    rates = {**A_TENTH, "storm": 0.001, "storm_told": 0.001}
    book = Book()
    with FaultServer(rates, seed=6, log=tmp_path / "log.jsonl", storm_seconds=0.5, slow_seconds=0.5) as server:
        replies = run(EndpointModel("m", server.url, concurrency=128, timeout=5, gate=book), 2000)
        tries = server.stats()["tries"]
        committed = server.committed()
    assert set(tries) == {"none", *FAULTS}, "a fault that did not happen proves nothing"
    assert len(replies) == 2000
    # `empty`, `length` and half a surrogate pair are replies like any other; all other faults pass.
    assert Counter(reply.error or reply.finish_reason for reply in replies.values()) == {
        "stop": 2000 - tries["empty"] - tries["length"] - tries["surrogate"],
        "the reply holds half a surrogate pair, which no file can hold": tries["surrogate"],
        "empty content": tries["empty"],
        "length": tries["length"],
    }
    assert all(reply.text == reply.id.upper() for reply in replies.values() if reply.finish_reason != "error")
    # What was sent whole and asked for again (a machine too busy to read it in time) was told as possible spend.
    repeats = {question: times - 1 for question, times in committed.items() if times > 1}
    assert all(book.unknown[question] >= times for question, times in repeats.items())
    assert sum(repeats.values()) <= 20
    assert book.admitted == Counter(replies.keys()) + book.unknown + book.refused_free


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"empty", "length", "surrogate"}))
def test_each_fault_passes(fault: str) -> None:
    with FaultServer(
        {fault: 0.1 if fault in ("storm", "storm_told", "unicode") else 0.3},
        seed=1,
        storm_seconds=0.2,
        slow_seconds=0.2,
    ) as server:
        replies = run(EndpointModel("m", server.url, concurrency=8, timeout=1), 20)
        tries = server.stats()["tries"]
    assert {reply.finish_reason for reply in replies.values()} == {"stop"}
    assert len(replies) == 20
    assert tries[fault] > 0
