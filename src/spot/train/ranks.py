"""The processes that share a step, and what is asked of the library that makes them share."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, distributed, nn

from spot.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a step: `gather` sums a tensor over all of them.

    `sync(last)` wraps a row's forward and backward; gradients are exchanged in the last one only.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
    sync: Callable[[bool], AbstractContextManager[None]] = lambda _: nullcontext()


def ranks_of(accelerator: Accelerator, model: nn.Module) -> Ranks:
    """The processes that `accelerator` runs `model` in."""
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if accelerator.num_processes == 1 and not deepspeed:
        return Ranks()

    def sync(last: bool) -> AbstractContextManager[None]:
        if deepspeed:
            return _step_in_the_last(accelerator, last)
        # Sharded gradients are exchanged every time: whole ones, kept until the last row, would not fit.
        return nullcontext() if last or accelerator.is_fsdp2 else accelerator.no_sync(model)

    def gather(tensor: Tensor) -> Tensor:
        if accelerator.num_processes == 1:
            return tensor
        there = tensor.to(accelerator.device)
        distributed.all_reduce(there)
        return there.cpu()

    return Ranks(accelerator.process_index, accelerator.num_processes, gather, sync)


@contextmanager
def _step_in_the_last(accelerator: Accelerator, last: bool) -> Generator[None]:
    """accelerate has DeepSpeed take its optimizer step inside backward, whenever this flag stands."""
    state: Any = accelerator.gradient_state
    state._set_sync_gradients(last)
    try:
        yield
    finally:
        state._set_sync_gradients(True)


def check_sharding(accelerator: Accelerator, asked_for_fsdp: bool) -> None:
    """Raise `UserError` where the processes would not share the model as asked; make FSDP's precision ours.

    accelerate takes DDP in place of FSDP on a CPU and says nothing, and it has FSDP round outputs, log-probabilities
    among them, and gradients to bf16. Inputs are left to autocast: FSDP would hand each layer a copy of the packed row.
    """
    kind = accelerator.distributed_type
    deepspeed: Any = accelerator.deepspeed_plugin
    if kind == DistributedType.DEEPSPEED and deepspeed.zero_stage > 2:
        raise UserError("DeepSpeed's ZeRO-3 is not supported; use ZeRO-2 or FSDP2, which shards as much")
    if asked_for_fsdp and kind != DistributedType.FSDP:
        raise UserError(f"FSDP was asked for, but accelerate runs {kind.value}; FSDP needs a GPU or the like")
    if kind != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise UserError("FSDP1 is not supported; set fsdp_version: 2")
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
        )


def whole_weights(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model`, gathered on the first process where it is sharded; all processes have to call."""
    weights: Any = accelerator.get_state_dict(model) if accelerator.is_fsdp2 else model.state_dict()
    return weights
