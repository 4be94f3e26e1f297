import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model
from torch import Tensor
from transformers import Qwen3ForCausalLM

from spot import objectives
from spot.errors import RunFailed
from spot.train.attention import SPOT_SHARED
from spot.train.logps import Scorer, accept_batches
from spot.train.objective import CHOSEN_ONLY, OBJECTIVES, Objective
from spot.train.ranks import Ranks
from spot.train.reference import Reference, compute_reference
from spot.train.step import StepResult, run_step
from spot.train.tokenize import TokenizedPair

pytestmark = pytest.mark.slow

DELTA = 0.4


def reference_of(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair]) -> Reference:
    return compute_reference(scorer(model), tokenized, "key", [list(range(len(tokenized)))], micro_batch_tokens=10**5)


def scorer(model: Qwen3ForCausalLM) -> Scorer:
    accept_batches(model)
    model.set_attn_implementation(SPOT_SHARED)
    return Scorer(model, shared=True, bf16=False)


def step(
    model: Qwen3ForCausalLM,
    tokenized: list[TokenizedPair],
    reference: Reference,
    objective: Objective,
    budget: int = 10**5,
    indices: list[int] | None = None,
    ranks: Ranks | None = None,
) -> tuple[StepResult, dict[str, Tensor]]:
    model.zero_grad()
    result = run_step(
        scorer(model),
        tokenized,
        indices or list(range(len(tokenized))),
        reference,
        objective,
        delta=DELTA,
        micro_batch_tokens=budget,
        ranks=ranks,
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
    model, objective = make_model(seed=2), Objective((name,))
    whole, gradients = step(model, tokenized, reference, objective)
    cut, cut_gradients = step(model, tokenized, reference, objective, budget=2 * max(p.length for p in tokenized))
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
    objective = Objective((name,), beta=0.05)
    result, gradients = step(model, tokenized, reference, objective)
    model.zero_grad()
    loss = plain_loss(model, tokenized, reference, name, 0.05)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


def sums(flat: Tensor, lengths: Tensor) -> Tensor:
    return torch.stack([answer.sum() for answer in flat.split(lengths.tolist())])


def plain_loss(model: Any, pairs: list[TokenizedPair], reference: Reference, name: str, beta: float) -> Tensor:
    def logps(prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return logits.gather(1, torch.tensor(answer)[:, None])[:, 0]

    chosen = [logps(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    flat = torch.cat(chosen)
    moved = flat - reference.chosen_token_logps
    token_losses = {
        "sft": -flat,
        "dft": -flat.detach().exp() * flat,
        "kl_sft": -flat + 0.1 * (torch.exp(-moved) - 1 + moved),
    }
    if name in token_losses:
        return token_losses[name].mean()
    rejected = [logps(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
    up = beta * (
        torch.stack([row.sum() for row in chosen]) - sums(reference.chosen_token_logps, reference.chosen_lengths)
    )
    down = beta * (
        torch.stack([row.sum() for row in rejected]) - sums(reference.rejected_token_logps, reference.rejected_lengths)
    )
    losses = {
        "spot_bco": -torch.log((up - DELTA).sigmoid()) - torch.log((DELTA - down).sigmoid()),
        "spot_bce": -torch.log(up.sigmoid()) - torch.log((-down).sigmoid()),
        "dpo": -torch.log((up - down).sigmoid()),
        "reward_sft": -torch.log(up.sigmoid()),
    }
    return losses[name].mean()


def test_the_policy_at_the_reference_has_zero_rewards(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair]) -> None:
    # Packed as it was for the reference, to the last bit.
    result, _ = step(model, tokenized, reference_of(model, tokenized), Objective(("spot_bce",)))
    assert not result.chosen_rewards.any() and not result.rejected_rewards.any()
    assert result.loss == pytest.approx(2 * math.log(2))
    # Packed otherwise, within rounding.
    budget = 2 * max(pair.length for pair in tokenized)
    other, _ = step(model, tokenized, reference_of(model, tokenized), Objective(("spot_bce",)), budget=budget)
    assert other.chosen_rewards.abs().max() < 1e-4


def test_the_measured_tether_is_the_formulas(tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    beta = 0.05
    result, _ = step(make_model(seed=2), tokenized, reference, Objective(("spot_bco",), beta=beta))
    up, down = result.chosen_rewards, result.rejected_rewards
    torch.testing.assert_close(result.chosen_tether, beta * (1 - (up - DELTA).sigmoid()), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(result.rejected_tether, beta * (down - DELTA).sigmoid(), rtol=1e-4, atol=1e-7)
    summed, _ = step(make_model(seed=2), tokenized, reference, Objective(("sft",), reduction="sequence_sum"))
    torch.testing.assert_close(summed.chosen_tether, torch.ones(10, dtype=torch.float64))
    assert not summed.rejected_tether.any()


@pytest.mark.parametrize("name", CHOSEN_ONLY)
def test_looking_at_the_rejected_side_changes_no_gradient(name: str, tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    model = make_model(seed=2)
    seen, gradients = step(model, tokenized, reference, Objective((name,)))
    unseen, blind_gradients = step(model, tokenized, reference, Objective((name,), score_rejected=False))
    assert_same_gradients(gradients, blind_gradients)
    assert seen.rejected_rewards.isfinite().all() and unseen.rejected_rewards.isnan().all()
    assert seen.loss == unseen.loss and seen.tokens > unseen.tokens
    pairwise, _ = step(model, tokenized, reference, Objective(("dpo",)))
    torch.testing.assert_close(seen.rejected_logps, pairwise.rejected_logps, rtol=1e-5, atol=1e-4)


def test_a_loss_that_is_not_finite_shows_in_its_pair_alone(tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    poisoned = reference.chosen_token_logps.clone()
    poisoned[reference.chosen_lengths[:3].sum()] = math.nan
    result, _ = step(
        make_model(seed=2), tokenized, replace(reference, chosen_token_logps=poisoned), Objective(("dpo",))
    )
    assert result.losses.isfinite().logical_not().nonzero().flatten().tolist() == [3]


def test_a_weighted_sum_is_the_sum_of_its_parts(tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    dpo, dpo_gradients = step(make_model(seed=2), tokenized, reference, Objective(("dpo",)))
    sft, sft_gradients = step(make_model(seed=2), tokenized, reference, Objective(("sft",)))
    both, gradients = step(make_model(seed=2), tokenized, reference, Objective(("dpo", "sft"), (1.0, 0.1)))
    assert both.loss == pytest.approx(dpo.loss + 0.1 * sft.loss, rel=1e-6)
    assert_same_gradients(gradients, {name: dpo_gradients[name] + 0.1 * sft_gradients[name] for name in gradients})


def twice_dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    return 2 * objectives.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta).losses


def one_number(*_: Tensor, beta: float) -> Tensor:
    return torch.tensor(beta)


def test_a_users_own_loss(tokenized: list[TokenizedPair]) -> None:
    reference = reference_of(make_model(seed=1), tokenized)
    dpo, _ = step(make_model(seed=2), tokenized, reference, Objective(("dpo",)))
    own, _ = step(make_model(seed=2), tokenized, reference, Objective((f"{__name__}:twice_dpo",)))
    assert own.loss == pytest.approx(2 * dpo.loss)
    with pytest.raises(RunFailed, match="must return a tensor of shape"):
        step(make_model(seed=2), tokenized, reference, Objective((f"{__name__}:one_number",)))
    with pytest.raises(ValueError, match="cannot import 'nowhere'"):
        Objective(("nowhere:loss",))


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("name", ["spot_bco", "sft"])
def test_ranks_do_not_matter(name: str, count: int, tokenized: list[TokenizedPair]) -> None:
    """The ranks' averaged gradients are the single process's, also with more ranks than pairs."""
    objective, calls = Objective((name,)), [0] * count
    reference = reference_of(make_model(seed=1), tokenized)
    whole, gradients = step(make_model(seed=2), tokenized, reference, objective)
    tables: list[Tensor] = []
    total: dict[str, Tensor] = {}
    for rank in range(count):

        def gather(table: Tensor) -> Tensor:
            tables.append(table)
            return table

        def sync(last: bool, rank: int = rank) -> AbstractContextManager[None]:
            calls[rank] += 1
            return nullcontext()

        ranks = Ranks(rank, count, gather, sync)
        _, share = step(make_model(seed=2), tokenized, reference, objective, budget=150, ranks=ranks)
        total = {key: total.get(key, torch.zeros(())) + gradient / count for key, gradient in share.items()}
    assert_same_gradients(total, gradients)
    torch.testing.assert_close(sum(tables)[0], whole.losses, rtol=1e-5, atol=1e-6)  # pyright: ignore[reportIndexIssue]
    assert len(set(calls)) == 1


def test_objectives_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown loss 'kto'; choose one of spot_bco"):
        Objective(("kto",))
    with pytest.raises(ValueError, match="beta"):
        Objective(("dpo",), beta=0)
    with pytest.raises(ValueError, match="as many as loss_type: 2, got 1"):
        Objective(("dpo", "sft"), (1.0,))
    with pytest.raises(ValueError, match="named twice"):
        Objective(("dpo", "dpo"))
    with pytest.raises(ValueError, match="kl_estimator must be one of k1, k2, k3"):
        Objective(("kl_sft",), kl_estimator="k4")  # pyright: ignore[reportArgumentType]
