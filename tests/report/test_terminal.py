import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from spot.report.prose import points
from spot.report.summary import Summary, read_summary
from spot.report.terminal import print_summary

NewRun = Callable[..., Path]


def printed(summary: Summary, report: Path | None = None, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    print_summary(summary, console, report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def summary(new_run: NewRun) -> Summary:
    return read_summary(new_run(questions=100) / "summary.json")


def test_everything_fits_eighty_columns_without_being_cut(summary: Summary) -> None:
    text = printed(summary)
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for result in summary.evaluation.values():
        high = points(result.difference.high)
        assert any(line.rstrip().endswith(f"to {high}") for line in text.splitlines())


def test_it_holds_results_counts_times_and_notes(summary: Summary) -> None:
    text = printed(summary)
    for fact in (
        "In-domain",
        "- unseen templates",
        "Rose: In-domain.",
        "1,641",
        "dropped: change ratio",
        "1 min 11 s",
        "1.1 GiB",
    ):
        assert fact in text
    assert "Note: The student is a toy" in text


def test_it_ends_with_where_the_report_is(summary: Summary) -> None:
    path = Path("runs") / ("a-long-directory-name-" * 6) / "report.html"
    assert printed(summary, path).splitlines()[-1] == f"Report: {path}"
    assert "Report" not in printed(summary)


def test_readings_need_intervals_without_zero(summary: Summary) -> None:
    task = summary.evaluation["in_domain"]
    fell = task.model_copy(
        update={
            "title": "",
            "difference": task.difference.model_copy(update={"mean": -0.1, "low": -0.2, "high": -0.05}),
        }
    )
    text = printed(summary.model_copy(update={"evaluation": {"a": fell}}))
    assert "Rose: none. Fell: a. No significant change: none." in text


def test_a_run_that_stopped_is_called_unfinished(summary: Summary) -> None:
    stopped = printed(summary.model_copy(update={"unfinished": "stopped in train"}))
    assert stopped.splitlines()[1] == "unfinished: stopped in train"
    assert "unfinished" not in printed(summary)


def test_no_evaluation_is_said(summary: Summary) -> None:
    assert "Nothing was evaluated" in printed(summary.model_copy(update={"evaluation": {}}))


def test_names_are_neither_markup_nor_escape_codes(summary: Summary) -> None:
    hostile = summary.model_copy(update={"name": "[red]x[/red]\x1b[31m\nnew [/]", "notes": ["[link=x]y"]})
    text = printed(hostile)
    assert "[red]x[/red]" in text
    assert "[link=x]y" in text
    assert "\x1b" not in text


def test_an_ascii_console_is_enough(summary: Summary) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_summary(summary.model_copy(update={"name": "数"}), Console(file=file, width=80), Path("é.html"))
    file.flush()
    assert b"In-domain" in raw.getvalue()
    assert b"\\u6570" in raw.getvalue()


def test_unjudged_answers_of_the_evaluation_are_named(summary: Summary) -> None:
    task = summary.evaluation["ood"]
    cut = task.model_copy(update={"after": task.after.model_copy(update={"truncated": 3})})
    text = printed(summary.model_copy(update={"evaluation": {"ood": cut}}))
    assert "scored as wrong: Out-of-domain 3 cut off after." in " ".join(text.split())
