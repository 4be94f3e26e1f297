"""What half precision is multiplied in: itself on a GPU, fp32 on most CPUs."""

import torch
from torch import Tensor

HAS_MATRIX_UNITS: bool = getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def multiplied(tensor: Tensor) -> Tensor:
    """`tensor`, on a CPU without matrix units in fp32 at least.

    Such a CPU multiplies bf16 at half the speed of fp32 (measured, benchmarks/README.md) and rounds the result, too.
    """
    if tensor.is_cuda or (tensor.device.type == "cpu" and HAS_MATRIX_UNITS):
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
