"""Log-probabilities of chosen tokens without the logits: the head in tiles, recomputed for the gradient.

Nothing of size tokens x vocabulary is ever held. Both passes go over blocks of the vocabulary and in each over blocks
of tokens: the weight's gradient, the largest tensor here, is written once, and a tile stays in the cache while it is
worked on.
"""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, pad
from torch.utils.checkpoint import checkpoint

from spot.train.products import multiplied

Tile = tuple[int, int]
"""How many tokens by how many entries of the vocabulary are computed at once."""

TILES: dict[str, Tile] = {"cpu": (512, 2048), "cuda": (8192, 8192)}
"""4 MiB of fp32 on a CPU, which its caches hold; 256 MiB on a GPU, which fills it and holds two at a time."""

CALLED_ROWS = 512
"""Tokens at once where a head has to be called, which makes the logits of its whole vocabulary: 297 MiB of 151,936."""


def head_logps(head: nn.Module, hidden: Tensor, targets: Tensor, tile: Tile | None = None) -> Tensor:
    """Log-probabilities in nats, `(rows,)` fp32, of the tokens `targets` under the softmax of `head(hidden)`.

    `hidden` is `(rows, width)`, `targets` `(rows,)` int64. Under autocast the products are of its type, sums in fp32.
    """
    if not isinstance(head.forward, _Scoring):
        head.forward = _Scoring(head)
    # Through the module's call, whose hooks make sharded weights whole.
    return head(hidden, targets=targets, tile=tile or TILES.get(hidden.device.type, TILES["cuda"]))


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
        if self.linear:
            weight: Any = self.head.weight
            return _TokenLogps.apply(hidden, weight, targets, tile)
        # A head of another kind (with a bias, or an adapter on it) is called as it is.
        rows = min(tile[0], CALLED_ROWS)
        chunks = [
            checkpoint(self._logps, part, target, use_reentrant=False)
            for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(chunks)

    def _logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return -cross_entropy(self.forward(hidden).float(), targets, reduction="none")


class _TokenLogps(torch.autograd.Function):
    """`log softmax(hidden @ weight.T)` at `targets`.

    A target's entry is taken out of its tile, and all is told by how far it is from the others together: so a
    log-probability is never above 0, and a gradient that is small because the target is all but certain is as exact,
    relative to itself, as any other. Half precision would lose it in the difference of 1 and the probability.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, tile: Tile) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            states = _operand(hidden, dtype)
            logits = states.new_zeros((len(states), 1), dtype=_sums(dtype))
            others = torch.full_like(logits, -torch.inf)
            buffer = _buffer(tile, logits)
            for block, matrix in _blocks(weight, dtype, tile[1]):
                places = targets[:, None] - block.start
                for part in _parts(len(states), tile[0]):
                    found = _product(states[part], matrix.T, _cut(buffer, states[part], matrix))
                    logits[part] += _take_out(found, places[part])
                    others[part] = torch.logaddexp(others[part], _log_sum_exp(found, places[part]))
        ctx.save_for_backward(states, weight, targets, torch.logaddexp(others, logits), torch.sigmoid(others - logits))
        ctx.tile, ctx.dtype, ctx.hidden_dtype = tile, dtype, hidden.dtype
        return logsigmoid(logits - others)[:, 0].float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        states, weight, targets, totals, doubt = ctx.saved_tensors
        grad: Tensor = grads[0][:, None].to(totals.dtype)
        # The gradient by the logits is g * (onehot - softmax). Of the other tokens, whose exponential takes in |g|; 1
        # where g is 0, which the sign takes care of, since CPUs are slow at exponentials that underflow:
        sign, shift = grad.sign(), torch.where(grad == 0, 1.0, grad.abs()).log() - totals
        # A frozen head, under an adapter, needs no gradient.
        grad_weight = torch.zeros_like(weight, dtype=totals.dtype) if ctx.needs_input_grad[1] else None
        grad_hidden = torch.zeros(states.shape, dtype=totals.dtype, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            signed = states * sign.to(states.dtype)
            half = states.dtype != totals.dtype
            widen = half and _keeps_sums(states)
            left = _widened(states, shift) if widen else states
            buffer = _buffer(ctx.tile, totals)
            for block, matrix in _blocks(weight, ctx.dtype, ctx.tile[1]):
                places = targets[:, None] - block.start
                right = pad(matrix, (0, _EXTRA), value=1.0) if widen else matrix
                for part in _parts(len(states), ctx.tile[0]):
                    memory = _cut(buffer, states[part], matrix)
                    if half:
                        logits = _product(left[part], right.T, memory)
                        logits = logits if widen else logits.add_(shift[part])
                    else:
                        logits = torch.addmm(shift[part], states[part], matrix.T, out=memory)
                    _take_out(logits, places[part])
                    # Into the smaller type as it is written.
                    scaled = torch.exp(logits, out=torch.empty_like(logits, dtype=states.dtype) if half else logits)
                    _subtract_product(grad_hidden[part], scaled, matrix)
                    if grad_weight is not None:
                        _subtract_product(grad_weight[block], scaled.T, signed[part])
            # And of the target, 1 - p of it; its row as it was multiplied, or what cancels would not.
            exact = grad * doubt
            grad_hidden.mul_(sign).addcmul_(exact, _operand(weight.index_select(0, targets), ctx.dtype))
            if grad_weight is not None:
                grad_weight = grad_weight.index_add_(0, targets, exact * states).to(weight.dtype)
        return grad_hidden.to(ctx.hidden_dtype), grad_weight, None, None


def _blocks(weight: Tensor, dtype: torch.dtype, size: int) -> Generator[tuple[slice, Tensor]]:
    """Blocks of the vocabulary, each with its rows of the weight as they are multiplied."""
    for block in _parts(len(weight), size):
        yield block, _operand(weight[block], dtype)


def _parts(count: int, size: int) -> Generator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def _buffer(tile: Tile, like: Tensor) -> Tensor | None:
    """Memory for a tile's products on a CPU, where new memory costs more than what is written to it."""
    return like.new_empty(tile[0] * tile[1]) if like.device.type == "cpu" else None


def _cut(buffer: Tensor | None, states: Tensor, matrix: Tensor) -> Tensor | None:
    """As much of `buffer` as `states @ matrix.T` takes."""
    shape = (len(states), len(matrix))
    return None if buffer is None else buffer[: shape[0] * shape[1]].view(shape)


def _sums(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _operand(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype`, then in the type that it is best multiplied in."""
    return multiplied(tensor.to(dtype))


def _keeps_sums(half: Tensor) -> bool:
    """Whether products of `half` precision come out in fp32; a CPU rounds them to half precision first."""
    return half.is_cuda


def _product(left: Tensor, right: Tensor, buffer: Tensor | None) -> Tensor:
    """`left @ right` in fp32 at least; half precision that does not keep its sums has been rounded to itself."""
    if left.dtype == _sums(left.dtype):
        return torch.mm(left, right, out=buffer)
    return torch.mm(left, right, out_dtype=torch.float32) if buffer is None else buffer.copy_(left @ right)


def _subtract_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=-1)
    elif _keeps_sums(left):
        torch.addmm(total, left, right, out_dtype=total.dtype, alpha=-1, out=total)
    else:
        total -= left @ right


def _take_out(logits: Tensor, places: Tensor) -> Tensor:
    """Put minus infinity where a row's place, `(rows, 1)`, is in this tile; what was there, 0 where it is not."""
    inside = (places >= 0) & (places < logits.shape[1])
    columns = places.clamp(0, logits.shape[1] - 1)
    entries = logits.gather(1, columns)
    logits.scatter_(1, columns, entries.masked_fill(inside, -torch.inf))
    return entries.masked_fill(~inside, 0.0)


def _log_sum_exp(logits: Tensor, places: Tensor) -> Tensor:
    """Over the last dimension, kept, of a tile whose entries at `places` have been taken out; it is overwritten."""
    if logits.is_cuda and logits.shape[1] > 1:
        return _log_sum_exp_in_one_pass(logits, places)
    peak = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return logits.sub_(peak).exp_().sum(-1, keepdim=True).log_().add_(peak)


def _log_sum_exp_in_one_pass(logits: Tensor, places: Tensor) -> Tensor:
    """The same by the one kernel on a GPU that reads a row once: any entry that is left tells how far the sum is."""
    left = (places == 0).long()
    return logits.gather(1, left) - logits.log_softmax(-1).gather(1, left)


_EXTRA = 8
"""Columns, of which three are used: the products' kernels want rows of multiples of 16 bytes."""


def _widened(states: Tensor, shift: Tensor) -> Tensor:
    """`states` with `_EXTRA` columns that add `shift`, `(rows, 1)`, to a product with as many ones.

    Three bf16 columns hold the 24 bits of fp32, and a sum inside the product costs no pass over its result. Only where
    the product keeps its sums: rounded, the shift would take the digits that the logits differ in.
    """
    columns: list[Tensor] = []
    rest = shift
    for _ in range(3):
        columns.append(rest.to(states.dtype))
        rest = rest - columns[-1]
    return torch.cat([states, *columns, states.new_zeros(len(states), _EXTRA - 3)], dim=1)
