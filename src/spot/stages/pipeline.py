"""A run: the stages in their order, each once, in one directory; a killed run resumes where it stopped."""

import time
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.text import Text

from spot.config import NOT_IDENTITY, RunConfig, Stage, with_new_keys
from spot.files.store import RunDirectory
from spot.stages.place import Place
from spot.stages.preflight import preflight
from spot.stages.provenance import commit, peak_memory, versions

# What a section of the config has gone into. Before there is any of it the section may change: a stage that stopped
# over a mistake resumes with the fixed config. The reference that training keeps knows by itself what it belongs to.
MADE_WITH = {
    "student": ("attempts.jsonl",),
    "elicit": ("attempts.jsonl",),
    "rectify": ("rectifications.jsonl",),
    "filter": ("pairs.jsonl",),
    "train": ("checkpoints/checkpoint-*", "model"),
    "evaluate": ("eval",),
}


# A stage takes the config, where its files are, and the console, and returns its outcome in a few words. Each is loaded
# when its turn comes: a mistake in a config shows before torch is.
STAGES: dict[Stage, str] = {
    "elicit": "elicit",
    "rectify": "rectify",
    "filter": "filter_pairs",
    "train": "train",
    "evaluate": "evaluate",
    "report": "report",
}


def run(config: RunConfig, console: Console, overwrite: bool = False, command: str = "spot run") -> Path:
    """Run the stages of `config` that are not complete; returns the run directory.

    `command` is how the user started this run; the report prints it under "how to reproduce".
    """
    free = {section for section, made in MADE_WITH.items() if not any(any(config.run.dir.glob(name)) for name in made)}
    if not RunDirectory(config.run.dir).is_complete("rectify"):
        free |= {"rectify.target_pairs", "rectify.max_samples"}  # how far to go may change on the way
    with RunDirectory.open(
        config.run.dir, config.to_yaml(), overwrite, NOT_IDENTITY | free, with_new_keys
    ) as directory:
        # A mistake must show before anything is asked or paid for.
        for _, check in preflight(config, [stage for stage in config.run.stages if not directory.is_complete(stage)]):
            check()
        if "versions" not in directory.manifest:
            directory.update_manifest(versions=versions(), commit=commit(), command=command)
            directory.day()  # kept there from now on
        for stage in config.run.stages:
            run_stage(stage, config, directory, console)
    return directory.path


def run_stage(name: Stage, config: RunConfig, directory: RunDirectory, console: Console) -> None:
    """Run a stage unless it is complete; the report is always written again."""
    if directory.is_complete(name) and name != "report":
        _print_done(console, name, "", "already complete")
        return
    started = time.monotonic()
    goes = directory.manifest.get("goes", {})
    directory.update_manifest(goes=goes | {name: goes.get(name, 0) + 1})
    stage = getattr(import_module(f"spot.stages.{name}"), STAGES[name])
    outcome = stage(config, Place.of_run(directory), console)
    seconds = time.monotonic() - started
    directory.complete(name, seconds, peak_memory_bytes=peak_memory())
    _print_done(console, name, f"{outcome} ", f"({seconds:.1f} s)")


def _print_done(console: Console, name: Stage, outcome: str, note: str) -> None:
    console.print(Text.assemble(("✓", "green"), f" {name:<9} {outcome}", (note, "dim")))
