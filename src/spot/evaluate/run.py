"""What `spot eval` asks and keeps: the questions, who judges, and the identity of the model that answered."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from spot.errors import UserError
from spot.evaluate.comparison import MARGIN, Compared, compared
from spot.evaluate.results import Results, averages, read_results, task_score
from spot.evaluate.task import Task
from spot.files.disk import write_atomic
from spot.files.store import read_rows, write_rows
from spot.schema import Attempt, Problem, Sampling
from spot.verify.base import Verifier
from spot.verify.choice import LETTERS
from spot.verify.resolve import resolve


@dataclass(frozen=True)
class Exam:
    """A task with its questions and the verifier of their answers."""

    task: Task
    problems: Sequence[Problem]
    verifier: Verifier


def exam(task: Task, data_dir: Path | None, prompt: str | None, limit: int | None) -> Exam:
    """The task ready to be asked. Raises `UserError` if its rows or its verifier are not available."""
    if task.verifier == "ifeval":
        from spot.verify.ifeval import missing

        if why := missing():
            raise UserError(f"{task.name}: {why}")
    return Exam(task, task.problems(data_dir, prompt, limit), resolve(task.verifier or "math"))


def remarks(name: str, problems: Sequence[Problem]) -> list[str]:
    """Warnings about the rows of a task, a line each: repeated questions, the right option offered twice."""
    places: dict[str, list[str]] = {}
    for problem in problems:
        # Options are shuffled for each question, so the same row looks different each time.
        question = problem.meta.get("question")
        asked = [question, *sorted(problem.meta["options"])] if question else problem.model_dump()["prompt"]
        places.setdefault(json.dumps(asked), []).append(problem.id)
    repeated = [ids for ids in places.values() if len(ids) > 1]
    ambiguous = [one.id for one in problems if _offers_the_answer_twice(one)]
    lines: list[str] = []
    if repeated:
        count = sum(len(ids) - 1 for ids in repeated)
        rows, some = "row repeats" if count == 1 else "rows repeat", _some([" = ".join(ids) for ids in repeated])
        lines.append(f"{name}: {count:,} {rows} a question and count again ({some})")
    if ambiguous:
        rows = "row offers" if len(ambiguous) == 1 else "rows offer"
        lines.append(
            f"{name}: {len(ambiguous):,} {rows} the right option twice ({_some(ambiguous)}); only one letter counts "
            "as right; correct or remove them"
        )
    return lines


def _offers_the_answer_twice(problem: Problem) -> bool:
    options = [" ".join(str(one).split()) for one in problem.meta.get("shown") or problem.meta.get("options") or ()]
    place = LETTERS.find(problem.answer) if problem.answer else -1
    return 0 <= place < len(options) and options.count(options[place]) > 1


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def keep_questions(path: Path, questions: Sequence[Problem]) -> None:
    """Write the questions to `path`. Raises `UserError` if other questions are there already."""
    if not path.exists():
        write_rows(path, questions)
    elif read_rows(path, Problem) != list(questions):
        raise UserError(
            f"{path}: the answers beside it are to other questions, or the wording changed; choose another output"
        )


def results_of(
    model: str, sampling: Sampling, exams: Mapping[str, Exam], answers: Mapping[str, Sequence[Attempt]]
) -> Results:
    """The scores of all tasks and their averages."""
    scores = {name: task_score(one.task, one.problems, answers[name]) for name, one in exams.items()}
    return Results(model=model, sampling=sampling, tasks=scores, averages=averages(scores))


def compare_directories(before: Path, after: Path, margin: float = MARGIN) -> Compared:
    """What `spot eval` wrote into two directories, compared.

    Raises `UserError` if one is not such a directory, or they differ in sampling or questions.
    """
    old, new = read_results(before), read_results(after)
    if (was := _drawn(old.sampling)) != (now := _drawn(new.sampling)):
        raise UserError(f"{before} was sampled with {was} and {after} with {now}; use the same sampling for both")
    answers: dict[str, tuple[list[Attempt], list[Attempt]]] = {}
    for name in old.tasks:
        if name in new.tasks:
            answers[name] = _answers(before, old, name), _answers(after, new, name)
            if _questions(before, name) != _questions(after, name):
                counts = [len(_questions(directory, name)) for directory in (before, after)]
                raise UserError(
                    f"{name}: {before} ({counts[0]:,} questions) and {after} ({counts[1]:,}) differ in their "
                    "questions or in the wording; measure both with the same tasks and prompts"
                )
    found = compared(old, new, answers, margin=margin)
    return replace(found, before=str(before), after=str(after))


def _drawn(sampling: Sampling) -> str:
    return f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, at most {sampling.max_new_tokens:,} tokens"


def _questions(directory: Path, name: str) -> list[Problem]:
    """The questions; in a run directory before and after share theirs."""
    path = directory / "problems" / f"{name}.jsonl"
    return read_rows(path if path.exists() else directory.parent / "problems" / path.name, Problem)


def _answers(directory: Path, results: Results, name: str) -> list[Attempt]:
    path = directory / f"{name}.jsonl"
    rows = read_rows(path, Attempt)
    if len(rows) != results.tasks[name].samples:
        raise UserError(
            f"{path}: {len(rows):,} answers where {directory / 'results.json'} has "
            f"{results.tasks[name].samples:,}; run spot eval there again"
        )
    return rows


def keep_identity(path: Path, made_with: str) -> None:
    """Keep what made the answers beside `path`. Raises `UserError` if something else made them."""
    kept = _identity(path)
    if kept.setdefault("made_with", made_with) != made_with:
        raise UserError(
            f"{path}: the answers beside it are of {kept['made_with']}, not of {made_with}; choose another output, or "
            "delete that file if it is the same model"
        )
    _keep(path, kept)


def kept_day(path: Path) -> date:
    """The day of the first call, kept at `path`: prompts that print the date print this one, so that a resumed run asks
    the same."""
    kept = _identity(path)
    day = date.fromisoformat(kept.setdefault("day", date.today().isoformat()))
    _keep(path, kept)
    return day


def _identity(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        kept = {str(name): str(value) for name, value in json.loads(path.read_text("utf-8")).items()}
        date.fromisoformat(kept.get("day", "2000-01-01"))
    except (ValueError, AttributeError):
        raise UserError(f"{path}: damaged; delete it if the answers beside it are of this model") from None
    return kept


def _keep(path: Path, kept: Mapping[str, str]) -> None:
    if kept != _identity(path):
        write_atomic(path, json.dumps(kept, indent=1) + "\n")
