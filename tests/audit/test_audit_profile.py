"""The bins along the answer."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.audit.profile import Profile, bin_of, bounds


@given(st.integers(-(2**22), 2**22))
def test_a_token_is_within_the_bounds_of_its_bin(offset: int) -> None:
    first, last = bounds(bin_of(offset))
    assert first <= offset <= last


def test_bins_join_without_gap_and_double() -> None:
    edges = [bounds(place) for place in range(-6, 7)]
    assert all(first[1] + 1 == second[0] for first, second in pairwise(edges))
    assert edges[6:] == [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5))
def test_means_are_those_of_a_loop(answers: list[tuple[int, int]]) -> None:
    profile, slow = Profile(), {}
    for before, after in answers:
        values = np.arange(before + after + 1, dtype=float) ** 1.5
        profile.add("chosen", values, before)
        for place, value in enumerate(values):
            slow.setdefault(bin_of(place - before), []).append(value)
    found = {row.first: row for row in profile.bins()}
    assert found.keys() == {bounds(place)[0] for place in slow}
    for place, values in slow.items():
        row = found[bounds(place)[0]]
        assert row.chosen_tokens == len(values)
        assert row.chosen_nll == pytest.approx(sum(values) / len(values))
        assert row.rejected_nll is row.chosen_kl is None
