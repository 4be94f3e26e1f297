"""The report's four figures, each in two widths: for a desk and for a phone. Lengths are in pixels."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from spot.evaluate.comparison import Accuracy, Comparison, TaskResult
from spot.evaluate.statistics import interval
from spot.report.prose import one_line, percent, plural, points, reason_title, title, whole
from spot.report.sheet import SMALL, TEXT, Mark, Sheet, rendered, round_ticks
from spot.report.summary import ChangeRatios, Counts
from spot.report.svg import SENTINEL, inline, standalone

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = 720, 340
RATIO_BINS = 20
_LABELS, _VALUES = 190, 58  # room for labels to the left of bars, and for values to their right


class _Curve(NamedTuple):
    label: str
    metric: str
    role: str
    mark: Mark


_LOSS = _Curve("loss", "loss", "ink", "line")
_REWARDS = (
    _Curve("chosen", "rewards/chosen", "chosen", "line"),
    _Curve("rejected", "rewards/rejected", "rejected", "line"),
    _Curve("shift", "rewards/delta", "shift", "dashes"),
)

Metrics = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Drawing:
    """One figure: `wide` and `narrow` are tidied SVGs in sentinel colours."""

    name: str
    title: str
    description: str
    wide: str
    narrow: str

    @property
    def file(self) -> str:
        """The wide figure in its light colours, an SVG document of its own."""
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + standalone(self.wide)

    @property
    def inline(self) -> tuple[str, str]:
        """The wide and the narrow figure for the page, in its CSS variables."""
        return inline(self.wide), inline(self.narrow)


def draw_evaluation(evaluation: Mapping[str, TaskResult]) -> Drawing:
    """Accuracy before and after for each task with 95% intervals; slices below their task, muted."""
    told = "; ".join(
        f"{title(name, result.title)}: {percent(result.before.mean)} before, {percent(result.after.mean)} after "
        f"({points(result.difference.mean)} points)"
        for name, result in evaluation.items()
    )
    return drawing(
        "evaluation", "Accuracy before and after training", told, lambda width: _evaluation(evaluation, width)
    )


def draw_counts(counts: Counts) -> Drawing:
    """How many rows each stage saw and kept, and for what reasons rows were dropped."""
    rows = [f"{label}: {whole(sum(number for number, _ in parts))}" for label, parts in _stages(counts)]
    rows += [f"dropped, {reason}: {whole(number)}" for reason, number in _reasons(counts)]
    return drawing("counts", "Rows at each stage", "; ".join(rows), lambda width: _counts(counts, width))


def draw_change_ratio(ratios: ChangeRatios) -> Drawing:
    """The histogram of the change ratio over all verified corrections, with gamma."""
    kept = sum(value <= ratios.gamma for value in ratios.values)
    told = f"{plural(len(ratios.values), 'correction')}, {whole(kept)} of them at or below gamma = {ratios.gamma:g}"
    return drawing("change-ratio", "Change ratio of the corrections", told, lambda width: _ratio(ratios, width))


def draw_training(metrics: Metrics) -> Drawing:
    """The loss, and the implicit rewards of both sides with the shift, over the same optimizer steps."""
    told = "; ".join(
        f"{label} from {round(values[0][1], 6):.3g} to {round(values[-1][1], 6):.3g}"
        for label, values in ((curve.label, series(metrics, curve.metric)) for curve in (_LOSS, *_REWARDS))
        if values
    )
    return drawing("training", "Loss and rewards over the steps", told, lambda width: _training(metrics, width))


def series(metrics: Metrics, key: str) -> list[tuple[float, float]]:
    """The (step, value) points of one metric, finite ones only."""
    rows = ((row["step"], row[key]) for row in metrics if key in row)
    return [(step, value) for step, value in rows if math.isfinite(value)]


def drawing(name: str, heading: str, told: str, draw: Callable[[int], Sheet]) -> Drawing:
    """A figure by its name, its title and what it says in words; `draw` makes the sheet of a width."""
    wide = rendered(name, heading, told, lambda: draw(WIDE))
    narrow = rendered(f"{name}-narrow", heading, told, lambda: draw(NARROW))
    return Drawing(name, heading, told, wide, narrow)


def _evaluation(evaluation: Mapping[str, TaskResult], width: int) -> Sheet:
    wide = width == WIDE
    left, top = (_LABELS if wide else 0), 40
    above = 0 if wide else 20  # on a phone the label stands above its bars
    rows: list[tuple[str, Comparison, bool]] = []
    for name, result in evaluation.items():
        rows.append((title(name, result.title), result, False))
        rows += [(one_line(part), comparison, True) for part, comparison in result.slices.items()]
    # Height of each of a row's two bars, and the room below: less before a slice than before the next task.
    thickness = [7 if is_slice else 11 for _, _, is_slice in rows]
    gaps = [12 if is_slice else 24 for _, _, is_slice in rows[1:]] + [14]
    sheet = Sheet(width, top + sum(2 * bar + 1 + above + gap for bar, gap in zip(thickness, gaps, strict=True)) + 26)
    scale, bottom = sheet.width - left - _VALUES, sheet.height - 26
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + share * scale
        if wide:
            sheet.line((x, top - 8), (x, bottom), "line")
        sheet.note((x, bottom + 13), f"{100 * share:.0f}%", "center" if share or wide else "left")
    sheet.key(left, 14, [("before", "before", "bar"), ("after", "after", "bar"), ("95% interval", "ink", "whisker")])
    y = float(top)
    for (label, comparison, is_slice), bar, gap in zip(rows, thickness, gaps, strict=True):
        _label(sheet, y + bar if wide else y + 7, label, muted=is_slice)
        for quarter in range(0 if wide else 5):  # no rule through the labels that stand between the bars
            x = left + quarter / 4 * scale
            sheet.line((x, y + above - 4), (x, y + above + 2 * bar + 5), "line")
        for index, (accuracy, role) in enumerate(((comparison.before, "before"), (comparison.after, "after"))):
            _accuracy(sheet, accuracy, role, (left, y + above + index * (bar + 1), scale, bar), muted=is_slice)
        y += above + 2 * bar + 1 + gap
    return sheet


def _label(sheet: Sheet, y: float, label: str, *, muted: bool = False, bold: bool = True) -> None:
    """A row's label: to the left of its bars, or above them where the sheet is narrow."""
    role, size = ("muted", SMALL) if muted else ("ink", TEXT)
    if sheet.width == WIDE:
        sheet.text(
            (_LABELS - 12, y),
            one_line(label, 24 if muted or not bold else 21),
            role=role,
            size=size,
            align="right",
            bold=bold and not muted,
        )
    else:
        sheet.text((0, y), one_line(label, 44), role=role, size=size, bold=bold and not muted)


