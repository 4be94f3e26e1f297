"""Questions of the lab: a run's own, and the three families as benchmarks."""

from typing import Any

from spot.evaluate.source import Data
from spot.evaluate.task import Group, Task
from spot.lab.world import World
from spot.schema import Problem

GROUPS: dict[str, Group] = {"in_domain": "in_domain", "ood": "ood", "instructions": "general"}


def problems(count: int, seed: int, *, world: str = "default") -> list[Problem]:
    """`count` in-domain questions to learn from."""
    return World.load(world).problems("in_domain", "train", count, seed)


def task(name: str, *, seed: int, count: int, world: str = "default") -> Task:
    """`count` questions of the family `name`; those of `FAMILY_tune` are for choosing settings and checkpoints."""
    family: Any = name.removesuffix("_tune")

    def build(data: Data, prompt: str) -> list[Problem]:
        del data, prompt
        return World.load(world).problems(family, "test" if family == name else "tune", count, seed)

    return Task(name, name, GROUPS[family], None, build, "{question}", verifier="lab", repeats=1)
