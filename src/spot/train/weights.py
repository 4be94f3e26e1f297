"""The student's weights on their way in and out: fp32 masters while training, its own precision when saved."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spot.hub import load_model as load_student
from spot.hub import load_tokenizer

__all__ = [
    "SourceForm",
    "disable_dropout",
    "freeze_precision",
    "load_student",
    "load_tokenizer",
    "save_in_source_form",
    "take_master_weights",
]


_FORM = "_spot_source_form"

RANDOM = ("drop", "jitter", "noise")
"""What stands in the names of numbers that make training random."""


@dataclass(frozen=True)
class SourceForm:
    """What training changes about a model besides its weights' values: precision, config, generation config."""

    dtypes: dict[str, torch.dtype]
    config: Any
    generation_config: Any


def take_master_weights(model: PreTrainedModel) -> SourceForm:
    """Turn `model` to fp32 in place and remember its form, on itself, too: a trainer may refuse it after this.

    At the method's learning rates an update is far below bf16's spacing: bf16 weights would not move. (Under DeepSpeed
    in bf16 they become bf16 again, and the masters are DeepSpeed's own.)
    """
    form: SourceForm | None = getattr(model, _FORM, None)
    if form is None:
        form = SourceForm(
            # Of buffers, too: `float` turns those as well.
            dtypes={name: tensor.dtype for name, tensor in chain(model.named_parameters(), model.named_buffers())},
            config=copy.deepcopy(model.config),
            generation_config=copy.deepcopy(model.generation_config),
        )
        setattr(model, _FORM, form)
    model.float()
    return form


def freeze_precision(model: PreTrainedModel, form: SourceForm) -> None:
    """Give weights that are not trained the precision that they came in; adapters have renamed them.

    What an adapter brings along and does not train (AdaLoRA's ranks, say) stays as it is.
    """
    for name, parameter in model.named_parameters():
        source = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        if not parameter.requires_grad and source in form.dtypes:
            parameter.data = parameter.data.to(form.dtypes[source])


def save_in_source_form(model: Any, weights: Mapping[str, Tensor], form: SourceForm, directory: str) -> None:
    """Write `weights`, a state dict of `model`, in the precision and with the config that they came in.

    The Trainer turns the key-value cache off and overwrites token ids in the config: neither belongs to the student. Of
    an adapted model the adapter is written, in its own precision.
    """
    language_model: PreTrainedModel = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    tied: Any = language_model.all_tied_weights_keys
    kept = {
        name: tensor.to(form.dtypes.get(name, tensor.dtype)) for name, tensor in weights.items() if name not in tied
    }
    trained = language_model.config, language_model.generation_config
    language_model.config = copy.deepcopy(form.config)
    language_model.generation_config = copy.deepcopy(form.generation_config)
    try:
        model.save_pretrained(directory, state_dict=kept)
        if model is language_model:
            # It has been given the precision of the masters.
            language_model.config.dtype = next(iter(form.dtypes.values()))
            language_model.config.save_pretrained(directory)
    finally:
        language_model.config, language_model.generation_config = trained


def disable_dropout(model: nn.Module) -> None:
    """Turn off all that is random in training: with it, the policy differs from the reference before the first step.

    Architectures keep it in numbers of many names (`dropout`, `attention_dropout`, `layerdrop`; a router's
    `jitter_noise`). What reads its config instead is found by `check_head`.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if any(word in name for word in RANDOM) and isinstance(value, float):
                setattr(module, name, 0.0)


def random_settings(config: Any) -> list[tuple[str, float]]:
    """The numbers in `config`, of its parts too, that make training random, by their names."""
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    found = [random_settings(value) for value in values.values() if isinstance(value, Mapping)]
    own = [
        (name, value)
        for name, value in values.items()
        if isinstance(value, float) and value and any(word in name for word in RANDOM)
    ]
    return own + list(chain.from_iterable(found))
