"""The best checkpoint is kept beside the last, with its own shift, whatever was killed on the way."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from transformers import TrainerCallback

from spot.errors import UserError
from spot.train.config import SpotConfig
from spot.train.measuring import StepMeasure, Student
from spot.train.trainer import SpotTrainer

pytestmark = pytest.mark.slow


class Killed(Exception):
    """Stands for a kill."""


class Scores(StepMeasure):
    """A task whose score at each step is known beforehand."""

    names: Sequence[str] = ("task",)

    def __init__(self, steps: int, scores: dict[int, float], kill_at: int | None = None) -> None:
        super().__init__(steps)
        self.scores, self.kill_at = scores, kill_at

    def measure(self, student: Student) -> list[float]:
        if student.step == self.kill_at:
            raise Killed
        return [self.scores.get(student.step, 0.0)]


def config(directory: Path, **changes: Any) -> SpotConfig:
    """10 pairs by 4 make nine steps in three epochs; a checkpoint every second."""
    settings: dict[str, Any] = {
        "output_dir": str(directory),
        "metrics_path": str(directory / "m.jsonl"),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "beta": 0.05,
        "save_steps": 2,
        "save_total_limit": 1,
        "bf16": False,
        "disable_tqdm": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_task",
    }
    return SpotConfig(**(settings | changes))


def trainer(directory: Path, measure: StepMeasure | None, adapter: bool = False, **changes: Any) -> SpotTrainer:
    given: Any = {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])} if adapter else {}
    held_out = make_pairs(3) if changes.get("eval_strategy") else None
    callbacks: list[TrainerCallback] = [] if measure is None else [measure]
    args = config(directory, **changes)
    return SpotTrainer(make_model(), args, make_pairs(10), held_out, make_tokenizer(), callbacks=callbacks, **given)


def weights_of(done: SpotTrainer) -> dict[str, torch.Tensor]:
    model: Any = done.model
    return model.state_dict()


def checkpoints(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("checkpoint-*")}


def shift(directory: Path, step: int) -> float:
    return json.loads((directory / f"checkpoint-{step}" / "spot_state.json").read_text())["delta"]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(
    ("every", "scores", "best", "kept"),
    [
        (2, {0: 0.9, 2: 0.2, 4: 0.6, 6: 0.6, 8: 0.3}, 4, {4, 9}),  # saved at this step anyway; of equals the first
        (3, {3: 0.5, 6: 0.4}, 3, {3, 9}),  # saved for being the best
        (2, {2: 0.1, 4: 0.2, 9: 0.3}, 9, {9}),  # the last
    ],
)
def test_it_ends_with_the_best_weights_and_their_shift(
    every: int, scores: dict[int, float], best: int, kept: set[int], adapter: bool, tmp_path: Path
) -> None:
    done = trainer(tmp_path, Scores(every, scores), adapter)
    done.train()
    assert checkpoints(tmp_path) == {f"checkpoint-{step}" for step in kept}
    assert done.state.best_global_step == best and done.state.best_metric == scores[best]
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    weights = load_file(tmp_path / f"checkpoint-{best}" / file)
    held = {name.replace(".default", ""): value for name, value in weights_of(done).items()}
    assert weights and all(torch.equal(value, held[name]) for name, value in weights.items())
    assert done._delta == shift(tmp_path, best)  # pyright: ignore[reportPrivateUsage] (what evaluate() goes by)
    if best != 9:
        assert shift(tmp_path, best) != shift(tmp_path, 9)


# Killed before step 5 was taken, while a new best (saved anyway, or for its score) was measured, after the last step.
@pytest.mark.parametrize(("every", "kill_at"), [(2, 4), (3, 3), (3, 6), (2, 9), (3, 9)])
def test_a_killed_training_ends_with_the_same(every: int, kill_at: int, tmp_path: Path) -> None:
    scores = {2: 0.2, 3: 0.5, 4: 0.6, 6: 0.55, 8: 0.3, 9: 0.1}
    whole = trainer(tmp_path / "whole", Scores(every, scores))
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", Scores(every, scores, kill_at)).train()
    resumed = trainer(tmp_path / "killed", Scores(every, scores))
    resumed.train(resume_from_checkpoint=bool(checkpoints(tmp_path / "killed")) or None)
    ones, others = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(ones[name], others[name]) for name in ones)
    assert whole._delta == resumed._delta  # pyright: ignore[reportPrivateUsage]
    assert checkpoints(tmp_path / "whole") == checkpoints(tmp_path / "killed")
    states = [one.state for one in (whole, resumed)]
    assert states[0].best_global_step == states[1].best_global_step
    told = [[{name for name in row if name.startswith("eval/")} for row in state.log_history] for state in states]
    assert told[0] == told[1]
    files = [(tmp_path / name / "m.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    rows = [
        [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in file] for file in files
    ]
    assert rows[0] == rows[1]


def test_pairs_rank_by_what_can_be_compared(tmp_path: Path) -> None:
    evaluated: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": None}
    args = config(tmp_path, **evaluated)
    assert args.metric_for_best_model == "rewards/chosen" and args.greater_is_better
    assert config(tmp_path, **evaluated, loss_type=["spot_bce"]).metric_for_best_model == "loss"
    done = trainer(tmp_path, None, **evaluated)
    done.train()
    scores = {int(row["step"]): row["eval_rewards/chosen"] for row in done.state.log_history if "eval_loss" in row}
    best = max(scores, key=lambda step: scores[step])
    assert done.state.best_global_step == best and done._delta == shift(tmp_path, best)  # pyright: ignore[reportPrivateUsage]
    assert checkpoints(tmp_path) == {f"checkpoint-{best}", "checkpoint-9"}


@pytest.mark.parametrize("name", ["task", "eval_task", "eval/task"])
def test_a_task_ranks_beside_evaluated_pairs(name: str, tmp_path: Path) -> None:
    both = trainer(tmp_path, Scores(2, {6: 0.5}), metric_for_best_model=name, eval_strategy="steps", eval_steps=2)
    both.train()
    assert both.state.best_global_step == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric_for_best_model": None}, "load_best_model_at_end: by what"),
        ({"metric_for_best_model": "eval_loss", "eval_strategy": "steps", "eval_steps": 2}, "under the shift of their"),
        ({"metric_for_best_model": "eval_other"}, "metric_for_best_model=other: not measured here; choose one of task"),
    ],
)
def test_what_cannot_rank_is_refused_before_the_first_step(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, ValueError), match=told) as caught:
        trainer(tmp_path, Scores(2, {}), **changes).train()
    assert "\n" not in str(caught.value) and not checkpoints(tmp_path)


def test_nothing_that_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is evaluated during training"):
        trainer(tmp_path, None).train()
