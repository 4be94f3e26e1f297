"""What an evaluation comes to in the summary: the same as `spot eval --compare` says, whatever the run lacks."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from spot.evaluate.comparison import MARGIN, Accuracy
from spot.evaluate.results import Measure, Results, averages, task_score, write_results
from spot.evaluate.run import compare_directories
from spot.evaluate.task import Group, Task
from spot.files.store import read_rows, write_rows
from spot.report.evaluation import SIDES, evaluated
from spot.schema import Attempt, Sampling

NewRun = Callable[..., Path]
GROUPS: dict[str, Group] = {"instructions": "general", "ood": "ood", "in_domain": "in_domain"}


def with_results(run: Path, titles: Mapping[str, str]) -> Path:
    """Write `results.json` beside the answers, in an order that is not the paper's."""
    for side in SIDES:
        scores = {
            name: task_score(
                Task(name, titles[name], GROUPS[name], None, lambda data, prompt: [], ""),
                [],
                read_rows(run / "eval" / side / f"{name}.jsonl", Attempt),
            )
            for name in GROUPS
        }
        scores["ood"] = scores["ood"].model_copy(
            update={"measures": {"strict": Measure(mean=0.25, stderr=0.1)}, "baselines": {"none": 0.125}}
        )
        results = Results(model=side, sampling=Sampling(), tasks=scores, averages=averages(scores))
        write_results(run / "eval" / side, results)
    return run


def twice(run: Path) -> Path:
    """Each question answered twice, the second answer of each after training being wrong."""
    for side in SIDES:
        for path in (run / "eval" / side).glob("*.jsonl"):
            rows = read_rows(path, Attempt)
            second = [row.model_copy(update={"id": f"{row.problem_id}#1", "sample": 1}) for row in rows]
            wrong = rows[0].verdict.model_copy(update={"correct": False, "answer": None})
            if side == "after":
                second = [row.model_copy(update={"verdict": wrong}) for row in second]
            write_rows(path, rows + second)
    return run


def test_it_is_what_eval_compare_says_of_the_two_directories(new_run: NewRun) -> None:
    run = with_results(twice(new_run()), {name: name.upper() for name in GROUPS})
    found, told = compare_directories(run / "eval/before", run / "eval/after"), evaluated(run)
    assert list(told.tasks) == ["in_domain", "ood", "instructions"]  # the paper's order
    assert told.averages.keys() == found.averages.keys()
    changes = {**found.tasks, **found.averages}
    for name, one in [*told.tasks.items(), *told.averages.items()]:
        change = changes[name]
        assert one.difference == change.difference
        assert one.verdict == change.verdict == change.difference.verdict(MARGIN)
        sides = [side.mean if isinstance(side, Accuracy) else side for side in (one.before, one.after)]
        assert sides == pytest.approx([change.before, change.after])
    assert {name: one.title for name, one in told.tasks.items()} == found.titles
    assert {name: one.group for name, one in told.tasks.items()} == found.groups


def test_scores_beside_accuracy_are_those_of_the_stage(new_run: NewRun) -> None:
    told = evaluated(with_results(twice(new_run()), dict.fromkeys(GROUPS, "same")))
    ood = told.tasks["ood"]
    assert list(ood.measures) == ["pass@2", "maj@2", "strict"]
    strict = ood.measures["strict"].after
    assert strict is not None
    assert (strict.mean, strict.stderr) == (0.25, 0.1)
    assert ood.baselines == {"none": 0.125}
    assert [one.title for one in told.tasks.values()] == list(told.tasks)  # one title of three says nothing


def test_a_run_of_an_older_version_has_the_same_numbers(new_run: NewRun) -> None:
    run = new_run()
    old = evaluated(run)
    new = evaluated(with_results(run, {name: name for name in GROUPS}))
    for name, one in old.tasks.items():
        assert (one.before, one.after, one.group) == (new.tasks[name].before, new.tasks[name].after, GROUPS[name])
        assert one.difference.mean == new.tasks[name].difference.mean
    assert old.notes == new.notes == []


def test_damaged_results_are_said_and_done_without(new_run: NewRun) -> None:
    run = with_results(new_run(), {name: name for name in GROUPS})
    (run / "eval/before/results.json").write_text("{}")
    told = evaluated(run)
    assert list(told.tasks) == ["in_domain", "ood", "instructions"]
    assert "before/results.json: damaged or of another version" in told.notes[0]


def test_only_what_is_answered_whole_on_both_sides_is_paired(new_run: NewRun) -> None:
    run = twice(new_run())
    (run / "eval/after/ood.jsonl").unlink()
    half = run / "eval/after/instructions.jsonl"
    write_rows(half, read_rows(half, Attempt)[:-1])  # every question is there, but not every repetition
    told = evaluated(run)
    assert (list(told.tasks), told.not_paired) == (["in_domain"], ["instructions", "ood"])
    for path in (run / "eval/after").iterdir():
        path.unlink()
    assert evaluated(run).tasks == {}


def test_slices_hold_the_questions_of_their_task(new_run: NewRun) -> None:
    task = evaluated(new_run()).tasks["in_domain"]
    assert list(task.slices) == ["seen templates", "unseen templates"]
    assert sum(part.difference.n for part in task.slices.values()) == task.difference.n
    mean = sum(part.difference.mean * part.difference.n for part in task.slices.values()) / task.difference.n
    assert mean == pytest.approx(task.difference.mean)
