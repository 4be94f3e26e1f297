"""The student's weights on their way in and out: fp32 masters while training, its own precision when saved."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from spot.errors import UserError
from spot.hub import check_model_name


def load_tokenizer(student: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `student`, a directory or a hub name. Raises `UserError` where there is none."""
    check_model_name(str(student))
    try:
        return AutoTokenizer.from_pretrained(student)
    except (OSError, ValueError) as error:
        raise UserError(f"{student}: cannot load the tokenizer ({_first_line(error)})") from error


def load_student(student: str | Path) -> PreTrainedModel:
    """The causal language model in `student`, in the precision of its files. Raises `UserError` where there is none."""
    try:
        return AutoModelForCausalLM.from_pretrained(student, dtype="auto")
    except (OSError, ValueError) as error:
        raise UserError(f"{student}: cannot load the model ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@dataclass(frozen=True)
class SourceForm:
    """What training changes about a model besides its weights' values: precision, config, generation config."""

    dtypes: dict[str, torch.dtype]
    config: Any
    generation_config: Any


def take_master_weights(model: PreTrainedModel) -> SourceForm:
    """Turn `model` to fp32 in place and remember its form.

    At the method's learning rates an update is far below bf16's spacing: bf16 weights would not move.
    """
    form = SourceForm(
        dtypes={name: parameter.dtype for name, parameter in model.named_parameters()},
        config=copy.deepcopy(model.config),
        generation_config=copy.deepcopy(model.generation_config),
    )
    model.float()
    return form


@contextmanager
def in_source_form(model: PreTrainedModel, form: SourceForm) -> Generator[None]:
    """Show `model` in the form it came in, for saving; the master weights are back afterwards.

    The Trainer turns the key-value cache off and overwrites token ids in the config: neither belongs to the student.
    """
    masters = {name: parameter.data for name, parameter in model.named_parameters()}
    trained_config, trained_generation_config = model.config, model.generation_config
    try:
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(form.dtypes[name])
        model.config = copy.deepcopy(form.config)
        model.generation_config = copy.deepcopy(form.generation_config)
        yield
    finally:
        model.config, model.generation_config = trained_config, trained_generation_config
        for name, parameter in model.named_parameters():
            parameter.data = masters[name]


def disable_dropout(model: nn.Module) -> None:
    """Turn all dropout off: with it, the policy differs from the reference before the first step."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # pyright: ignore[reportArgumentType] (transformers keeps a float there)
