"""The same summary in the terminal: readable at 80 columns, without colour, and on a console that knows only ASCII."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spot.evaluate.comparison import Accuracy, Comparison
from spot.evaluate.statistics import direction
from spot.report import prose
from spot.report.summary import Summary

_STYLES = {"rose": "bold cyan", "fell": "bold red", "level": ""}
_ASCII = str.maketrans(
    {prose.MINUS: "-", "–": "-", "±": "+", "“": '"', "”": '"', "’": "'", "…": "~", "→": "->", "‖": "||"}
)


def print_summary(summary: Summary, console: Console, report: Path | None = None) -> None:
    """Print results, counts, times and notes; the last line says where the `report` is."""
    printer = Printer(console)
    printer.line(f"{summary.name}: {summary.student}, corrected by {summary.oracle}, {summary.objective}", "bold")
    if summary.unfinished:
        printer.line(f"unfinished: {summary.unfinished}", "bold red")
    if summary.evaluation:
        console.print(printer.results(summary))
        printer.line(_readings(summary))
        if transitions := prose.transitions(summary):
            printer.line(transitions)
        if unjudged := prose.apart(summary):
            printer.line(f"Cut off at the length limit or unscored, and scored as wrong: {unjudged}.")
    else:
        printer.line(" ".join(prose.outcome(summary)))
    console.print()
    console.print(printer.counts(summary))
    printer.line(_times(summary))
    for note in summary.notes:
        console.print()
        printer.line(f"Note: {note}", "bold")
    if report is not None:
        console.print()
        # On a line of its own and never wrapped, so that it can be copied or clicked.
        console.print(printer.text(f"Report: {report}"), soft_wrap=True)


class Printer:
    """Makes data safe for one console: no markup, no control characters, no glyph that it cannot show."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plain = console.options.ascii_only

    def text(self, text: str, style: str = "", limit: int = 2000) -> Text:
        """`text` on one line, in characters that the console has."""
        flat = prose.one_line(text, limit)
        if self.plain:
            flat = flat.translate(_ASCII).encode("ascii", "backslashreplace").decode()
        return Text(flat, style=style)

    def line(self, text: str, style: str = "") -> None:
        """Print a paragraph."""
        self.console.print(self.text(text, style))

    def results(self, summary: Summary) -> Table:
        """Accuracies before and after, by task and slice."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
        table.add_column("accuracy, % (s.e.)", overflow="fold", min_width=18)
        for heading in ("n", "before", "after", "change", "95% interval"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, result in summary.evaluation.items():
            self._result(table, prose.title(name, result.title), result)
            for part, comparison in result.slices.items():
                self._result(table, f"- {part}", comparison)
        return table

    def _result(self, table: Table, label: str, result: Comparison) -> None:
        change = result.difference
        cells = [
            prose.whole(change.n),
            _accuracy(result.before),
            _accuracy(result.after),
            prose.points(change.mean),
            prose.bounds(change),
        ]
        style = _STYLES[direction(change.low, change.high)]
        table.add_row(self.text(label, limit=60), *(self.text(cell, style) for cell in cells))

    def counts(self, summary: Summary) -> Table:
        """Rows at each stage, and why rows were dropped."""
        counts = summary.counts
        table = Table.grid(padding=(0, 2))
        table.add_column(overflow="fold")
        table.add_column(justify="right", no_wrap=True)
        rows = [
            ("problems asked", counts.problems),
            ("answers", counts.attempts),
            ("  right", counts.correct),
            ("  wrong", counts.wrong),
            ("  cut off at the length limit", counts.truncated),
            ("  unscored", counts.unscored),
            ("corrected and verified", counts.rectified),
            ("training pairs", counts.pairs),
        ]
        rows += [(f"dropped: {prose.reason_title(reason)}", number) for reason, number in counts.dropped.items()]
        for label, number in rows:
            indent = label[: len(label) - len(label.lstrip())]
            table.add_row(Text(indent) + self.text(label, limit=60), self.text(prose.whole(number)))
        return table


def _readings(summary: Summary) -> str:
    """Which tasks rose, fell, or show no change, in one line: `Rose: In-domain. Fell: none. ...`."""
    kinds = {
        prose.title(name, task.title): direction(task.difference.low, task.difference.high)
        for name, task in summary.evaluation.items()
    }
    parts: list[str] = []
    for kind, reading in prose.READINGS.items():
        names = ", ".join(name for name, its_kind in kinds.items() if its_kind == kind)
        parts.append(f"{reading.capitalize()}: {names or 'none'}.")
    return " ".join(parts)


def _accuracy(accuracy: Accuracy) -> str:
    spread = "" if accuracy.stderr is None else f" ({100 * accuracy.stderr:.1f})"
    return f"{100 * accuracy.mean:.1f}{spread}"


def _times(summary: Summary) -> str:
    stages = ", ".join(f"{stage} {prose.duration(seconds)}" for stage, seconds in summary.seconds.items())
    total = f"Time {prose.duration(sum(summary.seconds.values()))}" if stages else "Time not recorded"
    memory = prose.size(summary.peak_memory_bytes) if summary.peak_memory_bytes else "not recorded"
    return f"{total}, peak memory {memory}" + (f"\n({stages})" if stages else "")
