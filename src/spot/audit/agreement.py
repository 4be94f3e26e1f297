"""How far a judge model's verdicts agree with labels, over steps that somebody who knows has labelled.

A labelled row is a problem with its known answer, the steps of an answer and, step by step, whether it is right; the
answer that it is paired with may stand beside it, so that the judge is asked exactly as it is about a pair.

Steps of one row hang together, so the row is the unit of all intervals: the standard error is the jackknife's over the
rows that count, the interval that of `spot.evaluate.statistics.interval`.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from spot.audit.question import KINDS, RIGHT
from spot.audit.summary import Agreement, Estimate
from spot.errors import UserError
from spot.evaluate.statistics import interval
from spot.files.store import read_rows
from spot.schema import Id, Prompt, Row

EXAMPLES = 5
"""Steps named on which the judge and the labels differ."""


class LabelledStep(Row):
    """A step and what it is: `right` is `None` where nobody has said; `kind` is that of a wrong step's error."""

    text: str = Field(pattern=r"\S")
    right: bool | None = None
    kind: str = ""

    @model_validator(mode="after")
    def _kind_of_an_error(self) -> "LabelledStep":
        if self.kind and (self.right is not False or self.kind not in KINDS):
            raise ValueError(f"kind {self.kind!r} is for a step that is not right, and one of {', '.join(KINDS)}")
        return self


class LabelledAnswer(Row):
    """A labelled row: `steps` of an answer to `prompt`, whose known answer is `answer`; `other` is a second one's."""

    id: Id = Field(min_length=1)
    prompt: Prompt
    answer: str
    steps: list[LabelledStep] = Field(min_length=1)
    other: list[LabelledStep] = Field(default_factory=list[LabelledStep])


@dataclass(frozen=True)
class Counts:
    """Steps by what label and judge say of them: wrong in both, by the judge alone, by the label alone, right in both.

    `kinds` are those wrong in both whose label has a kind, `same_kind` those of them where the judge names it.
    """

    both: int = 0
    judge: int = 0
    label: int = 0
    neither: int = 0
    kinds: int = 0
    same_kind: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(one + two for one, two in zip(self._all, other._all, strict=True)))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(one - two for one, two in zip(self._all, other._all, strict=True)))

    @property
    def _all(self) -> tuple[int, ...]:
        return self.both, self.judge, self.label, self.neither, self.kinds, self.same_kind

    @property
    def steps(self) -> int:
        """All of them."""
        return self.both + self.judge + self.label + self.neither


Statistic = Callable[[Counts], float | None]


def accuracy(counts: Counts) -> float | None:
    """The share of steps on which both say the same."""
    return (counts.both + counts.neither) / counts.steps if counts.steps else None


def precision(counts: Counts) -> float | None:
    """Of the steps that the judge calls wrong, the share that is."""
    called = counts.both + counts.judge
    return counts.both / called if called else None


def recall(counts: Counts) -> float | None:
    """Of the steps that are wrong, the share that the judge calls so."""
    wrong = counts.both + counts.label
    return counts.both / wrong if wrong else None


def false_alarms(counts: Counts) -> float | None:
    """Of the steps that are right, the share that the judge calls wrong."""
    right = counts.judge + counts.neither
    return counts.judge / right if right else None


def kappa(counts: Counts) -> float | None:
    """Cohen's: agreement beyond chance; `None` where chance alone agrees always."""
    if not counts.steps:
        return None
    called, wrong = (counts.both + counts.judge) / counts.steps, (counts.both + counts.label) / counts.steps
    chance = called * wrong + (1 - called) * (1 - wrong)
    observed = (counts.both + counts.neither) / counts.steps
    return (observed - chance) / (1 - chance) if chance < 1 else None


def estimate(statistic: Statistic, rows: Sequence[Counts], lowest: float = 0.0) -> Estimate | None:
    """`statistic` over all rows with its 95% interval, on a scale from `lowest` to 1; `None` where it is undefined."""
    total = sum(rows, Counts())
    value = statistic(total)
    if value is None:
        return None
    left_out = [statistic(total - row) for row in rows]
    values = [one for one in left_out if one is not None]
    stderr = None
    if len(values) == len(rows) > 1:
        mean = math.fsum(values) / len(values)
        stderr = math.sqrt((len(values) - 1) / len(values) * math.fsum((one - mean) ** 2 for one in values))
    span = 1 - lowest
    low, high = interval((value - lowest) / span, None if stderr is None else stderr / span, len(rows))
    return Estimate(value=value, low=lowest + span * low, high=lowest + span * high)


def read_labels(path: Path) -> list[LabelledAnswer]:
    """The labelled rows at `path`.

    Raises `UserError` where one is bad, or where they do not hold both right and wrong steps: what a judge finds, and
    what it makes up, could not be told.
    """
    rows = read_rows(path, LabelledAnswer, by_hand=True)
    said = {step.right for row in rows for step in (*row.steps, *row.other)}
    for right, name in ((True, "right"), (False, "wrong")):
        if right not in said:
            raise UserError(f"{path}: no step is labelled {name}; a judge is compared on right and on wrong steps")
    return rows


def labels_hash(path: Path) -> str:
    """What tells these labels from others: 16 hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def compared(labelled: Sequence[LabelledStep], verdicts: Sequence[str]) -> Counts:
    """One answer's steps against the judge's verdicts on them, those without a label left out."""
    total = Counts()
    for step, kind in zip(labelled, verdicts, strict=True):
        if step.right is None:
            continue
        both = not step.right and kind != RIGHT
        total += Counts(
            both=both,
            judge=step.right and kind != RIGHT,
            label=not step.right and kind == RIGHT,
            neither=step.right and kind == RIGHT,
            kinds=both and step.kind != "",
            same_kind=both and step.kind == kind,
        )
    return total


def agreement(
    rows: Mapping[str, Counts], unjudged: Mapping[str, str], differing: Sequence[str], labels: str
) -> Agreement | None:
    """The judge against the labels hashed to `labels`: `rows` by id, reasons of those that it did not judge.

    `differing` names steps on which the two differ. `None` where no labelled step was judged.
    """
    counted = [row for row in rows.values() if row.steps]
    total = sum(counted, Counts())
    measured = estimate(accuracy, counted)
    if measured is None:
        return None
    return Agreement(
        labels_hash=labels,
        rows=len(counted),
        steps=total.steps,
        wrong=total.both + total.label,
        unjudged=len(unjudged),
        accuracy=measured,
        precision=estimate(precision, [row for row in counted if precision(row) is not None]),
        recall=estimate(recall, [row for row in counted if recall(row) is not None]),
        false_alarms=estimate(false_alarms, [row for row in counted if false_alarms(row) is not None]),
        kappa=estimate(kappa, counted, lowest=-1.0),
        same_kind=total.same_kind / total.kinds if total.kinds else None,
        differing=list(differing[:EXAMPLES]),
    )
