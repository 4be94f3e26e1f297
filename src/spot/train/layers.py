"""A model's own layers with a faster forward and backward: linear ones in half precision on a CPU, and RMS norms.

Values are those of the layers but for rounding. A layer whose forward is not known to be one of these is left alone.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from spot.train.products import multiplied, widens

_ORIGINAL = "_spot_original"
"""Of an exchanged class: the class that the layer had."""


def exchange_layers(model: nn.Module) -> None:
    """Give the layers in `model` that can be faster another class, in place; weights and their names stay."""
    for module in model.modules():
        kind = type(module)
        if "forward" in vars(module) or hasattr(kind, _ORIGINAL):
            continue  # somebody else's kernels (Liger's) are there, or ours
        if kind is nn.Linear:
            module.__class__ = _exchanged(kind, _linear)
        elif _is_rms_norm(module):
            module.__class__ = _exchanged(kind, _rms_norm)


def restore_layers(model: nn.Module) -> None:
    """Undo `exchange_layers`."""
    for module in model.modules():
        # Of the class: peft's wrappers would answer for what they wrap.
        module.__class__ = getattr(type(module), _ORIGINAL, type(module))


@cache
def _exchanged(original: type[nn.Module], forward: Callable[..., Tensor]) -> type[nn.Module]:
    return type(original.__name__, (original,), {"forward": forward, _ORIGINAL: original})


def _linear(layer: Any, input: Tensor) -> Tensor:
    autocast = torch.is_autocast_enabled(input.device.type)
    dtype = torch.get_autocast_dtype(input.device.type) if autocast else input.dtype
    if not widens(input.device, dtype) or not (autocast or layer.weight.dtype == dtype):
        return nn.Linear.forward(layer, input)
    return _WideProduct.apply(input.to(dtype), layer.weight, layer.bias)


class _WideProduct(torch.autograd.Function):
    """`states @ weight.T + bias` of half precision multiplied in fp32; what is kept and what comes out is half.

    Values are autocast's: operands rounded, summed in fp32, rounded once. An fp32 weight's gradient is not rounded.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        with torch.autocast(states.device.type, enabled=False):
            wide_bias = None if bias is None else multiplied(bias.to(states.dtype))
            return linear(multiplied(states), multiplied(weight.to(states.dtype)), wide_bias).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        states, weight = ctx.saved_tensors
        grad_states = grad_weight = grad_bias = None
        with torch.autocast(states.device.type, enabled=False):
            grad = _rows(multiplied(grads[0]))
            if ctx.needs_input_grad[0]:
                wide = grad @ multiplied(weight.to(states.dtype))
                grad_states = wide.to(states.dtype).view(states.shape)
            if ctx.needs_input_grad[1]:
                grad_weight = (grad.T @ _rows(multiplied(states))).to(weight.dtype)
            if ctx.needs_input_grad[2]:
                grad_bias = grad.sum(0).to(ctx.bias_dtype)
        return grad_states, grad_weight, grad_bias


def _rows(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1])


@torch.no_grad()
def _is_rms_norm(module: nn.Module) -> bool:
    """Whether `module` is a norm as Llama's, told by its name and its numbers, and then by what it computes."""
    weight: Any = getattr(module, "weight", None)
    named = type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "variance_epsilon", None), float)
    if not named or not isinstance(weight, nn.Parameter) or weight.dim() != 1:
        return False
    generator = torch.Generator(weight.device).manual_seed(0)
    # The last row is so small that epsilon tells.
    states = torch.randn(4, len(weight), device=weight.device, generator=generator)
    states[-1] *= 1e-3
    # In bf16 for the type of what comes out: some norms come back to that of their input, this one does not.
    for given, tolerance in ((states, 1e-5), (states.bfloat16(), 2e-2)):
        theirs, ours = module(given), _rms_norm(module, given)
        if theirs.dtype != ours.dtype or not torch.allclose(theirs, ours, rtol=tolerance, atol=1e-6):
            return False
    return True


def _rms_norm(layer: Any, hidden_states: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden_states, layer.weight, layer.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    """`weight * x / sqrt(mean(x^2) + epsilon)` in fp32; it keeps its input and a number a row, and rounds once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        sums = torch.promote_types(states.dtype, torch.float32)
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=sums)
        scale = length.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight, scale)
        return (states * scale).mul_(weight).to(torch.promote_types(states.dtype, weight.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        states, weight, scale = ctx.saved_tensors
        grad_states = grad_weight = None
        normed = states * scale
        by_normed = grads[0].to(normed.dtype) * weight
        if ctx.needs_input_grad[1]:
            grad_weight = _rows(grads[0] * normed).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            along = (by_normed * normed).mean(-1, keepdim=True)
            grad_states = by_normed.sub_(normed.mul_(along)).mul_(scale).to(states.dtype)
        return grad_states, grad_weight, None
