import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.rectify.conftest import MakeFailure

from spot.errors import UserError
from spot.files.store import Appender, read_rows
from spot.rectify.base import Correction
from spot.rectify.imported import ImportedOracle
from spot.rectify.run import rectify, stored
from spot.schema import Dropped, Problem, Rectification, Verdict


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_attempt_goes_before_problem_and_the_missing_are_told(make_failure: MakeFailure, tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.jsonl",
        {"problem_id": "p0", "response": "by problem"},
        {"attempt_id": "p0#0", "response": "by attempt", "meta": {"who": "me"}},
        {"problem_id": "p1", "response": "by problem"},
    )
    oracle = ImportedOracle(file)

    async def run() -> list[list[Correction]]:
        return [group async for group in oracle.correct([make_failure(number) for number in range(3)])]

    (group,) = asyncio.run(run())
    assert [(c.text, c.reason) for c in group] == [("by attempt", ""), ("by problem", ""), (None, "not_in_file")]


def test_rows_of_attempts_are_corrections_of_these_attempts(make_failure: MakeFailure, tmp_path: Path) -> None:
    failures = [make_failure(number) for number in range(2)]
    rows = [failure.attempt.model_copy(update={"response": f"fixed {i}"}) for i, failure in enumerate(failures)]
    oracle = ImportedOracle(write(tmp_path / "c.jsonl", *(row.model_dump(mode="json") for row in rows)))

    async def run() -> list[list[Correction]]:
        return [group async for group in oracle.correct(failures)]

    (group,) = asyncio.run(run())
    assert [(c.attempt_id, c.text) for c in group] == [("p0#0", "fixed 0"), ("p1#0", "fixed 1")]
    assert oracle.unused([failure.attempt for failure in failures]) == []


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"id": "a", "response": "x", "text": "y"},
            r"c\.jsonl:2: unknown field 'text'; .*attempt_id, problem_id, resp",
        ),
        ({"id": "a", "problem_id": "p"}, r"c\.jsonl:2: the field 'response' is missing"),
        ({"id": "b", "attempt_id": "a", "response": "x"}, r"c\.jsonl:2: unknown field 'id'"),
        ({"response": "x"}, r"c\.jsonl:2: needs either 'attempt_id' or 'problem_id'"),
        ({"attempt_id": "a", "problem_id": "p", "response": "x"}, r"c\.jsonl:2: needs either"),
        ({"attempt_id": "a"}, r"c\.jsonl:2: the field 'response' is missing"),
        ({"attempt_id": "a", "response": 3}, r"c\.jsonl:2: field 'response'"),
        ({"problem_id": "p0", "response": "x"}, r"c\.jsonl:2: id 'problem p0' was already used in line 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    file = write(tmp_path / "c.jsonl", {"problem_id": "p0", "response": "ok"}, row)
    with pytest.raises(UserError, match=told):
        ImportedOracle(file)


def test_bad_rows_can_be_skipped_and_are_recorded(tmp_path: Path) -> None:
    dropped: list[Dropped] = []
    good = {"problem_id": "p0", "response": "ok"}
    ImportedOracle(write(tmp_path / "c.jsonl", {"response": "x"}, good, good), on_bad_row="skip", dropped=dropped)
    assert [row.id for row in dropped] == ["line 1", "line 3"]


def test_corrections_that_correct_nothing_are_told(make_failure: MakeFailure, tmp_path: Path) -> None:
    wrong = [make_failure(number).attempt for number in range(3)]
    right = [
        attempt.model_copy(update={"verdict": Verdict(correct=True)})
        for attempt in (make_failure(3).attempt, make_failure(4).attempt)
    ]
    file = write(
        tmp_path / "c.jsonl",
        {"attempt_id": "p0#0", "response": "used"},
        {"problem_id": "p0", "response": "its only wrong attempt has one of its own"},
        {"problem_id": "p1", "response": "used"},
        {"attempt_id": "p3#0", "response": "the attempt is right"},
        {"problem_id": "p4", "response": "its attempt is right"},
        {"attempt_id": "p1#7", "response": "no such attempt"},
        {"problem_id": "p9", "response": "no such problem"},
    )
    unused = ImportedOracle(file).unused([*wrong, *right])
    assert {row.id: (row.reason, row.detail) for row in unused} == {
        "p3#0": ("no_such_failure", "this attempt is correct, not wrong"),
        "p1#7": ("no_such_failure", "there is no attempt of this id"),
        "p0": ("superseded", "each wrong attempt at this problem has a correction of its own"),
        "p4": ("no_such_failure", "no attempt at this problem is wrong"),
        "p9": ("no_such_failure", "no attempt is at it"),
    }
    assert {row.stage for row in unused} == {"rectify"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], r"c\.jsonl: none of its 0 corrections is of a wrong attempt; name wrong attempts by attempt_id"),
        (
            [{"attempt_id": "p9", "response": "x"}, {"problem_id": "p8", "response": "x"}],
            r"none of its 2 corrections is of a wrong attempt \(the first, 'p9': there is no attempt of this id\)",
        ),
    ],
)
def test_a_file_that_corrects_nothing_at_all_is_refused(
    make_failure: MakeFailure, tmp_path: Path, rows: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        ImportedOracle(write(tmp_path / "c.jsonl", *rows)).unused([make_failure().attempt])


def contains_answer(response: str, problem: Problem) -> Verdict:
    return Verdict(correct=problem.answer in response)


def test_a_correction_that_the_file_has_changed_is_taken_again(make_failure: MakeFailure, tmp_path: Path) -> None:
    failures = {failure.attempt.id: failure for failure in map(make_failure, range(3))}
    output, file = tmp_path / "r.jsonl", tmp_path / "c.jsonl"

    def imported(*rows: dict[str, str]) -> list[tuple[str, str, str]]:
        oracle = ImportedOracle(write(file, *rows))
        kept = stored(output, failures, oracle)
        with Appender(output) as appender:
            asyncio.run(rectify(list(failures.values()), oracle, contains_answer, appender, stored=kept))
        done.append(len(kept))
        return sorted((row.attempt_id, row.response, row.reason) for row in read_rows(output, Rectification))

    done: list[int] = []
    answers = [failure.problem.answer for failure in failures.values()]
    right = {"attempt_id": "p0#0", "response": f"it is {answers[0]}"}
    first = imported(right, {"attempt_id": "p1#0", "response": "it is"})
    assert [reason for _, _, reason in first] == ["", "does_not_verify", "not_in_file"]
    fixed = [{"attempt_id": f"p{n}#0", "response": f"it is {answers[n]}"} for n in (1, 2)]
    assert imported(right, *fixed) == [(f"p{n}#0", f"it is {answers[n]}", "") for n in range(3)]
    assert done == [0, 1]
