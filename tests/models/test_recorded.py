"""A model behind the ledger: replies on record are free, limits hold, nothing is paid twice."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from spot.errors import StoppedEarly
from spot.models.base import Gate, NoMore, Reply, Request, Usage, request_key
from spot.models.paid.ledger import Admit, Ledger, Prices
from spot.models.paid.recorded import RecordedModel, worst_cost
from spot.schema import Message, Sampling

SAMPLING = Sampling(max_new_tokens=1000)
PRICES = Prices(input=0, output=1000)  # a dollar a request at the worst, since it may have 1,000 tokens


def asked(count: int, **fields: Any) -> list[Request]:
    return [Request(f"r{n}", (Message(role="user", content=f"question {n}"),), seed=n, **fields) for n in range(count)]


def answer(request: Request) -> Reply | None:
    return Reply(request.id, f"answer to {request.id}", "stop", usage=Usage(10, 100))


class Paid:
    """A paid model with `width` requests in flight; `script` answers, or fails with `None`."""

    name = "paid"

    def __init__(self, script: Callable[[Request], Reply | None] = answer, width: int = 3) -> None:
        self.gate: Gate | None = None
        self.sent: list[str] = []
        self.on_the_way = 0
        self.most_on_the_way = 0
        self._script = script
        self._width = width

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        replies: asyncio.Queue[Reply | Exception | None] = asyncio.Queue()
        todo = iter([request for request in requests if request.id not in done])

        async def work() -> None:
            try:
                for request in todo:
                    replies.put_nowait(await self._ask(request, sampling))
            except (NoMore, StoppedEarly) as error:
                replies.put_nowait(error)
            replies.put_nowait(None)

        workers = [asyncio.create_task(work()) for _ in range(self._width)]
        over: Exception | None = None
        for _ in workers:
            while (reply := await replies.get()) is not None:
                if isinstance(reply, Exception):
                    over = over or reply
                else:
                    yield [reply]
        if isinstance(over, StoppedEarly):
            raise over

    async def _ask(self, request: Request, sampling: Sampling) -> Reply:
        while True:
            assert self.gate is not None
            await self.gate.admit(request, sampling)
            self.sent.append(request.id)
            self.on_the_way += 1
            self.most_on_the_way = max(self.most_on_the_way, self.on_the_way)
            await asyncio.sleep(0.001)
            self.on_the_way -= 1
            reply = self._script(request)
            if reply is not None:
                return reply
            self.gate.refused(request, charged=False)


def run(model: RecordedModel, requests: Sequence[Request], done: frozenset[str] = frozenset()) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}

    async def go() -> None:
        async for group in model.generate(requests, SAMPLING, done):
            for reply in group:
                assert reply.id not in replies
                replies[reply.id] = reply

    try:
        asyncio.run(go())
    finally:
        run.last = replies  # pyright: ignore[reportFunctionMemberAccess]
    return replies


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_a_reply_on_record_is_not_asked_for_again(path: Path) -> None:
    for expected in (["r0", "r1", "r2", "r3"], []):
        model = Paid()
        with Ledger(path) as ledger:
            replies = run(RecordedModel(model, ledger, "rectify", PRICES), asked(4))
            assert sorted(model.sent) == expected
            assert {id: reply.text for id, reply in replies.items()} == {f"r{n}": f"answer to r{n}" for n in range(4)}
            assert ledger.spent() == (pytest.approx(4 * 0.1), 0)


def test_what_is_done_is_neither_asked_nor_yielded(path: Path) -> None:
    model = Paid()
    with Ledger(path) as ledger:
        recorded = RecordedModel(model, ledger, "rectify", PRICES)
        assert sorted(run(recorded, asked(4), frozenset({"r1"}))) == ["r0", "r2", "r3"]
        assert sorted(run(recorded, asked(4), frozenset({"r0"}))) == ["r1", "r2", "r3"]
    assert sorted(model.sent) == ["r0", "r1", "r2", "r3"]


@pytest.mark.parametrize("change", ["seed", "candidate", "attempt", "prefix"])
def test_another_request_is_asked_by_itself(path: Path, change: str) -> None:
    model = Paid()
    other: Any = {"seed": 99, "candidate": 1, "attempt": 1, "prefix": "So"}[change]
    [request] = asked(1)
    changed = Request(**{**request.__dict__, change: other})
    with Ledger(path) as ledger:
        recorded = RecordedModel(model, ledger, "rectify", PRICES)
        run(recorded, [request])
        run(recorded, [changed])
    assert len(model.sent) == 2
    assert request_key("e", request, SAMPLING) != request_key("e", changed, SAMPLING)
    assert request_key("e", request, SAMPLING) != request_key("f", request, SAMPLING)


def test_retries_are_tries_of_one_request(path: Path) -> None:
    fails = {"r0": 2}

    def script(request: Request) -> Reply | None:
        if fails.get(request.id):
            fails[request.id] -= 1
            return None
        return answer(request)

    with Ledger(path) as ledger:
        run(RecordedModel(Paid(script), ledger, "rectify", PRICES), asked(2))
        rows = {row["request_id"]: (row["sends"], row["refused"], row["replied"]) for row in ledger.rows()}
        assert rows == {"r0": (3, 2, 1), "r1": (1, 0, 1)}
        assert ledger.spent() == (pytest.approx(0.2), 0)


def test_the_limit_stops_before_it_and_the_same_command_goes_on(path: Path) -> None:
    model = Paid(width=4)
    with Ledger(path) as ledger:
        # Worst cases are a dollar, true ones 10 cents: at most two may be on their way, and 16 come to 1.6.
        with pytest.raises(StoppedEarly, match=r"\$1\.60 are spent.*raise it and run the same command again"):
            run(RecordedModel(model, ledger, "rectify", PRICES, max_cost=2.55), asked(30))
        assert model.most_on_the_way == 2
        assert len(run.last) == 16  # pyright: ignore[reportFunctionMemberAccess]
        assert ledger.spent() == (pytest.approx(1.6), 0)
        assert len(run(RecordedModel(model, ledger, "rectify", PRICES, max_cost=9), asked(30))) == 30
    assert len(model.sent) == len(set(model.sent)) == 30


def test_an_error_reply_that_was_charged_is_not_bought_again(path: Path) -> None:
    def empty(request: Request) -> Reply:
        return Reply(request.id, "", "error", error="empty content", usage=Usage(10, 50))

    first, second = Paid(empty), Paid()
    for model in (first, second):
        with Ledger(path) as ledger:
            assert run(RecordedModel(model, ledger, "rectify", PRICES), asked(1))["r0"].error == "empty content"
            assert ledger.spent() == (pytest.approx(0.05), 0)
    assert (len(first.sent), len(second.sent)) == (1, 0)


def test_a_reply_is_committed_before_it_is_yielded(path: Path) -> None:
    async def go() -> None:
        with Ledger(path) as ledger, Ledger(path) as other:
            async for group in RecordedModel(Paid(), ledger, "rectify", PRICES).generate(asked(5), SAMPLING):
                keys = {request_key("paid", request, SAMPLING): request.id for request in asked(5)}
                on_record = {reply.id for replies in other.replies(keys) for reply in replies}
                assert {reply.id for reply in group} <= on_record

    asyncio.run(go())


def test_every_try_is_committed_before_it_is_sent(path: Path) -> None:
    with Ledger(path) as ledger, Ledger(path) as other:
        seen: list[bool] = []

        def script(request: Request) -> Reply | None:
            seen.append(request.id in {row["request_id"] for row in other.rows() if row["sends"]})
            return answer(request)

        run(RecordedModel(Paid(script), ledger, "rectify", PRICES), asked(6))
        assert seen == [True] * 6


def test_what_another_process_is_waiting_for_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spot.models.paid.gate.ELSEWHERE_EVERY", 0.01)
    [request] = asked(1)
    model = Paid()

    async def go() -> list[Reply]:
        with Ledger(path) as ours, Ledger(path) as theirs:
            theirs._owner = "elsewhere:1:1"  # pyright: ignore[reportPrivateUsage]
            recorded = RecordedModel(model, theirs, "rectify", PRICES)
            key = request_key("paid", request, SAMPLING)
            theirs.apply([Admit(recorded.entry(request, SAMPLING, key), None)])
            found: list[Reply] = []

            async def ask() -> None:
                async for group in RecordedModel(model, ours, "rectify", PRICES).generate([request], SAMPLING):
                    found.extend(group)

            asking = asyncio.create_task(ask())
            await asyncio.sleep(0.1)
            assert not found
            reply = answer(request)
            assert reply is not None
            theirs.apply([recorded.operation(key, reply)])
            await asyncio.wait_for(asking, 10)
            return found

    [reply] = asyncio.run(go())
    assert reply.text == "answer to r0" and not model.sent


class Local:
    """A model in process: no gate."""

    name = "local"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        self.asked += [request.id for request in requests if request.id not in done]
        yield [Reply(request.id, "text", "stop", (1, 2)) for request in requests if request.id not in done]


def test_a_model_in_process_is_recorded_and_costs_nothing(path: Path) -> None:
    model = Local()
    with Ledger(path) as ledger:
        for _ in range(2):
            assert len(run(RecordedModel(model, ledger, "rectify", PRICES, max_cost=0.01), asked(3))) == 3
        assert ledger.spent() == (0, 0)
    assert model.asked == ["r0", "r1", "r2"]


def test_the_worst_case_counts_a_byte_as_a_token() -> None:
    request = Request("r", (Message(role="user", content="né" * 100),), seed=0)
    assert worst_cost(request, SAMPLING, Prices(input=1, output=10)) == pytest.approx((300 + 64 + 10_000) / 1e6)


def test_other_prices_on_the_next_go_keep_the_account_right(path: Path) -> None:
    [request] = asked(1)
    key = request_key("paid", request, SAMPLING)
    for prices, open_ in [(Prices(), 0), (PRICES, 2), (Prices(output=500), 1.5)]:
        with Ledger(path) as ledger:
            entry = RecordedModel(Paid(), ledger, "rectify", prices).entry(request, SAMPLING, key)
            ledger.apply([Admit(entry, None)])
            assert ledger.spent() == (0, pytest.approx(open_))
            assert sum(line.possible for line in ledger.lines()) == pytest.approx(open_)


def test_thinking_that_no_limit_holds_is_reserved_for_and_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server counts 8,000 tokens of thinking in the total alone, whatever `max_new_tokens` (1,000) is."""

    def thinks(request: Request) -> Reply:
        return Reply(request.id, "text", "stop", usage=Usage(100, 50, 8150))

    model = Paid(thinks, width=2)
    with Ledger(path) as ledger:
        with pytest.raises(StoppedEarly, match=r"could cost \$12\.07"):
            run(RecordedModel(model, ledger, "rectify", PRICES, max_cost=30), asked(20))
        spent, open_ = ledger.spent()
        assert spent == pytest.approx(8.05 * len(model.sent)) and open_ == 0
        # What was on its way before it was known is all that came beyond what was reserved.
        sent = len(model.sent)
        assert 2 <= sent <= 4
        assert "took 8,050 output tokens, and max_new_tokens is 1,000" in caplog.text
        told = re.search(r"the (\d) requests on their way may pass max_cost by \$([0-9.]+)", caplog.text)
        assert told and float(told[2]) == pytest.approx(int(told[1]) * 11.075, abs=0.01)
        assert spent - 30 <= float(told[2])
        [line] = ledger.lines()
        assert (line.completion_tokens, line.reasoning_tokens) == (sent * 8050, sent * 8000)
    # The next command knows it from the ledger.
    with Ledger(path) as ledger, pytest.raises(StoppedEarly, match=r"could cost \$12\.07"):
        run(RecordedModel(model, ledger, "rectify", PRICES, max_cost=30), asked(20))
    assert len(model.sent) == sent


@pytest.mark.parametrize(
    ("usage", "output", "thinking"),
    [
        (Usage(100, 50), 50, 0),
        (Usage(100, 50, 150), 50, 0),
        (Usage(100, 50, 150, 40), 50, 40),  # among them
        (Usage(100, 50, 8150), 8050, 8000),  # in the total alone
        (Usage(100, 50, 8150, 8000), 8050, 8000),
        (Usage(100, 50, 90), 50, 0),  # a total that is none
    ],
)
def test_output_is_at_least_the_total_without_the_prompt(path: Path, usage: Usage, output: int, thinking: int) -> None:
    with Ledger(path) as ledger:
        run(
            RecordedModel(Paid(lambda r: Reply(r.id, "text", "stop", usage=usage)), ledger, "rectify", PRICES), asked(1)
        )
        assert ledger.spent()[0] == pytest.approx(output / 1000)
        [line] = ledger.lines()
        assert (line.completion_tokens, line.reasoning_tokens) == (output, thinking)
