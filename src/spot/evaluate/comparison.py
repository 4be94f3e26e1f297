"""Two evaluations side by side: paired differences by question, their intervals, and what they say of retention.

The interval of a task's difference is made as `statistics` says. A replicate of an average is the mean of its tasks'
replicates, which are independent, so a task of thirty questions adds its noise and one of five hundred its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from spot.errors import UserError
from spot.evaluate.results import Results
from spot.evaluate.statistics import ROUNDING, compare, percentiles, question_means
from spot.evaluate.task import GROUPS, Group
from spot.schema import Attempt, derived_seed

MARGIN = 0.02
"""What may be lost and still count as kept, unless told otherwise: two points."""

Verdict = Literal["kept", "lost", "not enough evidence"]


@dataclass(frozen=True)
class Change:
    """After minus before with its 95% interval, over `n` questions, of which `better` rose and `worse` fell.

    `gained` counts the questions that went from wrong to right (0->1), `lost` those from right to wrong (1->0). Of
    several samples a question is right where more than half are.

    The verdict `lost` is a fall that is certain (the interval is below 0) and may be larger than the margin; `kept`
    says that a larger fall can be excluded; else there is not enough evidence.
    """

    before: float
    after: float
    mean: float
    low: float
    high: float
    n: int
    better: int
    worse: int
    gained: int = 0
    lost: int = 0

    def verdict(self, margin: float) -> Verdict:
        """What the interval says of retention within `margin`."""
        if self.low >= -margin - ROUNDING:
            return "kept"
        return "lost" if self.high < 0 else "not enough evidence"


@dataclass(frozen=True)
class Compared:
    """Changes by task, and of the averages: by group, and of all tasks (`all`)."""

    before: str
    after: str
    titles: Mapping[str, str]
    groups: Mapping[str, Group]
    tasks: Mapping[str, Change]
    averages: Mapping[str, Change]
    only_one: Sequence[str]


def compared(
    before: Results, after: Results, answers: Mapping[str, tuple[Sequence[Attempt], Sequence[Attempt]]], seed: int = 0
) -> Compared:
    """The two evaluations' common tasks, of which `answers` has the attempts before and after.

    Raises `UserError` where a task's questions differ, or there is no common task.
    """
    if not answers:
        raise UserError("the two evaluations have no task in common")
    tasks: dict[str, Change] = {}
    replicates: dict[str, np.ndarray] = {}
    for name, (old, new) in answers.items():
        # Drawn by its name, so that neither order nor company of the tasks changes a task's interval.
        found = compare(old, new, derived_seed(seed, "difference", name))
        replicates[name] = found.replicates
        was, now = (fmean(question_means(side).values()) for side in (old, new))
        tasks[name] = Change(
            *(was, now, found.mean, found.low, found.high),
            *(found.n, found.better, found.worse, found.gained, found.lost),
        )
    groups: dict[str, Group] = {name: after.tasks[name].group for name in tasks}
    members = {group: [name for name in tasks if groups[name] == group] for group in GROUPS if group != "other"}
    members["all"] = list(tasks)
    return Compared(
        before=before.model,
        after=after.model,
        titles={name: after.tasks[name].title for name in tasks},
        groups=groups,
        tasks=tasks,
        averages={
            name: _average([tasks[one] for one in some], [replicates[one] for one in some])
            for name, some in members.items()
            if some
        },
        only_one=sorted(before.tasks.keys() ^ after.tasks.keys()),
    )


def _average(changes: Sequence[Change], replicates: Sequence[np.ndarray]) -> Change:
    mean = fmean(change.mean for change in changes)
    low, high = percentiles(np.mean(replicates, axis=0), mean)
    return Change(
        fmean(change.before for change in changes),
        fmean(change.after for change in changes),
        mean,
        low,
        high,
        n=sum(change.n for change in changes),
        better=sum(change.better for change in changes),
        worse=sum(change.worse for change in changes),
        gained=sum(change.gained for change in changes),
        lost=sum(change.lost for change in changes),
    )
