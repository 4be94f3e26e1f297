"""Layers exchanged for faster ones: the same values, gradients no further from fp64, and a way back."""

import copy
from typing import Any

import pytest
import torch
from benchmarks.train_speed.workload import Workload, make_model
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
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
@pytest.mark.parametrize("trained", ["input", "weights"])
def test_only_gradients_that_are_needed_are_computed(layer: nn.Module, trained: str) -> None:
    _, exchanged = both(copy.deepcopy(layer))
    exchanged.requires_grad_(trained == "weights")
    states = torch.randn(30, 64, requires_grad=trained == "input")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = exchanged(states)
    # Autograd would throw away what is not needed, so the node itself is asked.
    node: Any = out.grad_fn
    given = node.apply(torch.ones_like(out))
    needed = [trained == "input", *[trained == "weights" for _ in layer.parameters()]]
    assert [gradient is not None for gradient in given[: len(needed)]] == needed


def test_one_dimension_and_the_name_of_the_input_are_torchs() -> None:
    _, exchanged = both(nn.Linear(64, 48))
    single, batch = torch.randn(64), torch.randn(1, 64)
    for ours, theirs in zip(results(exchanged, single, True), results(exchanged, single[None], True), strict=True):
        assert ours.equal(theirs.view_as(ours))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert exchanged(input=batch).equal(exchanged(batch))


def test_types_that_do_not_agree_are_an_error_as_before() -> None:
    plain, exchanged = both(nn.Linear(64, 48))
    for layer in (plain, exchanged):
        with pytest.raises(RuntimeError, match="dtype"):
            layer(torch.randn(2, 64).bfloat16())


class ShiftedRMSNorm(Qwen3RMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.weight


class OnePlusRMSNorm(Qwen3RMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * (1 + self.weight) / self.weight


def test_only_what_is_known_is_exchanged() -> None:
    class Own(nn.Linear):
        pass

    norms = [ShiftedRMSNorm(8), OnePlusRMSNorm(8), GemmaRMSNorm(8), GptOssRMSNorm(8), Olmo2RMSNorm(8), nn.RMSNorm(8)]
    others = nn.ModuleList([Own(2, 2), *norms])
    patched = nn.Linear(2, 2)
    patched.forward = patched.forward
    others.append(patched)
    kinds = [type(layer) for layer in others]
    exchange_layers(others)
    assert [type(layer) for layer in others] == kinds


def test_exchanged_twice_they_are_still_put_back() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), Qwen3RMSNorm(8)])
    exchange_layers(model)
    once = [type(layer) for layer in model]
    exchange_layers(model)
    assert [type(layer) for layer in model] == once
    restore_layers(model)
    assert [type(layer) for layer in model] == [nn.Linear, Qwen3RMSNorm]


def test_what_wraps_a_layer_is_no_layer() -> None:
    model = make_model(Workload("lengths", "tiny", 1), "cpu")
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    accept_batches(model)
    copied = copy.deepcopy(adapted)
    restore_layers(copied)
    assert isinstance(copied.base_model.model.model.norm, ModulesToSaveWrapper)
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(copied(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5)


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
