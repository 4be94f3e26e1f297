"""How half precision is multiplied on other machines than the tests', in plain code."""

import pytest
import torch
from torch import Tensor

from spot.train import head

ARITHMETICS = ("plain", "amx", "gpu")
"""A CPU that multiplies it in fp32; one that multiplies it and rounds; a GPU, which keeps fp32 sums."""


def use_arithmetic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the head multiply as a machine of that kind does."""
    monkeypatch.setattr("spot.train.products.HAS_MATRIX_UNITS", name != "plain")
    if name == "gpu":
        monkeypatch.setattr(head, "_keeps_sums", _is_half)
        monkeypatch.setattr(head, "_product", _product)
        monkeypatch.setattr(head, "_subtract_product", _subtract_product)
        monkeypatch.setattr(head, "_log_sum_exp", head._log_sum_exp_in_one_pass)  # pyright: ignore[reportPrivateUsage]


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16


def _product(left: Tensor, right: Tensor, buffer: Tensor | None) -> Tensor:
    return left.float() @ right.float()


def _subtract_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    total -= left.float() @ right.float()
