"""The `spot` command: parse, build, call. Heavy imports happen inside the commands, so that `spot --help` is quick."""

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from spot import __version__
from spot.errors import Interrupted, UserError, plain_errors

app = typer.Typer(
    help="Surgical post-training: have a model's own errors corrected with minimal edits, and train on the pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use, 3 stopped early and resumable. Start with: spot demo",
)
lab = typer.Typer(help="The bundled student and its world.", no_args_is_help=True)
app.add_typer(lab, name="lab")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Settings that override the config's.")
]
OnBadRow = Annotated[
    str | None,
    typer.Option("--on-bad-row", metavar="error|skip", help="Stop at a bad row, or record it in dropped.jsonl."),
]


def _no_directory(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"{path}: a directory; --output names a file")
    return path


Output = Annotated[
    Path,
    typer.Option(help="The file to write (JSONL, or Parquet by extension where it is whole).", callback=_no_directory),
]
ProblemsFile = Annotated[Path, typer.Option(help="Problems: rows of id, prompt, answer.")]
AttemptsFile = Annotated[Path, typer.Option(help="Attempts, as spot elicit writes them.")]
Model = Annotated[str, typer.Option("--model", help="A model directory, a hub name, or lab.")]


def main() -> None:
    """Run the command line; every error that is the user's to mend is one line and an exit code."""
    for ending in (signal.SIGINT, signal.SIGTERM):  # the second is how Slurm, Kubernetes and timeout end a command
        signal.signal(ending, _interrupted)
    # Its retries of a hub that cannot be reached would print a page before our one line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    with plain_errors():
        app()


def _interrupted(_: int, __: Any) -> None:
    raise Interrupted


def _console() -> Any:
    from rich.console import Console

    return Console()


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

    config = load_config(Path(__file__).parent / "lab" / "demo.yaml", overrides or [])
    _run(config, overwrite, ["spot", "demo", *(overrides or [])])


def _run(config: Any, overwrite: bool, command: list[str]) -> None:
    import shlex

    from spot.pipeline import run

    console = _console()
    _show(run(config, console, overwrite, shlex.join(command)), console)


def _show(run_dir: Path, console: Any) -> None:
    """The run's summary, ending with where its report is; nothing where the report stage has not run."""
    from spot.report.summary import read_summary
    from spot.report.terminal import print_summary

    if (run_dir / "report.html").exists():
        console.print()
        print_summary(read_summary(run_dir / "summary.json"), console, run_dir / "report.html")


@app.command("elicit", epilog="Example: spot elicit --model lab --problems problems.jsonl --output attempts.jsonl")
def elicit_command(
    model: Model, problems: ProblemsFile, output: Output, overrides: Overrides = None, on_bad_row: OnBadRow = None
) -> None:
    """Ask the student every problem and verify its answers."""
    from spot import stages
    from spot.opening import open_model, open_verifier
    from spot.schema import Dropped

    raw = {"student": {"model": model}, "problems": {"source": str(problems)}}
    keys = ("student", "problems.verifier", "problems.answer_pattern", "elicit", "run.seed")
    config = _overridden(raw, overrides, keys, on_bad_row)
    dropped: list[Dropped] = []
    attempts = stages.elicit(
        stages.load_problems(config.problems, config.run.seed, config.run.on_bad_row, dropped),
        None if config.elicit.attempts else open_model(config.student),
        config.elicit,
        open_verifier(config.problems),
        config.run.seed,
        output,
        console := _console(),
        config.run.on_bad_row,
        dropped,
    )
    told = _record(dropped, output)
    console.print(f"{output}: {stages.tally(attempts)}{told}", highlight=False, soft_wrap=True)


