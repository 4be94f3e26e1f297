"""What is checked before training starts, and before it goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BioGptForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3ForCausalLM,
)

from spot.errors import Interrupted, RunFailed, UserError
from spot.train import ready
from spot.train import trainer as trainer_module
from spot.train.attention import SPOT_SHARED
from spot.train.row import Heads
from spot.train.run import fit, notices
from spot.train.tokenize import tokenize_pairs
from spot.train.trainer import SpotConfig, SpotTrainer

pytestmark = pytest.mark.slow


def config(output: Path, **settings: Any) -> SpotConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(output),
        "metrics_path": str(output / "metrics.jsonl"),
        "learning_rate": 1e-2,
        "beta": 0.05,
        "per_device_train_batch_size": 4,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_steps": 2,
    }
    return SpotConfig(**(defaults | settings))


def trainer(model: Any, output: Path, held_out: Any = None, **settings: Any) -> SpotTrainer:
    return SpotTrainer(model, config(output, **settings), make_pairs(9), held_out, make_tokenizer())


SMALL: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    "model",
    [
        # In numbers: `dropout` and `attention_dropout` of 0.1, `layerdrop`.
        OPTForCausalLM(OPTConfig(ffn_dim=64, word_embed_proj_dim=32, attention_dropout=0.1, layerdrop=0.1, **SMALL)),
        BioGptForCausalLM(BioGptConfig(intermediate_size=64, **SMALL)),
    ],
)
def test_dropout_under_any_name_is_off(model: Any, tmp_path: Path) -> None:
    training = trainer(model, tmp_path, learning_rate=0.0)
    assert training.not_shared is None
    training.train()
    for row in training.state.log_history[:2]:
        assert row["rewards/chosen"] == pytest.approx(0, abs=1e-4) and row["kl/chosen"] == pytest.approx(0, abs=1e-6)


class Noisy(Qwen3ForCausalLM):
    """An architecture with something random of its own in training."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.norm.register_forward_hook(self._noise)

    def _noise(self, _: Any, __: Any, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(hidden, 0.1, self.training)


@pytest.mark.parametrize("training", [False, True])
def test_what_is_random_in_training_is_refused(training: bool, tmp_path: Path) -> None:
    model = Noisy(make_model().config).train(training)
    with pytest.raises(RunFailed, match=r"(?s)^Noisy: in training mode its log-probabilities differ by .*dropout"):
        trainer(model, tmp_path)
    assert model.training == training


def test_router_jitter_is_off_as_dropout_is(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"intermediate_size": 64, "num_local_experts": 4, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(**SMALL, **shape, router_jitter_noise=0.1, attention_dropout=0.1))
    training = trainer(model, tmp_path, learning_rate=0.0)
    training.train()
    assert all(row["rewards/chosen"] == 0 for row in training.state.log_history[:2])
    training.save_model(str(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["router_jitter_noise"] == 0.1
    assert any(
        "a mixture of experts" in line and "router_aux_loss_coef=0.001" in line
        for line in notices(training, training.args)
    )
    plain = trainer(make_model(), tmp_path / "plain")
    assert notices(plain, plain.args) == []


def test_the_setting_that_is_random_is_named(tmp_path: Path) -> None:
    config = make_model().config
    config.attention_dropout, config.router_jitter_noise = 0.0, 0.25
    with pytest.raises(RunFailed, match=r"set to 0 in its config.json: router_jitter_noise=0.25$"):
        trainer(Noisy(config), tmp_path)


def test_quantized_students_are_refused_in_one_line(save_student: Callable[..., Path], tmp_path: Path) -> None:
    model: Any = make_model()
    model.is_quantized, model.quantization_method = True, "bitsandbytes"  # as transformers marks one
    with pytest.raises(UserError, match=r"^Qwen3ForCausalLM: its weights are quantized \(bitsandbytes\)"):
        trainer(model, tmp_path)
    student = save_student()
    settings = json.loads((student / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (student / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"student: its weights are quantized \(gptq\)"):
        trainer(str(student), tmp_path)


def test_buffers_keep_their_type(tmp_path: Path) -> None:
    model: Any = make_model().bfloat16()  # pyright: ignore[reportCallIssue] (its decorator)
    model.model.norm.register_buffer("in_half", torch.ones(3, dtype=torch.bfloat16))
    model.model.norm.register_buffer("in_double", torch.full((3,), 0.1, dtype=torch.float64))
    model.model.norm.register_buffer("in_whole", torch.arange(3))
    training = trainer(model, tmp_path)
    training.save_model(str(tmp_path / "model"))
    saved = load_file(tmp_path / "model" / "model.safetensors")
    types = {name: saved[f"model.norm.{name}"].dtype for name in ("weight", "in_half", "in_double", "in_whole")}
    assert types == {
        "weight": torch.bfloat16,
        "in_half": torch.bfloat16,
        "in_double": torch.float64,
        "in_whole": torch.int64,
    }


def test_checkpoints_of_weights_alone_are_told_about(tmp_path: Path) -> None:
    training = trainer(make_model(), tmp_path, save_strategy="steps", save_only_model=True)
    assert notices(training, training.args) == [
        "save_only_model: checkpoints hold the weights alone, so a run that is stopped starts from step 0"
    ]


@pytest.mark.parametrize(
    ("weights_alone", "said"), [(False, "resumes at checkpoint-1 "), (True, "trains from step 0 .save_only_model ")]
)
def test_an_interrupt_says_where_the_same_command_starts(
    weights_alone: bool, said: str, save_student: Callable[..., Path], tmp_path: Path
) -> None:
    def progress(step: int, *_: Any) -> None:
        if step == 2:
            raise Interrupted

    args = config(tmp_path / "work", save_strategy="steps", save_steps=1, save_only_model=weights_alone)
    with pytest.raises(Interrupted, match=said):
        fit(make_pairs(9), save_student(), tmp_path / "model", args, progress=progress)


def test_a_second_train_leaves_the_first_ones_metrics(tmp_path: Path) -> None:
    training = trainer(make_model(), tmp_path)
    training.train()
    before = (tmp_path / "metrics.jsonl").read_text()
    assert len(before.splitlines()) == 2
    with pytest.raises(UserError, match="make a new SpotTrainer"):
        training.train()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_metrics_stay_where_the_reference_is_refused(tmp_path: Path) -> None:
    trainer(make_model(), tmp_path).train()
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a file of reference log-probabilities"):
        trainer(make_model(), tmp_path, reference_path=str(tmp_path / "notes.txt")).train()
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert (tmp_path / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_that_has_been_trained_is_refused_by_name(bf16: bool, tmp_path: Path) -> None:
    model = make_model()
    trainer(model, tmp_path / "first", bf16=bf16).train()
    with pytest.raises(UserError, match="given to a SpotTrainer before"):
        trainer(model, tmp_path / "second", bf16=bf16)


def test_more_processes_than_pairs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpotConfig, "world_size", 10)
    with pytest.raises(UserError, match=r"fewer pairs \(9\) than processes \(10\).*start at most 9"):
        trainer(make_model(), tmp_path)


def test_a_model_that_was_refused_can_be_given_again(tmp_path: Path) -> None:
    model: Any = make_model(attn_implementation="eager").bfloat16()  # pyright: ignore[reportCallIssue] (its decorator)
    pairs, _ = tokenize_pairs(make_pairs(9), make_tokenizer(), 512)
    with pytest.raises(UserError, match="do not fit into micro_batch_tokens"):
        # Enough where prefixes are shared: what is padded is refused late, in fp32 already.
        trainer(model, tmp_path, micro_batch_tokens=max(pair.num_distinct for pair in pairs))
    model.set_attn_implementation(SPOT_SHARED)  # as one that was refused even later has been left
    training = trainer(model, tmp_path)
    assert training.not_shared is None
    training.save_model(str(tmp_path / "model"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("spoilt", ["chosen", "rejected"])
def test_an_evaluation_that_is_not_finite_stops_and_is_not_written(
    spoilt: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    training = trainer(make_model(), tmp_path, make_pairs(3), loss_type=["sft"])
    training.begin(0)
    reference = training.reference
    assert reference is not None
    if spoilt == "chosen":
        next(training._language_model.parameters()).data.fill_(torch.nan)  # pyright: ignore[reportPrivateUsage]
    else:
        step = trainer_module.run_step

        def spoilt_step(*given: Any, **options: Any) -> Any:
            result = step(*given, **options)
            result.rejected_logps[1] = -torch.inf
            return result

        monkeypatch.setattr(trainer_module, "run_step", spoilt_step)
    named = {"chosen": "loss is not finite in pairs pair-0, pair-1, pair-2", "rejected": "probability .* pairs pair-1$"}
    with pytest.raises(RunFailed, match=f"evaluation after step 0: .*{named[spoilt]}"):
        training.evaluate()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_rejected_answers_are_logged_as_the_objective_says(tmp_path: Path) -> None:
    for scored in (False, True):
        training = trainer(make_model(), tmp_path / str(scored), loss_type=["sft"], score_rejected=scored)
        training.train()
        rows = [json.loads(line) for line in (tmp_path / str(scored) / "metrics.jsonl").read_text().splitlines()]
        assert [("logps/rejected" in row) for row in rows] == [scored, scored]


def test_a_run_goes_on_only_as_it_was_computed(tmp_path: Path) -> None:
    trainer(make_model(), tmp_path, save_strategy="steps", save_steps=1).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(UserError, match="made with precision=fp32-shared, this run has precision=fp32;"):
        trainer(make_model(attn_implementation="eager"), tmp_path).train(resume_from_checkpoint=checkpoint)
    trainer(make_model(), tmp_path).train(resume_from_checkpoint=checkpoint)


def test_one_attention_call_a_row_is_probed_where_training_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model that is to be sharded is on the CPU still; its device would say that there is no such kernel."""
    seen: list[Any] = []

    def refused(heads: set[Heads], device: torch.device) -> str:
        seen.append((heads, device))
        return "not on this card"

    pairs, _ = tokenize_pairs(make_pairs(2), make_tokenizer(), 512)
    args = config(tmp_path, bf16=True)
    monkeypatch.setattr(ready, "varlen_refused", refused)
    monkeypatch.setattr(SpotConfig, "device", torch.device("meta"))
    assert ready.set_scoring(make_model(), pairs, args) == ready.Scoring(None, "not on this card")
    assert seen == [({Heads(4, 2, 8, 8, 8**-0.5)}, torch.device("meta"))]


def test_it_says_what_is_slower_than_it_could_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, plain = trainer(make_model(), tmp_path), trainer(make_model(attn_implementation="eager"), tmp_path)
    assert training.not_varlen == "that kernel is for bf16" and notices(training, training.args) == []
    monkeypatch.setattr(SpotConfig, "device", torch.device("meta"))
    assert notices(training, training.args) == [
        "attention takes two calls a pair, which is slower but as exact: that kernel is for bf16"
    ]
    assert plain.not_varlen == "prefixes are not shared" and len(notices(plain, plain.args)) == 1


def test_rows_are_read_from_a_path_or_a_table(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    rows = [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in make_pairs(4)]
    path.write_text(json.dumps(rows))
    expected = SpotTrainer(make_model(), config(tmp_path), rows, processing_class=make_tokenizer()).pairs
    pandas = pytest.importorskip("pandas")
    for form in (str(path), path, pandas.DataFrame(rows)):
        made = SpotTrainer(make_model(), config(tmp_path), form, form, processing_class=make_tokenizer())
        assert made.pairs == expected * 2 and made.num_train == 4


def test_an_end_at_which_generation_does_not_stop_is_said(tmp_path: Path) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|endoftext|>"])
    made = SpotTrainer(model, config(tmp_path), make_pairs(4), processing_class=tokenizer)
    [told] = notices(made, made.args)
    assert "answers end with the token '<|im_end|>'" in told and "add it there" in told
