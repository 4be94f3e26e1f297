"""Layers exchanged for faster ones: the same values, gradients no further from fp64, and a way back."""

import copy
from typing import Any

import pytest
import torch
from benchmarks.train_speed.workload import Workload, make_model
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from spot.train.layers import exchange_layers, restore_layers
from spot.train.logps import accept_batches

Results = list[Tensor]


def results(layer: nn.Module, states: Tensor, autocast: bool) -> Results:
    """Output and gradients by input and weights."""
    layer.zero_grad()
    states = states.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = layer(states)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    assert states.grad is not None
    by_weights = [weight.grad for weight in layer.parameters() if weight.grad is not None]
    return [out.detach(), states.grad, *by_weights]


def both(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A layer of random weights that bf16 does not round, and the same one exchanged."""
    torch.manual_seed(0)
    for weight in layer.parameters():
        weight.data = torch.randn_like(weight).bfloat16().float()
    exchanged = copy.deepcopy(layer)
    exchange_layers(exchanged)
    assert type(exchanged) is not type(layer)
    return layer, exchanged


@pytest.fixture(autouse=True)
def without_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spot.train.products.HAS_MATRIX_UNITS", False)


LAYERS = [nn.Linear(64, 48), nn.Linear(64, 48, bias=False), Qwen3RMSNorm(64), LlamaRMSNorm(64, eps=0.1)]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_no_further_from_fp64_than_the_plain_layers(
    layer: nn.Module, dtype: torch.dtype, autocast: bool
) -> None:
    plain, exchanged = both(copy.deepcopy(layer))
    if dtype == torch.bfloat16 and not autocast:
        plain, exchanged = plain.bfloat16(), exchanged.bfloat16()
    states = torch.randn(2, 30, 64).bfloat16().to(dtype)
    # transformers' norms are fp32 inside whatever they are given, so the exact one is our own.
    exact = results(_Exact(copy.deepcopy(plain).double()), states.double(), autocast=False)
    near, found = results(plain, states, autocast), results(exchanged, states, autocast)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in near]
    assert len(exact) == len(found) == len(near)
    half = torch.bfloat16 in (dtype, near[0].dtype)
    for ours, theirs, best in zip(found, near, exact, strict=True):
        error, size = float((ours - best).norm()), float(best.norm())
        assert error <= max(1.02 * float((theirs - best).norm()), 2e-6 * size)
        assert error < (1e-2 if half else 1e-5) * size


class _Exact(nn.Module):
    """`layer`, fp64, by its formula."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return self.layer(states)
        mean = states.square().mean(-1, keepdim=True)
        return self.layer.weight * states / (mean + self.layer.variance_epsilon).sqrt()


def test_the_weights_gradient_is_not_rounded_to_bf16() -> None:
    _, exchanged = both(nn.Linear(64, 48))
    for by_weight in results(exchanged, torch.randn(30, 64), autocast=True)[2:]:
        assert not by_weight.equal(by_weight.bfloat16().float())


@pytest.mark.parametrize("has_units", [False, True])
def test_a_product_that_gains_nothing_is_the_plain_layers(has_units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, exchanged = both(nn.Linear(64, 48))
    monkeypatch.setattr("spot.train.products.HAS_MATRIX_UNITS", has_units)
    states = torch.randn(30, 64)
    for ours, theirs in zip(results(exchanged, states, has_units), results(plain, states, has_units), strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_frozen_weights_get_no_gradient(layer: nn.Module) -> None:
    _, exchanged = both(copy.deepcopy(layer))
    assert len(results(exchanged.requires_grad_(requires_grad=False), torch.randn(30, 64), autocast=True)) == 2


def test_only_what_is_known_is_exchanged() -> None:
    class Own(nn.Linear):
        pass

    class ShiftedRMSNorm(Qwen3RMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) + self.weight

    others = nn.ModuleList([Own(2, 2), ShiftedRMSNorm(8), GemmaRMSNorm(8), nn.LayerNorm(8)])
    patched = nn.Linear(2, 2)
    patched.forward = patched.forward
    others.append(patched)
    kinds = [type(layer) for layer in others]
    exchange_layers(others)
    assert [type(layer) for layer in others] == kinds


def test_a_model_ready_to_score_has_them_and_a_copy_can_be_as_before() -> None:
    model = make_model(Workload("lengths", "tiny", 1), "cpu")
    before = {name: type(module) for name, module in model.named_modules()}
    accept_batches(model)
    exchanged = {name for name, module in model.named_modules() if type(module) is not before[name]}
    assert exchanged == {
        name for name, kind in before.items() if name != "lm_head" and kind in (nn.Linear, Qwen3RMSNorm)
    }
    copied = copy.deepcopy(model)
    restore_layers(copied)
    assert {name: type(module) for name, module in copied.named_modules()} == before
    assert model.state_dict().keys() == copied.state_dict().keys()
