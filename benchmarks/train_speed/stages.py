"""Where a training step's time goes: attention, projections and MLP, head, optimizer, the rest."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AttentionInterface, TrainerCallback
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

STAGES = ("attention", "projections", "head", "optimizer", "rest")
_MARK = "stage:"


class StageProfiler(TrainerCallback):
    """Profiles step `step` (0 is the first) of `trainer` and leaves seconds by stage in `trainer.stage_seconds`."""

    def __init__(self, trainer: Any, step: int, device: str) -> None:
        self.trainer, self.step, self.device = trainer, step, device
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
        self.profile = profile(activities=activities)
        self.marks = ExitStack()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Mark the stages and start."""
        if state.global_step == self.step:
            _mark(self.trainer.model, self.marks)
            self.profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop and sort what was seen."""
        if state.global_step == self.step + 1:
            self.profile.stop()
            self.marks.close()
            self.trainer.stage_seconds = _seconds(self.profile.events() or [], self.device)


def _mark(model: Any, marks: ExitStack) -> None:
    """Put a named range around the stages' forwards; what the model does outside its body is the head."""

    def wrap(module: nn.Module, stage: str) -> None:
        ranges: list[Any] = []

        def enter(*_: Any) -> None:
            ranges.append(record_function(_MARK + stage))
            ranges[-1].__enter__()

        def leave(*_: Any) -> None:
            ranges.pop().__exit__(None, None, None)

        marks.callback(module.register_forward_pre_hook(enter).remove)
        marks.callback(module.register_forward_hook(leave).remove)

    wrap(model, "head")
    wrap(model.base_model, "rest")
    for module in model.base_model.modules():
        if isinstance(module, nn.Linear):
            wrap(module, "projections")
    name = model.config._attn_implementation
    attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[name]

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(_MARK + "attention"):
            return attend(*args, **kwargs)

    AttentionInterface.register(name, marked)
    marks.callback(AttentionInterface.register, name, attend)


def _seconds(events: Any, device: str) -> dict[str, float]:
    """Own time of every operation, given to the stage that it or its forward ran in."""
    stage_of_sequence: dict[int, str] = {}
    for event in events:
        stage = _stage(event)
        if stage and event.sequence_nr >= 0 and not _node(event):
            stage_of_sequence.setdefault(event.sequence_nr, stage)
    seconds = dict.fromkeys(STAGES, 0.0)
    for event in events:
        if event.device_type != DeviceType.CPU or event.name.startswith(_MARK):
            continue  # kernels count at the operation that started them, and ranges last as long as those
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        node = _node(event)
        stage = _stage(event) or (stage_of_sequence.get(node.sequence_nr) if node else None) or "rest"
        seconds[stage] += own / 1e6
    return seconds


def _stage(event: Any) -> str | None:
    """The innermost range around `event`."""
    while event is not None:
        if event.name.startswith(_MARK):
            return event.name.removeprefix(_MARK)
        if event.name.startswith("Optimizer.step"):
            return "optimizer"
        if _is_node(event):
            return None
        event = event.cpu_parent
    return None


def _node(event: Any) -> Any:
    """The step of the backward pass that `event` belongs to."""
    while event is not None and not _is_node(event):
        event = event.cpu_parent
    return event


def _is_node(event: Any) -> bool:
    return event.name.startswith("autograd::engine::evaluate_function") and event.sequence_nr >= 0
