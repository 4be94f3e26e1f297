"""A KV cache for batched decoding: it grows in place, loses rows that have finished, and is joined from parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """A full-attention cache layer that writes into spare room instead of copying all it holds at every token."""

    _buffers: tuple[Tensor, Tensor]

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ARG002 (transformers' signature)
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Append `(batch, heads, new, dim)` keys and values; return all of them as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = (key_states[:, :, :0], value_states[:, :, :0])
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = (_enlarged(self._buffers[0], start, end), _enlarged(self._buffers[1], start, end))
        self._buffers[0][:, :, start:end] = key_states
        self._buffers[1][:, :, start:end] = value_states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep the rows `beam_idx`; transformers' name for it, from beam search."""
        length = self.get_seq_length()
        self._buffers = (self._buffers[0].index_select(0, beam_idx), self._buffers[1].index_select(0, beam_idx))
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def _enlarged(buffer: Tensor, length: int, needed: int) -> Tensor:
    batch, heads, _, dim = buffer.shape
    larger = buffer.new_empty(batch, heads, max(needed + 64, length * 3 // 2), dim)
    larger[:, :, :length] = buffer[:, :, :length]
    return larger


def growing_cache(config: Any) -> DynamicCache:
    """The cache that fits the model's layers, with the plain full-attention ones made to grow in place."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_join(cache: DynamicCache) -> bool:
    """Whether `joined` can put the rows of such caches together; sliding and recurrent layers it leaves alone."""
    return bool(cache.layers) and all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def joined(parts: Sequence[DynamicCache], config: Any) -> DynamicCache:
    """One cache with the rows of all `parts`, in their order; all hold equally many tokens."""
    if len(parts) == 1:
        return parts[0]
    whole = growing_cache(config)
    for index, layers in enumerate(zip(*(part.layers for part in parts), strict=True)):
        held: list[Any] = [layer for layer in layers if layer.is_initialized]  # those that share another's keys are not
        if held:
            whole.update(torch.cat([layer.keys for layer in held]), torch.cat([layer.values for layer in held]), index)
    return whole
