"""Top-p sampling for a batch in which every row brings its own uniform number.

The rule, exact and the same on every path through this file: the distribution is `softmax(logits / temperature)`, in
float64 for float64 logits and in float32 otherwise. Tokens are ordered by falling probability, equal ones by rising
id. The nucleus is the shortest prefix of that order whose mass reaches `top_p` (Holtzman et al. 2020, arXiv
1904.09751; the same set as transformers' `TopPLogitsWarper`), never empty, and never holding a token of probability
zero. Masses are summed in float64. The uniform `u` in [0, 1) picks the first token of the nucleus whose cumulative
mass exceeds `u` times the mass of the nucleus.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PREFIX = 8
"""How many of the most probable tokens are ordered first; most nuclei are narrower."""

WIDEN = 8
"""Rows whose nucleus may be wider are ordered again, so many times as far, up to the whole vocabulary."""


class Nucleus(NamedTuple):
    """The `width` most probable tokens of each row in order, and how many of them form the nucleus.

    `ids` and `cumulative` (float64) are `(batch, width)`, `num_kept` and `is_exact` are `(batch, 1)`. Where `is_exact`
    is false the nucleus, or the order of equal tokens at its edge, may depend on tokens beyond `width`.
    """

    ids: Tensor
    cumulative: Tensor
    num_kept: Tensor
    is_exact: Tensor


def sample(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Draw one token a row: `(batch, vocab)` logits and `(batch,)` float64 uniforms in [0, 1) give `(batch,)` ids.

    `temperature` 0 is greedy, the lowest id among equals, and reads no uniforms. Raises `FloatingPointError` where a
    row's largest logit is not finite, which is how a broken model shows.
    """
    top = logits.amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(top).all()):
        raise FloatingPointError("the model's logits are not finite")
    if temperature == 0:
        return logits.argmax(dim=-1)
    precise = torch.float64 if logits.dtype == torch.float64 else torch.float32
    # The largest logit becomes 0 before the division, so a tiny temperature cannot overflow it.
    probs = torch.softmax((logits.to(precise) - top.to(precise)) / temperature, dim=-1)
    vocab = probs.shape[-1]
    width = vocab if top_p == 1 else min(PREFIX, vocab)
    kept = nucleus(probs, top_p, width)
    ids = _pick(kept, uniforms)
    rows = (~kept.is_exact).squeeze(1).nonzero().squeeze(1)
    while len(rows):
        width = min(width * WIDEN, vocab)
        kept = nucleus(probs[rows], top_p, width)
        ids[rows] = _pick(kept, uniforms[rows])
        rows = rows[~kept.is_exact.squeeze(1)]
    return ids


def nucleus(probs: Tensor, top_p: float, width: int) -> Nucleus:
    """Order the `width` most probable tokens of `(batch, vocab)` probabilities and find the nucleus among them."""
    if width < probs.shape[-1]:
        # topk breaks ties as it likes; with ids rising, the stable sort below puts equal tokens in order of id.
        listed = probs.topk(width, sorted=False).indices.sort(dim=-1).values
        values, order = probs.gather(-1, listed).sort(dim=-1, descending=True, stable=True)
        ids = listed.gather(-1, order)
    else:
        values, ids = probs.sort(dim=-1, descending=True, stable=True)
    cumulative = values.double().cumsum(dim=-1)
    mass_before = torch.nn.functional.pad(cumulative[:, :-1], (1, 0))
    num_kept = ((mass_before < top_p) & (values > 0)).sum(dim=-1, keepdim=True)
    # Tokens that are not listed are at most as probable as the last one listed: below the edge, they do not matter.
    is_exact = values.gather(-1, num_kept - 1) > values[:, -1:]
    return Nucleus(ids, cumulative, num_kept, is_exact if width < probs.shape[-1] else torch.ones_like(is_exact))


def _pick(kept: Nucleus, uniforms: Tensor) -> Tensor:
    last = kept.num_kept - 1
    targets = uniforms.double().unsqueeze(1) * kept.cumulative.gather(-1, last)
    # `right=True`: strictly above the target, so u = 0 cannot fall on a token of probability zero. The clamp is for a
    # product that rounds up to the whole mass.
    choice = torch.searchsorted(kept.cumulative, targets, right=True).minimum(last)
    return kept.ids.gather(-1, choice).squeeze(1)
