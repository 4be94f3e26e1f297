"""Runs the same command again and again, each go killed (SIGKILL) at a moment at which none was killed before.

`python killed.py RUN_DIR MOMENTS ARGUMENT...` runs `spot ARGUMENT...` until a go ends by itself and leaves with its
exit code; MOMENTS gets one line a kill. A moment is a file operation in RUN_DIR that is about to happen: a file opened
for writing, an fsync, a rename, a removal, a directory made. What one operation leaves is what the next one finds, so
killing before each is killing after each. Rows that are appended are also torn. Goes are forks of one process, which
has loaded the heavy libraries once.
"""

import importlib
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from spot import cli

HEAVY = (
    *(
        "spot.stages.pipeline",
        "spot.models.endpoint.model",
        "spot.models.local.model",
        "spot.train.run",
        "spot.evaluate.statistics",
    ),
    *("spot.report.build", "spot.report.collect", "spot.report.terminal", "matplotlib.figure"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ALIKE = r"(?<=checkpoint-)[0-9]+|(?<=figures/)[a-z-]+"
"""What is left out of a path, so that one kill stands for all like it."""
APPENDS_APART = 3
"""The first appends to a file are each a moment of their own; later ones are like them."""


class Killer:
    """Kills this process at the first moment that `path` does not hold, having written it there."""

    def __init__(self, run: Path, path: Path) -> None:
        self.run = str(run.resolve())
        self.path = path
        self.known = set(path.read_text().splitlines())
        self.appends: dict[str, int] = {}
        self.fsync = os.fsync

    def watch(self) -> None:
        """From now on."""
        os.fsync = self.sync
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python tells of a file operation before it does it."""
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITING:
            self.reach("open", arguments[0])
        elif event == "os.mkdir":
            self.reach("mkdir", arguments[0])
        elif event == "os.rename":
            lines = Path(arguments[0]).read_bytes().count(b"\n") if Path(arguments[0]).is_file() else 0
            # The manifest and the list of what was dropped grow with every stage.
            lines = 0 if "figures" in str(arguments[0]) else lines
            self.reach(f"rename ({lines} lines)", arguments[0])
        elif event in {"os.remove", "os.rmdir"}:
            name, directory = arguments
            folder = Path(f"/proc/self/fd/{directory}").readlink() if directory >= 0 else Path()
            place = folder / os.fsdecode(name)
            self.reach(event.removeprefix("os."), place.parent if event == "os.remove" else place)

    def sync(self, descriptor: int) -> None:
        """In place of `os.fsync`: what was written may be on the disk, in part, or not yet."""
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name.endswith(".jsonl"):
            number = self.appends[name] = min(self.appends.get(name, 0) + 1, APPENDS_APART)
            self.reach(f"append {number}", name)
            self.reach(f"torn append {number}", name, tear=descriptor)
        self.fsync(descriptor)

    def reach(self, what: str, where: str | Path, tear: int | None = None) -> None:
        """Die here if none has died here before."""
        place = os.path.abspath(where)  # noqa: PTH100 (no file need be there)
        name = place.removeprefix(self.run)
        # Each checkpoint's beginning counts: steps were logged since the one before, and will be done again.
        moment = f"{what} {name if what == 'mkdir' else re.sub(ALIKE, '*', name)}"
        if not place.startswith(self.run) or moment in self.known:
            return
        self.known.add(moment)
        with self.path.open("a") as file:
            file.write(moment + "\n")
        if tear is not None:
            os.ftruncate(tear, os.fstat(tear).st_size - 5)
        os.kill(os.getpid(), signal.SIGKILL)


def main(run: str, moments: str, *arguments: str) -> int:
    """Fork until a go ends by itself; its exit code."""
    Path(moments).touch()
    for module in HEAVY:
        importlib.import_module(module)
    while True:
        pid = os.fork()
        if pid == 0:
            os._exit(go(Killer(Path(run), Path(moments)), arguments))
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            return os.waitstatus_to_exitcode(status)


def go(killer: Killer, arguments: tuple[str, ...]) -> int:
    """The command itself; its exit code, where it lives that long."""
    sys.argv = ["spot", *arguments]
    try:
        killer.watch()
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