def _accuracy(
    sheet: Sheet, accuracy: Accuracy, role: str, box: tuple[float, float, float, float], *, muted: bool
) -> None:
    left, y, scale, height = box
    low, high = accuracy.low, accuracy.high
    if low is None or high is None:  # of an older version's summary
        low, high = interval(accuracy.mean, accuracy.stderr, accuracy.n)
    sheet.bar((left, y), accuracy.mean * scale, height, role, alpha=0.5 if muted else 1)
    sheet.whisker(left + low * scale, left + high * scale, y + height / 2, 2 if muted else 3)
    place = (left + max(high, accuracy.mean) * scale + 7, y + height / 2)
    sheet.text(place, percent(accuracy.mean), role="muted", size=9.5 if muted else SMALL)


def _stages(counts: Counts) -> list[tuple[str, list[tuple[int, str]]]]:
    """Each stage's label and its parts as (number, colour role)."""
    answers = [(counts.wrong, "rejected"), (counts.truncated + counts.unscored, "shift"), (counts.correct, "before")]
    asked = [("Problems", [(counts.problems, "before")])] if counts.problems else []
    return [
        *asked,
        ("Answers", answers),
        ("Wrong", [(counts.wrong, "rejected")]),
        ("Corrected, verified", [(counts.rectified, "chosen")]),
        ("Training pairs", [(counts.pairs, "chosen")]),
    ]


def _reasons(counts: Counts) -> list[tuple[str, int]]:
    """Why rows were dropped, most frequent first."""
    rows = [(reason_title(reason), number) for reason, number in counts.dropped.items() if number]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _counts(counts: Counts, width: int) -> Sheet:
    wide = width == WIDE
    stages, reasons = _stages(counts), _reasons(counts)
    left, top, bar, step = (_LABELS if wide else 0), 40, 16, (30 if wide else 44)
    drop_top = top + len(stages) * step + 18
    sheet = Sheet(width, drop_top + 26 + len(reasons) * step if reasons else drop_top - 18)
    most = max(sum(number for number, _ in parts) for _, parts in stages)
    scale = (sheet.width - left - _VALUES) / max(1, most, *counts.dropped.values())
    entries: list[tuple[str, str, Mark]] = [("wrong", "rejected", "bar")]
    if counts.truncated + counts.unscored:
        entries.append(("cut off or unscored", "shift", "bar"))
    sheet.key(left, 14, [*entries, ("right", "before", "bar"), ("corrected", "chosen", "bar")])

    def row(y: float, label: str, parts: list[tuple[int, str]]) -> None:
        _label(sheet, y + bar / 2 if wide else y + 7, label, bold=False)
        x, y, gap = float(left), y + (0 if wide else 18), (1 if len(parts) > 1 else 0)
        for number, role in parts:
            sheet.bar((x, y), max(number * scale - gap, 0), bar, role)
            x += number * scale
        sheet.note((x + 8, y + bar / 2), whole(sum(number for number, _ in parts)))

    for index, (label, parts) in enumerate(stages):
        row(top + index * step, label, parts)
    if reasons:
        sheet.line((0, drop_top - 12), (sheet.width, drop_top - 12), "line")
        _label(sheet, drop_top + 8, "Dropped")
        for index, (reason, number) in enumerate(reasons):
            row(drop_top + 28 + index * step, reason, [(number, "muted")])
    return sheet


