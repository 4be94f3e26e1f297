import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

from spot.models.local.sampling import PREFIX, WIDEN, nucleus, sample

ALMOST_ONE = 1 - 2**-53
"""The largest float64 below 1: the last value a generator can give."""


def naive_order(probs: list[float], top_p: float) -> tuple[list[int], list[float]]:
    """The nucleus of one row as (ids in order, their probabilities), by the rule in words."""
    order = [token for token in sorted(range(len(probs)), key=lambda token: (-probs[token], token)) if probs[token] > 0]
    kept: list[int] = []
    mass = 0.0
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += probs[token]
    return kept, [probs[token] for token in kept]


def naive_sample(logits: Tensor, u: float, temperature: float, top_p: float) -> int:
    """The slow twin: one row, plain Python."""
    probs = torch.softmax((logits - logits.max()) / temperature, dim=-1).tolist()
    kept, masses = naive_order(probs, top_p)
    cumulative = np.cumsum(masses).tolist()
    target = u * cumulative[-1]
    return next((token for token, mass in zip(kept, cumulative, strict=True) if mass > target), kept[-1])


def logits_of(seed: int, rows: int, vocab: int, spread: float, levels: int | None = None) -> Tensor:
    """Random float64 logits; with `levels`, so many distinct values only, which makes ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * spread
    return logits if levels is None else (logits * levels / 4).round() * 4 / levels


uniforms = st.one_of(st.just(0.0), st.just(ALMOST_ONE), st.floats(0, 1, exclude_max=True))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab=st.sampled_from([1, 2, 5, PREFIX - 1, PREFIX, PREFIX + 1, 3 * PREFIX, 3 * PREFIX * WIDEN]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0, 200.0]),
    levels=st.sampled_from([None, 1, 4]),
    temperature=st.sampled_from([1e-30, 0.3, 0.7, 1.0, 3.0]),
    top_p=st.one_of(st.just(1.0), st.just(1e-9), st.floats(0.01, 1)),
    drawn=st.lists(uniforms, min_size=3, max_size=3),
)
def test_sample_is_its_slow_twin_ties_edges_and_all(
    seed: int, vocab: int, spread: float, levels: int | None, temperature: float, top_p: float, drawn: list[float]
) -> None:
    logits = logits_of(seed, 3, vocab, spread, levels)
    ids = sample(logits, torch.tensor(drawn, dtype=torch.float64), temperature=temperature, top_p=top_p)
    for row, u, chosen in zip(logits, drawn, ids.tolist(), strict=True):
        assert chosen == naive_sample(row, u, temperature, top_p)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), vocab=st.integers(1, 200), top_p=st.floats(0.01, 1), u=uniforms)
def test_no_token_outside_the_nucleus_in_float32(seed: int, vocab: int, top_p: float, u: float) -> None:
    logits = logits_of(seed, 4, vocab, 2.0).float()
    logits[:, seed % vocab] = -math.inf if vocab > 1 else 0.0
    chosen = sample(logits, torch.full((4,), u, dtype=torch.float64), temperature=0.7, top_p=top_p)
    for row, token in zip(torch.softmax((logits - logits.amax(-1, keepdim=True)) / 0.7, -1), chosen, strict=True):
        assert int(token) in naive_order(row.tolist(), top_p)[0]
        assert row[token] > 0


def test_u_of_zero_takes_the_most_probable_and_u_near_one_the_last_of_the_nucleus() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64).log()
    assert sample(logits, torch.tensor([0.0]), temperature=1, top_p=0.8).tolist() == [1]
    assert sample(logits, torch.tensor([ALMOST_ONE]), temperature=1, top_p=0.8).tolist() == [2]
    assert sample(logits, torch.tensor([ALMOST_ONE]), temperature=1, top_p=1.0).tolist() == [0]


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("width", [PREFIX, 300])
def test_the_nucleus_is_that_of_transformers(top_p: float, width: int) -> None:
    logits = logits_of(3, 200, 300, 2.0)
    warper: Any = TopPLogitsWarper(top_p)
    theirs = torch.isfinite(warper(torch.zeros(200, 1, dtype=torch.long), logits))
    found = nucleus(torch.softmax(logits, -1), top_p, width)
    if width == 300:
        assert bool(found.is_exact.all())
    for row in range(200):
        if found.is_exact[row]:
            ours = found.ids[row, : int(found.num_kept[row])].tolist()
            assert sorted(ours) == theirs[row].nonzero().squeeze(1).tolist()


def test_a_nucleus_wider_than_the_prefix_is_noticed() -> None:
    flat = torch.full((1, 4 * PREFIX), 1 / (4 * PREFIX), dtype=torch.float64)
    assert not nucleus(flat, 0.01, PREFIX).is_exact.item()  # all equal: which ids come first is not known from topk
    assert not nucleus(flat, 0.9, PREFIX).is_exact.item()
    assert nucleus(flat, 0.9, 4 * PREFIX).num_kept.item() == math.ceil(0.9 * 4 * PREFIX)


def test_frequencies_are_the_truncated_distribution() -> None:
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    drawn = torch.from_numpy(np.random.default_rng(0).random(40_000))
    ids = sample(probs.log().expand(40_000, 4), drawn, temperature=1, top_p=0.75)
    share = torch.bincount(ids, minlength=4) / 40_000
    torch.testing.assert_close(share, torch.tensor([2 / 3, 1 / 3, 0, 0]), atol=0.01, rtol=0)


def test_temperature_zero_is_the_first_of_the_largest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]])
    assert sample(logits, torch.tensor([0.9, 0.9]), temperature=0, top_p=0.8).tolist() == [1, 0]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_broken_logits_are_an_error(broken: float, temperature: float) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        sample(torch.tensor([[0.0, 1.0], [0.0, broken]]), torch.zeros(2), temperature=temperature, top_p=0.8)
