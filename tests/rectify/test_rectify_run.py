import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from tests.rectify.conftest import MakeFailure

from spot.errors import RunFailed, UserError
from spot.files.store import Appender, read_rows
from spot.models.base import Gate, NoMore, Reply, Request
from spot.models.paid.ledger import Ledger
from spot.models.paid.recorded import RecordedModel
from spot.rectify.base import Correction, Failure, Oracle
from spot.rectify.model_oracle import ModelOracle
from spot.rectify.run import objections, rectify, stored
from spot.rectify.target import Target
from spot.schema import Problem, Rectification, Sampling, Verdict


class TableOracle:
    name = "table"
    mode: Literal["rewrite", "patch", "continue", "import"] = "rewrite"

    def __init__(self, answer: Callable[[Failure], Correction | None], group: int = 2) -> None:
        self.asked: list[str] = []
        self._answer = answer
        self._group = group

    async def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        self.asked += [failure.attempt.id for failure in failures]
        corrections = [self._answer(failure) for failure in failures]
        for start in range(0, len(corrections), self._group):
            yield [correction for correction in corrections[start : start + self._group] if correction is not None]


def contains_answer(response: str, problem: Problem) -> Verdict:
    """Right where the answer is in the text; `?` cannot be judged."""
    return Verdict(correct=None if "?" in response else problem.answer in response)


def run(
    path: Path, failures: Sequence[Failure], oracle: Oracle, stored: Sequence[Rectification] = ()
) -> list[Rectification]:
    with Appender(path) as appender:
        asyncio.run(rectify(failures, oracle, contains_answer, appender, stored=stored))
    return read_rows(path, Rectification) if path.exists() else []


@pytest.mark.parametrize(
    ("text", "oracle_reason", "accepted", "reason"),
    [
        ("it is 4", "", True, ""),
        ("it is 6", "", False, "does_not_verify"),
        ("is it 4?", "", False, "unscored"),
        (" \n", "", False, "empty"),
        (None, "no_block", False, "no_block"),
        (None, "", False, "empty"),
        ("it is 4", "meta_phrase", False, "meta_phrase"),
        (" 2 + 2 = 5, so \\boxed{5} ", "", False, "same_as_rejected"),
    ],
)
def test_only_what_verifies_is_accepted(
    tmp_path: Path, make_failure: MakeFailure, text: str | None, oracle_reason: str, accepted: bool, reason: str
) -> None:
    oracle = TableOracle(lambda failure: Correction(failure.attempt.id, text, oracle_reason, prompt_version="v@1"))
    (row,) = run(tmp_path / "r.jsonl", [make_failure()], oracle)
    assert (row.accepted, row.reason) == (accepted, reason)
    assert not row.accepted or row.verdict.correct is True
    assert (row.id, row.attempt_id, row.problem_id) == ("p0#0~table.0", "p0#0", "p0")
    assert (row.mode, row.prompt_version, row.response) == ("rewrite", "v@1", text or "")


def test_what_is_done_is_not_asked_and_every_failure_gets_a_row(tmp_path: Path, make_failure: MakeFailure) -> None:
    failures = [make_failure(number) for number in range(7)]
    oracle = TableOracle(lambda failure: None if failure.problem.id == "p5" else Correction(failure.attempt.id, "4"))
    stored = run(tmp_path / "stored.jsonl", [failures[0], failures[3]], oracle)
    oracle.asked.clear()
    rows = run(tmp_path / "r.jsonl", failures, oracle, stored)
    assert oracle.asked == ["p1#0", "p2#0", "p4#0", "p5#0", "p6#0"]
    assert {row.attempt_id: row.reason for row in rows} == {
        "p1#0": "", "p2#0": "", "p4#0": "", "p6#0": "", "p5#0": "no_correction",
    }  # fmt: skip


def test_nothing_open_asks_nothing(tmp_path: Path, make_failure: MakeFailure) -> None:
    oracle = TableOracle(lambda failure: Correction(failure.attempt.id, "4"))
    stored = run(tmp_path / "stored.jsonl", [make_failure()], oracle)
    oracle.asked.clear()
    assert run(tmp_path / "r.jsonl", [make_failure()], oracle, stored) == []
    assert oracle.asked == []