def _ratio(ratios: ChangeRatios, width: int) -> Sheet:
    left, right, top, bottom = 40, 14, 40, 48
    sheet = Sheet(width, 250)
    across, height = sheet.width - left - right, sheet.height - top - bottom
    kept, over = binned(ratios)
    tallest = max(1, *(below + above for below, above in zip(kept, over, strict=True)))
    base, unit, slot = top + height, height / tallest, across / RATIO_BINS
    for tick in round_ticks(tallest, 3):
        sheet.line((left, base - tick * unit), (sheet.width - right, base - tick * unit), "line")
        sheet.note((left - 8, base - tick * unit), whole(tick), "right")
    for place, (below, above) in enumerate(zip(kept, over, strict=True)):
        x = left + place * slot + 1
        sheet.bar((x, base - below * unit), slot - 2, below * unit, "chosen")
        sheet.bar((x, base - (below + above) * unit), slot - 2, above * unit, "before")
    for tick in range(0, 11, 2):
        sheet.note((left + tick / 10 * across, base + 14), f"{tick / 10:g}", "center")
    sheet.note((left + across / 2, base + 34), "change ratio", "center")
    gamma, beside = left + ratios.gamma * across, ("right" if ratios.gamma > 0.5 else "left")
    sheet.line((gamma, top - 14), (gamma, base), "rejected", 1.6)
    place = (gamma + (-7 if beside == "right" else 7), top - 10)
    sheet.text(place, f"γ = {ratios.gamma:g}", role="rejected", size=SMALL, align=beside)
    entries: list[tuple[str, str, Mark]] = [("kept", "chosen", "bar"), ("above γ, dropped", "before", "bar")]
    sheet.key(left, 12, entries if any(over) else entries[:1])
    return sheet


def binned(ratios: ChangeRatios) -> tuple[list[int], list[int]]:
    """Counts a bin of width 0.05, of corrections at or below gamma and of those above."""
    kept, over = [0] * RATIO_BINS, [0] * RATIO_BINS
    for value in ratios.values:
        # Bins are open below and closed above, as `R <= gamma` is; rounding undoes 0.55 * 20 = 11.000000000000002.
        place = max(0, math.ceil(round(value * RATIO_BINS, 9)) - 1)
        (kept if value <= ratios.gamma else over)[place] += 1
    return kept, over


def _training(metrics: Metrics, width: int) -> Sheet:
    left, right, top, height, between = 48, 12, 34, 130, 58
    rewards = [curve for curve in _REWARDS if series(metrics, curve.metric)]
    panels = [[_LOSS], rewards] if rewards else [[_LOSS]]
    sheet = Sheet(width, top + len(panels) * height + (len(panels) - 1) * between + 44)
    across = sheet.width - left - right
    steps = [row["step"] for row in metrics]
    for index, curves in enumerate(panels):
        y = top + index * (height + between)
        axes = sheet.plot(left, y, across, height)
        for curve in curves:
            _curve(axes, curve, series(metrics, curve.metric))
        sheet.text((0, y - 22), "Implicit rewards" if index else "Loss", bold=True)
        if index:
            sheet.key(124, y - 22, [(curve.label, curve.role, curve.mark) for curve in curves])
            axes.axhline(0, color=SENTINEL["muted"], linewidth=1, zorder=1.5)
        _scale(axes, min(steps, default=0), max(steps, default=0), label_steps=index == len(panels) - 1)
    sheet.note((left + across / 2, sheet.height - 10), "optimizer step", "center")
    return sheet


def _curve(axes: "Axes", curve: "_Curve", values: list[tuple[float, float]]) -> None:
    axes.plot(
        [step for step, _ in values],
        [value for _, value in values],
        color=SENTINEL[curve.role],
        linewidth=1.8,
        solid_joinstyle="round",
        linestyle=(0, (2.6, 1.6)) if curve.mark == "dashes" else "-",
        marker="o" if len(values) == 1 else None,
    )


def _scale(axes: "Axes", first: float, last: float, *, label_steps: bool) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator

    room = 0.01 * (last - first) or 0.5
    axes.set_xlim(first - room, last + room)
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True) if last > first else FixedLocator([first]))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelbottom=label_steps)
