"""Log-probabilities of chosen tokens without the logits: the head in blocks, recomputed for the gradient.

Nothing of size tokens x vocabulary is ever held. Forward goes over blocks of tokens; backward over blocks of the
vocabulary, so that the weight's gradient, the largest tensor here, is written once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**24
"""The largest number of logits held at once (64 MiB in fp32)."""


def head_logps(head: nn.Module, hidden: Tensor, targets: Tensor, max_logits: int = MAX_LOGITS) -> Tensor:
    """Log-probabilities in nats, `(rows,)` fp32, of the tokens `targets` under the softmax of `head(hidden)`.

    `hidden` is `(rows, width)`, `targets` `(rows,)` int64. Under autocast the products are in its type, sums in fp32.
    """
    if not isinstance(head.forward, _Scoring):
        head.forward = _Scoring(head)
    # Through the module's call, whose hooks make sharded weights whole.
    return head(hidden, targets=targets, max_logits=max_logits)


class _Scoring:
    """A head's forward that, given `targets`, returns their log-probabilities in place of logits."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.forward = head.forward
        # Now: what shards a module later also changes its type.
        self.linear = type(head) is nn.Linear and getattr(head, "bias", None) is None

    def __call__(self, hidden: Tensor, targets: Tensor | None = None, max_logits: int = MAX_LOGITS) -> Tensor:
        if targets is None:
            return self.forward(hidden)
        weight: Any = self.head.weight
        if self.linear:
            return _TokenLogps.apply(hidden, weight, targets, max_logits)
        # A head of another kind (with a bias, or an adapter on it) is called as it is.
        rows = max(1, max_logits // len(weight))
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
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, max_logits: int) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        states, matrix = hidden.to(dtype), weight.to(dtype)
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        totals = torch.empty_like(logps)
        rows = max(1, max_logits // len(weight))
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                logits = _product(states[part], matrix.T)
                totals[part] = logits.logsumexp(-1)
                logps[part] = logits.gather(-1, targets[part, None])[:, 0] - totals[part]
        ctx.save_for_backward(states, weight, targets, totals)
        ctx.max_logits, ctx.hidden_dtype = max_logits, hidden.dtype
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        states, weight, targets, totals = ctx.saved_tensors
        grad: Tensor = grads[0]
        dtype = states.dtype
        # The logits' gradient is g * (onehot - softmax). The softmax part, in blocks of the vocabulary:
        grad_hidden = torch.zeros(states.shape, dtype=torch.float32, device=states.device)
        # A frozen head, under an adapter, needs none.
        trained = ctx.needs_input_grad[1]
        grad_weight = torch.empty(weight.shape, dtype=torch.float32, device=states.device) if trained else None
        columns = max(1, ctx.max_logits // max(1, len(states)))
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(weight), columns):
                block = slice(start, start + columns)
                matrix = weight[block].to(dtype)
                probabilities = _product(states, matrix.T).sub_(totals[:, None]).exp_().mul_(-grad[:, None])
                probabilities = probabilities.to(dtype)
                if grad_weight is not None:
                    grad_weight[block] = _product(probabilities.T, states)
                grad_hidden += _product(probabilities, matrix)
            # And the one-hot part, exact.
            grad_hidden += grad[:, None] * weight.index_select(0, targets)
            if grad_weight is not None:
                grad_weight = grad_weight.index_add_(0, targets, grad[:, None] * states.float()).to(weight.dtype)
        return grad_hidden.to(ctx.hidden_dtype), grad_weight, None, None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` as fp32; where the hardware's product can give fp32 from half precision, nothing is rounded."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()
