"""No sequence's values depend on what else runs with it, before it, or how long that is."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from torch import Tensor, nn
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from spot.errors import RunFailed, UserError
from spot.train.config import SpotConfig
from spot.train.logps import Scorer, accept_batches, score
from spot.train.ready import Scoring, fullest_row, set_scoring
from spot.train.row import BOTH, pack
from spot.train.tokenize import TokenizedPair
from spot.train.trainer import SpotTrainer
from spot.train.weights import disable_dropout

pytestmark = pytest.mark.slow

END = 258
SHAPE: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def make(kind: type[PreTrainedModel], config: Any) -> Any:
    torch.manual_seed(0)
    return kind(config).eval()


def longrope(original: int) -> Any:
    rope: dict[str, Any] = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": original,
    }
    sizes: dict[str, Any] = {"max_position_embeddings": 512, "original_max_position_embeddings": original}
    config = Phi3Config(**SHAPE, **sizes, rope_parameters=rope)
    return make(Phi3ForCausalLM, config)


def dynamic(original: int) -> Any:
    rope: dict[str, Any] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    return make(LlamaForCausalLM, LlamaConfig(**SHAPE, max_position_embeddings=original, rope_parameters=rope))


def tempered(original: int) -> Any:
    """Llama 4's scaling of queries by their place in the forward, whatever position they have."""
    config = Llama4TextConfig(
        **SHAPE,
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=2,
        no_rope_layers=[0, 0],
        layer_types=["full_attention"] * 2,
        floor_scale=original,
        attn_scale=1.0,
    )
    return make(Llama4ForCausalLM, config)


def ministral(original: int) -> Any:
    rope: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": original,
        "llama_4_scaling_beta": 0.5,
    }
    return make(Ministral3ForCausalLM, Ministral3Config(**SHAPE, head_dim=8, rope_parameters=rope))


class Caching(LlamaForCausalLM):
    """Adds up what it has seen first in each sequence, as a module with a cache of its own might."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.norm.register_buffer("seen", torch.zeros(32), persistent=False)
        self.model.norm.register_forward_hook(self._shift)

    def _shift(self, norm: Any, _: Any, hidden: Tensor) -> Tensor:
        norm.seen = norm.seen + hidden.detach()[:, 0].mean(dim=0)
        return hidden + norm.seen


class Centred(LlamaForCausalLM):
    """Takes the mean over all tokens of a forward from each, as normalisation over a batch does."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers[0].register_forward_hook(
            lambda _, __, hidden: hidden - hidden[..., :1, :].mean(0, keepdim=True)
        )


def llama(kind: type[PreTrainedModel] = LlamaForCausalLM) -> Any:
    return make(kind, LlamaConfig(**SHAPE))


