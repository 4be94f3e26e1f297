"""The table of accuracies: its numbers are those of summary.json, in the paper's order."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spot.report.accuracy import accuracy_table
from spot.report.build import build_report
from spot.report.summary import Summary, read_summary

NewRun = Callable[..., Path]


def cells(page: str) -> list[list[str]]:
    """The rows of the table on the page as text."""
    (table,) = re.findall(r'<table class="results">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_numbers_on_the_page_are_those_of_the_summary(new_run: NewRun) -> None:
    run = new_run(questions=60)
    rows = cells(build_report(run, "x").read_text())
    summary = json.loads((run / "summary.json").read_text())
    told = summary["evaluation"]
    expected: list[dict[str, Any]] = [told["in_domain"], *told["in_domain"]["slices"].values(), told["ood"]]
    expected += [told["instructions"], summary["averages"]["all"]]
    labels = ["In-domain", "seen templates", "unseen templates", "Out-of-domain", "Instructions", "Average of all"]
    assert [row[0] for row in rows] == labels
    for row, one in zip(rows, expected, strict=True):
        n, before, after, change, bounds, verdict = row[1:7]
        sides = [one[side] if isinstance(one[side], float) else one[side]["mean"] for side in ("before", "after")]
        assert int(n) == one["difference"]["n"]
        shown = [float(text.split(" ± ")[0]) for text in (before, after)] + [number(change)]
        shown += [number(bound) for bound in bounds.split(" to ")]
        exact = [*sides, *(one["difference"][name] for name in ("mean", "low", "high"))]
        assert shown == pytest.approx([100 * value for value in exact], abs=0.0501)
        assert verdict == one["verdict"]
        assert row[7:9] == [str(one["difference"]["gained"]), str(one["difference"]["lost"])]


def summary_of(run: Path, **changes: Any) -> Summary:
    """The run's summary, its task `ood` changed."""
    summary = read_summary(run / "summary.json")
    return summary.model_copy(
        update={"evaluation": summary.evaluation | {"ood": summary.evaluation["ood"].model_copy(update=changes)}}
    )


def test_rates_are_of_the_answers_and_empty_ones_are_said_once(new_run: NewRun) -> None:
    run = new_run()
    before = read_summary(run / "summary.json").evaluation["ood"].before
    table = accuracy_table(summary_of(run, before=before.model_copy(update={"truncated": 3, "samples": 120})))
    assert table is not None
    assert table.rates == ["Cut off"]
    assert table.absent == "No answer was unanswered or unscored."
    row = next(row for row in table.rows if row.label == "Out-of-domain")
    assert row.rates == ["2.5 → 0.0"]
    assert row.n == "40 × 3, 1"


def test_an_average_stands_below_its_group_and_not_for_one_task(new_run: NewRun) -> None:
    run = new_run()
    summary = summary_of(run, group="general")
    summary = summary.model_copy(update={"averages": summary.averages | {"general": summary.averages["all"]}})
    table = accuracy_table(summary)
    assert table is not None
    assert [row.label for row in table.rows if row.kind != "slice"] == [
        "In-domain", "Out-of-domain", "Instructions", "General average", "Average of all",
    ]  # fmt: skip
    alone = accuracy_table(summary.model_copy(update={"evaluation": {"ood": summary.evaluation["ood"]}}))
    assert alone is not None
    assert [row.kind for row in alone.rows] == ["task"]


def test_a_summary_of_an_older_version_has_no_verdict(new_run: NewRun) -> None:
    table = accuracy_table(summary_of(new_run(), verdict=None))
    assert table is not None
    assert [row.verdict for row in table.rows if row.label == "Out-of-domain"] == ["–"]
