"""What is asked of Liger, checked before weights are loaded; its kernels need a GPU."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model, make_pairs, make_tokenizer

from spot.errors import UserError
from spot.train.liger import check_liger, liger_kind
from spot.train.trainer import SpotConfig, SpotTrainer

GPU = torch.device("cuda")


def apply_liger_kernel_to_qwen3(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    model: Any = None,
) -> None:
    """With the arguments of Liger 0.8.5's."""


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger as far as it is asked."""
    module: Any = ModuleType("liger_kernel.transformers.monkey_patch")
    module.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": apply_liger_kernel_to_qwen3}
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("spot.train.liger.is_liger_kernel_available", lambda: True)


def test_it_is_refused_where_it_would_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spot.train.liger.is_liger_kernel_available", lambda: False)
    with pytest.raises(UserError, match="its kernels need a GPU"):
        check_liger(make_model(), {}, torch.device("cpu"))
    with pytest.raises(UserError, match="pip install liger-kernel"):
        check_liger(make_model(), {}, GPU)


def test_models_and_kernels_that_it_does_not_know_are_refused(
    liger: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    for student in (model, str(tmp_path)):
        check_liger(student, {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}, GPU)
        with pytest.raises(UserError, match=r"there is no 'rms' for qwen3; there is rope, rms_norm, swiglu$"):
            check_liger(student, {"rms": False}, GPU)
    monkeypatch.setattr(type(model.config), "model_type", "qwen4")
    with pytest.raises(UserError, match="Liger has no kernels for models of type qwen4"):
        check_liger(model, {}, GPU)


def test_it_is_refused_before_weights_are_loaded(liger: None, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    args = SpotConfig(output_dir=str(tmp_path / "out"), use_liger_kernel=True, use_cpu=True)
    with pytest.raises(UserError, match="its kernels need a GPU"):
        SpotTrainer(tmp_path, args, make_pairs(4), None, make_tokenizer())


def test_what_it_computes_tells_references_and_checkpoints_apart(tmp_path: Path) -> None:
    assert liger_kind({"cross_entropy": False}) == "liger"
    assert liger_kind({"rope": False, "rms_norm": True}) == "liger(rms_norm=True,rope=False)"
    assert " " not in liger_kind({"rope": False, "swiglu": False})
    first, second = (
        SpotConfig(output_dir=str(tmp_path), use_liger_kernel=True, liger_kernel_config=config).settings()
        for config in (None, {"rope": False})
    )
    assert first != second
