"""What a long command shows while it works: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

# Seconds between lines where there is no terminal to draw a bar on.
LINE_EVERY = 15.0


class Bar:
    """One stage's progress. `update(done, total, note)` is cheap and may be called as often as one likes."""

    def __init__(self, console: Console, title: str, progress: Progress | None, task: TaskID | None) -> None:
        self._console = console
        self._title = title
        self._progress = progress
        self._task = task
        self._last_line = time.monotonic()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done; `note` is a few words about how it goes."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        elif time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            self._console.print(f"  {self._title}: {done}/{total}  {note}", markup=False, highlight=False)

    def reference(self, done: int, total: int) -> None:
        """Show how many pairs the reference has scored; when it has all, that the first step is next."""
        self.update(done, total, "reference" if done < total else "reference done, first step")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(f"  {self._title}: {text}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(console: Console, title: str) -> Generator[Bar]:
    """A progress bar for the time of the `with` block."""
    if not console.is_terminal:
        yield Bar(console, title, None, None)
        return
    columns = (
        TextColumn("  {task.description:<10}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(console, title, progress, progress.add_task(title, total=None, note=""))
