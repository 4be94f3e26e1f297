"""The student's weights on their way in and out: fp32 masters while training, its own precision when saved."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spot.hub import load_model as load_student
from spot.hub import load_tokenizer

__all__ = [
    "SourceForm",
    "disable_dropout",
    "in_source_form",
    "load_student",
    "load_tokenizer",
    "take_master_weights",
]


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
