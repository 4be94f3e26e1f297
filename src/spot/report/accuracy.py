"""The table of accuracies, formatted: tasks in the paper's order with their parts, the averages, and other scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from spot.evaluate.comparison import Accuracy, Average, Comparison
from spot.evaluate.results import Measure
from spot.evaluate.statistics import direction
from spot.evaluate.task import GROUPS
from spot.report import prose
from spot.report.summary import Summary

_AVERAGE_OF_ALL = "Average of all"
_NONE = "–"
_RATES: dict[str, Callable[[Accuracy], int]] = {
    "Cut off": lambda side: side.truncated,
    "Unanswered": lambda side: side.unanswered,
    "Unscored": lambda side: side.unscored,
}


@dataclass(frozen=True)
class ResultRow:
    """One line of the table; `rates` are of the answers, before and after, one for each of the table's rates."""

    label: str
    kind: Literal["task", "slice", "average"]
    n: str
    before: str
    after: str
    change: str
    bounds: str
    gained: str
    lost: str
    direction: str
    verdict: str
    rates: list[str]


@dataclass(frozen=True)
class AccuracyTable:
    """The table: what its columns of rates are, and in words those that are left out since there is nothing in them."""

    rows: list[ResultRow]
    rates: list[str]
    absent: str
    repeated: bool
    margin: str
    measures: list[tuple[str, str, str, str]]


def accuracy_table(summary: Summary) -> AccuracyTable | None:
    """The table of what was measured, `None` where nothing was. An average of one task is left out."""
    if not summary.evaluation:
        return None
    sides = [side for result in summary.evaluation.values() for side in (result.before, result.after)]
    shown = {label: count for label, count in _RATES.items() if any(map(count, sides))}
    absent = [label.lower() for label in _RATES if label not in shown]
    rows = list(_rows(summary, list(shown.values())))
    return AccuracyTable(
        rows=rows,
        repeated=any("×" in row.n for row in rows),
        rates=list(shown),
        absent=f"No answer was {prose.either(absent)}." if absent else "",
        margin=f"{100 * summary.margin:g}",
        measures=list(_measures(summary)),
    )


def _rows(summary: Summary, rates: list[Callable[[Accuracy], int]]) -> Iterator[ResultRow]:
    for group in GROUPS:
        members = {name: result for name, result in summary.evaluation.items() if result.group == group}
        for name, result in members.items():
            yield _row(prose.title(name, result.title), "task", result, rates)
            for part, comparison in result.slices.items():
                yield _row(prose.one_line(part), "slice", comparison, rates)
        if len(members) > 1 and group in summary.averages:
            yield _average(f"{GROUPS[group]} average", summary.averages[group], len(rates))
    if len(summary.evaluation) > 1 and "all" in summary.averages:
        yield _average(_AVERAGE_OF_ALL, summary.averages["all"], len(rates))


def _row(
    label: str, kind: Literal["task", "slice"], result: Comparison, rates: list[Callable[[Accuracy], int]]
) -> ResultRow:
    change = result.difference
    return ResultRow(
        label=label,
        kind=kind,
        n=prose.whole(change.n) + _repeats(result),
        before=_accuracy(result.before),
        after=_accuracy(result.after),
        change=prose.points(change.mean),
        bounds=prose.bounds(change),
        gained=prose.moved(change.gained),
        lost=prose.moved(change.lost),
        direction=direction(change.low, change.high),
        verdict=result.verdict or _NONE,
        rates=[f"{_rate(result.before, count)} → {_rate(result.after, count)}" for count in rates],
    )


def _average(label: str, average: Average, rates: int) -> ResultRow:
    change = average.difference
    return ResultRow(
        label=label[0].upper() + label[1:],
        kind="average",
        n=prose.whole(change.n),
        before=f"{100 * average.before:.1f}",
        after=f"{100 * average.after:.1f}",
        change=prose.points(change.mean),
        bounds=prose.bounds(change),
        gained=prose.moved(change.gained),
        lost=prose.moved(change.lost),
        direction=direction(change.low, change.high),
        verdict=average.verdict or _NONE,
        rates=[""] * rates,
    )


def _repeats(result: Comparison) -> str:
    """How often each question was asked where that is more than once: ` × 16`, of both sides where they differ."""
    sides = dict.fromkeys(round((side.samples or side.n) / side.n) for side in (result.before, result.after))
    return "" if list(sides) == [1] else f" × {', '.join(map(str, sides))}"


def _accuracy(accuracy: Accuracy) -> str:
    spread = f" ± {100 * accuracy.stderr:.1f}" if accuracy.stderr is not None else ""
    return f"{100 * accuracy.mean:.1f}{spread}"


def _rate(accuracy: Accuracy, count: Callable[[Accuracy], int]) -> str:
    return f"{100 * count(accuracy) / (accuracy.samples or accuracy.n):.1f}"


def _measures(summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    """Scores beside accuracy as (task, what, before, after); what looks at nothing scores the same on both sides."""
    for name, result in summary.evaluation.items():
        label = prose.title(name, result.title)
        for what, measured in result.measures.items():
            yield label, prose.one_line(what), _measure(measured.before), _measure(measured.after)
        for what, value in result.baselines.items():
            yield label, f"{prose.one_line(what)} (baseline)", f"{100 * value:.1f}", f"{100 * value:.1f}"


def _measure(measure: Measure | None) -> str:
    if measure is None:
        return _NONE
    spread = f" ± {100 * measure.stderr:.1f}" if measure.stderr is not None else ""
    return f"{100 * measure.mean:.1f}{spread}"
