"""Asking benchmarks: what is asked is kept beside the answers, and a later go must ask the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spot.errors import UserError
from spot.evaluate.comparison import Compared, compared
from spot.evaluate.results import Results, averages, read_results, task_score
from spot.evaluate.task import Task
from spot.schema import Attempt, Problem, Sampling
from spot.store import read_rows, write_rows
from spot.verify.base import Verifier
from spot.verify.resolve import resolve


@dataclass(frozen=True)
class Exam:
    """A task with the questions of this time and who judges the answers."""

    task: Task
    problems: Sequence[Problem]
    verifier: Verifier


def exam(task: Task, data_dir: Path | None, prompt: str | None, limit: int | None) -> Exam:
    """The task ready to be asked. Raises `UserError` where its rows cannot be had or its verifier not be used."""
    if task.verifier == "ifeval":
        from spot.verify.ifeval import missing

        if why := missing():
            raise UserError(f"{task.name}: {why}")
    return Exam(task, task.problems(data_dir, prompt, limit), resolve(task.verifier or "math"))


def keep_questions(path: Path, questions: Sequence[Problem]) -> None:
    """Keep what is asked at `path`. Raises `UserError` where something else was asked there before."""
    if not path.exists():
        write_rows(path, questions)
    elif read_rows(path, Problem) != list(questions):
        raise UserError(
            f"{path}: the answers beside it are to other questions, or to the same in other words; name another output"
        )


def results_of(
    model: str, sampling: Sampling, exams: Mapping[str, Exam], answers: Mapping[str, Sequence[Attempt]]
) -> Results:
    """The scores of all tasks and their averages."""
    scores = {name: task_score(one.task, one.problems, answers[name]) for name, one in exams.items()}
    return Results(model=model, sampling=sampling, tasks=scores, averages=averages(scores))


def compare_directories(before: Path, after: Path) -> Compared:
    """What `spot eval` wrote into two directories, compared.

    Raises `UserError` where one is none, or they have no questions in common.
    """
    old, new = read_results(before), read_results(after)
    answers = {
        name: (read_rows(before / f"{name}.jsonl", Attempt), read_rows(after / f"{name}.jsonl", Attempt))
        for name in old.tasks
        if name in new.tasks
    }
    for name in answers:
        asked = [directory / "problems" / f"{name}.jsonl" for directory in (before, after)]
        if all(path.exists() for path in asked) and read_rows(asked[0], Problem) != read_rows(asked[1], Problem):
            raise UserError(f"{name}: {before} and {after} answer other questions, or the same in other words")
    return compared(old, new, answers)
