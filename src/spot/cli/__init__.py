"""The `spot` command: parse, build, call. Heavy imports happen inside the commands, so that `spot --help` is quick."""

import os
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from spot import __version__, interrupt
from spot.cli.runs import runs
from spot.cli.shared import (
    AttemptsFile,
    Model,
    OnBadRow,
    Output,
    Overrides,
    ProblemsFile,
    Rows,
    overridden,
    run_stage,
    show_summary,
)
from spot.errors import UserError, plain_errors
from spot.plugin import REGISTERED, load_registered
from spot.terminal import new_console

app = typer.Typer(
    help="Surgical post-training: have a model's own errors corrected with minimal edits, and train on the pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use, 3 stopped early and resumable. Start with: spot demo",
)


def main() -> None:
    """Run the command line; every error that is the user's to fix is one line and an exit code."""
    interrupt.install()
    # Its retries of a hub that cannot be reached would print a page before our one line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    with plain_errors():
        app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spot {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """What stands before a command."""


@app.command("run", epilog="Example: spot run config.yaml train.learning_rate=2e-6 run.dir=runs/second")
def run_command(
    config: Annotated[Path, typer.Argument(help="The run's YAML config.")],
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over: delete the run's files first.")] = False,
    on_bad_row: OnBadRow = None,
) -> None:
    """Run elicit, rectify, filter, train, evaluate and report; a stopped run resumes where it stopped."""
    from spot.config import load_config

    overrides = [*(overrides or []), *([f"run.on_bad_row={on_bad_row}"] if on_bad_row else [])]
    _run(load_config(config, overrides), overwrite, ["spot", "run", str(config), *overrides])


@app.command("demo", epilog="Example: spot demo run.seed=1 run.dir=runs/demo-1")
def demo_command(
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over: delete the run's files first.")] = False,
) -> None:
    """The whole loop on the bundled student, in about two minutes on a laptop."""
    from spot.config import load_config

    config = load_config(Path(__file__).parents[1] / "lab" / "demo.yaml", overrides or [])
    _run(config, overwrite, ["spot", "demo", *(overrides or [])])


def _run(config: Any, overwrite: bool, command: list[str]) -> None:
    import shlex

    from spot.stages.pipeline import run

    console = new_console()
    show_summary(run(config, console, overwrite, shlex.join(command)), console)


@app.command("elicit", epilog="Example: spot elicit --model lab --problems problems.jsonl --output attempts.jsonl")
def elicit_command(
    model: Model, problems: ProblemsFile, output: Rows, overrides: Overrides = None, on_bad_row: OnBadRow = None
) -> None:
    """Ask the student every problem and verify its answers."""
    from spot.stages.elicit import elicit
    from spot.stages.place import Place

    raw = {"student": {"model": model}, "problems": {"source": str(problems)}}
    keys = ("student", "problems.verifier", "problems.answer_pattern", "elicit", "run.seed")
    run_stage(elicit, overridden(raw, overrides, keys, on_bad_row), Place.beside(output, problems=problems), output)


@app.command(
    "rectify",
    epilog="Example: spot rectify --problems p.jsonl --attempts a.jsonl --output r.jsonl rectify.model=NAME "
    "rectify.base_url=https://host/v1 rectify.api_key_env=MY_KEY",
)
def rectify_command(
    problems: ProblemsFile,
    attempts: AttemptsFile,
    output: Rows,
    overrides: Overrides = None,
    on_bad_row: OnBadRow = None,
    mode: Annotated[str | None, typer.Option(metavar="rewrite|patch|continue", help="How the model corrects.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Corrections to ask for of each failure.")] = None,
    target_pairs: Annotated[
        int | None, typer.Option("--target_pairs", "--target-pairs", help="Stop once so many pairs can be made.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max_cost", "--max-cost", help="Dollars that may be spent at the most.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry_run", "--dry-run", help="Say what it would cost, and ask nothing.")
    ] = False,
) -> None:
    """Have an Oracle correct the wrong attempts; what does not verify is kept with its reason."""
    from spot.stages.place import Place
    from spot.stages.rectify import rectify

    keys = ("rectify", "student", "elicit", "filter.gamma", "problems.verifier", "problems.answer_pattern")
    keys += ("problems.options", "run.seed")
    flags = {"mode": mode, "candidates": candidates, "target_pairs": target_pairs, "max_cost": max_cost}
    given = [f"rectify.{name}={value}" for name, value in flags.items() if value is not None]
    raw: dict[str, Any] = {"problems": {"source": str(problems)}}
    config = overridden(raw, [*(overrides or []), *given], keys, on_bad_row)
    place = Place.beside(output, problems=problems, attempts=attempts)
    if dry_run:
        from spot.stages.costs import estimate

        new_console().print(estimate(config, place), highlight=False, soft_wrap=True)
        return
    run_stage(rectify, config, place, output)


@app.command("filter", epilog="Example: spot filter --model lab --problems p.jsonl --attempts a.jsonl "
    "--rectifications r.jsonl --output pairs.jsonl filter.gamma=0.6")  # fmt: skip
def filter_command(
    model: Model,
    problems: ProblemsFile,
    attempts: AttemptsFile,
    rectifications: Annotated[Path, typer.Option(help="Corrections, as spot rectify writes them.")],
    output: Output,
    overrides: Overrides = None,
    on_bad_row: OnBadRow = None,
) -> None:
    """Keep the corrections that change little and write them as TRL preference pairs."""
    from spot.stages.filter import filter_pairs
    from spot.stages.place import Place

    raw = {"student": {"model": model}, "problems": {"source": str(problems)}}
    place = Place.beside(output, problems=problems, attempts=attempts, rectifications=rectifications)
    run_stage(filter_pairs, overridden(raw, overrides, ("filter",), on_bad_row), place, output)


@app.command(
    "train",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train_command(context: typer.Context) -> None:
    """Train on pairs, with the flags of transformers and TRL (spot train --help lists them)."""
    from spot.stages.evaluate_tasks import check_overlap, of_flags
    from spot.train.command import main as train_main

    train_main(context.args, of_flags, check_overlap)


@app.command("eval", epilog="Example: spot eval --model Qwen/Qwen3-8B --tasks paper --output evals/base; then another "
    "model into evals/new, and spot eval --compare evals/base evals/new")  # fmt: skip
def eval_command(
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="A model directory or adapter, a hub name, or lab; see student.base_url.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Benchmarks, separated by commas: paper (its nine), aime24, ifeval, ..., in_domain, ood, "
        "instructions (the lab's), files of problems, module:function."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The directory to write answers and scores to.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data_dir", "--data-dir", help="Files of the benchmarks, in place of the hub.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A YAML file of templates by task, in place of ours.")] = None,
    samples: Annotated[int | None, typer.Option(help="How often to ask each question; the task's own number.")] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="temperature=0.6,0.7", help="Try sampling settings, top_p too, and say which is best."),
    ] = None,
    inspect_logs: Annotated[
        Path | None, typer.Option("--inspect_logs", "--inspect-logs", help="Also write logs for inspect view here.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Compare what two evaluations wrote.")
    ] = None,
    margin: Annotated[float, typer.Option(help="With --compare: what may be lost and still count as kept.")] = 0.02,
) -> None:  # fmt: skip
    """Measure a model on benchmarks, or compare two that were measured."""
    from spot.stages.evaluate import compare_evaluations, evaluate_model, search_sampling

    if compare is not None:
        if model or tasks or overrides:
            raise UserError("--compare takes two directories that spot eval wrote; no --model, --tasks or settings")
        compare_evaluations(*compare, margin, output, new_console())
        return
    if model is None or tasks is None or output is None:
        raise UserError("spot eval needs --model, --tasks and --output, or --compare A B")
    paths = {"data_dir": data_dir, "prompts": prompts}
    given = {key: str(path) for key, path in paths.items() if path is not None}
    given |= {} if samples is None else {"samples": samples}
    raw = {
        "student": {"model": model},
        "evaluate": {"tasks": [name.strip() for name in tasks.split(",")], **given},
    }
    config = overridden(raw, overrides, ("student", "evaluate", "problems"))
    if search:
        search_sampling(config, search, output, new_console())
        return
    evaluate_model(config, output, inspect_logs, new_console())


