from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spot.train.head import Tile, head_logps


def setting(rows: int = 13, vocabulary: int = 37) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(8, vocabulary, bias=False)
    return head, torch.randn(rows, 8), torch.randint(vocabulary, (rows,)), torch.randn(rows)


class Called(nn.Module):
    """Another kind of head, which is called as it is."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.weight = linear.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden)


@pytest.mark.parametrize("tile", [(1, 1), (5, 37), (4, 10), None])
@pytest.mark.parametrize("wrapped", [False, True])
def test_values_and_gradients_are_those_of_full_logits(tile: Tile | None, wrapped: bool) -> None:
    head, states, targets, weights = setting()
    hidden = states.clone().requires_grad_()
    logps = head_logps(Called(head) if wrapped else head, hidden, targets, tile)
    (logps * weights).sum().backward()
    grads = hidden.grad, head.weight.grad

    head.zero_grad()
    slow_hidden = states.clone().requires_grad_()
    slow = head(slow_hidden).log_softmax(-1)[torch.arange(len(targets)), targets]
    (slow * weights).sum().backward()
    torch.testing.assert_close(logps, slow, rtol=1e-5, atol=1e-6)
    for fast, plain in zip(grads, (slow_hidden.grad, head.weight.grad), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_differences() -> None:
    head, states, targets, _ = setting(rows=4, vocabulary=7)
    hidden, weight = states.double().requires_grad_(), head.weight.detach().double().requires_grad_()
    step, direction = 1e-6, torch.randn_like(weight)

    def total(matrix: Tensor) -> Tensor:
        return (hidden @ matrix.T).log_softmax(-1)[torch.arange(4), targets].sum()

    linear = nn.Linear(8, 7, bias=False, dtype=torch.float64)
    linear.weight.data = weight.detach()
    head_logps(linear, hidden.detach(), targets, (3, 2)).sum().backward()
    assert linear.weight.grad is not None
    slope = (total(weight + step * direction) - total(weight - step * direction)) / (2 * step)
    assert float((linear.weight.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_bf16_products_are_near_and_sums_are_fp32() -> None:
    head, states, targets, _ = setting()
    hidden = states.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = head_logps(head, hidden, targets)
    near.sum().backward()
    exact = head(states).log_softmax(-1)[torch.arange(len(targets)), targets]
    assert near.dtype == torch.float32 and hidden.grad is not None and head.weight.grad is not None
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.03


def test_no_logits_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from spot.train import head as module

    product, largest = module._product, [0]  # pyright: ignore[reportPrivateUsage]

    def seen(*given: Any) -> Tensor:
        result = product(*given)
        largest[0] = max(largest[0], result.numel())
        return result

    monkeypatch.setattr(module, "_product", seen)
    head, states, targets, _ = setting(rows=1000, vocabulary=500)
    head_logps(head, states.requires_grad_(), targets, tile=(100, 64)).sum().backward()
    assert 0 < largest[0] <= 100 * 64


def test_a_gradient_of_zero_or_of_either_sign_is_right_at_large_logits() -> None:
    head, states, targets, _ = setting()
    hidden = (30 * states).requires_grad_()
    weights = torch.tensor([0.0, 1.0, -1.0, 1e-30, *[2.0] * 9])
    (head_logps(head, hidden, targets, tile=(4, 10)) * weights).sum().backward()
    exact = hidden.detach().double().requires_grad_()
    slow = (exact @ head.weight.double().T).log_softmax(-1)[torch.arange(len(targets)), targets]
    (expected,) = torch.autograd.grad((slow * weights).sum(), exact)
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, expected.float(), rtol=1e-4, atol=1e-5)
