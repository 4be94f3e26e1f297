"""The losses, side by side: pure, unreduced, stateless.

Notation: `pi` is the policy, `pi_ref` the frozen reference, `y+` the chosen and `y-` the rejected answer, and
`r(x, y) = beta * (log pi(y|x) - log pi_ref(y|x))` the implicit reward, with log-probabilities summed over the answer's
tokens. Equation numbers are those of "Surgical Post-Training" (arXiv 2603.01683).

A pair objective takes four `(batch,)` float tensors of summed log-probabilities in nats and returns a `LossOutput`.
A token objective takes `(batch, seq)` token log-probabilities and a completion mask. Whatever the objective, the loss
of an optimizer step is the plain mean of its per-pair losses over all pairs of the step.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

ShiftKind = Literal["ema", "cumulative", "none"]
Reduction = Literal["token_mean", "sequence_sum"]
KLEstimator = Literal["k1", "k2", "k3"]


class LossOutput(NamedTuple):
    """Per-pair results of a pair objective, each `(batch,)`; the rewards carry no gradient."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def spot_bco(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    delta: float | Tensor,
) -> LossOutput:
    """SPoT-BCO, eq. 10: push `r+` above and `r-` below the shift `delta` (a constant here; see `update_shift`).

    All tensors `(batch,)`. Raises `ValueError` on shapes that differ, on `beta <= 0`.
    """
    chosen, rejected = _pair_rewards(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    if isinstance(delta, Tensor):
        delta = delta.detach()
    losses = -logsigmoid(chosen - delta) - logsigmoid(-(rejected - delta))  # eq. 10
    return LossOutput(losses, chosen.detach(), rejected.detach())


def spot_bce(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, *, beta: float
) -> LossOutput:
    """SPoT-BCE, eq. 9: a binary classifier with the reward as its logit.

    All tensors `(batch,)`. Raises `ValueError` on shapes that differ, on `beta <= 0`.
    """
    chosen, rejected = _pair_rewards(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    losses = -logsigmoid(chosen) - logsigmoid(-rejected)  # eq. 9
    return LossOutput(losses, chosen.detach(), rejected.detach())


def dpo(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, *, beta: float
) -> LossOutput:
    """DPO, eq. 4: only the margin between the rewards counts.

    All tensors `(batch,)`. Raises `ValueError` on shapes that differ, on `beta <= 0`.
    """
    chosen, rejected = _pair_rewards(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    losses = -logsigmoid(chosen - rejected)  # eq. 4
    return LossOutput(losses, chosen.detach(), rejected.detach())


def reward_sft(chosen_logps: Tensor, ref_chosen_logps: Tensor, *, beta: float) -> LossOutput:
    """Reward-SFT, eq. 5: the chosen term alone, which isolates the tether. `rejected_rewards` are nan: it sees none.

    Both tensors `(batch,)`. Raises `ValueError` on shapes that differ, on `beta <= 0`.
    """
    chosen = implicit_rewards(chosen_logps, ref_chosen_logps, beta=beta)
    losses = -logsigmoid(chosen)  # eq. 5
    return LossOutput(losses, chosen.detach(), torch.full_like(chosen, torch.nan).detach())


def sft(
    token_logps: Tensor,
    completion_mask: Tensor,
    *,
    reduction: Reduction = "token_mean",
    mean_tokens: float | None = None,
) -> Tensor:
    """Supervised fine-tuning on the chosen answers, `(batch,)` losses whose mean is the step's loss.

    `token_logps` and `completion_mask` are `(batch, seq)`. With `sequence_sum` a loss is the sum over the answer's
    tokens (eq. 2). With `token_mean` the step's loss is the mean over all completion tokens of the whole step, however
    it is cut into micro-batches: each sum is divided by `mean_tokens`, the number of completion tokens an answer has on
    average over the whole step, which is that of the batch at hand unless given.

    Raises `ValueError` on shapes that differ, an unknown reduction, and a batch without completion tokens.
    """
    return _reduced(-_selected(token_logps, completion_mask), completion_mask, reduction, mean_tokens)  # eq. 2


def dft(
    token_logps: Tensor,
    completion_mask: Tensor,
    *,
    reduction: Reduction = "token_mean",
    mean_tokens: float | None = None,
) -> Tensor:
    """Dynamic fine-tuning (arXiv 2508.05629): `sft` with each token weighted by its own probability, held constant.

    Shapes, reductions and errors are those of `sft`.
    """
    kept = _selected(token_logps, completion_mask)
    return _reduced(-kept.detach().exp() * kept, completion_mask, reduction, mean_tokens)


def kl_sft(
    token_logps: Tensor,
    ref_token_logps: Tensor,
    completion_mask: Tensor,
    *,
    coefficient: float,
    estimator: KLEstimator = "k3",
    reduction: Reduction = "token_mean",
    mean_tokens: float | None = None,
) -> Tensor:
    """`sft` plus `coefficient` times a per-token estimate of KL(pi, pi_ref) on the data's tokens (`kl_estimates`).

    Shapes, reductions and errors are those of `sft`; the estimates are reduced as its losses are.
    """
    if coefficient < 0:
        raise ValueError(f"coefficient must not be negative, got {coefficient}")
    kept, ref_kept = _selected(token_logps, completion_mask), _selected(ref_token_logps, completion_mask)
    penalty = kl_estimates(kept, ref_kept, estimator=estimator)
    return _reduced(-kept + coefficient * penalty, completion_mask, reduction, mean_tokens)


def kl_estimates(token_logps: Tensor, ref_token_logps: Tensor, *, estimator: KLEstimator = "k3") -> Tensor:
    """Estimates of KL(pi, pi_ref) from single tokens, in nats, in the shape given, with gradient.

    With `d = log pi - log pi_ref`: `k1` is `d`, `k2` is `d^2 / 2`, `k3` is `exp(-d) - 1 + d` (Schulman, "Approximating
    KL divergence", 2020). They estimate the divergence where the tokens are the policy's own; on the data's tokens they
    measure how far the policy has moved there, and only `k2` and `k3` pull it back from either side. Raises
    `ValueError` on shapes that differ and an unknown estimator.
    """
    if token_logps.shape != ref_token_logps.shape:
        raise ValueError(f"shapes differ: {tuple(token_logps.shape)} and {tuple(ref_token_logps.shape)}")
    moved = token_logps - ref_token_logps
    if estimator == "k1":
        return moved
    if estimator == "k2":
        return moved.square() / 2
    if estimator == "k3":
        return torch.expm1(-moved) + moved
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")


def _selected(token_logps: Tensor, completion_mask: Tensor) -> Tensor:
    """Zero on padding. Selecting, not multiplying: whatever stands there (inf, nan) must not reach the loss."""
    if token_logps.ndim != 2 or token_logps.shape != completion_mask.shape:
        raise ValueError(
            "token_logps and completion_mask must both be (batch, seq), "
            f"got {tuple(token_logps.shape)} and {tuple(completion_mask.shape)}"
        )
    return torch.where(completion_mask.bool(), token_logps, torch.zeros_like(token_logps))


def _reduced(token_losses: Tensor, completion_mask: Tensor, reduction: Reduction, mean_tokens: float | None) -> Tensor:
    if reduction not in ("token_mean", "sequence_sum"):
        raise ValueError(f"reduction must be 'token_mean' or 'sequence_sum', got {reduction!r}")
    sums = token_losses.sum(dim=1)
    if reduction == "sequence_sum":
        return sums
    if mean_tokens is None:
        mean_tokens = int(completion_mask.bool().sum()) / len(completion_mask)
    if mean_tokens <= 0:
        raise ValueError("token_mean needs at least one completion token")
    return sums / mean_tokens


def update_shift(delta: float, batch_mean: float, step: int, *, kind: ShiftKind = "ema", decay: float = 0.9) -> float:
    """The shift `d` of eq. 10 after a step, from the shift used in it.

    `batch_mean` is the mean of `(r+ + r-) / 2` over the step's whole global batch, and `step` counts the steps before
    it (0 at first, when `delta` is 0). `ema` moves by `1 - decay` towards it (eq. 10), `cumulative` is the mean over
    all steps so far, `none` stays at 0. The new value is used from the next step on, so that no gradient depends on how
    a batch was cut. Raises `ValueError` on an unknown kind and on a decay outside [0, 1).
    """
    if kind == "none":
        return 0.0
    if kind == "cumulative":
        return (delta * step + batch_mean) / (step + 1)
    if kind != "ema":
        raise ValueError(f"kind must be 'ema', 'cumulative' or 'none', got {kind!r}")
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")
    return decay * delta + (1 - decay) * batch_mean


def implicit_rewards(logps: Tensor, ref_logps: Tensor, *, beta: float) -> Tensor:
    """`r(x, y) = beta * (log pi(y|x) - log pi_ref(y|x))`, `(batch,)`, with gradient.

    Raises `ValueError` on shapes that differ, on `beta <= 0`.
    """
    _check_vectors(logps=logps, ref_logps=ref_logps)
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    return beta * (logps - ref_logps)


def _pair_rewards(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    _check_vectors(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    return (
        implicit_rewards(chosen_logps, ref_chosen_logps, beta=beta),
        implicit_rewards(rejected_logps, ref_rejected_logps, beta=beta),
    )


def _check_vectors(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"log-probabilities must all be (batch,) of one size, got {shapes}")