@app.command(
    "rectify",
    epilog="Example: spot rectify --problems p.jsonl --attempts a.jsonl --output r.jsonl rectify.model=NAME "
    "rectify.base_url=https://host/v1 rectify.api_key_env=MY_KEY",
)
def rectify_command(
    problems: ProblemsFile,
    attempts: AttemptsFile,
    output: Output,
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
    from spot import stages
    from spot.account import estimate
    from spot.opening import Asking, open_ledger, open_oracle, open_verifier
    from spot.schema import Attempt, Dropped, Problem
    from spot.store import read_rows

    keys = ("rectify", "student", "elicit", "filter.gamma", "problems.verifier", "problems.answer_pattern")
    keys += ("problems.world", "run.seed")
    flags = {"mode": mode, "candidates": candidates, "target_pairs": target_pairs, "max_cost": max_cost}
    given = [f"rectify.{name}={value}" for name, value in flags.items() if value is not None]
    raw: dict[str, Any] = {"problems": {"source": str(problems)}}
    config = _overridden(raw, [*(overrides or []), *given], keys, on_bad_row)
    skip, dropped, console = config.run.on_bad_row, list[Dropped](), _console()
    rows = read_rows(problems, Problem, skip, dropped), read_rows(attempts, Attempt, skip, dropped)
    if dry_run:
        console.print(estimate(*rows, config), highlight=False, soft_wrap=True)
        return
    target, queue = stages.open_target(config.rectify), output.with_suffix(".human.sqlite")
    with open_ledger(output.with_suffix(".ledger.sqlite")) as ledger:
        corrections = stages.rectify(
            *rows,
            open_oracle(config, Asking(ledger, target, rows[0], queue, console.print, skip, dropped)),
            open_verifier(config.problems),
            output,
            console,
            dropped,
            stages.within_gamma(config) if target is not None else None,
        )
    verified = sum(row.accepted for row in corrections)
    told = f"{verified} of {len(corrections)} corrections verified{_record(dropped, output)}"
    if target is not None and target.missing:
        told += f"; of {target.wanted} pairs {target.missing} are missing: more attempts are needed"
    console.print(f"{output}: {told}", highlight=False, soft_wrap=True)


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
    from spot import stages
    from spot.hub import model_path
    from spot.schema import Attempt, Dropped, Problem, Rectification
    from spot.store import read_rows, write_rows

    config = _overridden({"student": {"model": model}}, overrides, ("filter",), on_bad_row)
    skip, dropped = config.run.on_bad_row, list[Dropped]()
    filtered = stages.make_pairs(
        read_rows(problems, Problem, skip, dropped),
        read_rows(attempts, Attempt, skip, dropped),
        read_rows(rectifications, Rectification, skip, dropped),
        model_path(config.student.model),
        config.filter,
    )
    told = _record(dropped + filtered.dropped, output)
    write_rows(output, filtered.pairs)
    _console().print(f"{output}: {len(filtered.pairs)} pairs{told}", highlight=False, soft_wrap=True)


@app.command(
    "train",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train_command(context: typer.Context) -> None:
    """Train on pairs, with the flags of transformers and TRL (spot train --help lists them)."""
    from spot.train.command import main as train_main

    train_main(context.args)


@app.command("eval", epilog="Example: spot eval --model runs/demo/model --tasks in_domain,ood --output evals/after")
def eval_command(
    model: Model,
    tasks: Annotated[str, typer.Option(help="Families of the lab or files of problems, separated by commas.")],
    output: Annotated[Path, typer.Option(help="The directory to write one file of attempts a task to.")],
    overrides: Overrides = None,
) -> None:
    """Answer tasks with a model and print mean and standard error over questions."""
    from spot import stages
    from spot.evaluate.statistics import score
    from spot.opening import open_model
    from spot.schema import Attempt
    from spot.store import read_rows

    raw = {"student": {"model": model}, "evaluate": {"tasks": tasks.split(",")}}
    config = _overridden(raw, overrides, ("student", "evaluate", "problems"))
    console = _console()
    questions = stages.evaluation_problems(config.evaluate, config.problems, "error", [])
    stages.evaluate(questions, open_model(config.student), config.evaluate, output, "eval", console)
    for task in questions:
        found = score(read_rows(output / f"{task}.jsonl", Attempt))
        error = "" if found.stderr is None else f" ± {100 * found.stderr:.1f}"
        console.print(f"{task}: {100 * found.mean:.1f}{error} (n = {found.n})", highlight=False)


@app.command("ledger", epilog="Example: spot ledger runs/first --export requests.jsonl")
def ledger_command(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, or a ledger file.")],
    export: Annotated[Path | None, typer.Option(help="Write every request and reply to this file (JSONL).")] = None,
) -> None:
    """What was asked and spent, by stage, model and outcome."""
    from spot.account import export_ledger, print_ledger

    print_ledger(run_dir, _console())
    if export is not None:
        typer.echo(f"{export}: {export_ledger(run_dir, export)} requests")


@app.command("sets", epilog="Example: spot sets runs/first --sets rft,sft_plus --rows 1500")
def sets_command(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run.")],
    overrides: Overrides = None,
    rows: Annotated[int | None, typer.Option(help="Rows of each set; as many as the smallest has.", min=1)] = None,
    sets: Annotated[str, typer.Option(help="Which sets, separated by commas.")] = "sft,rft,sft_plus",
) -> None:
    """Write the baselines' data sets in TRL's format: Oracle's direct answers, student's right ones, corrections."""
    from spot.config import load_config
    from spot.sets import parse_names, told, write_sets
    from spot.store import RunDirectory

    names = parse_names(sets)
    if not (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    config = _overridden(load_config(run_dir / "config.yaml").model_dump(mode="json"), overrides, ("rectify",))
    with RunDirectory(run_dir) as directory:
        summary = write_sets(directory, config, names, rows, console := _console())
        for line in told(summary, directory):
            console.print(line, highlight=False, soft_wrap=True)


@app.command("report", epilog="Example: spot report runs/demo")
def report_command(run_dir: Annotated[Path, typer.Argument(help="The directory of a run.")]) -> None:
    """Write summary.json and report.html again from a run's files, and print the summary."""
    from spot.config import load_config
    from spot.pipeline import Pipeline
    from spot.store import RunDirectory

    if not (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    console = _console()
    with RunDirectory(run_dir) as directory:
        Pipeline(load_config(run_dir / "config.yaml"), directory, console, "spot run").report()
    _show(run_dir, console)


@app.command("audit", epilog="Example: spot audit runs/demo")
def audit_command(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run that has pairs.")],
    allow_overlap: Annotated[
        bool, typer.Option("--allow_overlap", "--allow-overlap", help="Go on where pairs are evaluation questions.")
    ] = False,
    skip_models: Annotated[
        bool, typer.Option("--skip_models", "--skip-models", help="Load no weights, measure no likelihoods.")
    ] = False,
) -> None:
    """Measure the pairs: how much they change, how likely they are, new errors, style, duplicates, overlap."""
    from spot import stages
    from spot.audit.run import audit, kept_questions
    from spot.config import load_config
    from spot.report.audit import print_audit, write_figures
    from spot.store import RunDirectory

    if not (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    config, console = load_config(run_dir / "config.yaml"), _console()
    with RunDirectory(run_dir) as run:
        questions = kept_questions(run)
        if not questions:
            tasks = stages.evaluation_problems(config.evaluate, config.problems, "error", [])
            questions = {task: rows for task, (rows, _) in tasks.items()}
        summary = audit(run, config, questions, console, allow_overlap=allow_overlap, skip_models=skip_models)
        written = [run_dir / "audit.json", run_dir / "audit.jsonl", *write_figures(run_dir, summary)]
    print_audit(summary, console)
    console.print(f"Written: {', '.join(map(str, written))}; spot report shows it", highlight=False, soft_wrap=True)


@app.command("doctor", epilog="Example: spot doctor config.yaml")
def doctor_command(
    config: Annotated[
        Path | None, typer.Argument(help="A config whose model, files, endpoints and keys are checked too.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say what this machine can do and what to fix."""
    from spot.config import load_config
    from spot.doctor import checks, print_checks

    if config is None:
        found = checks()
    else:
        from spot.pipeline import preflight

        loaded = load_config(config, overrides or [])
        found = checks(loaded.model_dump(mode="json"), preflight(loaded, loaded.run.stages, fetch=False))
    print_checks(_console(), found)
    if any(check.status == "fail" for check in found):
        raise typer.Exit(1)


@lab.command("train", epilog="Example: spot lab train --output my-student --steps 3000")
def lab_train_command(
    output: Annotated[Path, typer.Option(help="The directory to write the student to.")],
    world: Annotated[str, typer.Option(help="A bundled world's name or a world file.")] = "default",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; the recipe's own unless given.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Decides weights, questions and order.")] = 0,
) -> None:
    """Raise the bundled student from nothing, on its world's text. A stopped training goes on where it was."""
    from dataclasses import replace

    from transformers.utils import logging

    from spot.lab.recipe import Recipe, train_student
    from spot.lab.world import World
    from spot.progress import bar
    from spot.train.checkpoints import saving

    if (output / "model.safetensors").exists():
        raise UserError(f"{output}: holds a model already; choose another directory")
    logging.disable_progress_bar()
    recipe = Recipe(seed=seed)
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    console = _console()
    with saving(output), bar(console, "student") as progress:

        def show(step: int, total: int, loss: float) -> None:
            progress.update(step, total, f"loss {loss:.3f}")

        train_student(World.load(world), recipe, output, show)
    console.print(f"{output}: a student of the world {world!r} after {recipe.steps} steps", highlight=False)


@lab.command("problems", epilog="Example: spot lab problems --family in_domain --count 100 --output problems.jsonl")
def lab_problems_command(
    output: Output,
    family: Annotated[str, typer.Option(help="in_domain, ood or instructions.")] = "in_domain",
    split: Annotated[str, typer.Option(help="train, tune or test.")] = "train",
    count: Annotated[int, typer.Option(help="How many questions.", min=1)] = 2000,
    world: Annotated[str, typer.Option(help="A bundled world's name or a world file.")] = "default",
    seed: Annotated[int, typer.Option(help="Decides the questions.")] = 0,
) -> None:
    """Write questions of the lab as a file of problems."""
    from spot.lab.world import FAMILIES, World
    from spot.store import write_rows

    if family not in FAMILIES or split not in ("train", "tune", "test"):
        raise UserError(f"--family is one of {', '.join(FAMILIES)}; --split is one of train, tune, test")
    write_rows(output, World.load(world).problems(family, split, count, seed))
    _console().print(f"{output}: {count} problems", highlight=False)


def _overridden(
    raw: dict[str, Any], overrides: list[str] | None, keys: tuple[str, ...], on_bad_row: str | None = None
) -> Any:
    """The config of a single command: `raw` with overrides, which must be of `keys` (a section or `section.key`)."""
    from difflib import get_close_matches

    from spot.config import apply_override, parse_config

    for override in overrides or []:
        key = override.partition("=")[0]
        if key not in keys and key.partition(".")[0] not in keys:
            near = get_close_matches(key, keys, n=1) or get_close_matches(key.partition(".")[0], keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it reads {', '.join(keys)}"
            raise UserError(f"{override}: this command does not read that setting; {hint}")
        apply_override(raw, override)
    if on_bad_row is not None:
        apply_override(raw, f"run.on_bad_row={on_bad_row}")
    return parse_config(raw, "command line")


def _record(dropped: list[Any], output: Path) -> str:
    """Write what a single command dropped beside its output, and say so; nothing where nothing was dropped."""
    from spot.store import write_rows

    path = output.with_suffix(".dropped.jsonl")
    if not dropped:
        path.unlink(missing_ok=True)
        return ""
    write_rows(path, dropped)
    return f", {len(dropped)} dropped (see {path})"
