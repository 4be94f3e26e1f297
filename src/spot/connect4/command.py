"""`spot connect4`: the data set as a file of problems."""

from pathlib import Path

from rich.console import Console

from spot.connect4.dataset import build_dataset
from spot.files.store import write_rows
from spot.progress import bar


def write_dataset(output: Path, n: int, seed: int, plies: int, console: Console) -> None:
    """Write `n` boards to `output`, whole or not at all, and say so. Raises `UserError` (see `build_dataset`)."""
    with bar(console, "connect4") as progress:
        problems = build_dataset(n, seed, plies, progress.update)
    write_rows(output, problems)
    console.print(f"{output}: {n} boards", highlight=False, soft_wrap=True)
