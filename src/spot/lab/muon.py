"""Muon for the student's matrices and AdamW for the rest, in fp32.

Muon (K. Jordan, 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found by a few Newton-Schulz
steps. It halves the steps that the recipe needs. `torch.optim.Muon` does the same in bf16, which a CPU without bf16
instructions emulates more slowly than the rest of the step takes, hence this one.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Jordan's quintic: from singular values in (0, 1] to about 1 in five steps.
A, B, C = 3.4445, -4.7750, 2.0315
NEWTON_SCHULZ_STEPS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices (singular values of about 1) to `matrices`, `(count, rows, columns)`."""
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Steps a model: its hidden matrices by Muon, embeddings and norms by AdamW. One learning rate serves both."""

    def __init__(self, model: nn.Module, weight_decay: float, momentum: float = 0.95) -> None:
        named = list(model.named_parameters())
        self._matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name and "lm_head" not in name]
        chosen = {id(p) for p in self._matrices}
        self._rest = torch.optim.AdamW(
            [p for _, p in named if id(p) not in chosen], betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self._momentum = [torch.zeros_like(p) for p in self._matrices]
        self._decay, self._beta = weight_decay, momentum

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update at `learning_rate`; matrices of one shape go through Newton-Schulz together."""
        for group in self._rest.param_groups:
            group["lr"] = learning_rate
        self._rest.step()
        by_shape: dict[torch.Size, list[int]] = {}
        for i, matrix in enumerate(self._matrices):
            by_shape.setdefault(matrix.shape, []).append(i)
        for shape, places in by_shape.items():
            directions: list[Tensor] = []
            for i in places:
                gradient = self._matrices[i].grad
                assert gradient is not None
                self._momentum[i].lerp_(gradient, 1 - self._beta)
                directions.append(gradient.lerp(self._momentum[i], self._beta))
            # 0.2 sqrt(max side) gives an update of AdamW's usual size, so that AdamW's learning rates carry over.
            size = 0.2 * max(shape) ** 0.5 * learning_rate
            for i, update in zip(places, orthogonalized(torch.stack(directions)), strict=True):
                self._matrices[i].mul_(1 - learning_rate * self._decay).sub_(update, alpha=size)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._rest.zero_grad(set_to_none=True)
        for matrix in self._matrices:
            matrix.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"rest": self._rest.state_dict(), "momentum": self._momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self._rest.load_state_dict(state["rest"])
        for ours, theirs in zip(self._momentum, state["momentum"], strict=True):
            ours.copy_(theirs)
