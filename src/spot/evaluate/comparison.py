"""Two evaluations side by side: paired differences by question, bootstrap intervals, and what they say of retention.

The question is what is drawn: a replicate takes as many questions of each task, with replacement, and the difference of
each stands for both its answers. An average's replicate is the mean of its tasks' ones, so a task of thirty questions
adds its noise and one of five hundred its own. Of questions that fell, where none did, drawing again knows nothing; the
interval then reaches as far as the share that may fall although none of the n did, `1 - 0.05 ** (1 / n)`, each to the
end of the scale (as in `statistics`), and so for questions that rose. Averages are widened by it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from spot.errors import UserError
from spot.evaluate.results import Results
from spot.evaluate.statistics import compare, question_means
from spot.evaluate.task import GROUPS, Group
from spot.schema import Attempt

REPLICATES = 10_000
MARGIN = 0.02
"""What may be lost and still count as kept, unless told otherwise: two points."""
AT_ONCE = 2**22

Verdict = Literal["kept", "lost", "not enough evidence"]


@dataclass(frozen=True)
class Change:
    """After minus before, its 95% bootstrap interval, and `n` questions, of which `better` and `worse` changed.

    `lost` is a fall that is certain (the interval is below 0) and may be larger than the margin; `kept` is that a fall
    larger than the margin can be excluded; else there is not enough evidence.
    """

    before: float
    after: float
    mean: float
    low: float
    high: float
    n: int
    better: int
    worse: int

    def verdict(self, margin: float) -> Verdict:
        """What the interval says of retention within `margin`."""
        if self.low >= -margin:
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
    rng = np.random.default_rng(seed)
    tasks: dict[str, Change] = {}
    replicates: dict[str, np.ndarray] = {}
    steady: dict[str, tuple[float, float]] = {}
    for name, (old, new) in answers.items():
        exact = compare(old, new)
        first, second = question_means(old), question_means(new)
        differences = np.array([second[one] - first[one] for one in first])
        drawn = _replicates(differences, rng)
        low, high = (float(bound) for bound in np.quantile(drawn, (0.025, 0.975)))
        unseen = 1 - 0.05 ** (1 / exact.n)
        drawn_widths = exact.mean - low, high - exact.mean
        widths = (
            max(drawn_widths[0], 0.0 if exact.worse else unseen * (exact.mean + 1)),
            max(drawn_widths[1], 0.0 if exact.better else unseen * (1 - exact.mean)),
        )
        low, high = exact.mean - widths[0], exact.mean + widths[1]
        # What an average has to be widened by, beyond what its draws show.
        below, above = (
            math.sqrt(max(0.0, wide**2 - narrow**2)) for wide, narrow in zip(widths, drawn_widths, strict=True)
        )
        steady[name] = below, above
        replicates[name] = drawn
        was, now = fmean(first.values()), fmean(second.values())
        tasks[name] = Change(was, now, exact.mean, low, high, exact.n, exact.better, exact.worse)
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
            name: _average(
                [tasks[one] for one in some], [replicates[one] for one in some], [steady[one] for one in some]
            )
            for name, some in members.items()
            if some
        },
        only_one=sorted(before.tasks.keys() ^ after.tasks.keys()),
    )


def _replicates(differences: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of `REPLICATES` draws of the questions."""
    n, found = len(differences), []
    for first in range(0, REPLICATES, step := max(1, AT_ONCE // n)):
        drawn = rng.integers(0, n, size=(min(step, REPLICATES - first), n))
        found.append(differences[drawn].mean(axis=1))
    return np.concatenate(found)


def _average(
    changes: Sequence[Change], replicates: Sequence[np.ndarray], steady: Sequence[tuple[float, float]]
) -> Change:
    count = len(changes)
    before, after = fmean(change.before for change in changes), fmean(change.after for change in changes)
    mean = fmean(change.mean for change in changes)
    drawn = np.mean(replicates, axis=0)
    below, above = (abs(float(bound) - mean) for bound in np.quantile(drawn, (0.025, 0.975)))
    below, above = (
        math.hypot(width, *(widths[side] / count for widths in steady)) for side, width in enumerate((below, above))
    )
    return Change(
        before,
        after,
        mean,
        mean - below,
        mean + above,
        n=sum(change.n for change in changes),
        better=sum(change.better for change in changes),
        worse=sum(change.worse for change in changes),
    )
