from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.arithmetic import ARITHMETICS, use_arithmetic
from torch import Tensor, nn
from torch.nn.functional import linear

from spot.train import head as module
from spot.train.head import CALLED_ROWS, TILES, Tile, head_logps


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
    weight = head.weight.detach().double().requires_grad_()
    slow = (exact @ weight.T).log_softmax(-1)[torch.arange(len(targets)), targets]
    by_hidden, by_weight = torch.autograd.grad((slow * weights).sum(), [exact, weight])
    assert hidden.grad is not None and head.weight.grad is not None
    assert not hidden.grad[0].any()
    torch.testing.assert_close(hidden.grad, by_hidden.float(), rtol=1e-4, atol=1e-5)
    assert (head.weight.grad - by_weight).norm() < 1e-5 * by_weight.norm()


def certain(probabilities: Tensor, vocabulary: int = 800, width: int = 128) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, states and targets of about these probabilities; all values are bf16's, so that rounding is none's."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False)
    head.weight.data = (torch.randn(vocabulary, width, generator=generator) / 12).bfloat16().float()
    weight = head.weight.detach()
    targets = torch.randint(vocabulary, (len(probabilities),), generator=generator)
    rows, noise = weight[targets], torch.randn(len(targets), width, generator=generator)
    low, high = torch.zeros(len(targets), 1), torch.full((len(targets), 1), 100.0)
    for _ in range(40):  # how far to go along a target's row
        middle = (low + high) / 2
        states = noise + middle * rows / rows.square().sum(1, keepdim=True)
        too_low = (states @ weight.T).softmax(1).gather(1, targets[:, None]) < probabilities[:, None]
        low, high = low.where(~too_low, middle), high.where(too_low, middle)
    return head, (noise + low * rows / rows.square().sum(1, keepdim=True)).bfloat16().float(), targets


def errors(head: nn.Linear, states: Tensor, targets: Tensor, *ways: Callable[[Tensor], Tensor]) -> list[list[float]]:
    """How far, relatively, each way's log-probabilities and gradients by states and weight are from those in fp64."""
    factors = torch.linspace(-1, 2, len(targets))

    def gradients(logps: Tensor, hidden: Tensor, weight: Tensor) -> list[Tensor]:
        return [logps.detach(), *torch.autograd.grad((logps * factors).sum(), [hidden, weight])]

    hidden, weight = states.double().requires_grad_(), head.weight.detach().double().requires_grad_()
    exact = gradients((hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0], hidden, weight)
    found: list[list[float]] = []
    for way in ways:
        hidden = states.clone().requires_grad_()
        values = gradients(way(hidden), hidden, head.weight)
        assert float(values[0].max()) < 1e-6
        found.append([float((one - other).norm() / other.norm()) for one, other in zip(values, exact, strict=True)])
    return found


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("bf16", [False, True])
def test_tokens_that_are_all_but_certain_keep_their_gradient(
    bf16: bool, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_arithmetic(arithmetic, monkeypatch)
    head, states, targets = certain(1 - torch.logspace(-2, -4, 300))  # 0.99 to 0.9999

    def naive(hidden: Tensor) -> Tensor:
        return linear(hidden, head.weight).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        ours, plain = errors(head, states, targets, lambda hidden: head_logps(head, hidden, targets, (100, 256)), naive)
    for error, least in zip(ours, plain, strict=True):
        # One minus the probability is what is left of it: naive loses digits in fp32, too.
        assert error < (1.1 * least if bf16 and arithmetic == "amx" else 5e-4 if bf16 else 5e-6)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_in_bf16_a_head_of_any_values_is_as_near_as_autocast_is(
    arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_arithmetic(arithmetic, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    head, states, targets = certain(torch.rand(300, generator=generator))
    with torch.no_grad():  # values that bf16 rounds, in the sums of tokens that cancel too
        head.weight.mul_(1 + 1e-3 * torch.rand(head.weight.shape, generator=generator))

    def naive(hidden: Tensor) -> Tensor:
        return linear(hidden, head.weight).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]

    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = errors(head, states, targets, lambda hidden: head_logps(head, hidden, targets, (100, 256)), naive)
    assert all(error < 1.1 * least for error, least in zip(ours, plain, strict=True))


def test_a_gpus_sum_is_that_of_the_entries_that_are_left() -> None:
    logits = torch.randn(50, 7)
    places = torch.arange(50)[:, None] % 10 - 1  # before the tile, in it, its first entry among them, and behind it
    inside = (places >= 0) & (places < 7)
    exact = torch.stack(
        [row[[i for i in range(7) if i != int(at)]].logsumexp(0) for row, at in zip(logits, places, strict=True)]
    )
    found = module._take_out(logits, places)  # pyright: ignore[reportPrivateUsage]
    assert bool(((found != 0) == inside).all()) and bool((logits.isinf().sum(1, keepdim=True) == inside).all())
    for of in (module._log_sum_exp_in_one_pass, module._log_sum_exp):  # pyright: ignore[reportPrivateUsage]
        torch.testing.assert_close(of(logits, places)[:, 0], exact)


def test_a_head_that_is_called_is_called_on_many_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    head, states, targets, _ = setting(rows=2 * CALLED_ROWS, vocabulary=TILES["cpu"][0] * TILES["cpu"][1] // 4)
    seen: list[int] = []
    called = Called(head)
    called.linear.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    with torch.no_grad():
        head_logps(called, states, targets)
    assert seen == [CALLED_ROWS, CALLED_ROWS]


def test_a_block_of_the_vocabulary_is_widened_once_however_many_tokens_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_arithmetic("gpu", monkeypatch)
    pad, padded = module.pad, [0]

    def counted(*given: Any, **options: Any) -> Tensor:
        padded[0] += 1
        return pad(*given, **options)

    monkeypatch.setattr(module, "pad", counted)
    head, states, targets, _ = setting(rows=100, vocabulary=40)
    with torch.autocast("cpu", torch.bfloat16):
        head_logps(head, states.requires_grad_(), targets, tile=(10, 20)).sum().backward()
    assert padded == [2]
