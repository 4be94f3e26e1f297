"""What is between a config's sections and the code that they steer."""

from pathlib import Path
from typing import Any

import pytest
from transformers.trainer_utils import SchedulerType

from spot.config import TrainSection
from spot.errors import UserError
from spot.stages.train import peft_config, train_args

# Each key of the section: what it is set to, and the argument of the Trainer that must be that.
TRAIN: dict[str, tuple[Any, str, Any]] = {
    "objective": ("dpo", "loss_type", ["dpo"]),
    "precision": ("bf16", "bf16", True),
    "pairs_per_step": (7, "pairs_per_step", 7),
    "warmup_ratio": (0.2, "warmup_steps", 0.2),
    "lr_scheduler_type": ("linear", "lr_scheduler_type", SchedulerType.LINEAR),
} | {
    key: (value, key, value)
    for key, value in {
        "loss_weights": [2.0],
        "beta": 0.3,
        "reward_shift": "none",
        "shift_decay": 0.5,
        "sft_reduction": "sequence_sum",
        "kl_coefficient": 0.7,
        "kl_estimator": "k1",
        "score_rejected": False,
        "learning_rate": 1e-3,
        "num_train_epochs": 3,
        "max_length": 77,
        "overlength": "error",
        "micro_batch_tokens": 99,
        "weight_decay": 0.2,
        "adam_beta1": 0.5,
        "adam_beta2": 0.6,
        "max_grad_norm": 3.0,
        "save_steps": 5,
        "metric_for_best_model": "eval_task",
    }.items()
}


def arguments(tmp_path: Path, **section: Any) -> Any:
    return train_args(TrainSection(**section), 5, tmp_path / "work", tmp_path / "m.jsonl")


def test_the_keys_of_an_adapter_reach_peft() -> None:
    pytest.importorskip("peft")
    config = peft_config(TrainSection(lora_r=3, lora_alpha=5, lora_target_modules=["q_proj"]))
    assert (config.r, config.lora_alpha, config.target_modules) == (3, 5, {"q_proj"})
    assert peft_config(TrainSection()) is None


@pytest.mark.parametrize(
    "key",
    [key for key in TrainSection.model_fields if not key.startswith(("lora_", "eval_", "load_best", "drop_overlap"))],
)
def test_each_key_of_the_train_section_reaches_the_trainer(tmp_path: Path, key: str) -> None:
    value, argument, expected = TRAIN[key]
    args, default = arguments(tmp_path, **{key: value}), arguments(tmp_path, precision="fp32")
    assert getattr(args, argument) == expected != getattr(default, argument)
    assert (args.seed, args.output_dir, args.metrics_path) == (5, str(tmp_path / "work"), str(tmp_path / "m.jsonl"))


def test_the_best_checkpoint_is_the_trainers_to_keep(tmp_path: Path) -> None:
    args = arguments(tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_task")
    assert args.load_best_model_at_end and args.greater_is_better and args.eval_strategy == "no"


def test_what_only_the_trainer_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train: --save_steps must be an integer if bigger than 1: 1\.5"):
        arguments(tmp_path, save_steps=1.5)
