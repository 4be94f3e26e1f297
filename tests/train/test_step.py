import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model
from torch import Tensor
from transformers import Qwen3ForCausalLM

from spot.train.reference import Reference, compute_reference
from spot.train.step import OBJECTIVES, Objective, StepResult, run_step
from spot.train.tokenize import TokenizedPair

DELTA = 0.4


def reference_of(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair]) -> Reference:
    return compute_reference(model, tokenized, "key", micro_batch_tokens=4096, bf16=False)


def step(
    model: Qwen3ForCausalLM,
    tokenized: list[TokenizedPair],
    reference: Reference,
    objective: Objective,
    budget: int = 10**5,
    indices: list[int] | None = None,
) -> tuple[StepResult, dict[str, Tensor]]:
    model.zero_grad()
    result = run_step(
        model,
        tokenized,
        indices or list(range(len(tokenized))),
        reference,
        objective,
        delta=DELTA,
        micro_batch_tokens=budget,
        bf16=False,
        backward=lambda loss: loss.backward(),  # pyright: ignore[reportUnknownLambdaType]
    )
    return result, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_order_and_micro_batches_do_not_matter(name: str, tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    model, objective = make_model(seed=2), Objective(name)
    whole, gradients = step(model, tokenized, reference, objective)
    longest = max(pair.length for pair in tokenized)
    cut, cut_gradients = step(model, tokenized, reference, objective, budget=2 * longest)
    assert whole.loss == pytest.approx(cut.loss, rel=1e-5)
    assert_same_gradients(gradients, cut_gradients)
    mixed, mixed_gradients = step(model, tokenized, reference, objective, indices=[7, 2, 9, 0, 1, 8, 3, 6, 5, 4])
    assert mixed.loss == pytest.approx(whole.loss, rel=1e-5)
    assert_same_gradients(gradients, mixed_gradients)
    torch.testing.assert_close(mixed.losses[0], whole.losses[7], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_the_loss_written_down_plainly(name: str, tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    model = make_model(seed=2)
    objective = Objective(name, beta=0.05)
    result, gradients = step(model, tokenized, reference, objective)
    model.zero_grad()
    loss = plain_loss(model, tokenized, reference, name, 0.05)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


def plain_loss(model: Any, pairs: list[TokenizedPair], reference: Reference, name: str, beta: float) -> Tensor:
    def logps(prompt: list[int], answer: list[int]) -> Tensor:
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return logits.gather(1, torch.tensor(answer)[:, None])[:, 0]

    chosen = [logps(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    if name == "sft":
        return -torch.cat(chosen).mean()
    rejected = [logps(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
    up = beta * (torch.stack([row.sum() for row in chosen]) - reference.chosen_logps)
    down = beta * (torch.stack([row.sum() for row in rejected]) - reference.rejected_logps)
    losses = {
        "spot_bco": -torch.log((up - DELTA).sigmoid()) - torch.log((DELTA - down).sigmoid()),
        "spot_bce": -torch.log(up.sigmoid()) - torch.log((-down).sigmoid()),
        "dpo": -torch.log((up - down).sigmoid()),
        "reward_sft": -torch.log(up.sigmoid()),
    }
    return losses[name].mean()


def test_the_policy_at_the_reference_has_zero_rewards(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair]) -> None:
    # Packed as it was for the reference, to the last bit.
    result, _ = step(model, tokenized, reference_of(model, tokenized), Objective("spot_bce"))
    assert not result.chosen_rewards.any() and not result.rejected_rewards.any()
    assert result.loss == pytest.approx(2 * math.log(2))
    # Packed otherwise, within rounding.
    budget = 2 * max(pair.length for pair in tokenized)
    other, _ = step(model, tokenized, reference_of(model, tokenized), Objective("spot_bce"), budget=budget)
    assert other.chosen_rewards.abs().max() < 1e-4


def test_the_measured_tether_is_the_formulas(tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    beta = 0.05
    result, _ = step(make_model(seed=2), tokenized, reference, Objective("spot_bco", beta))
    up, down = result.chosen_rewards, result.rejected_rewards
    torch.testing.assert_close(result.chosen_tether, beta * (1 - (up - DELTA).sigmoid()), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(result.rejected_tether, beta * (down - DELTA).sigmoid(), rtol=1e-4, atol=1e-7)
    summed, _ = step(make_model(seed=2), tokenized, reference, Objective("sft", reduction="sequence_sum"))
    torch.testing.assert_close(summed.chosen_tether, torch.ones(10, dtype=torch.float64))
    assert not summed.rejected_tether.any()


@pytest.mark.parametrize("name", ["sft", "reward_sft"])
def test_looking_at_the_rejected_side_changes_no_gradient(name: str, tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    model = make_model(seed=2)
    seen, gradients = step(model, tokenized, reference, Objective(name))
    unseen, blind_gradients = step(model, tokenized, reference, Objective(name, score_rejected=False))
    assert_same_gradients(gradients, blind_gradients)
    assert seen.rejected_rewards.isfinite().all() and unseen.rejected_rewards.isnan().all()
    assert seen.loss == unseen.loss and seen.tokens > unseen.tokens
    pairwise, _ = step(model, tokenized, reference, Objective("dpo"))
    torch.testing.assert_close(seen.rejected_logps, pairwise.rejected_logps, rtol=1e-5, atol=1e-4)


def test_a_loss_that_is_not_finite_shows_in_its_pair_alone(tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    poisoned = reference.chosen_logps.clone()
    poisoned[3] = math.nan
    result, _ = step(make_model(seed=2), tokenized, replace(reference, chosen_logps=poisoned), Objective("dpo"))
    assert result.losses.isfinite().logical_not().nonzero().flatten().tolist() == [3]


def test_objectives_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown loss 'kto'; choose one of spot_bco"):
        Objective("kto")
    with pytest.raises(ValueError, match="beta"):
        Objective("dpo", beta=0)
