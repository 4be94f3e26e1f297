"""The `spot` command: parse, build, call. Heavy imports happen inside the commands, so that `spot --help` is quick."""

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from spot import __version__, interrupt
from spot.cli.lab import lab
from spot.cli.runs import runs
from spot.cli.shared import (
    AttemptsFile,
    Model,
    OnBadRow,
    Output,
    Overrides,
    ProblemsFile,
    Rows,
    apart,
    overridden,
    record,
    show_summary,
)
from spot.errors import StoppedEarly, UserError, plain_errors
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
    """Run the command line; every error that is the user's to mend is one line and an exit code."""
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
    """Run elicit, rectify, filter, train, evaluate and report; a stopped run goes on where it was."""
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
    from spot.evaluate.run import keep_identity, kept_day
    from spot.files.disk import locked
    from spot.schema import Dropped
    from spot.stages import steps as stages
    from spot.stages.account import print_spent
    from spot.stages.opening import made_with, open_ledger, open_model, open_verifier

    apart(output, problems)
    raw = {"student": {"model": model}, "problems": {"source": str(problems)}}
    keys = ("student", "problems.verifier", "problems.answer_pattern", "elicit", "run.seed")
    config = overridden(raw, overrides, keys, on_bad_row)
    dropped: list[Dropped] = []
    asked = stages.load_problems(config.problems, config.run.seed, config.run.on_bad_row, dropped)
    ask, account, console = config.elicit.attempts is None, output.with_suffix(".ledger.sqlite"), new_console()
    paid = ask and config.student.base_url is not None
    with open_ledger(account) if paid else nullcontext() as ledger:
        verifier = open_verifier(config.problems)
        identity = output.with_suffix(".model.json")
        with locked(output):
            if ask:
                keep_identity(identity, made_with(config.student))
            try:
                student = open_model(config.student, ledger=ledger, day=partial(kept_day, identity)) if ask else None
                attempts = stages.elicit(
                    *(asked, student, config.elicit, verifier, config.run.seed, output, console),
                    *(config.run.on_bad_row, dropped),
                )
            finally:
                if not output.exists():
                    identity.unlink(missing_ok=True)
            told = record(dropped, output)
    console.print(f"{output}: {stages.tally(attempts)}{told}", highlight=False, soft_wrap=True)
    if paid:
        print_spent(account, console)


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
    from spot.evaluate.run import kept_day
    from spot.files.disk import locked
    from spot.files.store import read_rows
    from spot.schema import Attempt, Dropped, Problem
    from spot.stages import steps as stages
    from spot.stages.account import estimate, print_spent
    from spot.stages.opening import Asking, open_ledger, open_oracle, open_verifier

    apart(output, problems, attempts)
    keys = ("rectify", "student", "elicit", "filter.gamma", "problems.verifier", "problems.answer_pattern")
    keys += ("problems.world", "run.seed")
    flags = {"mode": mode, "candidates": candidates, "target_pairs": target_pairs, "max_cost": max_cost}
    given = [f"rectify.{name}={value}" for name, value in flags.items() if value is not None]
    raw: dict[str, Any] = {"problems": {"source": str(problems)}}
    config = overridden(raw, [*(overrides or []), *given], keys, on_bad_row)
    skip, dropped, console = config.run.on_bad_row, list[Dropped](), new_console()
    account = output.with_suffix(".ledger.sqlite")
    rows = read_rows(problems, Problem, skip, dropped, by_hand=True), read_rows(attempts, Attempt, skip, dropped)
    if dry_run:
        console.print(estimate(*rows, config, account), highlight=False, soft_wrap=True)
        return
    target, queue = stages.open_target(config.rectify), output.with_suffix(".human.sqlite")
    with open_ledger(account) as ledger:
        day = partial(kept_day, output.with_suffix(".model.json"))
        asking = Asking(ledger, target, rows[0], queue, console.print, skip, dropped, day)
        oracle = open_oracle(config, asking)
        verifier = open_verifier(config.problems)
        within = stages.within_gamma(config) if target is not None else None
        with locked(output):
            corrections = stages.rectify(*rows, oracle, verifier, output, console, dropped, within, skip)
    console.print(f"{output}: {stages.told(corrections)}{record(dropped, output)}", highlight=False, soft_wrap=True)
    print_spent(account, console)
    if not any(row.accepted for row in corrections):
        raise UserError(f"none of {len(corrections)} corrections was accepted; see {output}, and mend the Oracle")
    if target is not None and target.missing:
        raise StoppedEarly(f"{stages.missing(target)}; add attempts and run the same command again")


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
    from spot.files.store import read_rows, write_rows
    from spot.hub import model_path
    from spot.schema import Attempt, Dropped, Problem, Rectification
    from spot.stages import steps as stages

    apart(output, problems, attempts, rectifications)
    config = overridden({"student": {"model": model}}, overrides, ("filter",), on_bad_row)
    skip, dropped = config.run.on_bad_row, list[Dropped]()
    filtered = stages.make_pairs(
        read_rows(problems, Problem, skip, dropped, by_hand=True),
        read_rows(attempts, Attempt, skip, dropped),
        read_rows(rectifications, Rectification, skip, dropped),
        model_path(config.student.model),
        config.filter,
    )
    told = record(dropped + filtered.dropped, output)
    write_rows(output, filtered.pairs)
    new_console().print(f"{output}: {len(filtered.pairs)} pairs{told}", highlight=False, soft_wrap=True)


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
    from spot.stages.evaluation import compare_evaluations, evaluate_model, search_sampling

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
        from spot.stages.pipeline import preflight

        loaded = load_config(config, overrides or [])
        found = checks(loaded.model_dump(mode="json"), preflight(loaded, loaded.run.stages, fetch=False))
    print_checks(new_console(), found)
    if any(check.status == "fail" for check in found):
        raise typer.Exit(1)


app.add_typer(runs)
app.add_typer(lab, name="lab")
