"""What an evaluation comes to: a score a task and the averages, in `results.json` beside the answers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spot.errors import UserError
from spot.evaluate.statistics import majority, pass_at, score, share
from spot.evaluate.task import GROUPS, Group, Task
from spot.files.disk import write_atomic
from spot.schema import Attempt, Problem, Sampling

FILE = "results.json"


Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Signed = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class Part(BaseModel):
    """Base: immutable, no unknown fields, no coercion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Measure(Part):
    """A score beside accuracy, and its standard error over questions where it has one."""

    mean: Fraction
    stderr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class TaskScore(Part):
    """A task's accuracy, the mean over `repeats` of each of `n` questions, with its 95% interval.

    Of the `samples`, those `truncated` and `unanswered` score 0, and so do those `unscored`; of the latter `failed` had
    no reply at all, the first for the reason `failure`. `pass_at` holds pass@k for 1 and `repeats`; `majority` is maj@k
    over all repeats, where answers can vote. `same_answers` is the share of questions all of whose repetitions have the
    same text: where that is high at a temperature above 0, repetitions say little.
    """

    title: str
    group: Group
    mean: float
    stderr: float | None
    low: float
    high: float
    n: int
    repeats: int
    samples: int
    truncated: int
    unanswered: int
    unscored: int
    failed: int = 0
    failure: str = ""
    pass_at: dict[int, float]
    majority: float | None
    same_answers: float
    measures: dict[str, Measure] = {}
    baselines: dict[str, float] = {}


class Results(Part):
    """One model on some tasks. `averages` are means of the tasks' means: of each group, and of all (`all`)."""

    model: str
    sampling: Sampling
    tasks: dict[str, TaskScore]
    averages: dict[str, float]


def task_score(task: Task, problems: Sequence[Problem], attempts: Sequence[Attempt]) -> TaskScore:
    """The scores of `attempts`, which answer each of `problems` equally often."""
    found = score(attempts)
    repeats = found.samples // found.n
    failures = [attempt for attempt in attempts if attempt.finish_reason == "error"]
    texts: dict[str, set[str]] = {}
    for attempt in attempts:
        texts.setdefault(attempt.problem_id, set()).add(attempt.response)
    return TaskScore(
        title=task.title,
        group=task.group,
        mean=found.mean,
        stderr=found.stderr,
        low=found.low,
        high=found.high,
        n=found.n,
        repeats=repeats,
        samples=found.samples,
        truncated=found.truncated,
        unanswered=found.unanswered,
        unscored=found.unscored,
        failed=len(failures),
        failure=failures[0].verdict.reason if failures else "",
        pass_at={k: pass_at(k, attempts) for k in sorted({1, repeats})},
        majority=majority(attempts) if task.has_one_answer else None,
        same_answers=fmean(len(some) == 1 for some in texts.values()) if repeats > 1 and not failures else 0.0,
        measures=_measures(task, problems, attempts),
        baselines=dict(task.baselines(problems)) if task.baselines else {},
    )


def _measures(task: Task, problems: Sequence[Problem], attempts: Sequence[Attempt]) -> dict[str, Measure]:
    if task.measures is None:
        return {}
    problem_of = {problem.id: problem for problem in problems}
    parts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for attempt in attempts:
        problem = problem_of[attempt.problem_id]
        asked = task.variant(problem, attempt.sample) if task.variant else problem
        for name, part in task.measures(attempt, asked).items():
            parts.setdefault(name, {}).setdefault(attempt.problem_id, []).append(part)
    # Where nothing could be judged there is no share of anything.
    found = {
        name: share(some) for name, some in parts.items() if any(whole for one in some.values() for _, whole in one)
    }
    return {name: Measure(mean=mean, stderr=stderr) for name, (mean, stderr) in found.items()}


def averages(scores: Mapping[str, TaskScore]) -> dict[str, float]:
    """The means of tasks' means, by group, and of all; a group of no task is left out."""
    found = {group: [one.mean for one in scores.values() if one.group == group] for group in GROUPS if group != "other"}
    found["all"] = [one.mean for one in scores.values()]
    return {name: fmean(means) for name, means in found.items() if means}


def merged(directory: Path, results: Results) -> Results:
    """`results` and those of other tasks that the same model has in `directory`.

    Raises `UserError` where those are of another model or other sampling.
    """
    if not (directory / FILE).exists():
        return results
    known = read_results(directory)
    if (known.model, known.sampling) != (results.model, results.sampling):
        raise UserError(f"{directory / FILE}: of another model or other sampling; name another output")
    tasks = {**{name: one for name, one in known.tasks.items() if name not in results.tasks}, **results.tasks}
    return results.model_copy(update={"tasks": tasks, "averages": averages(tasks)})


def forget(directory: Path, names: Collection[str]) -> None:
    """Take the scores of tasks that are about to be asked out of `results.json`: they may be of fewer answers."""
    if (directory / FILE).exists():
        known = read_results(directory)
        tasks = {name: one for name, one in known.tasks.items() if name not in names}
        if tasks:
            write_results(directory, known.model_copy(update={"tasks": tasks, "averages": averages(tasks)}))
        else:
            (directory / FILE).unlink()


def write_results(output: Path, results: Results) -> Path:
    """Write `results.json` into `output`."""
    path = output / FILE
    write_atomic(path, results.model_dump_json(indent=2) + "\n")
    return path


def read_results(directory: Path) -> Results:
    """What `spot eval` wrote into `directory`. Raises `UserError` where there is nothing, or it is damaged."""
    path = directory / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; spot eval --output {directory} writes it when all tasks are answered")
    try:
        return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "not JSON"
        raise UserError(f"{path}: damaged or of another version ({where}); run spot eval again") from None
