"""From a finished run directory to its figures and its page."""

import math
from pathlib import Path

from spot.files.disk import write_atomic
from spot.files.store import read_rows
from spot.report.audit import AuditView, audit_view
from spot.report.changed import changed_answers
from spot.report.examples import Rectified, optional_problems, rectified_examples
from spot.report.figures import Drawing, draw_change_ratio, draw_counts, draw_evaluation, draw_training, series
from spot.report.html import render
from spot.report.summary import Summary, read_metrics, read_summary
from spot.schema import Attempt, Pair, Rectification


def build_report(run: Path, reproduce: str) -> Path:
    """Write `figures/*.svg` and `report.html` into `run` and return the page's path.

    Reads `summary.json`, `pairs.jsonl` where it counts pairs, and `metrics.jsonl` where it counts steps; if they are
    there also `attempts.jsonl`, `rectifications.jsonl`, `problems.jsonl`, `eval/` and `audit.json`. `reproduce` is the
    command line that makes the run again. Files are replaced whole, so a kill leaves the old ones or the new ones.
    Raises `UserError`, one line, where a file is missing or damaged.
    """
    summary = read_summary(run / "summary.json")
    has_metrics = summary.training.steps > 0 or (run / "metrics.jsonl").exists()
    metrics = read_metrics(run / "metrics.jsonl") if has_metrics else []
    audit = audit_view(run)
    drawings = _drawings(summary, metrics) + (audit.drawings if isinstance(audit, AuditView) else [])
    losses = [row["loss"] for row in metrics if "loss" in row]
    page = render(
        summary,
        {drawing.name: drawing for drawing in drawings},
        _rectified(run) if summary.counts.pairs else [],
        changed_answers(run, summary.evaluation),
        reproduce=reproduce,
        audit=audit,
        broken_steps=sum(not math.isfinite(loss) for loss in losses),
    )
    for drawing in drawings:
        write_atomic(run / "figures" / f"{drawing.name}.svg", drawing.file)
    write_atomic(run / "report.html", page)
    return run / "report.html"


def _drawings(summary: Summary, metrics: list[dict[str, float]]) -> list[Drawing]:
    """The figures this run has something to show in."""
    drawings = [draw_counts(summary.counts)]
    if summary.evaluation:
        drawings.append(draw_evaluation(summary.evaluation))
    if summary.change_ratio.values:
        drawings.append(draw_change_ratio(summary.change_ratio))
    if series(metrics, "loss"):
        drawings.append(draw_training(metrics))
    return drawings


def _rectified(run: Path) -> list[Rectified]:
    attempts, rectifications = run / "attempts.jsonl", run / "rectifications.jsonl"
    return rectified_examples(
        read_rows(run / "pairs.jsonl", Pair),
        optional_problems(run / "problems.jsonl"),
        read_rows(attempts, Attempt) if attempts.exists() else [],
        read_rows(rectifications, Rectification) if rectifications.exists() else [],
    )
