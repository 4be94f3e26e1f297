"""What half precision is multiplied in: itself by CUDA and by CPUs with matrix units, else fp32."""

import torch
from torch import Tensor

HAS_MATRIX_UNITS: bool = getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `dtype` is half precision that a CPU multiplies faster in fp32."""
    return device.type == "cpu" and not HAS_MATRIX_UNITS and dtype in (torch.bfloat16, torch.float16)


def multiplied(tensor: Tensor) -> Tensor:
    """`tensor`, on a CPU without matrix units in fp32 at least.

    Such a CPU multiplies bf16 at half the speed of fp32 (measured, benchmarks/README.md) and rounds the result, too.
    """
    if tensor.is_cuda or (tensor.device.type == "cpu" and HAS_MATRIX_UNITS):
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
