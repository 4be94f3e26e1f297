"""The processes that share a step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a step: `gather` sums a tensor over all of them.

    `sync(last)` wraps a row's forward and backward; gradients are exchanged in the last one only.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
    sync: Callable[[bool], AbstractContextManager[None]] = lambda _: nullcontext()
