"""What of transformers' `TrainingArguments` is refused, and what changes nothing."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from accelerate import ParallelismConfig
from transformers import TrainingArguments

from spot.train.config import NOT_HERE, NOT_READ, SpotConfig

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-trl.md"
VALUES: dict[str, Any] = {
    "logging_nan_inf_filter": True,
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "dataloader_drop_last": True,
    "train_sampling_strategy": "sequential",
    "ignore_data_skip": True,
    "auto_find_batch_size": True,
    "parallelism_config": ParallelismConfig(),
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "torch_compile": True,
    "torch_empty_cache_steps": 1,
    "include_num_input_tokens_seen": "all",
}


@pytest.mark.parametrize("name", NOT_HERE)
def test_what_would_be_ignored_or_do_harm_is_refused(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {name: VALUES[name]}
    with pytest.raises(ValueError, match=f"{name} .*; leave it at its default"):
        SpotConfig(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"optim": "adalomo"}, "steps in each backward pass"),
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["mlp"]}, "steps in each backward pass"),
        ({"optim": "schedule_free_adamw"}, "its weights are not the model's"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}}, "gradient_accumulation_kwargs"),
        ({"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True}}, "make no logits"),
        ({"use_liger_kernel": True, "liger_kernel_config": {"cross_entropy": True}}, "make no logits"),
    ],
)
def test_what_would_train_something_else_is_refused(settings: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        SpotConfig(output_dir=str(tmp_path), **settings)


def test_defaults_and_what_is_not_read_pass(tmp_path: Path) -> None:
    args = SpotConfig(output_dir=str(tmp_path), per_device_eval_batch_size=2, dataloader_num_workers=4)
    assert dataclasses.replace(args, beta=0.2).beta == 0.2
    names = {entry.name for entry in dataclasses.fields(TrainingArguments)}
    assert names >= {*NOT_READ, *NOT_HERE} and not set(NOT_READ) & set(NOT_HERE)


@pytest.mark.parametrize(("names", "begins"), [(NOT_HERE, "Refused, "), (NOT_READ, "Accepted, ")])
def test_the_page_names_them_all(names: Any, begins: str) -> None:
    text = PAGE.read_text("utf-8")
    paragraph = text[text.index(f"\n{begins}") :].lstrip().partition("\n\n")[0]
    assert set(names) <= set(re.findall(r"`([a-z_0-9]+)`", paragraph))


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("units", [False, True])
def test_on_a_cpu_bf16_is_the_default_where_it_is_faster(
    gpu: bool, units: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("spot.train.config.HAS_MATRIX_UNITS", units)
    monkeypatch.setattr("torch.accelerator.is_available", lambda *_: gpu)
    assert SpotConfig(output_dir=str(tmp_path), use_cpu=True).bf16 == units
