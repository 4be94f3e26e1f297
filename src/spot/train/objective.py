"""What a step minimises: one objective of `spot.objectives`, a weighted sum of several, or a user's own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from spot import objectives
from spot.errors import RunFailed, UserError
from spot.objectives import KLEstimator, LossOutput, Reduction
from spot.plugin import load_function, own_code

PAIR_OBJECTIVES = ("spot_bco", "spot_bce", "dpo", "reward_sft")
TOKEN_OBJECTIVES = ("sft", "dft", "kl_sft")
OBJECTIVES = PAIR_OBJECTIVES + TOKEN_OBJECTIVES
CHOSEN_ONLY = ("reward_sft", *TOKEN_OBJECTIVES)
"""Objectives whose loss does not see the rejected answers; they are scored for the log only."""


HERE = {"sigmoid": "dpo", "bco_pair": "spot_bce (or spot_bco, with the reward shift)", "nll": "sft"}
"""What TRL's losses of another name are called."""


@dataclass(frozen=True)
class Scores:
    """One side's answers: policy and reference token log-probabilities and the mask, `(batch, seq)` each."""

    token_logps: Tensor
    ref_token_logps: Tensor
    mask: Tensor

    @property
    def logps(self) -> Tensor:
        """The policy's sums, `(batch,)` in fp64: rewards are small differences of large sums."""
        return self.token_logps.sum(dim=1, dtype=torch.float64)

    @property
    def ref_logps(self) -> Tensor:
        """The reference's sums, `(batch,)` in fp64."""
        return self.ref_token_logps.sum(dim=1, dtype=torch.float64)


@dataclass(frozen=True)
class Objective:
    """Objectives by name with their weights and constants; checked when made (`ValueError`)."""

    names: Sequence[str] = ("spot_bco",)
    weights: Sequence[float] | None = None
    beta: float = 0.1
    reduction: Reduction = "token_mean"
    kl_coefficient: float = 0.1
    kl_estimator: KLEstimator = "k3"
    score_rejected: bool = True
    own: dict[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"loss_type is empty; choose from {', '.join(OBJECTIVES)}")
        for name in self.names:
            if ":" in name:
                self.own[name] = _load(name)
            elif name not in OBJECTIVES:
                hint = f"; here it is {HERE[name]}" if name in HERE else ""
                known = ", ".join(OBJECTIVES)
                raise ValueError(f"unknown loss {name!r}{hint}; choose one of {known}, or module:function")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"a loss is named twice in {' '.join(self.names)}")
        if self.weights is not None and len(self.weights) != len(self.names):
            raise ValueError(f"loss_weights must be as many as loss_type: {len(self.names)}, got {len(self.weights)}")
        if self.weights is not None and not all(map(math.isfinite, self.weights)):
            raise ValueError(f"loss_weights must be finite, got {' '.join(map(str, self.weights))}")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be above 0 and finite, got {self.beta}")
        if self.reduction not in get_args(Reduction):
            raise ValueError(f"sft_reduction must be one of {', '.join(get_args(Reduction))}, got {self.reduction!r}")
        if self.kl_estimator not in get_args(KLEstimator):
            raise ValueError(
                f"kl_estimator must be one of {', '.join(get_args(KLEstimator))}, got {self.kl_estimator!r}"
            )
        if not 0 <= self.kl_coefficient < math.inf:
            raise ValueError(f"kl_coefficient must be finite and not negative, got {self.kl_coefficient}")

    @property
    def trains_rejected(self) -> bool:
        """Whether the loss sees the rejected answers."""
        return any(name not in CHOSEN_ONLY for name in self.names)

    @property
    def has_rewards(self) -> bool:
        """Whether beta counts: the loss is one of rewards, not of tokens alone."""
        return any(name not in TOKEN_OBJECTIVES for name in self.names)

    @property
    def scores_rejected(self) -> bool:
        """Whether the rejected answers are scored, for the loss or for the log alone."""
        return self.trains_rejected or self.score_rejected

    def losses(self, chosen: Scores, rejected: Scores, *, delta: float, mean_tokens: float) -> Tensor:
        """The weighted sum, `(batch,)` in fp64; the step's loss is the mean over its pairs.

        `delta` is `spot_bco`'s shift, `mean_tokens` the chosen answers' mean number of tokens over the whole step.
        """
        weights = self.weights or [1.0] * len(self.names)
        terms = [
            weight * self._one(name, chosen, rejected, delta, mean_tokens)
            for name, weight in zip(self.names, weights, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)

    def _one(self, name: str, chosen: Scores, rejected: Scores, delta: float, mean_tokens: float) -> Tensor:
        if name in TOKEN_OBJECTIVES:
            return self._of_tokens(name, chosen, mean_tokens).double()
        if name == "reward_sft":
            return objectives.reward_sft(chosen.logps, chosen.ref_logps, beta=self.beta).losses
        summed = (chosen.logps, rejected.logps, chosen.ref_logps, rejected.ref_logps)
        if name in self.own:
            with own_code("loss", name):
                result = self.own[name](*summed, beta=self.beta)
            return _checked(name, result, summed[0])
        if name == "spot_bco":
            return objectives.spot_bco(*summed, beta=self.beta, delta=delta).losses
        return {"spot_bce": objectives.spot_bce, "dpo": objectives.dpo}[name](*summed, beta=self.beta).losses

    def _of_tokens(self, name: str, chosen: Scores, mean_tokens: float) -> Tensor:
        reduced: Any = {"reduction": self.reduction, "mean_tokens": mean_tokens}
        if name == "kl_sft":
            penalty: Any = {"coefficient": self.kl_coefficient, "estimator": self.kl_estimator}
            return objectives.kl_sft(chosen.token_logps, chosen.ref_token_logps, chosen.mask, **penalty, **reduced)
        return {"sft": objectives.sft, "dft": objectives.dft}[name](chosen.token_logps, chosen.mask, **reduced)


def _load(name: str) -> Callable[..., Any]:
    try:
        return load_function("loss", name)
    except UserError as error:
        raise ValueError(str(error)) from error


def _checked(name: str, result: Any, like: Tensor) -> Tensor:
    losses = result.losses if isinstance(result, LossOutput) else result
    if not isinstance(losses, Tensor) or losses.shape != like.shape:
        raise RunFailed(f"loss {name!r} must return a tensor of shape {tuple(like.shape)}, one loss a pair")
    return losses
