"""The report as one HTML page that needs nothing from outside: style, figures and texts are all in it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spot.evaluate.statistics import direction
from spot.report import prose
from spot.report.accuracy import accuracy_table
from spot.report.audit import AuditView
from spot.report.changed import LONGEST, SHOWN_BETTER, SHOWN_WORSE, ChangedAnswers
from spot.report.examples import Rectified
from spot.report.figures import Drawing
from spot.report.summary import Summary
from spot.report.svg import css_variables

_HERE = Path(__file__).parent
_MOST_TILES = 4
_METRICS_FIRST = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "rewards/delta"),
    "rewards/bound",
    *("tether/chosen", "tether/rejected", "kl/chosen", "grad_norm", "learning_rate"),
)
_NOT_METRICS = {"step", "epoch"}


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    detail: str
    kind: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Moved:
    """How many questions of a task went which way, and where on the page those that changed are shown."""

    label: str
    worse: int
    same: int
    better: int
    worse_at: str
    better_at: str


def render(
    summary: Summary,
    drawings: Mapping[str, Drawing],
    rectified: Sequence[Rectified],
    changed: ChangedAnswers,
    *,
    reproduce: str,
    audit: AuditView | str | None = None,
    broken_steps: int = 0,
) -> str:
    """The whole page. `audit` is what it says of the pairs' audit, or why it does not; `broken_steps` counts logged
    steps whose loss was not a finite number.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=prose.percent, points=prose.points, whole=prose.whole, duration=prose.duration, size=prose.size,
    )  # fmt: skip
    light, dark = css_variables()
    return environment.get_template("template.html").render(
        summary=summary,
        style=Markup((_HERE / "report.css").read_text("utf-8").replace("/*light*/", light).replace("/*dark*/", dark)),
        account=prose.account(summary),
        tiles=tiles(summary),
        table=accuracy_table(summary),
        not_paired=prose.listed([prose.title(name) for name in summary.not_paired]),
        figures={name: [Markup(svg) for svg in drawing.inline] for name, drawing in drawings.items()},
        audit=audit,
        ratio_reading=_ratio_reading(summary),
        training_reading=_training_reading(summary, broken_steps),
        metrics=list(_metric_rows(summary)),
        rectified=rectified,
        changed=changed,
        moved=list(_moved(summary, changed)),
        caps={"worse": SHOWN_WORSE, "better": SHOWN_BETTER, "characters": LONGEST},
        total_seconds=sum(summary.seconds.values()),
        longest_seconds=max([*summary.seconds.values(), 1e-9]),
        reproduce=reproduce,
        seeds=_seeds(summary),
        settings={section: _settings(values) for section, values in summary.settings.items()},
    )


def tiles(summary: Summary) -> list[Tile]:
    """The headline: each task's change while they are few, else how many rose and fell; then pairs, and time."""
    results = list(summary.evaluation.items())
    kinds = [direction(result.difference.low, result.difference.high) for _, result in results]
    headline = [
        Tile(
            prose.title(name, result.title),
            prose.points(result.difference.mean),
            f"{prose.percent(result.before.mean)} to {prose.percent(result.after.mean)}",
            kind,
            "points",
        )
        for (name, result), kind in zip(results, kinds, strict=True)
    ]
    if len(results) >= _MOST_TILES:
        headline = [
            Tile(f"Tasks that {label}", str(kinds.count(kind)), f"of {len(results)}", kind)
            for kind, label in (("rose", "rose"), ("fell", "fell"))
        ]
    counts, seconds = summary.counts, sum(summary.seconds.values())
    if not results:
        share = f"{prose.percent(counts.wrong / counts.attempts)} of the answers" if counts.attempts else "no answers"
        headline.append(Tile("Wrong answers", prose.whole(counts.wrong), share))
    steps = prose.plural(summary.training.steps, "training step")
    headline.append(Tile("Training pairs", prose.whole(counts.pairs), steps))
    memory = f"{prose.size(summary.peak_memory_bytes)} peak" if summary.peak_memory_bytes else ""
    headline.append(Tile("Time", prose.duration(seconds) if seconds else "–", memory))
    return headline


def _moved(summary: Summary, changed: ChangedAnswers) -> Iterator[Moved]:
    """How many questions of each task did better, the same and worse, where the summary counts them."""
    worse_at = {found.task: found.anchor for found in changed.worse}
    better_at = {found.task: found.anchor for found in changed.better}
    for name, result in summary.evaluation.items():
        change, label = result.difference, prose.title(name, result.title)
        if change.better is not None and change.worse is not None:
            same = change.n - change.better - change.worse
            yield Moved(label, change.worse, same, change.better, worse_at.get(name, ""), better_at.get(name, ""))


def _ratio_reading(summary: Summary) -> str:
    ratios = summary.change_ratio
    if not ratios.values:
        return "No correction verified, so there is no change ratio to show."
    over = sum(value > ratios.gamma for value in ratios.values)
    above = f"{prose.whole(over)} lie above γ and were dropped" if over else "none lies above γ"
    return (
        "The change ratio is the share of a corrected answer’s tokens that the wrong answer did not have. Its median "
        f"over {prose.plural(len(ratios.values), 'verified correction')} is {median(ratios.values):.2f}; {above}."
    )


def _training_reading(summary: Summary, broken_steps: int) -> str:
    first, last = summary.training.first, summary.training.last
    sentences: list[str] = []
    for name, key in (("loss", "loss"), ("chosen reward", "rewards/chosen"), ("rejected reward", "rewards/rejected")):
        start, end = first.get(key), last.get(key)
        if start is not None and end is not None:
            sentences.append(f"the {name} went from {_number(start)} to {_number(end)}")
    text = "From the first logged step to the last, " + prose.listed(sentences) + "." if sentences else ""
    chosen, bound = last.get("rewards/chosen"), summary.training.bound
    if bound is not None:
        text += f" A chosen reward can reach {bound:.3g} at most: beta times the reference’s nats of a correction."
    if chosen is not None and chosen < 0:
        text += " The chosen reward ended below zero: the corrections became less likely than before training."
    if broken_steps:
        text += f" The loss was not a finite number at {prose.plural(broken_steps, 'logged step')}."
    return text.strip()


def _metric_rows(summary: Summary) -> Iterator[tuple[str, str, str]]:
    first, last = summary.training.first, summary.training.last
    names = [name for name in _METRICS_FIRST if name in first or name in last]
    names += sorted((first.keys() | last.keys()) - set(names) - _NOT_METRICS)
    for name in names:
        yield name, _number(first.get(name)), _number(last.get(name))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    # What is left of 0 after rounding in fp32 reads as 0.
    return f"{0.0 if abs(value) < 1e-7 else value:.3g}".replace("-", prose.MINUS)


def _seeds(summary: Summary) -> list[str]:
    return [
        f"{section}.{key} = {value}"
        for section, values in summary.settings.items()
        for key, value in values.items()
        if key == "seed" or key.endswith("_seed")
    ]


def _settings(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()
    }
