"""Reads a run directory into its `Summary`: every number that the report and the terminal show."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from spot.config import RunConfig
from spot.evaluate.overlap import overlap_note
from spot.evaluate.statistics import compare, score
from spot.report.summary import (
    Accuracy,
    Change,
    ChangeRatios,
    Comparison,
    Counts,
    Summary,
    TaskResult,
    Training,
    read_metrics,
)
from spot.schema import Attempt, Pair, Problem, Rectification, Row
from spot.store import RunDirectory, read_dropped, read_rows


def collect(run: RunDirectory, config: RunConfig) -> Summary:
    """The summary of what `run` holds so far; stages that did not run leave their part empty."""
    manifest = run.manifest
    metrics = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    ratios = run / "change_ratios.json"
    stages = {stage: facts for stage, facts in manifest["stages"].items() if stage != "report"}
    resumed = [stage for stage, goes in manifest.get("goes", {}).items() if goes > 1 and stage in stages]
    notes = [*config.report.notes, *_overlap(run)]
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
        evaluation=_evaluation(run),
        change_ratio=ChangeRatios(
            gamma=config.filter.gamma, values=json.loads(ratios.read_text()) if ratios.exists() else []
        ),
        training=Training(
            steps=len(metrics),
            first=dict(metrics[0]) if metrics else {},
            last=dict(metrics[-1]) if metrics else {},
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


def _evaluation(run: RunDirectory) -> dict[str, TaskResult]:
    results: dict[str, TaskResult] = {}
    for questions in sorted((run / "eval").glob("problems/*.jsonl")):
        task = questions.stem
        paths = [run / "eval" / side / f"{task}.jsonl" for side in ("before", "after")]
        if not all(path.exists() for path in paths):
            continue
        before, after = (read_rows(path, Attempt) for path in paths)
        if {row.problem_id for row in before} != {row.problem_id for row in after}:
            continue  # stopped while this task was being answered
        slice_of = {
            problem.id: str(problem.meta["slice"])
            for problem in read_rows(questions, Problem)
            if "slice" in problem.meta
        }
        slices = {
            name: compared(
                [row for row in before if slice_of.get(row.problem_id) == name],
                [row for row in after if slice_of.get(row.problem_id) == name],
            )
            for name in sorted(set(slice_of.values()))
        }
        results[task] = TaskResult(**dict(compared(before, after)), slices=slices)
    return results


def compared(before: list[Attempt], after: list[Attempt]) -> Comparison:
    """Scores of both sides and their paired difference."""
    return Comparison(
        before=Accuracy(**asdict(score(before))),
        after=Accuracy(**asdict(score(after))),
        difference=Change(**asdict(compare(before, after))),
    )
