"""One optimizer step's loss and gradient: micro-batches, objective, backward, and what is logged about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from spot import objectives
from spot.objectives import LossOutput, Reduction
from spot.train.logps import pair_logps
from spot.train.packing import micro_batches
from spot.train.reference import Reference
from spot.train.tokenize import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAIR_OBJECTIVES = ("spot_bco", "spot_bce", "dpo", "reward_sft")
TOKEN_OBJECTIVES = ("sft",)
OBJECTIVES = PAIR_OBJECTIVES + TOKEN_OBJECTIVES
CHOSEN_ONLY = ("reward_sft", "sft")
"""Objectives whose loss does not see the rejected answers; they are scored for the log only."""


@dataclass(frozen=True)
class Objective:
    """An objective by name with its constants; checked when made (`ValueError`)."""

    name: str
    beta: float = 0.1
    reduction: Reduction = "token_mean"
    score_rejected: bool = True

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(f"unknown loss {self.name!r}; choose one of {', '.join(OBJECTIVES)}")
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")
        if self.reduction not in get_args(Reduction):
            raise ValueError(f"sft_reduction must be one of {', '.join(get_args(Reduction))}, got {self.reduction!r}")


@dataclass(frozen=True)
class StepResult:
    """One step: its `loss`, and per pair, in the order given, fp64 `(num_pairs,)` on the CPU.

    A tether is the loss's gradient scale on an answer: minus (chosen) or plus (rejected) the derivative of the pair's
    loss by a token's log-probability, averaged over the answer's tokens. It is measured in the backward pass, so it
    holds for any objective; for `spot_bco` it is `beta * (1 - sigmoid(r+ - delta))` and `beta * sigmoid(r- - delta)`.
    Rejected columns are nan where the rejected answers were not scored. `tokens` counts tokens without padding.
    """

    loss: float
    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_tether: Tensor
    rejected_tether: Tensor
    tokens: int


def run_step(
    model: "PreTrainedModel",
    pairs: Sequence[TokenizedPair],
    indices: Sequence[int],
    reference: Reference,
    objective: Objective,
    *,
    delta: float,
    micro_batch_tokens: int,
    bf16: bool,
    backward: Callable[[Tensor], None],
) -> StepResult:
    """Add the gradient of the mean loss over `pairs[indices]` to the model's parameters.

    The result does not depend on how the step is cut into micro-batches or on the order of `indices`, beyond rounding.
    """
    step_pairs = [pairs[index] for index in indices]
    mean_tokens = sum(len(pair.chosen_ids) for pair in step_pairs) / len(step_pairs)
    done: list[int] = []
    columns: list[Tensor] = []
    for micro_batch in micro_batches([pair.length for pair in step_pairs], micro_batch_tokens):
        rows = [indices[position] for position in micro_batch]
        chosen, rejected = _answers(model, [step_pairs[position] for position in micro_batch], objective, bf16)
        ref = torch.stack([reference.chosen_logps[rows], reference.rejected_logps[rows]]).to(chosen.token_logps.device)
        output = _losses(objective, chosen, rejected, ref, delta=delta, mean_tokens=mean_tokens)
        backward(output.losses.sum() / len(step_pairs))
        columns.append(
            torch.stack(
                [
                    output.losses.detach(),
                    output.chosen_rewards,
                    output.rejected_rewards,
                    chosen.logps.detach(),
                    rejected.logps.detach(),
                    -chosen.gradient_scale() * len(step_pairs),
                    rejected.gradient_scale() * len(step_pairs),
                ]
            )
        )
        done.extend(micro_batch)
    # One transfer a step: on a GPU every other read would wait for it.
    table = torch.cat(columns, dim=1).double().cpu()
    table = table[:, torch.tensor(done).argsort()]
    sides = 1 if objective.name in CHOSEN_ONLY and not objective.score_rejected else 2
    return StepResult(float(table[0].mean()), *table, tokens=_num_tokens(step_pairs, sides))


@dataclass(frozen=True)
class _Side:
    """One side's answers in a micro-batch: `(batch, seq)` token log-probabilities and their mask."""

    token_logps: Tensor
    mask: Tensor

    @property
    def logps(self) -> Tensor:
        return self.token_logps.sum(dim=1)

    def gradient_scale(self) -> Tensor:
        grad = self.token_logps.grad
        if grad is None:
            return torch.zeros(len(self.mask), device=self.mask.device)
        return (grad * self.mask).sum(dim=1) / self.mask.sum(dim=1)


def _answers(
    model: "PreTrainedModel", pairs: Sequence[TokenizedPair], objective: Objective, bf16: bool
) -> tuple[_Side, _Side]:
    """Both sides' token log-probabilities, with gradient where the objective has one."""
    if objective.name not in CHOSEN_ONLY:
        token_logps, mask = pair_logps(model, pairs, bf16=bf16)
        n = len(pairs)
        sides = _Side(token_logps[:n], mask[:n]), _Side(token_logps[n:], mask[n:])
        for side in sides:
            side.token_logps.retain_grad()
        return sides
    token_logps, mask = pair_logps(model, pairs, ["chosen"], bf16=bf16)
    token_logps.retain_grad()
    if not objective.score_rejected:
        nothing = torch.full((len(pairs), 1), torch.nan, device=mask.device)
        return _Side(token_logps, mask), _Side(nothing, torch.ones_like(nothing, dtype=torch.bool))
    with torch.no_grad():
        rejected = _Side(*pair_logps(model, pairs, ["rejected"], bf16=bf16))
    return _Side(token_logps, mask), rejected


def _losses(
    objective: Objective,
    chosen: _Side,
    rejected: _Side,
    ref: Tensor,
    *,
    delta: float,
    mean_tokens: float,
) -> LossOutput:
    """The objective on one micro-batch; `ref` are the reference's chosen and rejected sums, `(2, batch)`."""
    beta = objective.beta
    ref_chosen, ref_rejected = ref
    summed = (chosen.logps, rejected.logps, ref_chosen, ref_rejected)
    if objective.name == "spot_bco":
        return objectives.spot_bco(*summed, beta=beta, delta=delta)
    if objective.name == "spot_bce":
        return objectives.spot_bce(*summed, beta=beta)
    if objective.name == "dpo":
        return objectives.dpo(*summed, beta=beta)
    if objective.name == "reward_sft":
        losses = objectives.reward_sft(chosen.logps, ref_chosen, beta=beta).losses
    else:
        losses = objectives.sft(chosen.token_logps, chosen.mask, reduction=objective.reduction, mean_tokens=mean_tokens)
    with torch.no_grad():
        chosen_rewards = objectives.implicit_rewards(chosen.logps, ref_chosen, beta=beta)
        rejected_rewards = objectives.implicit_rewards(rejected.logps, ref_rejected, beta=beta)
    return LossOutput(losses, chosen_rewards, rejected_rewards)


def _num_tokens(pairs: Sequence[TokenizedPair], sides: int) -> int:
    answers = sum(len(pair.chosen_ids) + (len(pair.rejected_ids) if sides == 2 else 0) for pair in pairs)
    return sides * sum(len(pair.prompt_ids) for pair in pairs) + answers
