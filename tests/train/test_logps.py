from typing import Any

import pytest
import torch
from tests.tiny_student import make_model
from torch import Tensor
from transformers import Qwen3ForCausalLM

from spot.train.head import Tile
from spot.train.logps import Scorer, accept_batches, head_difference, pad, score
from spot.train.tokenize import TokenizedPair

PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16], [17, 18]]
COMPLETIONS = [[20, 21, 258], [22, 23, 24, 25, 26, 258], [258], [27, 28, 29, 258]]


def slow_logps(model: Qwen3ForCausalLM, prompt: list[int], completion: list[int]) -> Tensor:
    """The twin: one sequence alone, all logits, token by token."""
    logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return torch.stack([logits[len(prompt) - 1 + index, token] for index, token in enumerate(completion)])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tile", [None, (4, 272)])
def test_values_and_gradients_are_those_of_full_logits(tied: bool, tile: Tile | None) -> None:
    model = make_model(tie_word_embeddings=tied)
    weights = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))

    batch = pad(PROMPTS, COMPLETIONS)
    token_logps, mask = score(model, batch, tile=tile), batch.mask
    (token_logps * weights).sum().backward()
    fast = {name: parameter.grad for name, parameter in model.named_parameters()}

    model.zero_grad()
    slow = [slow_logps(model, *row) for row in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.stack([(row * weights[index, : len(row)]).sum() for index, row in enumerate(slow)]).sum().backward()

    assert mask.sum(1).tolist() == [len(completion) for completion in COMPLETIONS]
    for index, row in enumerate(slow):
        torch.testing.assert_close(token_logps[index, : len(row)], row, rtol=1e-5, atol=1e-5)
        assert not token_logps[index, len(row) :].any()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(fast[name], parameter.grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_row_does_not_see_its_neighbours(model: Qwen3ForCausalLM) -> None:
    together = score(model, pad(PROMPTS, COMPLETIONS))
    for index, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        alone = score(model, pad([prompt], [completion]))
        torch.testing.assert_close(together[index, : len(completion)], alone[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_pairs_sides_come_one_after_the_other(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair]) -> None:
    accept_batches(model)
    scorer = Scorer(model, shared=False, bf16=False)
    both, mask = scorer(tokenized)
    chosen, chosen_mask = scorer(tokenized, ["chosen"])
    rejected, rejected_mask = scorer(tokenized, ["rejected"])
    torch.testing.assert_close(
        both[mask], torch.cat([chosen[chosen_mask], rejected[rejected_mask]]), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_bf16_is_near_and_summed_in_fp32(model: Qwen3ForCausalLM, tokenized: list[TokenizedPair]) -> None:
    accept_batches(model)
    exact, mask = Scorer(model, shared=False, bf16=False)(tokenized)
    near, _ = Scorer(model, shared=False, bf16=True)(tokenized)
    assert near.dtype == torch.float32
    assert 0 < (near - exact)[mask].abs().max() < 0.5


class ScaledLogits(Qwen3ForCausalLM):
    """An architecture that does something to its logits after the head, as Granite, Cohere or Gemma 2 do."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = super().forward(*args, **kwargs)
        assert output.logits is not None
        output.logits = output.logits / 2
        return output


def test_logits_changed_after_the_head_are_noticed(model: Qwen3ForCausalLM) -> None:
    assert head_difference(model, PROMPTS[0], COMPLETIONS[0]) < 1e-5
    scaled = ScaledLogits(model.config)
    scaled.load_state_dict(model.state_dict())
    assert head_difference(scaled, PROMPTS[0], COMPLETIONS[0]) > 0.1
