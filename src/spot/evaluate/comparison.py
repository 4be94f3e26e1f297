"""Two evaluations side by side: paired differences by question, their intervals, and what they say of retention.

The interval of a task's difference is made as `statistics` says. A replicate of an average is the mean of its tasks'
replicates, which are independent, so a task of thirty questions adds its noise and one of five hundred its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from spot.errors import UserError
from spot.evaluate.results import Count, Fraction, Measure, Part, Results, Signed
from spot.evaluate.statistics import ROUNDING, compare, percentiles, question_means
from spot.evaluate.task import GROUPS, Group
from spot.schema import Attempt, derived_seed

MARGIN = 0.02
"""What may be lost and still count as kept, unless told otherwise: two points."""

Verdict = Literal["kept", "lost", "not enough evidence"]


class Accuracy(Part):
    """A mean over `n` questions; the fields of `spot.evaluate.statistics.Score`.

    Summaries of older versions have no interval.
    """

    mean: Fraction
    stderr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    low: Fraction | None = None
    high: Fraction | None = None
    n: Annotated[int, Field(ge=1)]
    samples: Count | None = None
    truncated: Count = 0
    unscored: Count = 0
    unanswered: Count = 0


class Change(Part):
    """After minus before with its 95% interval, over `n` questions, of which `better` rose and `worse` fell.

    `gained` counts the questions that went from wrong to right (0->1), `lost` those from right to wrong (1->0). Of
    several samples a question is right where more than half are. Summaries of older versions do not count them.
    """

    mean: Signed
    low: Signed
    high: Signed
    n: Annotated[int, Field(ge=1)]
    better: Count | None = None
    worse: Count | None = None
    gained: Count | None = None
    lost: Count | None = None

    def verdict(self, margin: float) -> Verdict:
        """`lost`: certainly fell, possibly by more than the margin; `kept`: a fall beyond the margin is excluded."""
        if self.low >= -margin - ROUNDING:
            return "kept"
        return "lost" if self.high < 0 else "not enough evidence"


class Comparison(Part):
    """One set of questions before and after training, and what the difference says of retention."""

    before: Accuracy
    after: Accuracy
    difference: Change
    verdict: Verdict | None = None


class Measured(Part):
    """A score beside accuracy, before and after; `None` on a side where nothing could be judged."""

    before: Measure | None
    after: Measure | None


class TaskResult(Comparison):
    """A task, and parts of its questions that are shown apart (the lab: seen and unseen templates).

    `measures` are scores beside accuracy, `baselines` what answers score that look at nothing.
    """

    slices: dict[str, Comparison] = Field(default_factory=dict[str, Comparison])
    title: str = ""
    group: Group = "other"
    measures: dict[str, Measured] = Field(default_factory=dict[str, Measured])
    baselines: dict[str, Fraction] = Field(default_factory=dict[str, Fraction])


class Average(Part):
    """Mean accuracies of one task or of several, before and after, and their paired difference."""

    before: Fraction
    after: Fraction
    difference: Change
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Compared:
    """Tasks and averages before and after: by group, and of all tasks (`all`); `margin` is that of the verdicts."""

    before: str
    after: str
    titles: Mapping[str, str]
    groups: Mapping[str, Group]
    tasks: Mapping[str, Average]
    averages: Mapping[str, Average]
    only_one: Sequence[str]
    margin: float


def compared(
    before: Results,
    after: Results,
    answers: Mapping[str, tuple[Sequence[Attempt], Sequence[Attempt]]],
    *,
    margin: float = MARGIN,
    seed: int = 0,
) -> Compared:
    """The two evaluations' common tasks, of which `answers` has the attempts before and after.

    Raises `UserError` where a task's questions differ, or there is no common task.
    """
    if not answers:
        raise UserError("the two evaluations have no task in common")
    tasks: dict[str, Average] = {}
    replicates: dict[str, np.ndarray] = {}
    for name, (old, new) in answers.items():
        # Drawn by its name, so that neither order nor company of the tasks changes a task's interval.
        found = compare(old, new, derived_seed(seed, "difference", name))
        replicates[name] = found.replicates
        was, now = (fmean(question_means(side).values()) for side in (old, new))
        low, high = _on_scale(found.low, found.high)
        change = Change(
            mean=found.mean,
            low=low,
            high=high,
            n=found.n,
            better=found.better,
            worse=found.worse,
            gained=found.gained,
            lost=found.lost,
        )
        tasks[name] = Average(before=was, after=now, difference=change, verdict=change.verdict(margin))
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
            name: _average([tasks[one] for one in some], [replicates[one] for one in some], margin)
            for name, some in members.items()
            if some
        },
        only_one=sorted(before.tasks.keys() ^ after.tasks.keys()),
        margin=margin,
    )


def _on_scale(low: float, high: float) -> tuple[float, float]:
    # Rounding may carry an end past the scale.
    return max(-1.0, low), min(1.0, high)


def _average(tasks: Sequence[Average], replicates: Sequence[np.ndarray], margin: float) -> Average:
    changes = [task.difference for task in tasks]
    mean = fmean(change.mean for change in changes)
    low, high = _on_scale(*percentiles(np.mean(replicates, axis=0), mean))
    change = Change(
        mean=mean,
        low=low,
        high=high,
        n=sum(change.n for change in changes),
        better=sum(change.better or 0 for change in changes),
        worse=sum(change.worse or 0 for change in changes),
        gained=sum(change.gained or 0 for change in changes),
        lost=sum(change.lost or 0 for change in changes),
    )
    return Average(
        before=fmean(task.before for task in tasks),
        after=fmean(task.after for task in tasks),
        difference=change,
        verdict=change.verdict(margin),
    )
