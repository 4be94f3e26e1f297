import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model, make_pairs
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from spot.errors import RunFailed, UserError
from spot.schema import Pair
from spot.train.checkpoints import MetricsFile, last_complete_checkpoint
from spot.train.logps import Scorer
from spot.train.run import TrainResult, fit
from spot.train.trainer import SpotConfig, SpotTrainer, StepSampler

pytestmark = pytest.mark.slow

# 10 pairs by 4 make three steps an epoch, the last one short: nine steps.
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 3,
    "learning_rate": 3e-3,
    "beta": 0.05,
    "save_steps": 2,
    "bf16": False,
}


class Stop(Exception):
    """Stands for a kill."""


def run(
    student: Path, directory: Path, pairs: list[Pair], *, stop_after: int | None = None, **changes: Any
) -> TrainResult:
    def progress(step: int, total: int, metrics: dict[str, float]) -> None:
        assert step <= total and metrics["loss"] > 0
        if step == stop_after:
            raise Stop

    args = SpotConfig(
        output_dir=str(directory / "ckpt"),
        metrics_path=str(directory / "m.jsonl"),
        save_total_limit=1,
        disable_tqdm=True,
        **(SETTINGS | changes),
    )
    return fit(pairs, student, directory / "model", args, progress)


def rows(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "m.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in lines]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory / "model").state_dict()


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("objective", ["spot_bco", "sft"])
def test_a_killed_run_goes_on_bit_for_bit(
    objective: str, save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    student = save_student()
    assert run(student, tmp_path / "whole", pairs, loss_type=objective).steps == 9
    killed = tmp_path / "killed"
    with pytest.raises(Stop):
        # The last checkpoint, step 4, is in the midst of an epoch.
        run(student, killed, pairs, loss_type=objective, stop_after=5)
    with pytest.raises(Stop):
        run(student, killed, pairs, loss_type=objective, stop_after=7)  # and step 6 at the end of one
    shutil.copytree(killed / "ckpt" / "checkpoint-6", killed / "ckpt" / "checkpoint-8")
    (killed / "ckpt" / "checkpoint-8" / "trainer_state.json").write_text('{"global_step": 8, "log_hi')
    with (killed / "m.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    assert not (killed / "model").exists()
    assert run(student, killed, pairs, loss_type=objective).resumed_from == 6
    assert rows(killed) == rows(tmp_path / "whole")
    assert [row["step"] for row in rows(killed)] == list(range(1, 10))
    assert_equal(weights(killed), weights(tmp_path / "whole"))


def test_killed_after_its_last_step_it_only_saves(
    save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    student = save_student()
    run(student, tmp_path, pairs, num_train_epochs=2.5)  # eight steps, the third epoch cut
    first, first_rows = weights(tmp_path), rows(tmp_path)
    shutil.rmtree(tmp_path / "model")
    assert run(student, tmp_path, pairs, num_train_epochs=2.5).resumed_from == 8
    assert_equal(weights(tmp_path), first)
    assert rows(tmp_path) == first_rows


def test_a_resumed_run_never_makes_its_own_reference(
    save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    student = save_student()
    with pytest.raises(Stop):
        run(student, tmp_path, pairs, stop_after=5)
    reference = tmp_path / "ckpt" / "reference.safetensors"
    kept = reference.read_bytes()
    reference.unlink()
    with pytest.raises(RunFailed, match="missing"):
        run(student, tmp_path, pairs)
    reference.write_bytes(kept)
    with pytest.raises(UserError, match=r"made with learning_rate=0\.003, this run has learning_rate=0\.1"):
        run(student, tmp_path, pairs, learning_rate=0.1)
    with pytest.raises(UserError, match="made with other pairs"):
        run(student, tmp_path, make_pairs(11)[1:])
    # Its weights would be replaced by those of the checkpoint.
    with pytest.raises(UserError, match="made with another student"):
        run(save_student(seed=1), tmp_path, pairs)


def test_a_reference_that_others_may_need_is_never_replaced(
    save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    student = save_student()
    run(student, tmp_path / "first", pairs)
    kept = tmp_path / "first" / "ckpt" / "reference.safetensors"
    before = kept.read_bytes()
    run(student, tmp_path / "same", pairs, loss_type="dpo", reference_path=str(kept))
    with pytest.raises(UserError, match=r"made from other tokens than this run; give another reference_path"):
        run(student, tmp_path / "fewer", pairs[1:], reference_path=str(kept))
    with pytest.raises(UserError, match="made from other precision"):
        run(student, tmp_path / "bf16", pairs, bf16=True, reference_path=str(kept))
    assert kept.read_bytes() == before


def test_metrics_that_were_not_logged_yet_survive_a_kill(
    save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    student = save_student()
    run(student, tmp_path / "whole", pairs, logging_steps=3)
    with pytest.raises(Stop):
        run(student, tmp_path / "killed", pairs, logging_steps=3, stop_after=6)
    assert run(student, tmp_path / "killed", pairs, logging_steps=3).resumed_from == 4
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize("full_at", ["weights", "optimizer"])
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    full_at: str, save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    student = save_student()
    # The small files fit; the optimizer's state, which torch writes, is twice the weights.
    room = 2**14 if full_at == "weights" else (student / "model.safetensors").stat().st_size + 2**12
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    told = {"weights": r"cannot write \(.*File too large", "optimizer": r"cannot write \(torch's file was cut short"}
    try:
        with pytest.raises(UserError, match=told[full_at]) as caught:
            run(student, tmp_path, pairs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and not (tmp_path / "model").exists()
    assert run(student, tmp_path, pairs).steps == 9


def test_it_learns_and_says_so(save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path) -> None:
    result = run(save_student(), tmp_path, pairs)
    logged = rows(tmp_path)
    first, last = logged[0], logged[-1]
    assert (result.steps, result.num_pairs, result.dropped, result.resumed_from) == (9, 10, [], 0)
    assert set(first) == {
        *("step", "epoch", "learning_rate", "loss", "grad_norm", "rewards/chosen", "rewards/rejected"),
        *("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected", "rewards/delta"),
        *("tether/chosen", "tether/rejected", "kl/chosen", "shared_fraction", "rewards/bound", "warnings"),
    }
    assert "warnings" not in last and 0 < first["rewards/bound"] < 10 and "cannot tether" in str(first["warnings"])
    assert first["rewards/chosen"] == first["rewards/rejected"] == first["kl/chosen"] == first["rewards/delta"] == 0
    assert first["shared_fraction"] > 0.2 and last["kl/chosen"] > 0
    assert first["tether/chosen"] == pytest.approx(0.05 / 2, rel=1e-3)
    assert last["rewards/margins"] > 0.02 and last["loss"] < first["loss"]
    # The shift of a step comes from the steps before it.
    delta = 0.0
    for row in logged:
        assert row["rewards/delta"] == pytest.approx(delta)
        delta = 0.9 * delta + 0.1 * (row["rewards/chosen"] + row["rewards/rejected"]) / 2


@pytest.mark.parametrize("tied", [True, False])
def test_the_saved_model_is_the_student_in_its_own_form(
    tied: bool, save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    student = save_student(torch.bfloat16, tie_word_embeddings=tied)
    run(student, tmp_path, pairs)
    saved = tmp_path / "model"
    before: Any = AutoModelForCausalLM.from_pretrained(student, dtype="auto")
    after: Any = AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
    assert after.dtype == torch.bfloat16
    assert (saved / "model.safetensors").stat().st_size == (student / "model.safetensors").stat().st_size
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    for name in ("use_cache", "tie_word_embeddings", "eos_token_id", "pad_token_id"):
        assert getattr(after.config, name) == getattr(before.config, name)
    assert (
        GenerationConfig.from_pretrained(saved).to_diff_dict()
        == GenerationConfig.from_pretrained(student).to_diff_dict()
    )
    assert AutoTokenizer.from_pretrained(saved).chat_template == AutoTokenizer.from_pretrained(student).chat_template
    assert not list(saved.glob("*.bin")) and not (tmp_path / "model.tmp").exists()


def test_bf16_compute_trains_fp32_master_weights(
    save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    run(save_student(), tmp_path, pairs, bf16=True, learning_rate=1e-6)
    start, end = make_model().state_dict(), weights(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (start[name] != end[name]).float().mean() > 0.9
    # Such steps are below bf16's spacing: weights kept in bf16 would have stayed where they were.
    assert (start[name].bfloat16() == end[name].bfloat16()).float().mean() > 0.95


class Poison(TrainerCallback):
    """Makes a loss, or the gradient alone, nan in one step."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        self.trainer: SpotTrainer | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None and self.trainer.reference is not None
        if state.global_step == self.step and self.what == "loss":
            lengths = self.trainer.reference.chosen_lengths
            self.trainer.reference.chosen_token_logps[lengths[:3].sum()] = torch.nan

    def spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        assert self.trainer is not None
        return gradient * torch.nan if self.trainer.state.global_step == self.step else gradient


@pytest.mark.parametrize(("what", "named"), [("loss", "pair-3 "), ("gradient", "pair-[0-9], pair-[0-9], ")])
def test_what_is_not_finite_stops_the_run_names_the_pairs_and_leaves_a_checkpoint(
    what: str, named: str, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], tmp_path: Path
) -> None:
    def trainer(directory: str, **given: Any) -> SpotTrainer:
        args = SpotConfig(
            output_dir=str(tmp_path / directory),
            per_device_train_batch_size=10,
            max_steps=5,
            learning_rate=1e-3,
            save_strategy="no",
            bf16=False,
            disable_tqdm=True,
        )
        return SpotTrainer(make_model(), args, pairs, processing_class=tokenizer, **given)

    poison = Poison(3, what)
    poisoned = trainer("poisoned", callbacks=[poison])
    poison.trainer = poisoned
    if what == "gradient":
        next(poisoned.model.parameters()).register_hook(poison.spoil)  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(RunFailed, match=rf"step 4: the {what} is not finite in pairs {named}.*checkpoint-3 has"):
        poisoned.train()
    checkpoint = last_complete_checkpoint(tmp_path / "poisoned")
    assert checkpoint == tmp_path / "poisoned" / "checkpoint-3"
    whole, resumed = trainer("whole"), trainer("poisoned")
    whole.train()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    losses = [[row["loss"] for row in one.state.log_history if "loss" in row] for one in (whole, resumed)]
    assert len(losses[0]) == 5 and losses[0] == losses[1]


def test_mappings_train_like_pairs(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], tmp_path: Path) -> None:
    columns = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "score": 1} for pair in pairs]
    args = SpotConfig(output_dir=str(tmp_path), disable_tqdm=True)
    trainer = SpotTrainer(make_model(), args, columns, processing_class=tokenizer)
    typed = SpotTrainer(make_model(), args, pairs, processing_class=tokenizer)
    assert [list(pair.chosen_ids) for pair in trainer.pairs] == [list(pair.chosen_ids) for pair in typed.pairs]
    assert [pair.id for pair in trainer.pairs][:2] == ["1", "2"]
    del columns[4]["rejected"]
    with pytest.raises(UserError, match="row 5: the field 'rejected' is missing"):
        SpotTrainer(make_model(), args, columns, processing_class=tokenizer)


@pytest.mark.parametrize("loss", ["sft", "kl_sft", "reward_sft"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_prompt_and_completion_train_like_the_chosen_side_of_pairs(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], tmp_path: Path, loss: str, attention: str
) -> None:
    alone = [{"id": pair.id, "prompt": pair.prompt, "completion": pair.chosen} for pair in pairs]
    histories: list[list[dict[str, Any]]] = []
    models: list[dict[str, torch.Tensor]] = []
    for name, rows_of, held_out in [("pairs", pairs[:7], pairs[7:]), ("alone", alone[:7], alone[7:])]:
        args = SpotConfig(
            output_dir=str(tmp_path / name), disable_tqdm=True, loss_type=[loss], score_rejected=name == "alone",
            eval_strategy="epoch", **SETTINGS,
        )  # fmt: skip
        model = make_model()
        model.set_attn_implementation(attention)
        trainer = SpotTrainer(model, args, rows_of, held_out, processing_class=tokenizer)
        trainer.train()
        models.append(trainer.model.state_dict())  # pyright: ignore[reportOptionalMemberAccess]
        found = [
            {key: row[key] for key in row if "second" not in key and "time" not in key}
            for row in trainer.state.log_history
        ]
        histories.append([row for row in found if "loss" in row or "eval_loss" in row])
    assert_equal(*models)
    assert len(histories[0]) > 3 and "logps/rejected" not in histories[1][0]
    assert histories[0] == histories[1]


def test_rows_without_rejected_answers_where_they_are_needed_are_refused(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], tmp_path: Path
) -> None:
    alone = [{"prompt": pair.prompt, "completion": pair.chosen} for pair in pairs]

    def start(rows_of: list[Any], loss: str) -> None:
        args = SpotConfig(output_dir=str(tmp_path), loss_type=[loss])
        SpotTrainer("no/such/model", args, rows_of, processing_class=tokenizer)

    with pytest.raises(UserError, match="row '1' has no rejected answer, which loss_type spot_bco needs; .* sft"):
        start(alone, "spot_bco")
    with pytest.raises(UserError, match="row '1' has no rejected answer and row 'pair-0' has one"):
        start([*alone[:1], *pairs], "sft")


def test_data_that_cannot_be_trained_on_is_refused(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], tmp_path: Path
) -> None:
    def start(**settings: Any) -> None:
        model = settings.pop("model", "no/such/model")  # never reached where the data are refused
        SpotTrainer(model, SpotConfig(output_dir=str(tmp_path), **settings), pairs, processing_class=tokenizer)

    with pytest.raises(UserError, match="no pair is left"):
        start(max_length=5)
    with pytest.raises(UserError, match="10 pairs are too long, pair 'pair-0' among them"):
        start(max_length=5, overlength="error")
    with pytest.raises(UserError, match="micro_batch_tokens=40"):
        start(micro_batch_tokens=40)
    with pytest.raises(UserError, match="beyond the model's 100 embeddings"):
        start(model=make_model(vocab_size=100))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"loss_type": ["kto"]}, "unknown loss 'kto'"),
        ({"loss_type": ["dpo", "sft"], "loss_weights": [1.0]}, "loss_weights must be as many as loss_type"),
        ({"kl_coefficient": -1.0}, "kl_coefficient"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"reward_shift": "mean"}, "reward_shift"),
        ({"shift_decay": 1.0}, "shift_decay"),
        ({"fp16": True}, "bf16"),
        ({"max_length": 0}, "max_length"),
        ({"overlength": "cut"}, "overlength must be drop or error"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        SpotConfig(output_dir=str(tmp_path), **settings)


def test_accumulation_is_folded_into_the_step(tmp_path: Path) -> None:
    args = SpotConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=8)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (32, 1)


def test_each_epoch_sees_each_pair_once_in_its_own_order() -> None:
    sampler = StepSampler(10, 4, seed=3)
    first = list(sampler)
    assert [len(step) for step in first] == [4, 4, 2] and len(sampler) == 3
    assert sorted(index for step in first for index in step) == list(range(10))
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first != list(StepSampler(10, 4, seed=4))


def test_metrics_begin_anew_without_a_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.jsonl")
    file.begin(0)
    file.append({"step": 1})
    file.append({"step": 2})
    file.begin(1)
    assert rows(tmp_path) == [{"step": 1}]
    file.begin(0)
    assert rows(tmp_path) == []


def test_evaluation_moves_nothing_and_measures_the_whole_set(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], tmp_path: Path
) -> None:
    def trained(**given: Any) -> SpotTrainer:
        directory = tmp_path / ("with" if given else "without")
        changes: dict[str, Any] = {"eval_strategy": "epoch"} if given else {}
        args = SpotConfig(output_dir=str(directory), disable_tqdm=True, **SETTINGS, **changes)
        trainer = SpotTrainer(make_model(), args, pairs[:6], processing_class=tokenizer, **given)
        trainer.train()
        return trainer

    plain, evaluated = trained(), trained(eval_dataset=pairs[6:])
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (plain, evaluated)]
    assert losses[0] == losses[1]
    logged = [row for row in evaluated.state.log_history if "eval_loss" in row]
    assert len(logged) == 3 and "eval_tether/chosen" not in logged[0]
    # The mean over the four pairs, whatever the last shift.
    chosen = logged[-1]["eval_logps/chosen"]
    token_logps, _ = Scorer(evaluated.model, True, False)(evaluated.pairs[6:])  # pyright: ignore[reportArgumentType]
    assert chosen == pytest.approx(float(token_logps[:4].sum()) / 4, rel=1e-5)
    with pytest.raises(UserError, match="given as eval_dataset"):
        plain.evaluate()


def test_where_prefixes_are_not_shared_the_losses_are_the_same(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], tmp_path: Path
) -> None:
    def losses(kind: str, **given: Any) -> tuple[str | None, list[float]]:
        args = SpotConfig(output_dir=str(tmp_path / kind), micro_batch_tokens=400, disable_tqdm=True, **SETTINGS)
        trainer = SpotTrainer(make_model(**given), args, pairs, processing_class=tokenizer)
        trainer.train()
        return trainer.not_shared, [row["loss"] for row in trainer.state.log_history if "loss" in row]

    shared, plain = losses("shared"), losses("plain", attn_implementation="eager")
    assert shared[0] is None and plain[0] == "its attention is eager, not sdpa"
    assert plain[1] == pytest.approx(shared[1], rel=1e-4)


def test_in_bf16_too_rewards_are_exactly_0_before_the_first_step(
    tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], tmp_path: Path
) -> None:
    changes: dict[str, Any] = SETTINGS | {"bf16": True, "micro_batch_tokens": 300}
    args = SpotConfig(output_dir=str(tmp_path), disable_tqdm=True, **changes)
    trainer = SpotTrainer(make_model(), args, pairs, processing_class=tokenizer)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert logged[0]["rewards/chosen"] == logged[0]["rewards/rejected"] == logged[0]["kl/chosen"] == 0
    assert logged[-1]["rewards/margins"] > 0


def test_what_is_uploaded_is_what_is_saved(
    save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[dict[str, Any]] = []

    def upload(**given: Any) -> None:
        model = AutoModelForCausalLM.from_pretrained(given["folder_path"], dtype="auto")
        uploads.append(given | {"dtype": model.dtype, "use_cache": model.config.use_cache})

    monkeypatch.setattr("spot.train.upload.upload_folder", upload)
    args = SpotConfig(output_dir=str(tmp_path / "out"), max_steps=1, disable_tqdm=True, **SETTINGS)
    trainer = SpotTrainer(save_student(torch.bfloat16), args, pairs)
    trainer.hub_model_id = "someone/student"
    trainer.train()
    trainer.push_to_hub("done")
    args.push_to_hub = True
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert [row["folder_path"] for row in uploads] == [str(tmp_path / "out"), str(tmp_path / "elsewhere")]
    for row in uploads:
        assert row["repo_id"] == "someone/student" and row["dtype"] == torch.bfloat16 and row["use_cache"]
        assert "checkpoint-*" in row["ignore_patterns"]


def test_evaluation_is_kept_and_does_not_depend_on_how_it_is_cut(
    save_student: Callable[..., Path], pairs: list[Pair], tmp_path: Path
) -> None:
    def evaluated(size: int) -> SpotTrainer:
        directory = tmp_path / str(size)
        changes: dict[str, Any] = SETTINGS | {"loss_type": "sft", "per_device_train_batch_size": size}
        args = SpotConfig(
            output_dir=str(directory), metrics_path=str(directory / "m.jsonl"), disable_tqdm=True, **changes
        )
        return SpotTrainer(save_student(), args, pairs[:4], pairs[4:])

    first, second = evaluated(1).evaluate(), evaluated(4).evaluate()
    assert first["eval_loss"] == pytest.approx(second["eval_loss"], rel=1e-5)
    trainer = evaluated(2)
    trainer.evaluate()
    trainer.train()
    assert [row["step"] for row in rows(tmp_path / "2")] == [1, 2, 3, 4, 5, 6]
    trainer.evaluate()
    assert rows(tmp_path / "2")[-1]["eval_loss"] < first["eval_loss"]
    with pytest.raises(UserError, match="make a new SpotTrainer"):
        trainer.train()
