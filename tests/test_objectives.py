import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spot.objectives import LossOutput, dpo, reward_sft, sft, spot_bce, spot_bco, update_shift

BETA = 0.1


def four(seed: int = 0, batch: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-100 * torch.rand(batch, dtype=torch.float64, generator=generator) for _ in range(4)]


def reward_sft_of_four(c: Tensor, r: Tensor, rc: Tensor, rr: Tensor, *, beta: float) -> LossOutput:
    return reward_sft(c, rc, beta=beta)


PAIRWISE: dict[str, Callable[..., LossOutput]] = {
    "spot_bce": spot_bce,
    "dpo": dpo,
    "reward_sft": reward_sft_of_four,
    "spot_bco": lambda *logps, beta: spot_bco(*logps, beta=beta, delta=0.3),  # pyright: ignore[reportUnknownLambdaType]
}


def test_values_worked_by_hand() -> None:
    # r+ = 0.1 * (-10 - -20) = 1, r- = 0.1 * (-30 - -10) = -2
    logps = [torch.tensor([value], dtype=torch.float64) for value in (-10.0, -30.0, -20.0, -10.0)]

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    bco = spot_bco(*logps, beta=BETA, delta=0.5)
    assert bco.losses.item() == pytest.approx(softplus(-0.5) + softplus(-2.5))
    assert spot_bce(*logps, beta=BETA).losses.item() == pytest.approx(softplus(-1) + softplus(-2))
    assert dpo(*logps, beta=BETA).losses.item() == pytest.approx(softplus(-3))
    assert reward_sft(logps[0], logps[2], beta=BETA).losses.item() == pytest.approx(softplus(-1))
    assert (bco.chosen_rewards.item(), bco.rejected_rewards.item()) == pytest.approx((1, -2))


@pytest.mark.parametrize("name", PAIRWISE)
def test_policy_equal_to_reference_has_zero_rewards(name: str) -> None:
    chosen, rejected, *_ = four()
    output = PAIRWISE[name](chosen, rejected, chosen, rejected, beta=BETA)
    assert torch.equal(output.chosen_rewards, torch.zeros(5, dtype=torch.float64))
    if name == "reward_sft":
        assert output.rejected_rewards.isnan().all()
    else:
        assert torch.equal(output.rejected_rewards, torch.zeros(5, dtype=torch.float64))


def test_without_shift_bco_is_bce() -> None:
    assert torch.equal(spot_bco(*four(), beta=BETA, delta=0.0).losses, spot_bce(*four(), beta=BETA).losses)


def test_a_shift_moves_both_rewards() -> None:
    chosen, rejected, ref_chosen, ref_rejected = four()
    moved = spot_bce(chosen - 3 / BETA, rejected - 3 / BETA, ref_chosen, ref_rejected, beta=BETA)
    torch.testing.assert_close(spot_bco(*four(), beta=BETA, delta=3.0).losses, moved.losses)


def test_bco_has_no_gradient_through_the_shift() -> None:
    delta = torch.tensor(0.3, requires_grad=True, dtype=torch.float64)
    logps = [tensor.requires_grad_() for tensor in four()]
    spot_bco(*logps, beta=BETA, delta=delta).losses.sum().backward()
    assert delta.grad is None and logps[0].grad is not None


def test_the_tether_is_the_gradient_scale() -> None:
    for name, objective in PAIRWISE.items():
        logps = four()
        chosen, rejected = logps[0].requires_grad_(), logps[1].requires_grad_()
        output = objective(*logps, beta=BETA)
        output.losses.sum().backward()
        up, down = output.chosen_rewards, output.rejected_rewards
        expected = {
            "spot_bco": (1 - (up - 0.3).sigmoid(), (down - 0.3).sigmoid()),
            "spot_bce": (1 - up.sigmoid(), down.sigmoid()),
            "dpo": (1 - (up - down).sigmoid(), 1 - (up - down).sigmoid()),
            "reward_sft": (1 - up.sigmoid(), None),
        }[name]
        assert chosen.grad is not None
        torch.testing.assert_close(chosen.grad, -BETA * expected[0])
        if expected[1] is None:
            assert rejected.grad is None
        else:
            torch.testing.assert_close(rejected.grad, BETA * expected[1])


def test_the_tether_lets_go_of_what_is_learnt() -> None:
    chosen = torch.tensor([0.0, 100.0], dtype=torch.float64, requires_grad=True)
    reward_sft(chosen, torch.zeros(2, dtype=torch.float64), beta=BETA).losses.sum().backward()
    assert chosen.grad is not None
    assert (-chosen.grad / BETA).tolist() == pytest.approx([0.5, 4.5e-5], rel=0.02)