class Paid:
    """Answers by `script`, `width` at a time, behind a gate, and counts."""

    name = "paid"

    def __init__(self, script: Callable[[Request], str], width: int = 8) -> None:
        self.gate: Gate | None = None
        self.sent: list[str] = []
        self._script = script
        self._width = width

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        todo = iter([request for request in requests if request.id not in done])
        replies: asyncio.Queue[Reply | None] = asyncio.Queue()

        async def work() -> None:
            with contextlib.suppress(NoMore):
                for request in todo:
                    assert self.gate is not None
                    await self.gate.admit(request, sampling)
                    self.sent.append(request.about)
                    await asyncio.sleep(0.001)
                    replies.put_nowait(Reply(request.id, self._script(request), "stop"))
            replies.put_nowait(None)

        workers = [asyncio.create_task(work()) for _ in range(self._width)]
        for _ in workers:
            while (reply := await replies.get()) is not None:
                yield [reply]


@pytest.mark.parametrize("wanted", [1, 5, 9, 100])
def test_exactly_as_many_pairs_as_are_wanted_and_nothing_paid_beyond(
    tmp_path: Path, make_failure: MakeFailure, wanted: int
) -> None:
    failures = [make_failure(number) for number in range(30)]
    # Of three answers one is wrong and one is too far from what it corrects.
    texts = ["it is 4", "it is 6", "it is 4, as anyone can see who looks at it for long enough"]
    model = Paid(lambda request: texts[int(request.about[1:-2]) % 3])
    with Ledger(tmp_path / "ledger.sqlite") as ledger, Appender(tmp_path / "r.jsonl") as appender:
        target = Target(wanted)
        recorded = RecordedModel(model, ledger, "rectify", turnstile=target)
        oracle = ModelOracle(recorded, True, "simplified", target=target)
        asyncio.run(rectify(failures, oracle, contains_answer, appender, within=lambda _, chosen: len(chosen) < 20))
    rows = read_rows(tmp_path / "r.jsonl", Rectification)
    good = [row for row in rows if row.response == "it is 4"]
    assert len(rows) == len(model.sent) == len(set(model.sent))
    if wanted <= 10:
        assert len(good) == wanted and not target.missing
        assert {row.reason for row in rows} <= {"", "does_not_verify"}
    else:
        assert len(rows) == 30 and target.missing == wanted - 10


def test_replies_on_record_give_no_more_pairs_than_are_wanted(tmp_path: Path, make_failure: MakeFailure) -> None:
    failures = [make_failure(number) for number in range(10)]
    for wanted, sent in [(10, 10), (4, 0)]:
        path, model = tmp_path / f"{wanted}.jsonl", Paid(lambda request: "it is 4")
        with Ledger(tmp_path / "ledger.sqlite") as ledger, Appender(path) as appender:
            target = Target(wanted)
            oracle = ModelOracle(
                RecordedModel(model, ledger, "rectify", turnstile=target), True, "simplified", target=target
            )
            asyncio.run(rectify(failures, oracle, contains_answer, appender))
        assert (len(model.sent), len(read_rows(path, Rectification))) == (sent, wanted)


class InProcess:
    """A model without a gate."""

    name = "local"

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        assert sampling and not done
        self.asked.append(len(requests))
        texts = ["it is 4", "it is 6"]
        yield [Reply(request.id, texts[int(request.about[1:-2]) % 2], "stop") for request in requests]


def test_a_model_in_process_gives_exactly_as_many_too(tmp_path: Path, make_failure: MakeFailure) -> None:
    failures = [make_failure(number) for number in range(30)]
    target, model = Target(6), InProcess()
    with Ledger(tmp_path / "ledger.sqlite") as ledger, Appender(tmp_path / "r.jsonl") as appender:
        oracle = ModelOracle(
            RecordedModel(model, ledger, "rectify", turnstile=target), True, "simplified", target=target
        )
        asyncio.run(rectify(failures, oracle, contains_answer, appender))
    assert sum(row.accepted for row in read_rows(tmp_path / "r.jsonl", Rectification)) == 6
    assert model.asked == [6, 3, 1, 1]  # as many as were missing each time


