from typing import Any

import pytest
import torch
from transformers import DynamicCache, Qwen3Config

from spot.models.local.cache import GrowingLayer, can_join, growing_cache, joined


def config(**settings: Any) -> Qwen3Config:
    return Qwen3Config(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=4, **settings)


def states(seed: int, batch: int, new: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, batch, 3, new, 4, generator=torch.Generator().manual_seed(seed))
    return keys, values


def held(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def test_a_growing_cache_holds_what_that_of_transformers_holds() -> None:
    ours, theirs = growing_cache(config()), DynamicCache(config=config())
    batch = 5
    for step, new in enumerate([7, *[1] * 200]):
        if step % 60 == 59:
            stay: Any = torch.tensor([row for row in range(batch) if row != 1])
            ours.reorder_cache(stay)
            theirs.reorder_cache(stay)
            batch -= 1
        for layer in range(2):
            added = states(2 * step + layer, batch, new)
            for got, expected in zip(ours.update(*added, layer), theirs.update(*added, layer), strict=True):
                assert torch.equal(got, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
    torch.testing.assert_close(held(ours), held(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [[6], [1, 3, 2], [2, 2, 2]])
def test_a_cache_joined_from_parts_is_that_of_all_rows(rows: list[int]) -> None:
    whole = growing_cache(config())
    parts = [growing_cache(config()) for _ in rows]
    for layer in range(2):
        keys, values = states(layer, 6, 9)
        whole.update(keys, values, layer)
        for part, some_keys, some_values in zip(parts, keys.split(rows), values.split(rows), strict=True):
            part.update(some_keys, some_values, layer)
    together = joined(parts, config())
    for cache in (whole, together):  # it goes on growing
        for layer in range(2):
            cache.update(*states(9 + layer, 6, 1), layer)
    torch.testing.assert_close(held(together), held(whole), rtol=0, atol=0)


def test_a_layer_that_holds_nothing_stays_empty() -> None:
    parts = [growing_cache(config()) for _ in range(2)]
    for part in parts:
        part.update(*states(0, 2, 3), 0)
    layers: list[Any] = joined(parts, config()).layers
    assert [layer.is_initialized for layer in layers] == [True, False]


def test_only_plain_full_attention_grows_and_joins() -> None:
    sliding = config(use_sliding_window=True, sliding_window=6, layer_types=["full_attention", "sliding_attention"])
    assert [isinstance(layer, GrowingLayer) for layer in growing_cache(sliding).layers] == [True, False]
    assert not can_join(growing_cache(sliding))
    assert can_join(growing_cache(config()))
    assert not can_join(DynamicCache())
