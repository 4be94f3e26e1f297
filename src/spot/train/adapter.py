"""LoRA and its kin through peft: the adapter is trained, the model under it stays and is the reference."""

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from spot.errors import UserError
from spot.train.logps import TOLERANCE, pad, score

if TYPE_CHECKING:
    from spot.train.tokenize import TokenizedPair


NO_PEFT = "an adapter needs peft; install it with: pip install 'spot-posttraining[peft]'"


def make_lora(rank: int, alpha: int, target_modules: Sequence[str]) -> Any:
    """peft's config of a LoRA adapter on the modules whose names end so, or on `all-linear`."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError(NO_PEFT) from None
    targets = target_modules[0] if list(target_modules) == ["all-linear"] else list(target_modules)
    try:
        return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    except ValueError as error:
        raise UserError(f"LoRA: {' '.join(str(error).split())}") from error


def check_no_adapter(model: Any) -> None:
    """Raise `UserError` where `model` has an adapter already: what would be trained, and what be the reference?"""
    if hasattr(model, "peft_config"):
        raise UserError(
            "the model has an adapter already; merge it first (peft's merge_and_unload), or train the model under it"
        )


def add_adapter(model: PreTrainedModel, peft_config: Any, pair: "TokenizedPair", seed: int) -> nn.Module:
    """`model` with a fresh adapter drawn from `seed`, in place; the adapter's weights are fp32.

    Raises `UserError` where that would not leave the model under the adapter as it was: `pair` is scored before and
    after.
    """
    try:
        from peft import PeftConfig, get_peft_model
    except ImportError:
        raise UserError(NO_PEFT) from None
    if not isinstance(peft_config, PeftConfig):
        raise UserError(f"peft_config must be a peft.PeftConfig such as LoraConfig, got {type(peft_config).__name__}")
    if peft_config.is_prompt_learning:
        raise UserError(f"{peft_config.peft_type}: prompts that are learnt are not supported; use LoRA or its kin")
    # Each kind of adapter has a name of its own for it (`lora_dropout`, `module_dropout`, `boft_dropout` ...).
    for name, value in vars(peft_config).items():
        if "dropout" in name and value and not isinstance(value, bool):
            raise UserError(f"peft_config: {name} must be 0: the policy would differ from its reference by chance")
    if peft_config.task_type is None:
        peft_config.task_type = "CAUSAL_LM"
    before = _scored(model, pair)
    set_seed(seed)  # here: what was drawn before, by a caller or while loading, must not decide the adapter
    try:
        adapted: Any = get_peft_model(model, peft_config)
    except ValueError as error:  # its target modules are not in this model, say
        raise UserError(f"peft_config: {' '.join(str(error).split())}") from error
    with adapted.disable_adapter():
        difference = float((_scored(model, pair) - before).abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"peft_config: this way of starting an adapter changes the model under it (log-probabilities differ by "
            f"{difference:.3g}), which is the reference; use init_lora_weights=True"
        )
    return adapted


@torch.no_grad()
def _scored(model: PreTrainedModel, pair: "TokenizedPair") -> torch.Tensor:
    return score(model, pad([pair.prompt_ids], [pair.chosen_ids]).to(next(model.parameters()).device))


def adapter_settings(peft_config: Any) -> str:
    """What tells one adapter from another, as JSON."""
    return json.dumps(peft_config.to_dict(), sort_keys=True, default=lambda value: sorted(map(str, value)))


def language_model(model: Any) -> PreTrainedModel:
    """The transformers model in `model`, which may be adapted."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert isinstance(inner, PreTrainedModel)
    return inner


@contextmanager
def without_adapter(model: Any) -> Generator[None]:
    """`model` as it is under its adapter, where it has one."""
    if not hasattr(model, "disable_adapter"):
        yield
        return
    # peft also freezes the adapter meanwhile. FSDP2 must not see that: it decides at its first forward in which type to
    # reduce gradients, and where weights are whole on the way out, their shares, which are trained, would stay frozen.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with model.disable_adapter():
        for parameter in trained:
            parameter.requires_grad_(True)
        yield