@pytest.mark.parametrize("changed", ["nothing", "prompt", "sampling", "response", "answer"])
def test_what_was_asked_otherwise_is_not_taken_for_an_answer(
    tmp_path: Path, make_failure: MakeFailure, changed: str
) -> None:
    path, failure = tmp_path / "r.jsonl", make_failure()
    with Appender(path) as appender:
        oracle = ModelOracle(InProcess(), True, "simplified")
        asyncio.run(rectify([failure], oracle, contains_answer, appender))
    if changed == "prompt":
        oracle = ModelOracle(InProcess(), True)
    elif changed == "sampling":
        oracle = ModelOracle(InProcess(), True, "simplified", Sampling(temperature=0.123))
    elif changed == "response":
        failure = Failure(failure.problem, failure.attempt.model_copy(update={"response": "it is 7"}))
    elif changed == "answer":
        failure = Failure(failure.problem.model_copy(update={"answer": "6"}), failure.attempt)
    if changed == "nothing":
        assert len(stored(path, {failure.attempt.id: failure}, oracle)) == 1
        return
    with pytest.raises(UserError, match="answers another attempt, prompt, sampling or"):
        stored(path, {failure.attempt.id: failure}, oracle)


def test_a_resumed_run_counts_the_pairs_that_it_has(tmp_path: Path, make_failure: MakeFailure) -> None:
    failures = [make_failure(number) for number in range(10)]
    path = tmp_path / "r.jsonl"
    for wanted, sent in [(3, 3), (5, 2)]:
        stored = read_rows(path, Rectification) if path.exists() else []
        model = Paid(lambda request: "it is 4")
        with Ledger(tmp_path / "ledger.sqlite") as ledger, Appender(path) as appender:
            target = Target(wanted)
            oracle = ModelOracle(
                RecordedModel(model, ledger, "rectify", turnstile=target), True, "simplified", target=target
            )
            asyncio.run(rectify(failures, oracle, contains_answer, appender, stored=stored))
        assert len(model.sent) == sent
        assert len(read_rows(path, Rectification)) == wanted


def test_candidates_that_are_stored_are_not_written_again(tmp_path: Path, make_failure: MakeFailure) -> None:
    path = tmp_path / "r.jsonl"
    for candidates, sent in [(1, 1), (3, 2)]:
        stored = read_rows(path, Rectification) if path.exists() else []
        model = Paid(lambda request: f"it is 4, says {request.candidate}")
        with Ledger(tmp_path / "ledger.sqlite") as ledger, Appender(path) as appender:
            oracle = ModelOracle(RecordedModel(model, ledger, "rectify"), True, "simplified", candidates=candidates)
            asyncio.run(rectify([make_failure()], oracle, contains_answer, appender, stored=stored))
        assert len(model.sent) == sent
    assert [row.response[-1] for row in read_rows(path, Rectification)] == ["0", "1", "2"]


def test_progress_is_told_after_the_commit(tmp_path: Path, make_failure: MakeFailure) -> None:
    path = tmp_path / "r.jsonl"
    told: list[str] = []

    def on_progress(rows: Sequence[Rectification]) -> None:
        told.extend(row.id for row in rows)
        assert told == [row.id for row in read_rows(path, Rectification)]

    failures = [make_failure(number) for number in range(5)]
    with Appender(path) as appender:
        oracle = TableOracle(lambda failure: Correction(failure.attempt.id, "4"))
        asyncio.run(rectify(failures, oracle, contains_answer, appender, on_progress=on_progress))
    assert len(told) == 5


@pytest.mark.parametrize(("answered", "told"), [("other#0", "was not asked"), ("p0#0", "two corrections")])
def test_an_oracle_that_miscounts_is_stopped(
    tmp_path: Path, make_failure: MakeFailure, answered: str, told: str
) -> None:
    failures = [make_failure(0), make_failure(1)]
    with pytest.raises(RunFailed, match=told):
        run(tmp_path / "r.jsonl", failures, TableOracle(lambda _: Correction(answered, "4")))
    assert not (tmp_path / "r.jsonl").exists()


def test_why_nothing_was_accepted_in_a_few_words(tmp_path: Path, make_failure: MakeFailure) -> None:
    texts = {"p0": "it is 4", "p1": None, "p2": "it is 6", "p3": None}
    oracle = TableOracle(lambda failure: Correction(failure.attempt.id, texts[failure.problem.id]))
    rows = run(tmp_path / "r.jsonl", [make_failure(number) for number in range(4)], oracle)
    assert objections(rows) == "empty 2, does_not_verify 1; the first is p1#0: empty"
    wrong = rows[2].model_copy(update={"verdict": Verdict(correct=False, answer="6")})
    assert objections([wrong]) == "does_not_verify 1; the first is p2#0: does_not_verify, it answers '6'"
    assert objections(rows[:1]) == "no corrections"