def test_reward_sft_is_eq_2_scaled_by_the_tether() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    sft(first, mask, reduction="sequence_sum").sum().backward()
    rewards = reward_sft((second * mask).sum(1), torch.zeros(3, dtype=torch.float64), beta=BETA)
    rewards.losses.sum().backward()
    assert first.grad is not None and second.grad is not None
    scale = BETA * (1 - rewards.chosen_rewards.sigmoid())
    torch.testing.assert_close(second.grad, first.grad * scale[:, None])


@pytest.mark.parametrize("name", PAIRWISE)
def test_extreme_rewards_stay_finite(name: str) -> None:
    far = torch.tensor([-1e5, 1e5])
    logps = [far.clone().requires_grad_(), far.flip(0).clone().requires_grad_(), torch.zeros(2), torch.zeros(2)]
    output = PAIRWISE[name](*logps, beta=1.0)
    output.losses.sum().backward()
    assert output.losses.isfinite().all()
    assert logps[0].grad is not None and logps[0].grad.isfinite().all()


@pytest.mark.parametrize("name", PAIRWISE)
def test_rewards_carry_no_gradient_and_losses_are_unreduced(name: str) -> None:
    output = PAIRWISE[name](*[tensor.requires_grad_() for tensor in four()], beta=BETA)
    assert output.losses.shape == (5,) and output.losses.requires_grad
    assert not output.chosen_rewards.requires_grad and not output.rejected_rewards.requires_grad


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_must_be_above_zero(name: str, beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        PAIRWISE[name](*four(), beta=beta)


@pytest.mark.parametrize("shapes", [((5,), (4,)), ((5, 1), (5, 1)), ((5,), (1,)), ((), ())])
def test_shapes_that_would_broadcast_are_refused(shapes: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="batch"):
        reward_sft(torch.zeros(shapes[0]), torch.zeros(shapes[1]), beta=BETA)
    first = torch.zeros(shapes[0])
    with pytest.raises(ValueError, match="batch"):
        spot_bco(first, first, first, torch.zeros(shapes[1]).unsqueeze(-1), beta=BETA, delta=0.0)


def test_sft_means_over_tokens_not_over_answers() -> None:
    token_logps = torch.tensor([[-1.0, -2.0, -3.0], [-6.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert sft(token_logps, mask).mean().item() == pytest.approx(12 / 4)
    assert sft(token_logps, mask, reduction="sequence_sum").tolist() == [6.0, 6.0]


def test_sft_cut_in_micro_batches_is_the_mean_over_the_steps_tokens() -> None:
    token_logps = -torch.rand(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 1, 3, 2, 5, 4])[:, None]
    cut = [sft(token_logps[s], mask[s], mean_tokens=22 / 6) for s in (slice(0, 1), slice(1, 4), slice(4, 6))]
    whole = -token_logps[mask].mean()
    torch.testing.assert_close(torch.cat(cut).mean(), whole)
    torch.testing.assert_close(sft(token_logps, mask).mean(), whole)


def test_sft_ignores_whatever_stands_on_padding() -> None:
    token_logps = torch.tensor([[-1.0, math.nan], [-2.0, -math.inf]], requires_grad=True)
    losses = sft(token_logps, torch.tensor([[1, 0], [1, 0]]))
    losses.sum().backward()
    assert losses.tolist() == [1.0, 2.0]
    assert token_logps.grad is not None and token_logps.grad[:, 1].tolist() == [0.0, 0.0]


def test_sft_refuses_wrong_use() -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match="batch, seq"):
        sft(ones, torch.ones(2, 2))
    with pytest.raises(ValueError, match="reduction"):
        sft(ones, ones, reduction="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="completion token"):
        sft(ones, torch.zeros(2, 3))


means = st.lists(st.floats(-50, 50), min_size=1, max_size=20)


@given(means, st.floats(0, 0.99))
def test_the_ema_shift_is_the_weighted_sum_of_earlier_means(batch_means: list[float], decay: float) -> None:
    delta = 0.0
    for step, mean in enumerate(batch_means):
        delta = update_shift(delta, mean, step, kind="ema", decay=decay)
    weights = [(1 - decay) * decay**age for age in range(len(batch_means))]
    expected = sum(weight * mean for weight, mean in zip(weights, reversed(batch_means), strict=True))
    assert delta == pytest.approx(expected, abs=1e-9)


@given(means)
def test_the_cumulative_shift_is_the_mean_of_all_steps(batch_means: list[float]) -> None:
    delta = 0.0
    for step, mean in enumerate(batch_means):
        delta = update_shift(delta, mean, step, kind="cumulative")
    assert delta == pytest.approx(sum(batch_means) / len(batch_means), abs=1e-9)


def test_no_shift_and_wrong_shifts() -> None:
    assert update_shift(3.0, 5.0, 2, kind="none") == 0.0
    with pytest.raises(ValueError, match="kind"):
        update_shift(0.0, 1.0, 0, kind="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="decay"):
        update_shift(0.0, 1.0, 0, decay=1.0)