@app.command("connect4", epilog="Example: spot connect4 --n 500 --seed 0 --output connect4.jsonl")
def connect4_command(
    output: Output,
    n: Annotated[int, typer.Option("--n", help="How many boards.")] = 500,
    seed: Annotated[int, typer.Option(help="Decides the boards.")] = 0,
    plies: Annotated[
        int,
        typer.Option(help="1 asks for moves that win at once, 3, 5, ... for those that force a win within so many."),
    ] = 1,
) -> None:
    """Write Connect4 boards, each asked for both players' winning moves, as a file of problems."""
    from spot.connect4.command import write_dataset

    write_dataset(output, n, seed, plies, new_console())


@app.command("doctor", epilog="Example: spot doctor config.yaml")
def doctor_command(
    config: Annotated[
        Path | None, typer.Argument(help="A config whose model, files, endpoints and keys are checked too.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say what this machine can do and what to fix."""
    from spot.config import load_config
    from spot.stages.doctor import checks, print_checks

    if config is None:
        found = checks()
    else:
        from spot.stages.preflight import preflight

        loaded = load_config(config, overrides or [])
        found = checks(loaded.model_dump(mode="json"), preflight(loaded, loaded.run.stages, fetch=False))
    print_checks(new_console(), found)
    if any(check.status == "fail" for check in found):
        raise typer.Exit(1)


app.add_typer(runs)
for _name in REGISTERED["command"]:
    app.add_typer(cast(typer.Typer, load_registered("command", _name)), name=_name)
