"""What a model's modules keep from one forward to the next, and how it is put back.

Dynamic and long RoPE choose their frequencies by the largest position of a forward and keep them on the module; others
cache tables or count. A log-probability must depend on its own sequence alone, so what a forward would leave behind is
cleared before each.
"""

import copy
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_KEPT = "_spot_kept"

Kept = dict[tuple[str, str], Any]
"""Values by the module's name and the buffer's or attribute's in it."""


def body(model: PreTrainedModel) -> nn.Module:
    """What makes hidden states in `model`, a causal language model; its head stands beside it."""
    base = model.base_model
    # Some declare a name for it under which there is nothing (Llama-4's text model).
    return base if base is not model else getattr(model, "model", base)


def kept_by_length(model: PreTrainedModel, shortest: int, longest: int) -> str | None:
    """Names of what `model` keeps of a forward and what depends on how far its positions reach; `None` if nothing.

    Sequences of `shortest` and `longest` tokens are tried, without running so many. From here on `score` clears
    whatever any forward changes.
    """
    setattr(model, _KEPT, [])
    _forward_to(model, 1)  # whoever had the model before may have left something, which so short a forward resets
    clean = _kept(model)
    states: list[Kept] = []
    for length in (shortest, longest):
        _forward_to(model, length)
        states.append(_kept(model))
    modules = dict(model.named_modules())
    changed = [key for key in clean if any(not _same(clean[key], state.get(key)) for state in states)]
    setattr(model, _KEPT, [(modules[name], attribute, clean[name, attribute]) for name, attribute in changed])
    clear(model)
    short, long = states
    names = sorted({".".join(filter(None, key)) for key in short | long if not _same(short.get(key), long.get(key))})
    return ", ".join(names) or None


def clear(model: nn.Module) -> None:
    """Put back what forwards of `model` change, where `kept_by_length` has found something."""
    for module, name, value in getattr(model, _KEPT, ()):
        current = getattr(module, name)
        # The model may have been moved since.
        device = current.device if isinstance(current, Tensor) else None
        setattr(module, name, value.to(device, copy=True) if isinstance(value, Tensor) else copy.copy(value))


@torch.no_grad()
def _forward_to(model: PreTrainedModel, length: int) -> None:
    """A forward of at most two tokens that are the last of a sequence of `length`."""
    device = next(model.parameters()).device
    positions = torch.arange(max(0, length - 2), length, device=device)[None]
    clear(model)
    run: Any = body(model)
    takes_them = "position_ids" in signature(run.forward).parameters  # else it cannot choose by them
    ids = torch.arange(len(positions[0]), device=device)[None] + 4  # no padding, whose embedding may be 0
    run(input_ids=ids, use_cache=False, **({"position_ids": positions} if takes_them else {}))


def _kept(model: nn.Module) -> Kept:
    kept: Kept = {}
    for name, module in model.named_modules():
        values = dict(module.named_buffers(recurse=False)) | {
            key: value for key, value in vars(module).items() if not key.startswith("_") and _is_plain(value)
        }
        kept |= {(name, key): _copied(value) for key, value in values.items()}
    return kept


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str | torch.dtype | Tensor)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy.deepcopy(value) if isinstance(value, dict | list | tuple) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other.to(one.device))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other
