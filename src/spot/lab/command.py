"""Commands of the lab: the bundled student and its world."""

from pathlib import Path
from typing import Annotated

import typer

from spot.errors import UserError
from spot.terminal import new_console

lab = typer.Typer(help="The bundled student and its world.", no_args_is_help=True)


@lab.command("train", epilog="Example: spot lab train --output my-student --steps 3000")
def lab_train_command(
    output: Annotated[Path, typer.Option(help="The directory to write the student to.")],
    world: Annotated[str, typer.Option(help="A bundled world's name or a world file.")] = "default",
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; the recipe's own unless given.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Decides weights, questions and order.")] = 0,
) -> None:
    """Train the bundled student from scratch on its world's text. A stopped training resumes where it stopped."""
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
    console = new_console()
    with saving(output), bar(console, "student") as progress:

        def show(step: int, total: int, loss: float) -> None:
            progress.update(step, total, f"loss {loss:.3f}")

        train_student(World.load(world), recipe, output, show)
    console.print(f"{output}: a student of the world {world!r} after {recipe.steps} steps", highlight=False)


@lab.command("problems", epilog="Example: spot lab problems --family in_domain --count 100 --output problems.jsonl")
def lab_problems_command(
    output: Annotated[Path, typer.Option(help="The file to write: JSONL, or Parquet by extension.")],
    family: Annotated[str, typer.Option(help="in_domain, ood or instructions.")] = "in_domain",
    split: Annotated[str, typer.Option(help="train, tune or test.")] = "train",
    count: Annotated[int, typer.Option(help="How many questions.", min=1)] = 2000,
    world: Annotated[str, typer.Option(help="A bundled world's name or a world file.")] = "default",
    seed: Annotated[int, typer.Option(help="Decides the questions.")] = 0,
) -> None:
    """Write questions of the lab as a file of problems."""
    from spot.files.store import write_rows
    from spot.lab.world import FAMILIES, World

    if family not in FAMILIES or split not in ("train", "tune", "test"):
        raise UserError(f"--family is one of {', '.join(FAMILIES)}; --split is one of train, tune, test")
    if output.is_dir():
        raise UserError(f"{output}: a directory; --output names a file")
    write_rows(output, World.load(world).problems(family, split, count, seed))
    new_console().print(f"{output}: {count} problems", highlight=False)
