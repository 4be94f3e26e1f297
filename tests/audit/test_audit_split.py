"""Answers cut into steps, and steps matched with steps: nothing lost, nothing twice, order kept."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.audit.split import aligned, shared_start, steps_of

WRITING = st.text(alphabet="ab1 .;\n()[]\\$=", max_size=80)
STEPS = st.lists(st.sampled_from(["a = 1", "b = 2", "b = 3", "so c", "so d"]), max_size=9)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("First a = 1. Then b = 2.", ["First a = 1.", "Then b = 2."]),
        ("a = 1\n\nb = 2\nc", ["a = 1", "b = 2", "c"]),
        ("12 + 2 = 14; 14 * 2 = 28; \\boxed{28}", ["12 + 2 = 14;", "14 * 2 = 28;", "\\boxed{28}"]),
        ("x \\; = 3 and f(x; y) = [1; 2]; done", ["x \\; = 3 and f(x; y) = [1; 2];", "done"]),
        ("It costs 2.50 e.g. here", ["It costs 2.50 e.g. here"]),
        ("  ", []),
        ("", []),
    ],
)
def test_lines_sentences_and_clauses_are_steps(text: str, steps: list[str]) -> None:
    assert steps_of(text) == steps


@given(WRITING)
def test_cutting_loses_nothing_but_white_space(text: str) -> None:
    steps = steps_of(text)
    assert "".join(" ".join(steps).split()) == "".join(text.split())
    assert all(step == " ".join(step.split()) != "" for step in steps)


@given(STEPS, STEPS)
def test_every_step_is_matched_once_and_in_order(rejected: list[str], chosen: list[str]) -> None:
    found = aligned(rejected, chosen)
    assert [row for row, _ in found if row is not None] == list(range(len(rejected)))
    assert [column for _, column in found if column is not None] == list(range(len(chosen)))
    both = [(row, column) for row, column in found if row is not None and column is not None]
    assert all(one[0] < two[0] and one[1] < two[1] for one, two in pairwise(both))
    shared = shared_start(rejected, chosen)
    assert rejected[:shared] == chosen[:shared]
    assert found[:shared] == [(place, place) for place in range(shared)]


@given(STEPS)
def test_an_answer_matches_itself(steps: list[str]) -> None:
    assert aligned(steps, steps) == [(place, place) for place in range(len(steps))]


def test_of_steps_between_the_most_alike_are_matched() -> None:
    rejected = ["start", "12 + 2 = 14", "end"]
    chosen = ["start", "Doubling it.", "12 * 2 = 24", "end"]
    assert aligned(rejected, chosen) == [(0, 0), (None, 1), (1, 2), (2, 3)]
    assert aligned(chosen, rejected) == [(0, 0), (1, None), (2, 1), (3, 2)]
    assert aligned([], chosen[:2]) == [(None, 0), (None, 1)]
