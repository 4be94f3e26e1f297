"""Commands over a run that there is: its account, its data sets, its report, its audit."""

from pathlib import Path
from typing import Annotated

import typer

from spot.cli.shared import Overrides, overridden, show_summary
from spot.errors import UserError
from spot.terminal import new_console

runs = typer.Typer()


@runs.command("ledger", epilog="Example: spot ledger runs/first --export requests.jsonl")
def ledger_command(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, or a ledger file.")],
    export: Annotated[Path | None, typer.Option(help="Write every request and reply to this file (JSONL).")] = None,
) -> None:
    """What was asked and spent, by stage, model and outcome."""
    from spot.stages.costs import export_ledger, print_ledger

    console = new_console()
    print_ledger(run_dir, console)
    if export is not None:
        console.print(f"{export}: {export_ledger(run_dir, export)} requests", soft_wrap=True)


@runs.command("sets", epilog="Example: spot sets runs/first --sets rft,sft_plus --rows 1500")
def sets_command(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run.")],
    overrides: Overrides = None,
    rows: Annotated[int | None, typer.Option(help="Rows of each set; as many as the smallest has.", min=1)] = None,
    sets: Annotated[str, typer.Option(help="Which sets, separated by commas.")] = "sft,rft,sft_plus",
    max_cost: Annotated[
        float | None, typer.Option("--max_cost", "--max-cost", help="Dollars that the run may come to.")
    ] = None,
) -> None:
    """Write the baselines' data sets in TRL's format: Oracle's direct answers, student's right ones, corrections."""
    from spot.config import load_config
    from spot.files.store import RunDirectory
    from spot.stages.baseline_sets import parse_names, told, write_sets

    names = parse_names(sets)
    if not (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    given = [*(overrides or []), *([] if max_cost is None else [f"rectify.max_cost={max_cost}"])]
    config = overridden(load_config(run_dir / "config.yaml").model_dump(mode="json"), given, ("rectify",))
    with RunDirectory(run_dir) as directory:
        summary = write_sets(directory, config, names, rows, console := new_console())
        for line in told(summary, directory):
            console.print(line, highlight=False, soft_wrap=True)


@runs.command("report", epilog="Example: spot report runs/demo")
def report_command(run_dir: Annotated[Path, typer.Argument(help="The directory of a run.")]) -> None:
    """Write summary.json and report.html again from a run's files, and print the summary."""
    from spot.config import load_config
    from spot.files.store import RunDirectory
    from spot.stages.place import Place
    from spot.stages.report import report

    if not (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    console = new_console()
    with RunDirectory(run_dir) as directory:
        report(load_config(run_dir / "config.yaml"), Place.of_run(directory), console)
    show_summary(run_dir, console)


@runs.command("audit", epilog="Example: spot audit runs/first --judge_labels labels.jsonl --max_cost 5")
def audit_command(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run that has pairs.")],
    overrides: Overrides = None,
    allow_overlap: Annotated[
        bool,
        typer.Option("--allow_overlap", "--allow-overlap", help="Continue although pairs are evaluation questions."),
    ] = False,
    skip_models: Annotated[
        bool, typer.Option("--skip_models", "--skip-models", help="Load no weights, measure no likelihoods.")
    ] = False,
    judge_labels: Annotated[
        Path | None, typer.Option("--judge_labels", "--judge-labels", help="Labelled steps to compare the judge with.")
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option("--export_labels", "--export-labels", help="Only write the pairs' steps here, to be labelled."),
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max_cost", "--max-cost", help="Dollars that the run may come to, judge included.")
    ] = None,
) -> None:
    """Measure the pairs: how much they change, how likely they are, new errors, style, duplicates, overlap."""
    from spot.audit.run import audit, export_labels, kept_questions
    from spot.config import load_config
    from spot.files.store import RunDirectory
    from spot.report.audit import print_audit, write_figures
    from spot.stages.exams import exams

    if not (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: not a run directory (it has no config.yaml)")
    given = [*(overrides or []), *([] if max_cost is None else [f"judge.max_cost={max_cost}"])]
    config = overridden(load_config(run_dir / "config.yaml").model_dump(mode="json"), given, ("judge",))
    console = new_console()
    with RunDirectory(run_dir) as run:
        if labels_file is not None:
            console.print(export_labels(run, config, labels_file), highlight=False, soft_wrap=True)
            return
        questions = kept_questions(run)
        if not questions:
            tasks = exams(config.evaluate, config.problems, "error", [])
            questions = {name: list(exam.problems) for name, exam in tasks.items()}
        summary = audit(
            *(run, config, questions, console),
            allow_overlap=allow_overlap,
            skip_models=skip_models,
            labels=judge_labels,
        )
        written = [run_dir / "audit.json", run_dir / "audit.jsonl", *write_figures(run_dir, summary)]
    print_audit(summary, console)
    console.print(f"Written: {', '.join(map(str, written))}; spot report shows it", highlight=False, soft_wrap=True)
