"""What commands share: options, the console, a config with overrides."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spot.errors import UserError
from spot.terminal import new_console

if TYPE_CHECKING:
    from collections.abc import Callable

    from spot.stages.place import Place

    Stage = Callable[[Any, Place, Any], str]

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
    Path, typer.Option(help="The file to write: JSONL, or Parquet by extension.", callback=_no_directory)
]
Rows = Annotated[
    Path, typer.Option("--output", help="The file to write, a row as soon as it comes: JSONL.", callback=_no_directory)
]
ProblemsFile = Annotated[
    Path, typer.Option(help="Problems: rows of id, prompt, answer (JSONL, JSON, CSV, .gz, Parquet).")
]
AttemptsFile = Annotated[Path, typer.Option(help="Attempts, as spot elicit writes them.")]
Model = Annotated[str, typer.Option("--model", help="A model directory, a hub name, or lab.")]


def show_summary(run_dir: Path, console: Any) -> None:
    """The run's summary, ending with where its report is; nothing where the report stage has not run."""
    from spot.report.summary import read_summary
    from spot.report.terminal import print_summary

    if (run_dir / "report.html").exists():
        console.print()
        print_summary(read_summary(run_dir / "summary.json"), console, run_dir / "report.html")


def overridden(
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


def run_stage(stage: "Stage", config: Any, place: "Place", output: Path) -> None:
    """Run a stage of the pipeline beside `output`, and say how it came out and how many rows were dropped."""
    console = new_console()
    outcome = stage(config, place, console)
    console.print(f"{output}: {outcome}{place.note()}", highlight=False, soft_wrap=True)
