"""Log-probabilities of chosen tokens without the logits: the head in tiles, recomputed for the gradient.

Nothing of size tokens x vocabulary is ever held. Both passes go over blocks of the vocabulary and in each over blocks
of tokens: the weight's gradient, the largest tensor here, is written once, and a tile stays in the cache while it is
worked on.
"""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

from spot.train.products import multiplied

Tile = tuple[int, int]
"""How many tokens by how many entries of the vocabulary are computed at once."""

TILES: dict[str, Tile] = {"cpu": (512, 2048), "cuda": (8192, 8192)}
"""4 MiB of fp32 on a CPU, which its caches hold; 256 MiB on a GPU, which fills it."""


def head_logps(head: nn.Module, hidden: Tensor, targets: Tensor, tile: Tile | None = None) -> Tensor:
    """Log-probabilities in nats, `(rows,)` fp32, of the tokens `targets` under the softmax of `head(hidden)`.

    `hidden` is `(rows, width)`, `targets` `(rows,)` int64. Under autocast the products are of its type, sums in fp32.
    """
    if not isinstance(head.forward, _Scoring):
        head.forward = _Scoring(head)
    # Through the module's call, whose hooks make sharded weights whole.
    return head(hidden, targets=targets, tile=tile or TILES.get(hidden.device.type, TILES["cuda"]))


_EXTRA = 8  # the products' kernels want rows of multiples of 16 bytes


class _Scoring:
    """A head's forward that, given `targets`, returns their log-probabilities in place of logits."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.forward = head.forward
        # Now: what shards a module later also changes its type.
        self.linear = type(head) is nn.Linear and getattr(head, "bias", None) is None

    def __call__(self, hidden: Tensor, targets: Tensor | None = None, tile: Tile = TILES["cpu"]) -> Tensor:
        if targets is None:
            return self.forward(hidden)
        weight: Any = self.head.weight
        if self.linear:
            return _TokenLogps.apply(hidden, weight, targets, tile)
        # A head of another kind (with a bias, or an adapter on it) is called as it is.
        rows = max(1, tile[0] * tile[1] // len(weight))
        chunks = [
            checkpoint(self._logps, part, target, use_reentrant=False)
            for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(chunks)

    def _logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return -cross_entropy(self.forward(hidden).float(), targets, reduction="none")


class _TokenLogps(torch.autograd.Function):
    """`log softmax(hidden @ weight.T)` at `targets`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, tile: Tile) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            states = _operand(hidden, dtype)
            totals = states.new_full((len(states), 1), -torch.inf, dtype=_sums(dtype))
            for part, _, matrix, buffer in _tiles(len(states), weight, dtype, tile):
                found = _log_sum_exp(_product(states[part], matrix.T, buffer))
                totals[part] = torch.logaddexp(totals[part], found)
            logits = (states * _operand(weight.index_select(0, targets), dtype)).sum(-1, dtype=totals.dtype)
        ctx.save_for_backward(states, weight, targets, totals)
        ctx.tile, ctx.dtype, ctx.hidden_dtype = tile, dtype, hidden.dtype
        return (logits - totals[:, 0]).float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        states, weight, targets, totals = ctx.saved_tensors
        grad: Tensor = grads[0][:, None].to(totals.dtype)
        # The gradient by the logits is g * (onehot - softmax). The softmax part, whose exponential takes in |g|:
        sign, shift = grad.sign(), grad.abs().log() - totals
        # A frozen head, under an adapter, needs no gradient.
        grad_weight = torch.zeros_like(weight, dtype=totals.dtype) if ctx.needs_input_grad[1] else None
        grad_hidden = torch.zeros(states.shape, dtype=totals.dtype, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            signed = states * sign.to(states.dtype)
            rounded = states.dtype != totals.dtype
            wide = _widened(states, shift) if rounded else states
            for part, block, matrix, buffer in _tiles(len(states), weight, ctx.dtype, ctx.tile):
                if rounded:
                    logits = _product(wide[part], pad(matrix, (0, _EXTRA), value=1.0).T, buffer)
                    # Into the smaller type as it is written.
                    scaled = torch.exp(logits, out=torch.empty_like(logits, dtype=states.dtype))
                else:
                    scaled = torch.addmm(shift[part], states[part], matrix.T, out=buffer).exp_()
                _subtract_product(grad_hidden[part], scaled, matrix)
                if grad_weight is not None:
                    _subtract_product(grad_weight[block], scaled.T, signed[part])
            # And the one-hot part, exact.
            grad_hidden = grad_hidden * sign + grad * weight.index_select(0, targets)
            if grad_weight is not None:
                grad_weight = grad_weight.index_add_(0, targets, grad * states).to(weight.dtype)
        return grad_hidden.to(ctx.hidden_dtype), grad_weight, None, None


def _tiles(
    rows: int, weight: Tensor, dtype: torch.dtype, tile: Tile
) -> Generator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Blocks of tokens in blocks of the vocabulary, with those of the weight and a buffer for the products."""
    # On a CPU new memory costs more than what is written to it.
    buffer = torch.empty(tile[0] * tile[1], dtype=_sums(dtype)) if weight.device.type == "cpu" else None
    for first in range(0, len(weight), tile[1]):
        block = slice(first, min(first + tile[1], len(weight)))
        matrix = _operand(weight[block], dtype)
        for start in range(0, rows, tile[0]):
            part = slice(start, min(start + tile[0], rows))
            shape = (part.stop - part.start, len(matrix))
            yield part, block, matrix, None if buffer is None else buffer[: shape[0] * shape[1]].view(shape)


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _operand(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`, then in the type that it is best multiplied in."""
    return multiplied(tensor.to(dtype))


def _product(left: Tensor, right: Tensor, buffer: Tensor | None) -> Tensor:
    """`left @ right` in fp32 at least; where half precision can be multiplied into fp32, nothing is rounded."""
    if left.dtype == _sums(left.dtype):
        return torch.mm(left, right, out=buffer)
    return torch.mm(left, right, out_dtype=torch.float32) if buffer is None else buffer.copy_(left @ right)


def _subtract_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=-1)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, alpha=-1, out=total)
    else:
        total -= left @ right


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Over the last dimension, kept; `logits` are overwritten."""
    if logits.is_cuda:  # the one kernel there that reads a row once
        return logits[:, :1] - logits.log_softmax(-1)[:, :1]
    peak = logits.amax(-1, keepdim=True)
    return logits.sub_(peak).exp_().sum(-1, keepdim=True).log_().add_(peak)


def _widened(states: Tensor, shift: Tensor) -> Tensor:
    """`states` with `_EXTRA` columns that add `shift`, `(rows, 1)`, to a product with as many ones.

    Three bf16 columns hold the 24 bits of fp32, and a sum inside the product costs no pass over its result.
    """
    columns: list[Tensor] = []
    rest = shift.clamp(min=-1e4)  # e to that power is 0, as to minus infinity
    for _ in range(3):
        columns.append(rest.to(states.dtype))
        rest = rest - columns[-1]
    return torch.cat([states, *columns, states.new_zeros(len(states), _EXTRA - 3)], dim=1)
