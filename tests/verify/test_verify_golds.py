"""Known answers and recorded labels of real data sets, from the copies in `../shared/data`; skipped without them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spot.verify import math as verify_module
from spot.verify import notation
from spot.verify.boxed import last_boxed
from spot.verify.math import verify, verify_many
from spot.verify.pool import Pool

SHARED_DATA = Path(os.environ.get("SPOT_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
# Known answers of OlympiadBench that cannot be read as mathematics, so that only the same words count as right.
UNREADABLE = {
    1965: "a sentence: f(x) = ax + b, where b is an arbitrary integer, ...",
    2045: "a misprint: t(0,4] for t in (0,4]",
}


@pytest.fixture(autouse=True, scope="module")
def patient_pool() -> Iterator[None]:
    """Workers of this module's own, patient enough for a machine that others use."""
    pool = Pool(cpu_seconds=10, wall_seconds=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "SHARED", pool)
        yield
    pool.close()


def rows_of(name: str) -> list[dict[str, Any]]:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs shared data: {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def known_answers(name: str) -> list[str]:
    """The known answers of a data set, one a row; `final_answer` is a list of one text with all parts."""
    rows = rows_of(f"{name}/test.jsonl")
    for field in ("answer", "expected_answer", "final_answer"):
        if field in rows[0]:
            return [row[field][0] if isinstance(row[field], list) else str(row[field]) for row in rows]
    return [last_boxed(row["solution"]) or "" for row in rows]


def right(pairs: list[tuple[str, str]]) -> int:
    return sum(verdict.correct is True for verdict in verify_many(pairs))


SIZES = {"math500": 500, "minerva_math": 272, "aime24": 30, "aime25": 30, "amc23": 40, "olympiadbench": 675}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_known_answers_verify_against_themselves(name: str, size: int) -> None:
    answers = known_answers(name)
    assert right([(f"\\boxed{{{answer}}}", answer) for answer in answers]) == len(answers) == size


@pytest.mark.parametrize("name", SIZES)
def test_known_answers_are_equal_to_themselves_for_the_workers(name: str) -> None:
    """Past the rule that like text is alike: the expressions themselves must be read."""
    answers = [notation.clean(answer) for answer in known_answers(name)]
    judgements = verify_module.SHARED.judge_many([(answer, answer) for answer in answers])
    failed = [row for row, judgement in enumerate(judgements) if judgement.correct is not True]
    expected = [row for row, found in enumerate(rows_of(f"{name}/test.jsonl")) if found.get("id") in UNREADABLE]
    assert failed == expected
    assert {judgements[row].reason for row in failed} <= {"the known answer cannot be read"}


@pytest.mark.parametrize("name", ["math500", "minerva_math"])
def test_whole_solutions_end_in_their_answers(name: str) -> None:
    rows = rows_of(f"{name}/test.jsonl")
    pairs = [(row["solution"], answer) for row, answer in zip(rows, known_answers(name), strict=True)]
    assert right(pairs) == len(rows)


@pytest.mark.parametrize("name", ["aime24", "aime25", "amc23"])
def test_competition_answers_are_integers_however_written(name: str) -> None:
    answers = known_answers(name)
    integers = [int(float(answer)) for answer in answers]
    assert right([(f"\\boxed{{{number}}}", answer) for number, answer in zip(integers, answers, strict=True)]) == len(
        answers
    )
    assert right([(f"\\boxed{{{number + 1}}}", answer) for number, answer in zip(integers, answers, strict=True)]) == 0


def test_olympiad_answers_with_a_unit_are_right_with_and_without_it() -> None:
    """The field `unit` is not part of the answer. Its authors too leave units out."""
    rows = [row for row in rows_of("olympiadbench/test.jsonl") if row["unit"] and not row["is_multiple_answer"]]
    for row in rows:
        answer, unit = row["final_answer"][0], row["unit"].strip("$")
        bare = answer.strip("$")
        with_unit = rf"{bare} \%" if unit == "%" else f"{bare} \\text{{ {unit} }}"
        assert verify(f"\\boxed{{{bare}}}", answer).correct is True, row["id"]
        assert verify(f"\\boxed{{{with_unit}}}", answer).correct is True, row["id"]
    assert len(rows) == 7


def test_the_one_tolerance_of_olympiadbench_is_not_taken() -> None:
    """Its authors allow 0.1 where the question asks for one decimal place, which has one right answer."""
    (row,) = [row for row in rows_of("olympiadbench/test.jsonl") if row["error"]]
    assert (row["id"], row["final_answer"], row["error"]) == (2592, ["4.2"], "1e-1")
    assert verify(r"\boxed{4.2}", "4.2").correct is True
    assert verify(r"\boxed{4.3}", "4.2").correct is False


def test_olympiad_answers_of_several_parts_are_right_in_any_order_and_only_complete() -> None:
    rows = [row for row in rows_of("olympiadbench/test.jsonl") if row["is_multiple_answer"]]
    reversed_lists: list[tuple[str, str]] = []
    shortened: list[tuple[str, str]] = []
    for row in rows:
        answer = row["final_answer"][0].replace("$", "")
        parts = notation.items(answer)
        if len(parts) > 1 and row["id"] not in UNREADABLE and "=" not in answer:
            reversed_lists.append((f"\\boxed{{{', '.join(reversed(parts))}}}", row["final_answer"][0]))
            shortened.append((f"\\boxed{{{', '.join(parts[:-1])}}}", row["final_answer"][0]))
    assert len(reversed_lists) == 85
    assert right(reversed_lists) == len(reversed_lists)
    assert right(shortened) == 0


def test_gsm8k_recorded_answers_are_judged_as_their_authors_did() -> None:
    """Every one of the 5,276 labels: none has to be called wrong."""
    rows = rows_of("gsm8k/example_model_solutions.jsonl")
    pairs: list[tuple[str, str]] = []
    recorded: list[bool] = []
    for row in rows:
        known = row["ground_truth"].rsplit("A: ", 1)[1]
        for solution in (value for value in row.values() if isinstance(value, dict)):
            pairs.append((solution["solution"], known))
            recorded.append(solution["is_correct"])
    verdicts = verify_many(pairs, r"A:\s*(.+)")
    assert [verdict.correct for verdict in verdicts] == recorded
    assert len(recorded) == 4 * 1319
