"""What a run was made with: versions, the commit, and how much memory it took."""

import platform
import re
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spot import __version__
from spot.verify.pool import shared_process_ids

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "openai", "math-verify", "rapidfuzz")
# ru_maxrss is in KiB on Linux and in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    found = {"spot": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the code that runs, where it runs from a git checkout."""
    source = Path(__file__).resolve()
    # A package installed inside somebody else's checkout must not be taken for that.
    if not (source.parents[3] / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(source.parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def peak_memory() -> int:
    """Peak resident memory so far, in bytes: this process's, plus that of each answer-checking worker that runs now.

    An upper bound for these processes, since their peaks need not fall together and pages they share count in each.
    Not counted: a GPU's own memory, workers that have ended (a hung one is replaced), and workers where the system has
    no /proc. The system's own sum of ended children will not do: a child counts there from its parent's size on.
    """
    own = _peak_of("self") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    return own + sum(_peak_of(worker) for worker in shared_process_ids())


def _peak_of(process: int | str) -> int:
    """Peak resident bytes of a process; 0 where there is none any more, or no way to tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*([0-9]+) kB", status)
    return int(found[1]) * 1024 if found else 0