def pairs_of(*lengths: int) -> list[TokenizedPair]:
    """Pairs whose longer sequence has so many tokens to run, prompts and all other tokens different."""
    generator = torch.Generator().manual_seed(1)
    pairs: list[TokenizedPair] = []
    for number, length in enumerate(lengths):
        ids: list[int] = torch.randint(1, 250, (length,), generator=generator).tolist()
        cut = max(1, length // 3)
        prompt, common, tail = ids[:cut], ids[cut : 2 * cut], ids[2 * cut :]
        pairs.append(TokenizedPair(str(number), prompt, [*common, *tail, END], [*common, 251, END]))
    return pairs


SHORT, MIXED = (5, 9, 12, 7, 14, 6), (6, 40, 9, 20, 70, 12)


def config(tmp_path: Path, **settings: Any) -> SpotConfig:
    return SpotConfig(
        output_dir=str(tmp_path),
        metrics_path=str(tmp_path / "metrics.jsonl"),
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **settings,
    )


def scorer_of(model: Any, scoring: Scoring) -> Scorer:
    return Scorer(model, scoring.not_shared is None, False, scoring.not_varlen is None, scoring.not_batched is not None)


def by_itself(make_one: Callable[[], Any], pair: TokenizedPair) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Each answer of `pair` under a fresh model that has run nothing else: log-probabilities and gradients."""
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for side in BOTH:
        model = make_one()
        ids = torch.tensor([[*pair.prompt_ids, *pair.completion(side)]])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(pair.prompt_ids) - 1 :]
        logps = logits.float().log_softmax(-1).gather(-1, ids[0, len(pair.prompt_ids) :, None])[:, 0]
        logps.sum().backward()
        results.append((logps.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    return results


def assert_exact(make_one: Callable[[], Any], pairs: Sequence[TokenizedPair], scoring: Scoring, model: Any) -> None:
    """All of `pairs` in one step, in one row where they may share it, against each answer alone in a fresh model."""
    accept_batches(model)
    scorer = scorer_of(model, scoring)
    rows = [[pair] for pair in pairs] if scorer.alone else [list(pairs)]
    total: dict[str, Tensor] = {}
    for row in rows:
        values, mask = scorer(row)
        values.sum().backward()
        for number, pair in enumerate(row):
            for (exact, gradients), place in zip(by_itself(make_one, pair), (number, number + len(row)), strict=True):
                torch.testing.assert_close(values[place][mask[place]].detach(), exact, rtol=1e-4, atol=1e-4)
                for name, gradient in gradients.items():
                    total[name] = total.get(name, torch.zeros_like(gradient)) + gradient
    for name, parameter in model.named_parameters():
        if name in total:
            scale = float(total[name].abs().max())
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, total[name], rtol=1e-3, atol=1e-4 * max(scale, 1e-3))


@pytest.mark.parametrize(
    ("make_one", "lengths", "shared", "batched"),
    [
        (longrope, SHORT, True, True),
        (longrope, MIXED, False, False),
        (longrope, (60, 70, 80), True, True),  # all of them long
        (dynamic, SHORT, True, True),
        (dynamic, MIXED, False, False),
        (dynamic, (60, 70, 80), False, False),  # frequencies go by the very length
        (tempered, MIXED, False, True),
        (tempered, (4, 3, 4), True, True),  # the row ends before the first place that is scaled
        (ministral, MIXED, True, True),  # by position, which a row keeps
    ],
)
def test_what_looks_at_the_whole_forward_is_exact(
    make_one: Callable[[int], Any], lengths: tuple[int, ...], shared: bool, batched: bool, tmp_path: Path
) -> None:
    original = 16
    pairs, model = pairs_of(*lengths), make_one(original)
    scoring = set_scoring(model, pairs, config(tmp_path))
    assert (scoring.not_shared is None, scoring.not_batched is None) == (shared, batched), scoring
    assert_exact(lambda: make_one(original), pairs, scoring, model)


@pytest.mark.parametrize("make_one", [longrope, dynamic])
def test_nothing_is_left_of_a_longer_forward(make_one: Callable[[int], Any], tmp_path: Path) -> None:
    """Neither of one before this trainer had the model, nor of one in between."""
    pairs, model = pairs_of(*MIXED), make_one(16)
    long = torch.randint(1, 250, (1, 120))
    model(long)
    scoring = set_scoring(model, pairs, config(tmp_path))
    scorer = Scorer(model, False, False, alone=True)
    accept_batches(model)
    first = scorer.plainly([pairs[3]])[0]
    model(long)
    assert torch.equal(scorer.plainly([pairs[3]])[0], first)
    exact = by_itself(lambda: make_one(16), pairs[3])
    torch.testing.assert_close(first[0], exact[0][0], rtol=1e-4, atol=1e-4)
    fresh = make_one(16)(pair := torch.tensor([[5, 6, 7]])).logits
    model(long)
    torch.testing.assert_close(model(pair).logits, fresh)
    assert scoring.not_shared is not None and "rotary_emb.inv_freq" in scoring.not_shared


def test_a_cache_that_a_module_keeps_is_cleared(tmp_path: Path) -> None:
    model, pairs = llama(Caching), pairs_of(*SHORT)
    scoring = set_scoring(model, pairs, config(tmp_path))
    assert scoring.not_batched is not None and "norm.seen" in scoring.not_batched
    values = scorer_of(model, scoring).plainly(pairs)[0]
    again = scorer_of(model, scoring).plainly(pairs)[0]
    assert torch.equal(values, again)


def test_what_normalises_over_a_batch_runs_alone(tmp_path: Path) -> None:
    model, pairs = llama(Centred), pairs_of(*SHORT)
    scoring = set_scoring(model, pairs, config(tmp_path))
    assert scoring.not_shared is not None and scoring.not_batched is not None
    assert_exact(lambda: llama(Centred), pairs, scoring, model)


@pytest.mark.parametrize("shared", [True, False])
def test_one_token_of_one_pair_moves_no_other(shared: bool) -> None:
    model, pairs = make_model(), pairs_of(*MIXED)
    accept_batches(model)
    if shared:
        model.set_attn_implementation("spot_shared")
    scorer = Scorer(model, shared, False)
    before, mask = scorer.plainly(pairs)
    for changed, pair in enumerate(pairs):
        other = copy.copy(pair)
        object.__setattr__(other, "prompt_ids", [252, *list(pair.prompt_ids)[1:]])
        values = scorer.plainly([*pairs[:changed], other, *pairs[changed + 1 :]])[0]
        for place in range(2 * len(pairs)):
            same = torch.equal(values[place][mask[place]], before[place][mask[place]])
            assert same == (place % len(pairs) != changed)


def test_the_row_that_is_tried_has_the_longest_the_shortest_and_what_fits(tmp_path: Path) -> None:
    pairs = pairs_of(*MIXED)
    by_length = sorted(pairs, key=lambda pair: pair.num_distinct)
    row = fullest_row(pairs, config(tmp_path), on_device=True)
    assert row[0] is by_length[-1] and row[-1] is by_length[0] and len(row) == len(pairs)
    row = fullest_row(pairs, config(tmp_path, per_device_train_batch_size=2), on_device=True)
    assert row == [by_length[-1], by_length[0]]
    budget = by_length[-1].num_distinct + by_length[0].num_distinct - 1
    row = fullest_row(pairs, config(tmp_path, micro_batch_tokens=budget), on_device=True)
    assert len(row) > 2 and by_length[-1] not in row and sum(pair.num_distinct for pair in row) <= budget


def test_a_second_epoch_at_rate_0_has_no_reward(tmp_path: Path) -> None:
    args = config(tmp_path, learning_rate=0.0, num_train_epochs=2, per_device_train_batch_size=4)
    training = SpotTrainer(longrope(64), args, make_pairs(9), None, make_tokenizer())
    assert training.not_batched is not None
    training.train()
    logs = [row for row in training.state.log_history if "loss" in row]
    assert len(logs) == 6 and all(row["rewards/chosen"] == row["rewards/rejected"] == 0 for row in logs)


@pytest.mark.parametrize("small", [True, False])
def test_caps_and_scales_behind_the_head_are_seen_in_small_logits_too(small: bool, tmp_path: Path) -> None:
    shape: dict[str, Any] = SHAPE | {"initializer_range": 0.02 if small else 0.2}
    for model in (
        make(Gemma2ForCausalLM, Gemma2Config(**shape, head_dim=8)),
        make(Cohere2ForCausalLM, Cohere2Config(**shape)),
    ):
        with pytest.raises(RunFailed, match="its logits are not its output embeddings applied to its hidden states"):
            set_scoring(model, pairs_of(*SHORT), config(tmp_path))


def test_what_sees_the_future_is_refused(tmp_path: Path) -> None:
    model: Any = llama()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(RunFailed, match="its tokens see what follows"):
        set_scoring(model, pairs_of(*SHORT), config(tmp_path))


def test_an_attention_that_makes_a_mask_of_its_own_or_asks_for_more_is_not_shared(tmp_path: Path) -> None:
    for extra in ({"attention_mask": torch.zeros(1, 1, 1, 2)}, {"indices": torch.zeros(1)}):
        model: Any = llama()
        for layer in model.model.layers:
            forward = layer.self_attn.forward
            layer.self_attn.forward = lambda *given, forward=forward, extra=extra, **options: forward(
                *given, **options | (extra if "packed_row" in options else {})
            )
        reason = set_scoring(model, pairs_of(*SHORT), config(tmp_path)).not_shared
        assert reason is not None and ("a mask of its own" in reason or "indices" in reason)


def test_a_pair_beyond_the_positions_is_one_line(tmp_path: Path) -> None:
    model = make(GPT2LMHeadModel, GPT2Config(vocab_size=272, n_embd=32, n_layer=2, n_head=4, n_positions=32))
    disable_dropout(model)
    with pytest.raises(UserError, match=r"^pair '4': the student cannot run its 70 tokens .*lower max_length"):
        set_scoring(model, pairs_of(*MIXED), config(tmp_path))
    assert set_scoring(model, pairs_of(*SHORT), config(tmp_path)).not_shared is None


def test_copies_of_a_student_in_training_run_their_own_weights(tmp_path: Path) -> None:
    for bf16 in (False, True):
        args = config(tmp_path / str(bf16), max_steps=1, per_device_train_batch_size=4)
        args.bf16 = bf16
        training = SpotTrainer(make_model(), args, make_pairs(9), None, make_tokenizer())
        training.train()
        ids, row = torch.tensor([[5, 6, 7, 8]]), pack(pairs_of(*SHORT))
        copied: Any = copy.deepcopy(training.model)
        model: Any = training.model
        before = [model(input_ids=ids).logits, model(spot_batch=row)]
        assert torch.equal(copied(input_ids=ids).logits, before[0])
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(0.5)
        for found, theirs in zip([copied(input_ids=ids).logits, copied(spot_batch=row)], before, strict=True):
            assert not torch.allclose(found.float(), theirs.float(), rtol=1e-3)
        after = [model(input_ids=ids).logits, model(spot_batch=row)]
        assert all(map(torch.equal, before, after))
        assert all(module is not other for module, other in zip(copied.modules(), model.modules(), strict=True))
        parts: list[nn.Module] = [*copied.modules()]
        assert all(getattr(part.forward, "__self__", part) in parts for part in parts)
        score(copied, row)
