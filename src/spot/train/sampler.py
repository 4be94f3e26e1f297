"""Whole steps as the items of a data loader."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from spot.schema import derived_seed


def in_steps(indices: Sequence[int], pairs_per_step: int) -> list[list[int]]:
    """`indices` cut into steps; the last one may be short."""
    return [list(indices[start : start + pairs_per_step]) for start in range(0, len(indices), pairs_per_step)]


class StepSampler(Sampler[list[int]]):
    """Indices of each step's pairs, in an order derived from the seed and the epoch; the last step may be short."""

    def __init__(self, num_pairs: int, pairs_per_step: int, seed: int) -> None:
        self.num_pairs = num_pairs
        self.pairs_per_step = pairs_per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose whose epoch's order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_pairs / self.pairs_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.steps(self.epoch))

    def steps(self, epoch: int) -> list[list[int]]:
        """The steps of `epoch`."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order of pairs", epoch))
        order: list[int] = torch.randperm(self.num_pairs, generator=generator).tolist()
        return in_steps(order, self.pairs_per_step)
