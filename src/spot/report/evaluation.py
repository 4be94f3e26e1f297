"""The evaluation as a summary holds it: each task before and after, paired by question, the averages, and verdicts.

Accuracies come from the answers, always; titles, groups and the scores beside accuracy from the `results.json` that
stands beside them. A run of an older version has none, and its tasks then have no score beside accuracy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spot.errors import UserError
from spot.evaluate.comparison import MARGIN, Accuracy, Average, Comparison, Measured, TaskResult, compared
from spot.evaluate.registry import LAB
from spot.evaluate.results import FILE, Measure, Results, TaskScore, read_results, task_score
from spot.evaluate.source import Data
from spot.evaluate.statistics import score
from spot.evaluate.task import GROUPS, Task
from spot.files.store import read_rows
from spot.schema import Attempt, Problem, Sampling

SIDES = ("before", "after")

Answers = Mapping[str, tuple[Sequence[Attempt], Sequence[Attempt]]]
"""The answers of tasks before and after."""


@dataclass(frozen=True)
class Evaluated:
    """The tasks in the paper's order, their averages, those not `paired`, and what a reader must know."""

    tasks: dict[str, TaskResult]
    averages: dict[str, Average]
    not_paired: list[str]
    notes: list[str]


def evaluated(run: Path, margin: float = MARGIN) -> Evaluated:
    """What `eval/` of `run` holds. A task that is not answered on both sides, or on one in part, is not paired."""
    names = {file.stem for side in SIDES for file in (run / "eval" / side).glob("*.jsonl")}
    read = {name: _both(run, name) for name in sorted(names)}
    answers = {name: both for name, both in read.items() if both is not None}
    not_paired = [name for name, both in read.items() if both is None]
    if not answers:
        return Evaluated({}, {}, not_paired, [])
    notes: list[str] = []
    old, new = (
        _results(run / "eval" / side, {name: both[place] for name, both in answers.items()}, notes)
        for place, side in enumerate(SIDES)
    )
    found = compared(old, new, {name: answers[name] for name in old.tasks}, margin=margin)
    parts = _parts(run, answers)
    of_parts = _compared_parts(parts, margin)
    called = Counter(found.titles.values())
    tasks: dict[str, TaskResult] = {}
    for name in sorted(found.tasks, key=lambda name: list(GROUPS).index(found.groups[name])):
        told = _comparison(answers[name], found.tasks[name])
        tasks[name] = TaskResult(
            **dict(told),
            slices={part: of_parts[name, part] for part in parts.get(name, {})},
            title=found.titles[name] if called[found.titles[name]] == 1 else name,
            group=found.groups[name],
            measures=_measures(old.tasks[name], new.tasks[name]),
            baselines=new.tasks[name].baselines,
        )
    return Evaluated(tasks, dict(found.averages), not_paired, notes)


def _both(run: Path, name: str) -> tuple[list[Attempt], list[Attempt]] | None:
    paths = [run / "eval" / side / f"{name}.jsonl" for side in SIDES]
    if not all(path.exists() for path in paths):
        return None
    before, after = (read_rows(path, Attempt) for path in paths)
    return (before, after) if before and {row.id for row in before} == {row.id for row in after} else None


def _results(directory: Path, answers: Mapping[str, Sequence[Attempt]], notes: list[str]) -> Results:
    """The scores that the stage wrote; of a task that it wrote none for, as an older version, those of its answers."""
    written: Mapping[str, TaskScore] = {}
    if (directory / FILE).exists():
        try:
            written = read_results(directory).tasks
        except UserError as error:
            notes.append(f"Titles, groups and scores beside accuracy are missing, since {error}.")
    scores = {name: written[name] for name in written if name in answers}
    return _as_results(scores | {name: _plain(name, rows) for name, rows in answers.items() if name not in scores})


def _plain(name: str, attempts: Sequence[Attempt]) -> TaskScore:
    return task_score(Task(name, name, LAB.get(name, "other"), None, _no_problems, ""), [], attempts)


def _no_problems(data: Data, prompt: str) -> list[Problem]:
    del data, prompt
    return []


def _as_results(scores: dict[str, TaskScore]) -> Results:
    return Results(model="", sampling=Sampling(), tasks=scores, averages={})


def _parts(run: Path, answers: Answers) -> dict[str, dict[str, tuple[list[Attempt], list[Attempt]]]]:
    """The answers of each task by the slice of their questions, where these have one."""
    found: dict[str, dict[str, tuple[list[Attempt], list[Attempt]]]] = {}
    for name, both in answers.items():
        path = run / "eval" / "problems" / f"{name}.jsonl"
        problems = read_rows(path, Problem) if path.exists() else []
        slice_of = {problem.id: str(problem.meta["slice"]) for problem in problems if "slice" in problem.meta}
        for side, attempts in enumerate(both):
            for row in attempts:
                if row.problem_id in slice_of:
                    found.setdefault(name, {}).setdefault(slice_of[row.problem_id], ([], []))[side].append(row)
        found[name] = dict(sorted(found.get(name, {}).items()))
    return found


def _compared_parts(
    parts: Mapping[str, Mapping[str, tuple[list[Attempt], list[Attempt]]]], margin: float
) -> dict[tuple[str, str], Comparison]:
    told: dict[tuple[str, str], Comparison] = {}
    for name, of_task in parts.items():
        if of_task:
            results = _as_results({part: _plain(part, both[1]) for part, both in of_task.items()})
            found = compared(results, results, of_task, margin=margin)
            told |= {(name, part): _comparison(both, found.tasks[part]) for part, both in of_task.items()}
    return told


def _comparison(both: tuple[Sequence[Attempt], Sequence[Attempt]], found: Average) -> Comparison:
    return Comparison(
        before=Accuracy(**asdict(score(both[0]))),
        after=Accuracy(**asdict(score(both[1]))),
        difference=found.difference,
        verdict=found.verdict,
    )


def _measures(old: TaskScore, new: TaskScore) -> dict[str, Measured]:
    """The scores beside accuracy: what repetitions come to together, and the task's own measures."""
    sides = [_side_measures(one) for one in (old, new)]
    names = list(dict.fromkeys(name for side in sides for name in side))
    return {name: Measured(before=sides[0].get(name), after=sides[1].get(name)) for name in names}


def _side_measures(one: TaskScore) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    if one.repeats > 1:
        found[f"pass@{one.repeats}"] = Measure(mean=one.pass_at[one.repeats])
        if one.majority is not None:
            found[f"maj@{one.repeats}"] = Measure(mean=one.majority)
    return found | one.measures
