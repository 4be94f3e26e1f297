"""Each benchmark's loader on twenty rows of the published files' form, which are in the repository."""

from pathlib import Path

import pytest

from spot.evaluate.benchmarks.choices import shuffled
from spot.evaluate.overlap import overlaps
from spot.evaluate.registry import benchmark
from spot.schema import Pair, text_of
from spot.verify.resolve import resolve

ROWS = Path(__file__).parents[1] / "fixtures" / "benchmarks"
MATHS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench")


@pytest.mark.parametrize("name", [*MATHS, "ifeval", "gpqa"])
def test_every_row_is_a_question_of_its_own(name: str) -> None:
    problems = benchmark(name).problems(ROWS)
    assert len(problems) == len({problem.id for problem in problems}) == 20
    assert len({text_of(problem.prompt) for problem in problems}) == 20
    assert all(problem.answer and problem.source == name for problem in problems)


@pytest.mark.parametrize("name", MATHS)
def test_known_answers_verify_against_themselves_and_against_no_other(name: str) -> None:
    problems, verify = benchmark(name).problems(ROWS), resolve("math")
    for problem, other in zip(problems, [*problems[1:], problems[0]], strict=True):
        assert verify(f"So it is \\boxed{{{problem.answer}}}.", problem).correct is True, problem.id
        assert verify(f"So it is \\boxed{{{other.answer}}}.", problem).correct is not True, problem.id


def test_answers_are_read_however_the_files_write_them() -> None:
    first = {name: benchmark(name).problems(ROWS)[0].answer for name in MATHS}
    assert first == {"aime24": "22", "aime25": "50", "amc23": "42", "math500": r"\frac{3}{4}", "minerva": "1.6",
                     "olympiadbench": "2"}  # fmt: skip


def test_a_limit_draws_the_same_rows_in_their_order() -> None:
    problems = benchmark("minerva").problems(ROWS)
    drawn = benchmark("minerva").problems(ROWS, limit=8)
    assert drawn == benchmark("minerva").problems(ROWS, limit=8) != problems[:8]
    assert [problems.index(one) for one in drawn] == sorted(problems.index(one) for one in drawn)


def test_the_letter_of_gpqas_right_choice_follows_the_order_shown() -> None:
    for problem in benchmark("gpqa").problems(ROWS):
        for sample in range(4):
            asked = shuffled(problem, sample)
            assert f"{asked.answer}. volume" in text_of(asked.prompt)


@pytest.mark.parametrize("name", [*MATHS, "ifeval", "gpqa"])
def test_copies_are_found_by_the_check_of_overlap(name: str) -> None:
    task = benchmark(name)
    bare = task.problems(ROWS, "{question}")
    pairs = [
        Pair(id=row.id, problem_id=row.id, prompt=f"Solve this.\n\n{text_of(row.prompt).upper()}", chosen="b",
             rejected="c", change_ratio=0.1, oracle="o") for row in bare
    ]  # fmt: skip
    found = {(row.pair_id, row.problem_id) for row in overlaps({name: task.problems(ROWS)}, pairs)}
    assert {(row.id, row.id) for row in bare} <= found
