"""`spot eval`: a model on benchmarks, and two evaluations compared."""

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from spot import stages
from spot.config import RunConfig
from spot.errors import UserError
from spot.opening import open_ledger, open_model
from spot.schema import Attempt
from spot.store import locked, read_rows, write_atomic

if TYPE_CHECKING:
    from rich.console import Console


def evaluate_model(config: RunConfig, output: Path, inspect_logs: Path | None, console: "Console") -> None:
    """Ask the tasks of `config.evaluate`, each answer kept in `output` as it comes, and print the scores.

    With `inspect_logs` each task is written there as a log for inspect's viewer, too.
    """
    if inspect_logs is not None:
        import_module("spot.evaluate.inspect_log")  # says now, and not after hours, that inspect_ai is missing
    from spot.evaluate.run import keep_questions
    from spot.evaluate.tables import print_results

    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: a file; --output names a directory")
    exams = stages.exams(config.evaluate, config.problems, "error", [])
    if not exams:
        raise UserError("--tasks: names no task")
    behind_endpoint = config.student.base_url is not None
    with locked(output), open_ledger(output / "ledger.sqlite") if behind_endpoint else nullcontext() as ledger:
        model = open_model(config.student, ledger=ledger, stage="eval")
        for name, exam in exams.items():
            keep_questions(output / "problems" / f"{name}.jsonl", exam.problems)
        results = stages.evaluate(exams, model, config.evaluate, output, "eval", console)
        if inspect_logs is not None:
            from spot.evaluate.inspect_log import write_logs

            for name, exam in exams.items():
                answers = read_rows(output / f"{name}.jsonl", Attempt)
                write_logs(exam.task, exam.problems, answers, results.model, inspect_logs)
    print_results(results, console)
    console.print(f"Written: {output / 'results.json'}, and the answers beside it", highlight=False, soft_wrap=True)


def compare_evaluations(before: Path, after: Path, margin: float, output: Path | None, console: "Console") -> None:
    """Print the comparison of two directories; with `output`, write it there as Markdown, LaTeX and JSON."""
    from spot.evaluate.run import compare_directories
    from spot.evaluate.tables import as_json, latex, markdown, print_comparison

    if not 0 <= margin <= 1:
        raise UserError(f"--margin {margin}: a share from 0 to 1, 0.02 for two points")
    found = compare_directories(before, after)
    print_comparison(found, margin, console)
    if output is not None:
        for suffix, write in {"md": markdown, "tex": latex, "json": as_json}.items():
            write_atomic(output / f"comparison.{suffix}", write(found, margin))
        console.print(f"Written: {output}/comparison.md, .tex and .json", highlight=False, soft_wrap=True)
