"""What a checkpoint is chosen by is not what is reported on: refused before anything is asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from spot.config import parse_config
from spot.errors import UserError
from spot.evaluate.overlap import in_common
from spot.evaluate.registry import find_tasks
from spot.files.store import write_rows
from spot.lab.world import FAMILIES
from spot.report.summary import read_metrics, read_warnings
from spot.schema import Problem
from spot.stages.preflight import preflight


def problems(path: Path, *prompts: str) -> str:
    write_rows(path, [Problem(id=f"q{n}", prompt=prompt, answer="1") for n, prompt in enumerate(prompts)])
    return str(path)


def look(train: dict[str, Any], tasks: list[str]) -> None:
    raw = {
        "train": {"precision": "fp32", **train},
        "evaluate": {"tasks": tasks, "questions": 5},
        "run": {"stages": ["train"]},
    }
    for name, step in preflight(parse_config(raw, "config.yaml"), ["train", "evaluate"]):
        if name.startswith(("train.eval", "train.load")):
            step()


BEST = {"eval_every": 5, "load_best_model_at_end": True}


@pytest.mark.parametrize(
    ("train", "told"),
    [
        (BEST, "must not be chosen by what is reported on (evaluate.tasks)"),
        (BEST | {"eval_tasks": ["ood", "in_domain_tune"]}, "set train.metric_for_best_model, one of eval_ood, eval_in"),
        ({"load_best_model_at_end": True, "eval_tasks": ["ood"]}, "set train.eval_every"),
        ({"eval_tasks": ["ood"]}, "train.eval_tasks: nothing is measured on the way"),
        ({"eval_every": 5, "eval_tasks": ["in_domain"]}, "in_domain is a task of evaluate, too"),
    ],
)
def test_a_checkpoint_is_not_chosen_by_what_is_reported_on(train: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        look(train, ["in_domain"])
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_other_questions_may_choose(tmp_path: Path) -> None:
    chosen = {"eval_tasks": ["in_domain_tune"], "metric_for_best_model": "eval_in_domain_tune"}
    look(BEST | chosen, ["in_domain"])
    look({"eval_every": 5}, ["in_domain"])  # watching alone chooses nothing
    mine = problems(tmp_path / "mine.jsonl", "What is 2 and 3?", "What is 4?")
    theirs = problems(tmp_path / "theirs.jsonl", "What is 5?")
    look({"eval_every": 5, "eval_tasks": [mine]}, [theirs])
    with pytest.raises(UserError, match="1 of 2 questions of mine are questions of theirs in evaluate.tasks"):
        look({"eval_every": 5, "eval_tasks": [mine]}, [problems(tmp_path / "theirs.jsonl", "what is  4")])


def test_the_labs_questions_to_choose_by_are_none_that_are_trained_or_reported_on() -> None:
    for family in FAMILIES:
        tune, test = (
            {str(row.prompt) for row in task.problems(None)} for task in find_tasks([f"{family}_tune", family])
        )
        assert len(tune) == len(test) == 400 and not tune & test
    assert in_common({"a": []}, {"b": []}) == ""


def test_warnings_of_training_are_read_for_the_report(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "loss": 1.0, "warnings": ["a"]},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 1.0, "warnings": ["b", "c"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_warnings(path) == ["a", "b", "c"]
    assert [set(row) for row in read_metrics(path)] == [{"step", "loss"}] * 3
