"""One optimizer step's loss and gradient: packed rows, objective, backward, and what is logged about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from spot.objectives import implicit_rewards, kl_estimates
from spot.train.logps import Scorer
from spot.train.objective import Objective, Scores
from spot.train.packing import shortest
from spot.train.ranks import Ranks
from spot.train.reference import Reference
from spot.train.row import BOTH, Side
from spot.train.tokenize import TokenizedPair


@dataclass(frozen=True)
class StepResult:
    """One step: per pair, in the order given, fp64 `(num_pairs,)` on the CPU, over all ranks.

    A tether is the loss's gradient scale on an answer: minus (chosen) or plus (rejected) the derivative of the pair's
    loss by a token's log-probability, averaged over the answer's tokens. It is measured in the backward pass, so it
    holds for any objective; for `spot_bco` it is `beta * (1 - sigmoid(r+ - delta))` and `beta * sigmoid(r- - delta)`.
    `chosen_kl` is the mean over the answer's tokens of the `k3` estimate of KL(pi, pi_ref), in nats. Columns of the
    rejected answers are nan where those were not scored. `tokens` counts the tokens that were run, `plain_tokens` those
    that separate sequences would have run.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_tether: Tensor
    rejected_tether: Tensor
    chosen_kl: Tensor
    tokens: int
    plain_tokens: int

    @property
    def loss(self) -> float:
        """The step's loss: the mean over its pairs."""
        return float(self.losses.mean())


NUM_COLUMNS = len(fields(StepResult)) - 2


def run_step(
    scorer: Scorer,
    pairs: Sequence[TokenizedPair],
    indices: Sequence[int],
    reference: Reference,
    objective: Objective,
    *,
    delta: float,
    micro_batch_tokens: int,
    backward: Callable[[Tensor], None] | None,
    ranks: Ranks | None = None,
    mean_tokens: float | None = None,
) -> StepResult:
    """Add the gradient of the mean loss over `pairs[indices]` to the model's parameters.

    Every rank is given the whole step and runs its share of it; gradients are to be averaged over ranks. Without
    `backward` nothing is added. `mean_tokens`, which scales the SFT family's losses, is the mean length of these pairs'
    chosen answers unless given. The result does not depend on how the step is cut into rows and ranks or on the order
    of `indices`, beyond rounding.
    """
    ranks = ranks or Ranks()
    step_pairs = [pairs[index] for index in indices]
    mean_tokens = mean_tokens or mean_chosen_tokens(step_pairs)
    forwards = forwards_of(objective)
    plan = scorer.plan(step_pairs, forwards, micro_batch_tokens, ranks.count)[ranks.rank]
    columns: list[Tensor] = []
    for number, row in enumerate(plan):
        # A rank without pairs still has to call the module as often as the others: with any pair, for nothing.
        positions = row or [shortest(step_pairs)]
        scale = ranks.count / len(step_pairs) if row else 0.0
        with ranks.sync(number == len(plan) - 1), torch.set_grad_enabled(backward is not None):
            answers = _score(scorer, pairs, [indices[position] for position in positions], reference, objective)
            losses = objective.losses(*answers, delta=delta, mean_tokens=mean_tokens)
            if backward is not None:
                backward(losses.sum() * scale)
        if row:
            columns.append(_columns(losses, *answers, objective.beta, scale))
    table = torch.zeros(NUM_COLUMNS, len(step_pairs), dtype=torch.float64)
    if columns:
        # Once, at the end: with a transfer after each row a GPU would wait for the next one to be prepared.
        table[:, [position for row in plan for position in row]] = torch.cat(columns, dim=1).cpu()
    plain = sum(pair.num_plain(side) for pair in step_pairs for sides in forwards for side in sides)
    tokens = sum(scorer.num_tokens(pair, sides) for pair in step_pairs for sides in forwards)
    return StepResult(*ranks.gather(table), tokens=tokens, plain_tokens=plain)


def mean_chosen_tokens(pairs: Sequence[TokenizedPair]) -> float:
    """The mean length of the chosen answers, in tokens."""
    return sum(len(pair.chosen_ids) for pair in pairs) / len(pairs)


def forwards_of(objective: Objective) -> tuple[tuple[Side, ...], ...]:
    """The sides that are run together: both, sharing their prefix, where both are trained; else apart or not at all."""
    if objective.trains_rejected:
        return (BOTH,)
    return (("chosen",), ("rejected",)) if objective.score_rejected else (("chosen",),)


def _score(
    scorer: Scorer, pairs: Sequence[TokenizedPair], indices: Sequence[int], reference: Reference, objective: Objective
) -> tuple[Scores, Scores]:
    """Both sides of `pairs[indices]`, with gradient where the objective has one."""
    row = [pairs[index] for index in indices]

    def scores(side: Side, token_logps: Tensor, mask: Tensor) -> Scores:
        if token_logps.requires_grad:
            token_logps.retain_grad()
        ref_token_logps = reference.padded(side, indices, token_logps.shape[1]).to(token_logps.device)
        return Scores(token_logps, ref_token_logps, mask)

    if objective.trains_rejected:
        token_logps, mask = scorer(row)
        both = zip(BOTH, token_logps.split(len(row)), mask.split(len(row)), strict=True)
        chosen, rejected = (scores(*side) for side in both)
        return chosen, rejected
    chosen = scores("chosen", *scorer(row, ["chosen"]))
    if not objective.score_rejected:
        nothing = torch.full((len(row), 1), torch.nan, device=chosen.mask.device)
        return chosen, Scores(nothing, nothing, torch.ones_like(nothing, dtype=torch.bool))
    with torch.no_grad():
        return chosen, scores("rejected", *scorer(row, ["rejected"]))


def _columns(losses: Tensor, chosen: Scores, rejected: Scores, beta: float, scale: float) -> Tensor:
    """What `StepResult` holds of a row's pairs, `(NUM_COLUMNS, batch)` fp64."""
    with torch.no_grad():
        kl = kl_estimates(chosen.token_logps, chosen.ref_token_logps).sum(dim=1) / chosen.mask.sum(dim=1)
        columns = [
            losses,
            implicit_rewards(chosen.logps, chosen.ref_logps, beta=beta),
            implicit_rewards(rejected.logps, rejected.ref_logps, beta=beta),
            chosen.logps,
            rejected.logps,
            -_gradient_scale(chosen) / scale,
            _gradient_scale(rejected) / scale,
            kl,
        ]
        return torch.stack([column.detach().double().to(losses.device) for column in columns])


def _gradient_scale(side: Scores) -> Tensor:
    grad = side.token_logps.grad
    if grad is None:
        return torch.zeros(len(side.mask), device=side.mask.device)
    return (grad * side.mask).sum(dim=1) / side.mask.sum(dim=1)
