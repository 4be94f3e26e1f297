import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.train.packing import Plan, plan_step


@given(st.lists(st.integers(2, 300), max_size=40), st.integers(300, 5000), st.integers(1, 5))
def test_each_pair_runs_once_within_the_budget(lengths: list[int], budget: int, num_ranks: int) -> None:
    plan = plan_step(lengths, budget, num_ranks)
    rows = [row for rank in plan for row in rank]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= budget for row in rows)
    # Ranks that call the module unequally often would wait for each other for ever.
    assert len(plan) == num_ranks and len({len(rank) for rank in plan}) == 1 and plan[0]


@given(st.lists(st.integers(2, 300), max_size=40), st.integers(300, 5000), st.integers(1, 5))
def test_where_pairs_are_padded_the_padding_counts(lengths: list[int], budget: int, num_ranks: int) -> None:
    plan = plan_step(lengths, budget, num_ranks, padded=True)
    rows = [row for rank in plan for row in rank]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(len(row) * max(lengths[index] for index in row) <= budget for row in rows if row)
    assert len(plan) == num_ranks and len({len(rank) for rank in plan}) == 1 and plan[0]


@given(st.lists(st.integers(2, 300), min_size=1, max_size=40), st.integers(300, 5000))
def test_few_rows(lengths: list[int], budget: int) -> None:
    # No plan needs more rows than one that closes a row when the next pair does not fit: less than twice the volume.
    assert len(plan_step(lengths, budget)[0]) <= 2 * sum(lengths) // budget + 1


def fill(plan: Plan, lengths: list[int]) -> float:
    """The share of the token slots that hold a token: ranks wait for the longest row among them."""
    loads = [[sum(lengths[index] for index in row) for row in rows] for rows in plan]
    return sum(map(sum, loads)) / (sum(max(row) for row in zip(*loads, strict=True)) * len(plan))


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
@pytest.mark.parametrize("budget", [2900, 16384])
def test_nine_tenths_of_the_slots_hold_tokens(num_ranks: int, budget: int) -> None:
    rng = random.Random(0)
    shares: list[float] = []
    for _ in range(50):
        lengths = [rng.randint(300, 2800) for _ in range(32 * num_ranks)]
        shares.append(fill(plan_step(lengths, budget, num_ranks), lengths))
    assert sum(shares) / len(shares) > 0.9


def test_a_pair_beyond_the_budget_is_an_error_not_a_cut() -> None:
    with pytest.raises(ValueError, match="micro_batch_tokens to at least 201"):
        plan_step([50, 201], 200)
    assert plan_step([], 200) == [[[]]]
