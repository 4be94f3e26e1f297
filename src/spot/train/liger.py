"""Liger's kernels: norms, rotary embedding and activations of the model, none of its losses."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.import_utils import is_liger_kernel_available

from spot.errors import UserError
from spot.train.config import LIGER_LOSSES


def check_liger(model: PreTrainedModel | str, asked: Mapping[str, Any], device: torch.device) -> None:
    """Raise `UserError` where Liger cannot do on `device` what is `asked` of it for `model`, or its path, as loaded.

    Liger itself would leave alone what it does not know, and say so in a log that nobody reads.
    """
    if device.type == "cpu":
        raise UserError("use_liger_kernel: its kernels need a GPU; leave it off")
    if not is_liger_kernel_available():
        raise UserError("use_liger_kernel needs Liger; install it with: pip install liger-kernel")
    kinds: Mapping[str, Any] = import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    kind = _model_type(model)
    if kind not in kinds:
        raise UserError(f"use_liger_kernel: Liger has no kernels for models of type {kind}; leave it off")
    known = [name for name in inspect.signature(kinds[kind]).parameters if name not in ("model", *LIGER_LOSSES)]
    for name in asked:
        if name not in known and name not in LIGER_LOSSES:
            raise UserError(f"liger_kernel_config: there is no {name!r} for {kind}; there is {', '.join(known)}")


def _model_type(model: PreTrainedModel | str) -> str:
    if isinstance(model, PreTrainedModel):
        return str(model.config.model_type)
    try:
        return str(AutoConfig.from_pretrained(model).model_type)
    except Exception as error:  # as for its tokenizer: broken files surface as many types
        raise UserError(f"{model}: no config that transformers can load ({' '.join(str(error).split())})") from error


def liger_kind(asked: Mapping[str, Any]) -> str:
    """What Liger computes, as a word of a reference's key: `liger`, and what was switched off or on in it."""
    switched = sorted(f"{name}={value}" for name, value in asked.items() if name not in LIGER_LOSSES)
    return f"liger({','.join(switched)})" if switched else "liger"
