"""Reads a run directory into its `Summary`: every number that the report and the terminal show."""

import json
from collections import Counter
from statistics import fmean
from typing import Any

from spot.config import RunConfig
from spot.evaluate.overlap import overlap_note
from spot.files.store import RunDirectory, read_dropped, read_rows
from spot.report.evaluation import evaluated
from spot.report.summary import ChangeRatios, Counts, Summary, Training, read_metrics, read_warnings
from spot.schema import Attempt, Pair, Problem, Rectification, Row


def collect(run: RunDirectory, config: RunConfig) -> Summary:
    """The summary of what `run` holds so far; stages that did not run leave their part empty."""
    manifest = run.manifest
    logged = run / "metrics.jsonl"
    metrics = read_metrics(logged) if logged.exists() else []
    warnings = [f"Training: {warning}." for warning in read_warnings(logged)] if logged.exists() else []
    steps = [row for row in metrics if row["step"] > 0]  # before the first one only tasks are measured
    bounds = [row["rewards/bound"] for row in steps if "rewards/bound" in row]
    ratios = run / "change_ratios.json"
    stages = {stage: facts for stage, facts in manifest["stages"].items() if stage != "report"}
    resumed = [stage for stage, goes in manifest.get("goes", {}).items() if goes > 1 and stage in stages]
    evaluation = evaluated(run.path)
    notes = [*config.report.notes, *warnings, *_overlap(run), *evaluation.notes]
    if resumed:
        notes.append(
            f"Resumed after a stop: {', '.join(resumed)}; their seconds and memory are those of the last go only."
        )
    return Summary(
        name=config.run.name,
        student=config.student.model,
        oracle=config.rectify.model or config.rectify.oracle,
        objective=" + ".join(config.train.objectives),
        counts=_counts(run),
        evaluation=evaluation.tasks,
        averages=evaluation.averages,
        not_paired=evaluation.not_paired,
        change_ratio=ChangeRatios(
            gamma=config.filter.gamma, values=json.loads(ratios.read_text()) if ratios.exists() else []
        ),
        training=Training(
            steps=len(steps),
            bound=fmean(bounds) if bounds else None,
            first=dict(steps[0]) if steps else {},
            last=dict(steps[-1]) if steps else {},
        ),
        seconds={stage: facts["seconds"] for stage, facts in stages.items()},
        peak_memory_bytes=max((facts["peak_memory_bytes"] for facts in stages.values()), default=0),
        versions=manifest.get("versions", {}),
        settings=config.model_dump(mode="json"),
        notes=notes,
        unfinished=_unfinished(manifest, config),
    )


def _unfinished(manifest: dict[str, Any], config: RunConfig) -> str:
    """Where the run stopped, if stages that the config asks for have not finished."""
    missing = [stage for stage in config.run.stages if stage not in (*manifest["stages"], "report")]
    if not missing:
        return ""
    return f"stopped {'in' if missing[0] in manifest.get('goes', {}) else 'before'} {missing[0]}"


def _overlap(run: RunDirectory) -> list[str]:
    """Notes on questions of the evaluation that were trained on."""
    pairs = read_rows(run / "pairs.jsonl", Pair) if (run / "pairs.jsonl").exists() else []
    left_out = {
        row.id for row in read_dropped(run / "dropped.jsonl") if (row.stage, row.reason) == ("train", "overlap")
    }
    pairs = [pair for pair in pairs if pair.id not in left_out]
    files = sorted((run / "eval").glob("problems/*.jsonl")) if pairs else []
    return list(filter(None, (overlap_note(file.stem, read_rows(file, Problem), pairs) for file in files)))


def _rows(run: RunDirectory, name: str, kind: type[Row]) -> list[Row]:
    return read_rows(run / name, kind) if (run / name).exists() else []


def _counts(run: RunDirectory) -> Counts:
    attempts = read_rows(run / "attempts.jsonl", Attempt) if (run / "attempts.jsonl").exists() else []
    corrections = (
        read_rows(run / "rectifications.jsonl", Rectification) if (run / "rectifications.jsonl").exists() else []
    )
    outcomes = Counter(attempt.outcome for attempt in attempts)
    return Counts(
        problems=len(_rows(run, "problems.jsonl", Problem)),
        attempts=len(attempts),
        correct=outcomes["correct"],
        wrong=outcomes["wrong"],
        unscored=outcomes["unscored"],
        truncated=outcomes["truncated"],
        rectified=sum(row.accepted for row in corrections),
        pairs=len(_rows(run, "pairs.jsonl", Pair)),
        dropped=dict(Counter(row.reason for row in read_dropped(run / "dropped.jsonl"))),
    )
