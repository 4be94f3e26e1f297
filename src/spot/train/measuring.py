"""Measuring a student in the midst of its training: it answers with its weights as they are, and nothing else moves.

What answers is a copy of the modules over the same weights, so the mode, the attention, the cache and the buffers of
the model in training are never touched, whatever happens to the copy. Random state is put back.
"""

import copy
import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from spot.errors import UserError
from spot.train.adapter import language_model
from spot.train.attention import SPOT_SHARED
from spot.train.config import SpotConfig
from spot.train.layers import restore_layers
from spot.train.weights import SourceForm


@dataclass(frozen=True)
class Student:
    """A student in training after so many steps, ready to answer.

    `model` has the weights in training, an adapter's too, and products are in `autocast` where that is a type. `name`
    tells it from students of other steps and of other trainings; `output_dir` is the training's, `day` what its
    prompts print.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    autocast: torch.dtype | None
    name: str
    step: int
    output_dir: Path
    day: date | None = None


class StepMeasure(TrainerCallback, ABC):
    """What `SpotTrainer` measures before training, every `steps` steps and after the last one; handed in as a callback.

    `names` are what is measured, in the order of the logged scores (`eval/NAME`). A checkpoint of the same step is
    written before; a training resumed from it measures there again, so `measure` keeps what it has.
    """

    names: Sequence[str]

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise UserError(f"every {steps} steps: must be at least 1")
        self.steps = steps

    @abstractmethod
    def measure(self, student: Student) -> Sequence[float]:
        """The scores of `names`; called in the first process only, the others wait."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse a Trainer that would never measure."""
        if not isinstance(args, SpotConfig):
            raise UserError(f"{type(self).__name__} is for SpotTrainer; another Trainer would never measure")


def check_whole(accelerator: Accelerator) -> None:
    """Raise `UserError` where no process has all weights to answer with."""
    if accelerator.is_fsdp2:
        raise UserError(
            "tasks cannot be evaluated during training under FSDP2, where no process has the whole model; evaluate the "
            "saved model (spot eval), or train with DDP or ZeRO-2"
        )


def answering(model: Any, form: SourceForm) -> PreTrainedModel:
    """A copy of the language model in `model`, over the same weights, that is as it was before training.

    It runs its class's forward in evaluation mode, with the attention it came with and the tokens that end its turns.
    """
    student = language_model(model)
    ready: PreTrainedModel = copy.deepcopy(student, {id(weight): weight for weight in student.parameters()})
    # What scoring and autocast put there belongs to the original, and would run that.
    for name in ("forward", "_original_forward"):
        vars(ready).pop(name, None)
    restore_layers(ready)
    ready.generation_config = copy.deepcopy(form.generation_config)
    if ready.config._attn_implementation == SPOT_SHARED:  # pyright: ignore[reportPrivateUsage] (the only way to ask)
        ready.set_attn_implementation("sdpa")  # no other can become that
    return ready.eval()


def student_name(step: int, settings: Mapping[str, Any]) -> str:
    """The student after `step` steps of a training with `settings`, as rows call it."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return f"step-{step}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextmanager
def kept_random(device: torch.device) -> Generator[None]:
    """Put the random state of Python, numpy and torch back, however this ends."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
