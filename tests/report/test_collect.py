"""What a run directory that is not whole yet says about itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spot.config import RunConfig
from spot.files.store import RunDirectory, read_rows, write_rows
from spot.report.collect import collect
from spot.schema import Attempt, Pair, Problem

NewRun = Callable[..., Path]
FACTS = {"seconds": 1.0, "peak_memory_bytes": 1}


def manifest(run: Path, finished: list[str], begun: list[str]) -> None:
    stages = dict.fromkeys(finished, FACTS)
    (run / "manifest.json").write_text(json.dumps({"stages": stages, "goes": dict.fromkeys(begun, 1)}))


@pytest.mark.parametrize(
    ("finished", "begun", "told"),
    [
        (["elicit", "rectify", "filter"], ["elicit", "rectify", "filter", "train"], "stopped in train"),
        (["elicit"], ["elicit"], "stopped before rectify"),
        (["elicit", "rectify", "filter", "train", "evaluate"], [], ""),
    ],
)
def test_where_a_run_stopped(new_run: NewRun, finished: list[str], begun: list[str], told: str) -> None:
    run = new_run()
    manifest(run, finished, begun)
    assert collect(RunDirectory(run), RunConfig()).unfinished == told


def test_stages_that_were_not_asked_for_are_not_missed(new_run: NewRun) -> None:
    run = new_run()
    manifest(run, ["elicit"], ["elicit"])
    config = RunConfig.model_validate({"run": {"stages": ["elicit", "report"]}})
    assert collect(RunDirectory(run), config).unfinished == ""


def test_a_task_that_was_answered_in_part_is_left_out(new_run: NewRun) -> None:
    run = new_run()
    manifest(run, ["elicit"], ["elicit"])
    after = run / "eval/after/ood.jsonl"
    write_rows(after, read_rows(after, Attempt)[:-1])
    summary = collect(RunDirectory(run), RunConfig())
    assert list(summary.evaluation) == ["in_domain", "instructions"]
    assert summary.not_paired == ["ood"]


def test_questions_that_were_trained_on_are_noted(new_run: NewRun) -> None:
    run = new_run()
    manifest(run, ["elicit"], ["elicit"])
    assert collect(RunDirectory(run), RunConfig()).notes == []
    questions = read_rows(run / "eval/problems/ood.jsonl", Problem)
    pairs = read_rows(run / "pairs.jsonl", Pair)
    write_rows(run / "pairs.jsonl", [pairs[0].model_copy(update={"prompt": questions[0].prompt}), *pairs[1:]])
    (note,) = collect(RunDirectory(run), RunConfig()).notes
    assert note.startswith("1 of 40 questions of ood are among the problems trained on")
