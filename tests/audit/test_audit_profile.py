"""The bins along the answer."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.audit.profile import Profile, bounds

BIN_OF = {offset: edges for edges in map(bounds, range(-8, 9)) for offset in range(edges[0], edges[1] + 1)}


@settings(deadline=None)
@given(st.integers(-(2**22), 2**22))
def test_a_token_is_within_the_bounds_of_its_bin(offset: int) -> None:
    profile = Profile()
    profile.add("chosen", np.array([2.5]), -offset)
    (row,) = profile.bins()
    assert row.first <= offset <= row.last
    assert (row.chosen_tokens, row.chosen_nll) == (1, 2.5)


def test_bins_join_without_gap_and_double() -> None:
    edges = [bounds(place) for place in range(-6, 7)]
    assert all(first[1] + 1 == second[0] for first, second in pairwise(edges))
    assert edges[6:] == [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5))
def test_means_are_those_of_a_loop(answers: list[tuple[int, int]]) -> None:
    profile = Profile()
    slow: dict[tuple[int, int], list[float]] = {}
    for before, after in answers:
        values = np.arange(before + after + 1, dtype=float) ** 1.5
        profile.add("chosen", values, before)
        for place, value in enumerate(values):
            slow.setdefault(BIN_OF[place - before], []).append(value)
    found = {(row.first, row.last): row for row in profile.bins()}
    assert found.keys() == slow.keys()
    for edges, values in slow.items():
        row = found[edges]
        assert row.chosen_tokens == len(values)
        assert row.chosen_nll == pytest.approx(sum(values) / len(values))
        assert row.rejected_nll is row.chosen_kl is None
