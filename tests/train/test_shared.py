"""Packed rows against plain sequences: values and gradients."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_student import make_model
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3ForCausalLM,
)

from spot.train import attention
from spot.train.attention import SPOT_SHARED, varlen_refused
from spot.train.logps import Scorer, accept_batches, attention_heads, share_prefixes
from spot.train.row import Heads, pack
from spot.train.tokenize import TokenizedPair

END = 258
tokens = st.lists(st.integers(1, 250), max_size=12)


@st.composite
def drawn_pair(draw: st.DrawFn) -> TokenizedPair:
    prompt, common, chosen, rejected = [*draw(tokens), 3], draw(tokens), draw(tokens), draw(tokens)
    if chosen == rejected:
        rejected = [*rejected, 7]
    return TokenizedPair("p", prompt, [*common, *chosen, END], [*common, *rejected, END])


PAIRS = [
    TokenizedPair("0", [5, 6, 7], [20, 21, 22, END], [20, 21, 23, 24, END]),
    TokenizedPair("1", [9], [30, END], [31, 32, 33, END]),  # nothing in common
    TokenizedPair("2", list(range(10, 40)), [41, 42, END], [41, 42, 43, END]),  # one begins with the other
    TokenizedPair("3", [8, 8], [END], [50, END]),  # an answer of its end alone
]


def scores(model: Any, shared: bool, pairs: list[TokenizedPair]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    model.zero_grad()
    token_logps, mask = Scorer(model, shared, bf16=False)(pairs)
    weights = torch.rand(token_logps.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    (token_logps * weights).sum().backward()
    return token_logps.detach(), mask, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(model: Any, pairs: list[TokenizedPair]) -> None:
    plain, mask, plain_gradients = scores(model, False, pairs)
    model.set_attn_implementation(SPOT_SHARED)
    shared, shared_mask, gradients = scores(model, True, pairs)
    model.set_attn_implementation("sdpa")
    assert torch.equal(mask, shared_mask)
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-5)
    for name, gradient in plain_gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * max(scale, 1e-3))


def ready(model: Any) -> Any:
    accept_batches(model)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "heads", [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 2}, {"tie_word_embeddings": False}]
)
def test_values_and_gradients_are_those_of_plain_sequences(checkpointing: bool, heads: dict[str, Any]) -> None:
    model = ready(make_model(**heads))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(model, PAIRS)


@settings(max_examples=40, deadline=None)
@given(st.lists(drawn_pair(), min_size=1, max_size=5))
def test_any_pairs(pairs: list[TokenizedPair]) -> None:
    assert_same(ready(make_model()), pairs)


@torch.no_grad()
def test_in_bf16_it_is_as_near_to_fp32_as_the_plain_path() -> None:
    model = ready(make_model())
    exact, mask = Scorer(model, False, bf16=False)(PAIRS)
    plain, _ = Scorer(model, False, bf16=True)(PAIRS)
    model.set_attn_implementation(SPOT_SHARED)
    shared, _ = Scorer(model, True, bf16=True)(PAIRS)
    error = (plain - exact)[mask].square().mean().sqrt()
    assert 0 < (shared - exact)[mask].square().mean().sqrt() < 1.5 * error < 0.1


def test_other_architectures() -> None:
    shape: dict[str, Any] = {
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    for model in (
        LlamaForCausalLM(LlamaConfig(**shape)),
        MistralForCausalLM(MistralConfig(**shape, sliding_window=None)),
    ):
        assert share_prefixes(ready(model), PAIRS[0]) is None
        model.set_attn_implementation("sdpa")
        assert_same(model, PAIRS)


def test_a_model_that_cannot_share_says_why_and_is_left_as_it_was(model: Qwen3ForCausalLM) -> None:
    shape: dict[str, Any] = {
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    windowed = MistralForCausalLM(MistralConfig(**shape, sliding_window=8))
    reason = share_prefixes(windowed, PAIRS[0])
    assert reason is not None and "sliding_window" in reason
    assert windowed.config._attn_implementation == "sdpa"  # pyright: ignore[reportPrivateUsage]
    model.set_attn_implementation("eager")
    assert share_prefixes(model, PAIRS[0]) == "its attention is eager, not sdpa"


def test_a_forward_that_does_not_reach_our_attention_is_noticed(model: Qwen3ForCausalLM) -> None:
    # transformers swallows keyword arguments that it does not know.
    for layer in model.model.layers:
        attention: Any = layer.self_attn
        forward = attention.forward
        attention.forward = lambda *args, forward=forward, packed_row=None, **kwargs: forward(*args, **kwargs)
    reason = share_prefixes(model, PAIRS[0])
    assert reason is not None and "0 of its layers" in reason


def test_generation_is_as_before() -> None:
    model: Any = make_model()
    shared = copy.deepcopy(model)
    accept_batches(shared)
    shared.set_attn_implementation(SPOT_SHARED)
    ids = torch.tensor([[5, 6, 7, 8]])
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **settings), shared.generate(ids, **settings))


def test_a_row_holds_each_distinct_token_once() -> None:
    row = pack(PAIRS)
    assert (
        row.input_ids.shape[1]
        == sum(pair.num_distinct for pair in PAIRS)
        == sum(stretch.length for stretch in row.stretches)
    )
    # The shared span is scored once for both sums.
    assert len(row.targets) == sum(len(p.chosen_ids) + len(p.rejected_ids) - p.num_common for p in PAIRS)
    for number, answer in enumerate([p.chosen_ids for p in PAIRS] + [p.rejected_ids for p in PAIRS]):
        scored = row.answers[number][row.answers[number] >= 0]
        assert row.targets[scored].tolist() == answer


def kernel(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, *longest: int, **options: Any
) -> Tensor:
    """What the kernel does, in plain code, since it runs on GPUs only; how it is called is tested."""
    assert options["window_size"] == (-1, 0) and options["enable_gqa"] == (query.shape[1] != key.shape[1])
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert longest == (int(query_ends.diff().max()), int(key_ends.diff().max()))
    out: list[Tensor] = []
    for q, k, v in zip(
        query.split(query_ends.diff().tolist()),
        key.split(key_ends.diff().tolist()),
        value.split(key_ends.diff().tolist()),
        strict=True,
    ):
        groups = q.shape[1] // k.shape[1]
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(groups, 1)) * options["scale"]
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(groups, 1)))
    return torch.cat(out)


def test_one_call_a_row_is_two_calls_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spot.train.attention.varlen_attn", kernel)
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for varlen in (False, True):
        model = make_model()
        assert share_prefixes(model, PAIRS[0]) is None
        accept_batches(model)
        token_logps, mask = Scorer(model, True, False, varlen)(PAIRS)
        (token_logps * mask * torch.arange(1, len(token_logps) + 1)[:, None]).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((token_logps.detach(), gradients))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-4, atol=1e-4)


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 1.1 * grads[0]


class NoBackward(WrongBackward):
    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("no backward for this width\nand a second line")


def test_one_call_a_row_is_proven_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """`varlen_refused` on a GPU is this for each kind of attention call."""
    heads = Heads(4, 2, 16, 16, 0.25)

    def probed(given: Any) -> str | None:
        monkeypatch.setattr("spot.train.attention.varlen_attn", given)
        return attention._probe(heads, torch.device("cpu"))  # pyright: ignore[reportPrivateUsage]

    assert varlen_refused([heads], torch.device("cpu")) == "there is no such kernel on cpu"
    with torch.no_grad():
        assert probed(kernel) is None
    reason = probed(lambda query, key, *rest, **options: kernel(query, WrongBackward.apply(key), *rest, **options))
    assert reason is not None and reason.startswith("its gradient by keys differs by 0.0")
    reason = probed(lambda query, *rest, **options: kernel(NoBackward.apply(query), *rest, **options))
    assert reason == "no backward for this width"
    reason = probed(lambda *given, **options: kernel(*given, **options | {"scale": 0.3}))
    assert reason is not None and reason.startswith("its output differs")


def test_attention_calls_are_probed_as_the_model_makes_them() -> None:
    model = make_model(head_dim=16)
    assert share_prefixes(model, PAIRS[0]) is None
    assert attention_heads(model, PAIRS[0]) == {Heads(4, 2, 16, 16, 0.25)}
    sizes: dict[str, Any] = {
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
    }
    latent = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=272,
            hidden_size=32,
            intermediate_size=64,
            moe_intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            first_k_dense_replace=2,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            **sizes,
        )
    )
    assert share_prefixes(latent, PAIRS[0]) is None
    assert attention_heads(latent, PAIRS[0]) == {Heads(4, 4, 16, 4, 0.25)}
