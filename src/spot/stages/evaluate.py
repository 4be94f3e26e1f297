"""The stage `evaluate`, and `spot eval`: models on benchmarks, and two evaluations compared."""

import gc
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path

from rich.console import Console

from spot.config import EvaluateSection, RunConfig
from spot.errors import UserError
from spot.evaluate.overlap import overlap_note
from spot.evaluate.results import Results, forget, merged, write_results
from spot.evaluate.run import (
    Exam,
    compare_directories,
    keep_identity,
    keep_questions,
    kept_day,
    remarks,
    results_of,
)
from spot.evaluate.tables import as_json, latex, markdown, percent, print_comparison, print_results
from spot.files.disk import locked, write_atomic
from spot.files.store import read_rows
from spot.models.base import Model
from spot.models.paid.ledger import Ledger
from spot.schema import Attempt, Dropped, Pair
from spot.stages.elicit import ask
from spot.stages.exams import exams, kept_exams
from spot.stages.opening import made_with, open_model
from spot.stages.place import Place
from spot.terminal import say


def evaluate(config: RunConfig, place: Place, console: Console) -> str:
    """Measure the student of a run before and after training, both in process; returns how many questions."""
    run = place.run
    assert run is not None  # beside an output, `spot eval` measures one model
    skipped: list[Dropped] = []
    tasks = kept_exams(config, place, skipped)
    if not tasks:
        return "no tasks, nothing measured"
    for line in (line for task, exam in tasks.items() for line in remarks(task, exam.problems)):
        say("warning", line)
    if "train" not in config.run.stages and place.pairs.exists():
        pairs = read_rows(place.pairs, Pair)
        for note in filter(None, (overlap_note(task, tasks[task].problems, pairs) for task in tasks)):
            say("warning", note)
    if not (run / "model").exists():
        raise UserError(f"{run / 'model'}: not there yet; the stage 'train' makes it, add it to run.stages")
    for side, weights in {"before": None, "after": run / "model"}.items():
        # Both in process, so that nothing but the weights differs.
        model = open_model(config.student.model_copy(update={"base_url": None}), weights, day=place.day)
        answer_tasks(tasks, model, config.evaluate, run / "eval" / side, side, console)
        del model
        gc.collect()  # one model at a time in memory
    place.drop("evaluate", skipped)
    return f"{sum(len(exam.problems) for exam in tasks.values()):,} questions, before and after"


def answer_tasks(
    tasks: Mapping[str, Exam],
    model: Model,
    section: EvaluateSection,
    output_dir: Path,
    title: str,
    console: Console,
) -> Results:
    """Answer every task with `model`, one file of attempts a task in `output_dir`, and `results.json` over all."""
    askers = {name: _asker(exam, model) for name, exam in tasks.items()}
    forget(output_dir, tasks)
    answers: dict[str, list[Attempt]] = {}
    for name, exam in tasks.items():
        answers[name] = ask(
            exam.problems,
            askers[name],
            exam.verifier,
            section,
            section.seed,
            output_dir / f"{name}.jsonl",
            f"{title} {name}",
            console,
            samples=section.samples or exam.task.repeats,
            variant=exam.task.variant,
        )
    results = merged(output_dir, results_of(model.name, section.sampling(section.seed), tasks, answers))
    write_results(output_dir, results)
    return results


def _asker(exam: Exam, model: Model) -> Model:
    """Who answers: the model, or for a test of likelihoods one that scores the known choices with it."""
    if exam.task.scored_by == "answers":
        return model
    from spot.models.local.likelihood import LikelihoodModel  # loads torch, which an endpoint does not need
    from spot.models.local.model import LocalModel

    if not isinstance(model, LocalModel):
        raise UserError(
            f"{exam.task.name}: compares log-probabilities, which the model behind an endpoint does not give; name its "
            "weights, or leave the task out"
        )
    return LikelihoodModel(model, {problem.id: problem.meta["choices"] for problem in exam.problems})


