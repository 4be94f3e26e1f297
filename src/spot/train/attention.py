"""Attention over packed rows: each pair's two tails see the shared span and not each other.

Registered with transformers under `SPOT_SHARED`. A forward without a packed row is SDPA as always, so a model that is
set to it still generates. Values and gradients are those of two plain sequences.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from spot.train.products import multiplied
from spot.train.row import PackedRow, Sequences, Stretch, sequences

SPOT_SHARED = "spot_shared"
_ASK_FOR_FEWER_HEADS = "enable_gqa" in signature(varlen_attn).parameters  # torch 2.11 takes fewer heads unasked
BF16_ERROR = 0.05
"""What rounding to bf16 may change in an attention output of order 1; a wrong mask changes it by order 1."""


class UnsupportedAttention(Exception):
    """The model asks its attention for something that packed rows cannot give; the plain path can."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_row: PackedRow | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' form: `(1, heads, tokens, dim)` to `(1, tokens, heads, dim)`.

    Raises `UnsupportedAttention` on windows, caps, sinks and position biases, and on attention that is not causal.
    """
    if packed_row is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    asked = [
        name
        for name in ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")
        if kwargs.get(name) is not None
    ]
    if asked or dropout or not getattr(module, "is_causal", True):
        raise UnsupportedAttention(", ".join(asked) or ("dropout" if dropout else "attention that is not causal"))
    packed_row.num_calls += 1
    # Under autocast SDPA would bring them to one type itself, but not where a causal bias stands between.
    dtype = value.dtype
    query, key, value = (multiplied(states.to(dtype)) for states in (query, key, value))
    # Tokens first: a cut is then a view, and what comes out is in the order that transformers wants.
    sizes = [stretch.length for stretch in packed_row.stretches]
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    if packed_row.varlen:
        return _varlen(packed_row.sequences, query, key, value, scaling)[None].to(dtype), None
    cut = (states.split(sizes) for states in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        out = [
            _branched(stretch, q, k, v, scaling) for stretch, q, k, v in zip(packed_row.stretches, *cut, strict=True)
        ]
    return torch.cat(out)[None].to(dtype), None


def _branched(stretch: Stretch, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """One pair, all `(tokens, heads, dim)`: the first answer as a plain sequence, then the second one's tail."""
    ends = [stretch.shared + stretch.first, stretch.second]
    (query_1, query_2), (key_1, key_2), (value_1, value_2) = (part.split(ends) for part in (query, key, value))
    out = _sdpa(query_1[None], key_1[None], value_1[None], scaling, is_causal=True)[0]
    if not stretch.second:
        return out
    key_2 = torch.cat([key_1[: stretch.shared], key_2])
    value_2 = torch.cat([value_1[: stretch.shared], value_2])
    seen: Any = causal_lower_right(len(query_2), len(key_2))
    return torch.cat([out, _sdpa(query_2[None], key_2[None], value_2[None], scaling, attn_mask=seen)[0]])


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, **mask: Any) -> Tensor:
    """SDPA over `(batch, tokens, heads, dim)`; key and value may have fewer heads."""
    q, k, v = (states.transpose(1, 2) for states in (query, key, value))
    fewer = query.shape[2] != key.shape[2]
    return scaled_dot_product_attention(q, k, v, scale=scaling, enable_gqa=fewer, **mask).transpose(1, 2)


def _varlen(row: Sequences, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """The same for all pairs of a row in one call of FlashAttention; keys of shared spans are copied."""
    key, value = key.index_select(0, row.key_places), value.index_select(0, row.key_places)
    lengths = (row.query_ends, row.key_ends, row.longest_query, row.longest_key)
    fewer: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _ASK_FOR_FEWER_HEADS else {}
    # Window (-1, 0) is causal from the end: a sequence's last query sees its last key.
    out: Any = varlen_attn(query, key, value, *lengths, scale=scaling, window_size=(-1, 0), **fewer)
    return out


@torch.no_grad()
def varlen_refused(model: PreTrainedModel) -> str | None:
    """Why `_varlen` cannot be used in bf16 on the model's device; `None` where it gives what two calls a pair give."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return f"there is no such kernel on {device.type}"
    config: Any = model.config.get_text_config()
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    stretches = [Stretch(70, 40, 90), Stretch(5, 130, 0), Stretch(300, 1, 33)]
    tokens = sum(stretch.length for stretch in stretches)
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(tokens, count, dim, device=device, generator=generator).bfloat16()
        for count in (heads, kv_heads, kv_heads)
    )
    try:
        one_call = _varlen(sequences(stretches, device), query, key, value, None)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    cut = (states.float().split([stretch.length for stretch in stretches]) for states in (query, key, value))
    exact = torch.cat([_branched(stretch, q, k, v, None) for stretch, q, k, v in zip(stretches, *cut, strict=True)])
    difference = float((one_call.float() - exact).abs().max())
    return None if difference < BF16_ERROR else f"it differs by {difference:.3g} from two calls a pair"


AttentionInterface.register(SPOT_SHARED, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(SPOT_SHARED, sdpa_mask)
