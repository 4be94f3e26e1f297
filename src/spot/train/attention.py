"""Attention over packed rows: each pair's two tails see the shared span and not each other.

Registered with transformers under `SPOT_SHARED`. A forward without a packed row is SDPA as always, so a model that is
set to it still generates. Values and gradients are those of two plain sequences.
"""

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from spot.train.products import multiplied
from spot.train.row import Heads, PackedRow, Sequences, Stretch, sequences

SPOT_SHARED = "spot_shared"
_ASK_FOR_FEWER_HEADS = "enable_gqa" in signature(varlen_attn).parameters  # torch 2.11 takes fewer heads unasked
BF16_ERROR = 0.05
"""What rounding to bf16 may change of a token, relatively; a hundredth was seen, a wrong mask changes all of it."""


NOT_ATTENTION = {
    *("is_causal", "position_ids", "position_embeddings", "cache_position", "past_key_values", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
}
"""What reaches an attention function and changes nothing in it, or is looked at apart."""


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

    Raises `UnsupportedAttention` on windows, caps, sinks, chosen keys, whatever else a model asks for, a mask of its
    own, and on attention that is not causal.
    """
    if packed_row is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    asked = [name for name, value in kwargs.items() if value is not None and name not in NOT_ATTENTION]
    if dropout:
        asked.append("dropout")
    if attention_mask is not None and attention_mask.numel() > 1:  # ours says nothing, and has one entry
        asked.append("a mask of its own")
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        asked.append("attention that is not causal")
    if asked:
        raise UnsupportedAttention(f"its attention asks for {', '.join(asked)}")
    packed_row.num_calls += 1
    packed_row.heads.add(Heads(query.shape[1], key.shape[1], query.shape[3], value.shape[3], scaling))
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


def varlen_refused(heads: Iterable[Heads], device: torch.device) -> str | None:
    """Why `_varlen` cannot be used in bf16 on `device`; `None` where it gives what two calls a pair give.

    `heads` are those of the model's own calls; values and gradients are compared for each kind of them.
    """
    if device.type != "cuda":
        return f"there is no such kernel on {device.type}"
    return next(filter(None, (_probe(kind, device) for kind in heads)), None)


def _probe(heads: Heads, device: torch.device) -> str | None:
    """`varlen_refused` for one kind of calls, on made ones."""
    stretches = [Stretch(70, 40, 90), Stretch(5, 130, 0), Stretch(300, 1, 33), Stretch(2, 3, 4)]
    sizes = [stretch.length for stretch in stretches]
    row = sequences(stretches, device)
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(heads.num_query, heads.width), (heads.num_key, heads.width), (heads.num_key, heads.value_width)]
    shapes.append((heads.num_query, heads.value_width))  # of what comes out, for its gradient
    *inputs, grad = (torch.randn(sum(sizes), *shape, device=device, generator=generator).bfloat16() for shape in shapes)

    def results(attention: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [states.to(dtype).requires_grad_() for states in inputs]
            out = attention(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]

    def one_call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _varlen(row, query, key, value, heads.scaling)

    def two_calls(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cut = zip(stretches, *(part.split(sizes) for part in (query, key, value)), strict=True)
        return torch.cat([_branched(stretch, q, k, v, heads.scaling) for stretch, q, k, v in cut])

    try:
        found = results(one_call, torch.bfloat16)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    for what, one, exact in zip(
        ("output", "gradient by queries", "gradient by keys", "gradient by values"),
        found,
        results(two_calls, torch.float32),
        strict=True,
    ):
        size = exact.flatten(1).norm(dim=1)
        difference = float(((one.float() - exact).flatten(1).norm(dim=1) / (size + size.mean())).max())
        if not difference < BF16_ERROR:
            return f"its {what} differs by {difference:.3g} from two calls a pair"
    return None


AttentionInterface.register(SPOT_SHARED, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(SPOT_SHARED, sdpa_mask)
