"""The lab's world: stories and two other families of questions, drawn from a seed and split by a hash of their text.

The split does not depend on the seed, so no question is in two splits.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Literal

from spot.errors import UserError
from spot.lab import instructions, ood
from spot.lab.stories import MAX_DRAWS, Stories
from spot.schema import Problem, derived_seed

Family = Literal["in_domain", "ood", "instructions"]
FAMILIES: tuple[Family, ...] = ("in_domain", "ood", "instructions")

Split = Literal["pretrain", "train", "tune", "test"]
# Of 16 hash buckets: pretrain is what the student was raised on, train is what it is asked in the loop.
SPLIT_BUCKETS: Mapping[Split, range] = {
    "pretrain": range(8),
    "train": range(8, 11),
    "tune": range(11, 13),
    "test": range(13, 16),
}


class World(Stories):
    """A world read from its YAML file: the questions of its three families."""

    def problem(self, family: Family, split: Split, seed: int, index: int) -> tuple[Problem, str]:
        """Question `index` of a family and split, and the answer that the student's training text would give to it.

        The same arguments give the same question on every machine. A third of the in-domain test questions are of
        the unseen kind (`meta["slice"]`).
        """
        rng = random.Random(derived_seed(seed, self.raw["name"], family, split, index))
        for _ in range(MAX_DRAWS):
            if family == "in_domain":
                unseen = split == "test" and rng.random() < self.raw["unseen_share"]
                prompt, answer, meta, text = self.story_problem(rng, unseen)
            elif family == "ood":
                prompt, answer, meta, text = ood.draw(self.raw, rng)
            else:
                prompt, answer, meta, text = instructions.draw(self, rng)
            if split_of(prompt) == split:
                meta = {"family": family, **meta}
                problem_id = f"{family}-{split}-{seed}-{index}"
                return Problem(id=problem_id, prompt=prompt, answer=answer, source="lab", meta=meta), text
        raise UserError(f"world {self.raw['name']}: the family {family} has too few distinct questions")

    def problems(self, family: Family, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` distinct questions of one family and split."""
        return [problem for problem, _ in self._distinct(family, split, count, seed)]

    def _distinct(self, family: Family, split: Split, count: int, seed: int) -> Iterator[tuple[Problem, str]]:
        seen: set[str] = set()
        index = 0
        while len(seen) < count:
            problem, text = self.problem(family, split, seed, index)
            index += 1
            if problem.prompt not in seen:
                seen.add(str(problem.prompt))
                yield problem, text
            elif index > 20 * count + 1000:
                raise UserError(f"world {self.raw['name']}: {family}/{split} has fewer than {count} distinct questions")


def split_of(prompt: str) -> Split:
    """The split that a question belongs to, by the hash of its text."""
    bucket = hashlib.sha256(prompt.encode()).digest()[0] % 16
    return next(split for split, buckets in SPLIT_BUCKETS.items() if bucket in buckets)
