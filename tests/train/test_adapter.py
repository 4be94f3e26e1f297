"""Training an adapter: the model under it stays and is the reference."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import (
    AdaLoraConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from rich.console import Console
from safetensors.torch import load_file
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from transformers import AutoModelForCausalLM

from spot.config import TrainSection
from spot.errors import UserError
from spot.stages.train import train_on
from spot.train.adapter import language_model
from spot.train.command import main
from spot.train.run import fit
from spot.train.trainer import SpotConfig, SpotTrainer

pytestmark = pytest.mark.slow


def config(output: Path, **settings: Any) -> SpotConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(output / "work"),
        "metrics_path": str(output / "metrics.jsonl"),
        "learning_rate": 1e-2,
        "beta": 0.05,
        "per_device_train_batch_size": 4,
        "micro_batch_tokens": 512,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_steps": 2,
    }
    return SpotConfig(**(defaults | settings))


def lora(**settings: Any) -> LoraConfig:
    defaults: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"]}
    return LoraConfig(**(defaults | settings))


def trainer(output: Path, peft_config: Any, **settings: Any) -> SpotTrainer:
    model = make_model(tie_word_embeddings=False)
    return SpotTrainer(model, config(output, **settings), make_pairs(9), None, make_tokenizer(), peft_config)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "up_proj"], ["q_proj", "lm_head"]])
def test_only_the_adapter_moves_and_the_reference_is_the_model_without_it(targets: list[str], tmp_path: Path) -> None:
    training = trainer(tmp_path, lora(target_modules=targets))
    assert training.not_shared is None
    training.train()
    plain = trainer(tmp_path / "plain", None)
    plain.begin(0)
    assert training.reference is not None and plain.reference is not None
    torch.testing.assert_close(training.reference.chosen_token_logps, plain.reference.chosen_token_logps)
    logs = [row for row in training.state.log_history if "loss" in row]
    assert logs[0]["rewards/chosen"] == 0 == logs[0]["rewards/rejected"]
    assert logs[-1]["rewards/margins"] > 0.1
    for name, weight in make_model(tie_word_embeddings=False).state_dict().items():
        module, _, kind = name.rpartition(".")
        there = f"{module}.base_layer.{kind}" if module.rpartition(".")[2] in targets else name
        torch.testing.assert_close(language_model(training.model).state_dict()[there], weight, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["object", "fit", "spot train", "spot run"])
def test_the_seed_alone_decides_the_weights(way: str, save_student: Callable[..., Path], tmp_path: Path) -> None:
    """Whatever has been drawn in the process before, which is other in each run."""
    student = save_student(tie_word_embeddings=False)
    (tmp_path / "pairs.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in make_pairs(9)))

    def trained(name: str, seed: int) -> dict[str, torch.Tensor]:
        model, output = make_model(tie_word_embeddings=False), tmp_path / name
        torch.manual_seed(len(name))
        random.seed(len(name))
        np.random.seed(len(name))
        if way == "object":
            adapter = LoraConfig(r=4, target_modules="all-linear")
            training = SpotTrainer(
                model, config(output, seed=seed), make_pairs(9), None, make_tokenizer(), peft_config=adapter
            )
            training.train()
            training.save_model(str(output))
        elif way == "fit":
            fit(make_pairs(9), student, output, config(tmp_path / f"work-{name}", seed=seed), peft_config=lora())
        elif way == "spot train":
            flags = ["--model_name_or_path", student, "--dataset_name", tmp_path / "pairs.jsonl", "--seed", seed]
            flags += ["--output_dir", output, "--use_peft", "--max_steps", 2, "--per_device_train_batch_size", 4]
            main([str(flag) for flag in flags])
        else:
            section = TrainSection(lora_r=4, pairs_per_step=4, precision="fp32")
            places = (tmp_path / f"work-{name}", output, tmp_path / f"{name}.jsonl", Console(quiet=True))
            train_on(make_pairs(9), str(student), section, seed, *places)
        return load_file(output / "adapter_model.safetensors")

    first, second, other = trained("first", 3), trained("second", 3), trained("third", 4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Its B starts at 0 under any seed, and differs once trained.
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_saved_adapter_is_the_trained_model(save_student: Callable[..., Path], tmp_path: Path) -> None:
    student = save_student()
    fit(make_pairs(9), student, tmp_path / "model", config(tmp_path), peft_config=lora())
    assert not (tmp_path / "model" / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(student)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "model"))
    checkpoint = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(student), str(tmp_path / "work" / "checkpoint-6")
    )
    ids = torch.arange(8)[None]
    logits = adapted(ids).logits
    torch.testing.assert_close(logits, checkpoint(ids).logits)
    with adapted.disable_adapter():
        assert (adapted(ids).logits - logits).abs().max() > 0.01


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, save_student: Callable[..., Path]) -> None:
    student = save_student()
    fit(make_pairs(9), student, tmp_path / "model", config(tmp_path), peft_config=lora())
    whole = (tmp_path / "metrics.jsonl").read_text().splitlines()
    resumed = config(tmp_path, resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-4"))
    fit(make_pairs(9), student, tmp_path / "model", resumed, peft_config=lora())
    again = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def losses(lines: list[str]) -> list[str]:
        return [line.partition(', "tokens_per_second"')[0] for line in lines]

    assert len(whole) == 6 and losses(whole) == losses(again)


def test_under_bf16_the_weights_below_keep_their_precision(save_student: Callable[..., Path], tmp_path: Path) -> None:
    student = save_student(torch.bfloat16)
    args = config(tmp_path, bf16=True)
    training = SpotTrainer(str(student), args, make_pairs(9), peft_config=lora())
    parameters = language_model(training.model).named_parameters()
    dtypes = {("lora" in name, parameter.dtype) for name, parameter in parameters}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    training.train()
    logs = [row for row in training.state.log_history if "loss" in row]
    assert logs[0]["rewards/chosen"] == 0 and logs[-1]["rewards/margins"] > 0.1


@pytest.mark.parametrize(
    "peft_config",
    [
        lora(modules_to_save=["lm_head"]),
        AdaLoraConfig(target_modules=["q_proj"], total_step=6, init_r=4, target_r=2, tinit=0, tfinal=0),
    ],
)
def test_under_bf16_adapters_that_bring_names_of_their_own_are_trained(peft_config: Any, tmp_path: Path) -> None:
    model: Any = make_model(tie_word_embeddings=False)
    training = SpotTrainer(
        model.bfloat16(), config(tmp_path, bf16=True), make_pairs(9), None, make_tokenizer(), peft_config
    )
    parameters = dict(language_model(training.model).named_parameters())
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad and "ranknum" not in name]
    assert frozen and all(parameters[name].dtype == torch.bfloat16 for name in frozen)
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values() if parameter.requires_grad)
    training.train()
    assert training.state.log_history[0]["rewards/chosen"] == 0


@pytest.mark.parametrize(
    ("peft_config", "problem"),
    [
        ({"r": 4}, "peft_config must be a peft.PeftConfig such as LoraConfig, got dict"),
        (lora(lora_dropout=0.05), "lora_dropout must be 0"),
        (LoKrConfig(target_modules=["q_proj"], module_dropout=0.1), "module_dropout must be 0"),
        (VeraConfig(target_modules=["q_proj"], vera_dropout=0.1), "vera_dropout must be 0"),
        (lora(target_modules=["nothing"]), "peft_config: .*nothing"),
        (PrefixTuningConfig(num_virtual_tokens=4), "prompts that are learnt are not supported"),
        (lora(init_lora_weights="pissa"), "changes the model under it"),
    ],
)
def test_adapters_that_cannot_be_are_refused(peft_config: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        trainer(tmp_path, peft_config)


def test_a_model_that_has_an_adapter_is_refused(save_student: Callable[..., Path], tmp_path: Path) -> None:
    adapted: Any = get_peft_model(make_model(), lora())
    with pytest.raises(UserError, match="merge it"):
        SpotTrainer(adapted, config(tmp_path), make_pairs(9), None, make_tokenizer())
    student = save_student()
    fit(make_pairs(9), student, tmp_path / "model", config(tmp_path), peft_config=lora())
    with pytest.raises(UserError, match="merge it"):
        SpotTrainer(tmp_path / "model", config(tmp_path / "again"), make_pairs(9))