def evaluate_model(config: RunConfig, output: Path, inspect_logs: Path | None, console: Console) -> None:
    """Ask the tasks of `config.evaluate`, each answer kept in `output` as it comes, and print the scores.

    With `inspect_logs` each task is written there as a log for inspect's viewer, too.
    """
    if inspect_logs is not None:
        import_module("spot.evaluate.inspect_log")  # says now, and not after hours, that inspect_ai is missing
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file; --output names a directory")
    tasks = exams(config.evaluate, config.problems, "error", [])
    if not tasks:
        raise UserError("--tasks: names no task")
    with _opened(config, output) as model:
        for name, exam in tasks.items():
            keep_questions(output / "problems" / f"{name}.jsonl", exam.problems)
            for line in remarks(name, exam.problems):
                say("warning", line)
        results = answer_tasks(tasks, model, config.evaluate, output, "eval", console)
        if inspect_logs is not None:
            from spot.evaluate.inspect_log import write_logs

            for name, exam in tasks.items():
                answers = read_rows(output / f"{name}.jsonl", Attempt)
                write_logs(exam.task, exam.problems, answers, results.model, inspect_logs)
    print_results(results, console)
    console.print(f"Written: {output / 'results.json'}, and the answers beside it", highlight=False, soft_wrap=True)
    scores = [results.tasks[name] for name in tasks]
    if failed := sum(one.failed for one in scores):
        why = next(one.failure for one in scores if one.failed)
        told = f"{failed:,} of {sum(one.samples for one in scores):,} requests were refused and count as 0"
        console.print(f"{told} (the first: {why})", highlight=False, soft_wrap=True)


@contextmanager
def _opened(config: RunConfig, output: Path) -> Generator[Model]:
    """The model, and `output` to this process alone; what is asked over a network goes through a ledger there."""
    behind_endpoint = config.student.base_url is not None
    with locked(output), Ledger(output / "ledger.sqlite") if behind_endpoint else nullcontext() as ledger:
        identity = output / "model.json"
        keep_identity(identity, made_with(config.student))
        yield open_model(config.student, ledger=ledger, stage="eval", day=partial(kept_day, identity))


def search_sampling(config: RunConfig, grid: Sequence[str], output: Path, console: Console) -> None:
    """Measure every combination of settings like `temperature=0.6,0.7`, each in a directory of its own in `output`.

    Says which has the highest average of tasks (the first of equals), to be held fixed from then on, as the paper does;
    a setting that was picked on the questions that are then compared on flatters the model that it was picked on.
    """
    settings = [_setting(one) for one in grid]
    tasks = exams(config.evaluate, config.problems, "error", [])
    scores: dict[str, float] = {}
    with _opened(config, output) as model:
        for values in product(*(choices for _, choices in settings)):
            given = {name: value for (name, _), value in zip(settings, values, strict=True)}
            label = ",".join(f"{name}={value:g}" for name, value in given.items())
            section = config.evaluate.model_copy(update=given)
            results = answer_tasks(tasks, model, section, output / label, label, console)
            scores[label] = results.averages["all"]
            console.print(f"{label}: {percent(scores[label])}", highlight=False)
    best = max(scores, key=lambda label: scores[label])
    fixed = " ".join(f"evaluate.{one}" for one in best.split(","))
    console.print(f"highest: {fixed} ({percent(scores[best])})", highlight=False, soft_wrap=True)


def _setting(text: str) -> tuple[str, list[float]]:
    name, _, values = text.partition("=")
    bounds = {"temperature": (0.0, 10.0), "top_p": (1e-6, 1.0)}
    try:
        found = [float(value) for value in values.split(",")]
    except ValueError:
        found = []
    low, high = bounds.get(name, (1.0, 0.0))
    if not found or not all(low <= value <= high for value in found):
        raise UserError(f"--search {text}: write temperature=0.6,0.7,1.0 or top_p=0.8,0.95, each value in its range")
    return name, found


def compare_evaluations(before: Path, after: Path, margin: float, output: Path | None, console: Console) -> None:
    """Print the comparison of two directories; with `output`, write it there as Markdown, LaTeX and JSON."""
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file; --output names a directory")
    if not 0 <= margin <= 1:
        raise UserError(f"--margin {margin}: a share from 0 to 1, 0.02 for two points")
    comparison = compare_directories(before, after, margin)
    print_comparison(comparison, console)
    if output is not None:
        for suffix, write in {"md": markdown, "tex": latex, "json": as_json}.items():
            write_atomic(output / f"comparison.{suffix}", write(comparison))
        console.print(f"Written: {output}/comparison.md, .tex and .json", highlight=False, soft_wrap=True)
