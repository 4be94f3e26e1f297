"""`spot eval`: a model on benchmarks, and two evaluations compared."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from spot.config import RunConfig
from spot.errors import UserError
from spot.evaluate.run import keep_identity, kept_day
from spot.files.disk import locked, write_atomic
from spot.files.store import read_rows
from spot.schema import Attempt
from spot.stages import steps as stages
from spot.stages.opening import made_with, open_ledger, open_model
from spot.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from spot.models.base import Model


def evaluate_model(config: RunConfig, output: Path, inspect_logs: Path | None, console: "Console") -> None:
    """Ask the tasks of `config.evaluate`, each answer kept in `output` as it comes, and print the scores.

    With `inspect_logs` each task is written there as a log for inspect's viewer, too.
    """
    if inspect_logs is not None:
        import_module("spot.evaluate.inspect_log")  # says now, and not after hours, that inspect_ai is missing
    from spot.evaluate.run import keep_questions, remarks
    from spot.evaluate.tables import print_results

    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file; --output names a directory")
    exams = stages.exams(config.evaluate, config.problems, "error", [])
    if not exams:
        raise UserError("--tasks: names no task")
    with _opened(config, output) as model:
        for name, exam in exams.items():
            keep_questions(output / "problems" / f"{name}.jsonl", exam.problems)
            for line in remarks(name, exam.problems):
                say("warning", line)
        results = stages.evaluate(exams, model, config.evaluate, output, "eval", console)
        if inspect_logs is not None:
            from spot.evaluate.inspect_log import write_logs

            for name, exam in exams.items():
                answers = read_rows(output / f"{name}.jsonl", Attempt)
                write_logs(exam.task, exam.problems, answers, results.model, inspect_logs)
    print_results(results, console)
    console.print(f"Written: {output / 'results.json'}, and the answers beside it", highlight=False, soft_wrap=True)
    asked = [results.tasks[name] for name in exams]
    if failed := sum(one.failed for one in asked):
        why = next(one.failure for one in asked if one.failed)
        told = f"{failed:,} of {sum(one.samples for one in asked):,} requests were refused and count as 0"
        console.print(f"{told} (the first: {why})", highlight=False, soft_wrap=True)


@contextmanager
def _opened(config: RunConfig, output: Path) -> "Generator[Model]":
    """The model, and `output` to this process alone; what is asked over a network goes through a ledger there."""
    behind_endpoint = config.student.base_url is not None
    with locked(output), open_ledger(output / "ledger.sqlite") if behind_endpoint else nullcontext() as ledger:
        identity = output / "model.json"
        keep_identity(identity, made_with(config.student))
        yield open_model(config.student, ledger=ledger, stage="eval", day=partial(kept_day, identity))


def search_sampling(config: RunConfig, grid: Sequence[str], output: Path, console: "Console") -> None:
    """Measure every combination of settings like `temperature=0.6,0.7`, each in a directory of its own in `output`.

    Says which has the highest average of tasks (the first of equals), to be held fixed from then on, as the paper does;
    a setting that was picked on the questions that are then compared on flatters the model that it was picked on.
    """
    from spot.evaluate.tables import percent

    settings = [_setting(one) for one in grid]
    exams = stages.exams(config.evaluate, config.problems, "error", [])
    scores: dict[str, float] = {}
    with _opened(config, output) as model:
        for values in product(*(choices for _, choices in settings)):
            given = {name: value for (name, _), value in zip(settings, values, strict=True)}
            label = ",".join(f"{name}={value:g}" for name, value in given.items())
            section = config.evaluate.model_copy(update=given)
            results = stages.evaluate(exams, model, section, output / label, label, console)
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


def compare_evaluations(before: Path, after: Path, margin: float, output: Path | None, console: "Console") -> None:
    """Print the comparison of two directories; with `output`, write it there as Markdown, LaTeX and JSON."""
    from spot.evaluate.run import compare_directories
    from spot.evaluate.tables import as_json, latex, markdown, print_comparison

    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file; --output names a directory")
    if not 0 <= margin <= 1:
        raise UserError(f"--margin {margin}: a share from 0 to 1, 0.02 for two points")
    found = compare_directories(before, after, margin)
    print_comparison(found, console)
    if output is not None:
        for suffix, write in {"md": markdown, "tex": latex, "json": as_json}.items():
            write_atomic(output / f"comparison.{suffix}", write(found))
        console.print(f"Written: {output}/comparison.md, .tex and .json", highlight=False, soft_wrap=True)
