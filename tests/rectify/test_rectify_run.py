import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from tests.rectify.conftest import MakeFailure

from spot.errors import UserError
from spot.rectify.base import Correction, Failure, Oracle
from spot.rectify.run import objections, rectify
from spot.schema import Problem, Rectification, Verdict
from spot.store import Appender, read_rows


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


def run(path: Path, failures: Sequence[Failure], oracle: Oracle, done: set[str] | None = None) -> list[Rectification]:
    with Appender(path) as appender:
        asyncio.run(rectify(failures, oracle, contains_answer, appender, done=done or set()))
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
    rows = run(tmp_path / "r.jsonl", failures, oracle, done={"p0#0", "p3#0"})
    assert oracle.asked == ["p1#0", "p2#0", "p4#0", "p5#0", "p6#0"]
    assert {row.attempt_id: row.reason for row in rows} == {
        "p1#0": "", "p2#0": "", "p4#0": "", "p6#0": "", "p5#0": "no_correction",
    }  # fmt: skip


def test_nothing_open_asks_nothing(tmp_path: Path, make_failure: MakeFailure) -> None:
    oracle = TableOracle(lambda failure: None)
    assert run(tmp_path / "r.jsonl", [make_failure()], oracle, done={"p0#0"}) == []
    assert oracle.asked == []


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
    with pytest.raises(UserError, match=told):
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
