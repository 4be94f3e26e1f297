import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.train.packing import OVERHEAD_TOKENS, micro_batches


def cost(cuts: list[list[int]], lengths: list[int]) -> int:
    return sum(2 * len(cut) * max(lengths[index] for index in cut) + OVERHEAD_TOKENS for cut in cuts)


@given(st.lists(st.integers(2, 300), min_size=1, max_size=40), st.integers(600, 5000))
def test_each_pair_runs_once_within_the_budget(lengths: list[int], budget: int) -> None:
    cuts = micro_batches(lengths, budget)
    assert sorted(index for cut in cuts for index in cut) == list(range(len(lengths)))
    assert all(2 * len(cut) * max(lengths[index] for index in cut) <= budget for cut in cuts)


@given(st.lists(st.integers(2, 300), min_size=1, max_size=9))
def test_no_other_cut_of_the_sorted_pairs_is_cheaper(lengths: list[int]) -> None:
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    cheapest = min(
        cost([part for part in split(order, bits) if part], lengths) for bits in range(2 ** (len(lengths) - 1))
    )
    assert cost(micro_batches(lengths, 10**6), lengths) == cheapest


def split(order: list[int], bits: int) -> list[list[int]]:
    parts: list[list[int]] = [[order[0]]]
    for position, index in enumerate(order[1:]):
        if bits >> position & 1:
            parts.append([])
        parts[-1].append(index)
    return parts


def test_pairs_of_one_length_run_as_one() -> None:
    assert len(micro_batches([100] * 32, 16384)) == 1
    assert len(micro_batches([100] * 32, 3200)) == 2


def test_a_pair_beyond_the_budget_is_an_error_not_a_cut() -> None:
    with pytest.raises(ValueError, match="micro_batch_tokens to at least 202"):
        micro_batches([50, 101], 200)
    assert micro_batches([], 200) == []
