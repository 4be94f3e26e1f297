"""Limits on how long nothing may happen, in place of limits on how long a test takes on a busy machine."""

import os
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STILL_SECONDS = 180.0
"""No step of a test takes this long, however many others share its core."""


def finish(command: Sequence[str], folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end; fails and kills it where no file in `folder` changes for `STILL_SECONDS`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **pipes, **options) as process:
        before = state(folder)
        while True:
            try:
                stdout, stderr = process.communicate(timeout=STILL_SECONDS)
            except subprocess.TimeoutExpired:
                now = state(folder)
                if now == before:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise
                before = now
            else:
                return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def state(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Name, size and time of change of every file below `folder`."""
    found: set[tuple[str, int, int]] = set()
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(parent, name))  # noqa: PTH116, PTH118 (files come and go meanwhile)
            except FileNotFoundError:
                continue
            found.add((f"{parent}/{name}", status.st_size, status.st_mtime_ns))
    return frozenset(found)


@contextmanager
def one_step() -> Generator[None]:
    """Raises TimeoutError where the block takes `STILL_SECONDS`; for tests of many steps, in the main thread."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"one step took {STILL_SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, STILL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
