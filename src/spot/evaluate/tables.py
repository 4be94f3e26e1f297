"""A comparison as the paper's Table 1 lays it out: for the terminal, and as Markdown, LaTeX and JSON.

Columns are the tasks in-domain with their average, out of domain with theirs, general ones, and the average of all;
rows are the two models and their difference with its interval. Accuracies are in per cent, differences in points.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spot.evaluate.comparison import Average, Change, Compared
from spot.evaluate.results import Results
from spot.evaluate.task import GROUPS

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Column:
    """A task, or an average of several, before and after."""

    title: str
    result: Average
    is_average: bool


def columns(found: Compared) -> list[Column]:
    """The table's columns in the paper's order; an average of one task is left out."""
    made: list[Column] = []
    for group, label in GROUPS.items():
        names = [name for name in found.tasks if found.groups[name] == group]
        made += [Column(found.titles[name], found.tasks[name], False) for name in names]
        if len(names) > 1 and group in found.averages:
            made.append(Column(f"{label} avg", found.averages[group], True))
    if len(found.tasks) > 1:
        made.append(Column("avg", found.averages["all"], True))
    return made


def percent(value: float) -> str:
    """An accuracy in per cent."""
    return f"{100 * value:.1f}"


def points(change: Change) -> str:
    """A difference in points, with its interval."""
    return f"{100 * change.mean:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def moved(change: Change) -> tuple[str, str]:
    """How many questions went from wrong to right, and from right to wrong."""
    return f"{change.gained or 0:,}", f"{change.lost or 0:,}"


def _cells(result: Average) -> list[str]:
    change = result.difference
    return [percent(result.before), percent(result.after), points(change), *moved(change), str(result.verdict)]


def markdown(found: Compared) -> str:
    """A table of Markdown: a row a task or average, since a difference with its interval is wide."""
    lines = [
        f"| | {found.before} | {found.after} | difference [95% interval] | 0->1 | 1->0 | "
        f"within {100 * found.margin:g} points | n |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for column in columns(found):
        bold = "**" if column.is_average else ""
        cells = [*_cells(column.result), f"{column.result.difference.n:,}"]
        lines.append(f"| {' | '.join(f'{bold}{cell}{bold}' for cell in (column.title, *cells))} |")
    return "\n".join([*lines, "", *_notes(found)]) + "\n"


def latex(found: Compared) -> str:
    """The same as LaTeX, in the paper's layout: a column a task or average (needs booktabs)."""
    made = columns(found)
    lines = [
        r"\begin{tabular}{l" + "r" * len(made) + "}",
        r"\toprule",
        " & ".join(["", *(_escaped(column.title) for column in made)]) + r" \\",
        r"\midrule",
    ]
    rows: list[tuple[str, Callable[[Average], str]]] = [
        (_escaped(found.before), lambda result: percent(result.before)),
        (_escaped(found.after), lambda result: percent(result.after)),
        ("difference", lambda result: f"${100 * result.difference.mean:+.1f}$"),
        ("low", lambda result: f"${100 * result.difference.low:+.1f}$"),
        ("high", lambda result: f"${100 * result.difference.high:+.1f}$"),
        (r"$0\to1$", lambda result: moved(result.difference)[0]),
        (r"$1\to0$", lambda result: moved(result.difference)[1]),
        (f"within {100 * found.margin:g} points", lambda result: str(result.verdict)),
    ]
    for label, cell in rows:
        lines.append(" & ".join([label, *(cell(column.result) for column in made)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in text)


def as_json(found: Compared) -> str:
    """Everything, fractions from 0 to 1."""

    def told(results: Mapping[str, Average]) -> dict[str, Any]:
        return {
            name: {
                "before": result.before,
                "after": result.after,
                **result.difference.model_dump(),
                "verdict": result.verdict,
            }
            for name, result in results.items()
        }

    content = {
        "before": found.before,
        "after": found.after,
        "margin": found.margin,
        "tasks": told(found.tasks),
        "averages": told(found.averages),
        "only_one": list(found.only_one),
    }
    return json.dumps(content, indent=2) + "\n"


def _notes(found: Compared) -> list[str]:
    notes = [
        "Accuracies in per cent, means over repetitions and questions; differences in points, paired by question, with "
        "95% intervals from a Bayesian bootstrap over the questions and one that was not asked. 0->1: questions that "
        "went from wrong to right; 1->0: from right to wrong (of several samples, right is more than half). "
        f"Kept: a loss of more than {100 * found.margin:g} points can be excluded; lost: a loss is certain, and may be "
        "more than that."
    ]
    if found.only_one:
        notes.append(f"Only one of the two has: {', '.join(found.only_one)}.")
    return notes


def print_comparison(found: Compared, console: "Console") -> None:
    """The comparison on a terminal."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    for name in (found.before, found.after):
        table.add_column(name, justify="right")
    table.add_column("difference", no_wrap=True)
    for name in ("0->1", "1->0"):
        table.add_column(name, justify="right")
    table.add_column(f"within {100 * found.margin:g}", no_wrap=True)
    for column in columns(found):
        table.add_row(column.title, *_cells(column.result), style="bold" if column.is_average else None)
    console.print(table)
    for note in _notes(found):
        console.print(note, style="dim", highlight=False)


def print_results(results: Results, console: "Console") -> None:
    """One evaluation on a terminal; columns that would be empty are left out."""
    from rich.table import Table

    cells = {
        "accuracy": [f"{percent(one.mean)}{_error(one.stderr)}" for one in results.tasks.values()],
        "95% interval": [f"{percent(one.low)}-{percent(one.high)}" for one in results.tasks.values()],
        "questions": [f"{one.n:,}{f' x {one.repeats}' if one.repeats > 1 else ''}" for one in results.tasks.values()],
        "pass@k": [percent(one.pass_at[one.repeats]) if one.repeats > 1 else "" for one in results.tasks.values()],
        "maj@k": [
            percent(one.majority) if one.repeats > 1 and one.majority is not None else ""
            for one in results.tasks.values()
        ],
    }
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    shown = [name for name, column in cells.items() if any(column)]
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for number, one in enumerate(results.tasks.values()):
        table.add_row(one.title, *(cells[name][number] for name in shown))
    console.print(table)
    console.print("± standard error over questions; k is all repeats", style="dim", highlight=False)
    for line in _beside(results):
        console.print(line, highlight=False, soft_wrap=True)


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {percent(stderr)}"


def _rate(count: int, samples: int) -> str:
    return f"{percent(count / samples)}%" if count else ""


def _beside(results: Results) -> Sequence[str]:
    """What stands below the table: averages, measures, baselines, and what is to be looked at."""
    lines: list[str] = []
    if len(results.tasks) > 1:
        named = {**GROUPS, "all": "all"}
        lines.append(
            "averages: " + ", ".join(f"{named[name]} {percent(mean)}" for name, mean in results.averages.items())
        )
    for one in results.tasks.values():
        rates = {"truncated": one.truncated, "unanswered": one.unanswered, "unscored": one.unscored}
        if any(rates.values()):
            told = ", ".join(f"{_rate(count, one.samples)} {name}" for name, count in rates.items() if count)
            lines.append(f"{one.title}: {told}")
        measures = [f"{name} {percent(measure.mean)}" for name, measure in one.measures.items()]
        measures += [f"{name} would be {percent(value)}" for name, value in one.baselines.items()]
        if measures:
            lines.append(f"{one.title}: {', '.join(measures)}")
        if one.repeats > 1 and one.same_answers > 0.5 and results.sampling.temperature > 0:
            lines.append(
                f"{one.title}: all repetitions of {percent(one.same_answers)}% of the questions are one text; does "
                "the server use temperature and seed?"
            )
    return lines
