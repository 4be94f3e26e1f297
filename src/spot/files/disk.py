"""Files that are whole or absent, what a full disk says, and a lock on what one process makes."""

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from spot.errors import UserError


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` so that `path` holds either its old content or all of the new, also after a kill.

    A link stays and what it leads to is replaced; a device or a pipe (/dev/stdout) is written to.
    """
    raw = data.encode() if isinstance(data, str) else data
    with disk_errors(path):
        target = path.resolve()
        if target.exists() and not target.is_file():
            target.write_bytes(raw)
            return
        with replacing(target) as temporary, temporary.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """The path of a new file beside `path`, which replaces `path` at the end of the block.

    Nothing stands there when the block begins: what a kill left is deleted, and of a symbolic link the link itself, so
    whoever may write to the folder cannot have another file overwritten.
    """
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # it takes up the room that is missing
        raise


class disk_errors:  # noqa: N801 (reads as a statement: `with disk_errors(path):`)
    """Turn a full disk, or a path that cannot be written, into one clear line; what was committed stays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            fix = "free some space" if full else "fix the path or its permissions"
            raise UserError(
                f"{self.path}: cannot write ({error.strerror}); {fix} and run the same command again, "
                "it resumes from what was committed"
            ) from error


@contextmanager
def locked(output: Path) -> Generator[None]:
    """Have `output`, a file or a directory that one command makes in several runs, to this process alone."""
    if output.exists() and not (output.is_file() or output.is_dir()):
        yield  # a pipe or a device
        return
    output = output.resolve()
    path = output.with_name(f".{output.name}.lock")
    with disk_errors(output):
        path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path) as file:
        lock(file, output, "name another output")
        try:
            yield
        finally:
            # Whoever has opened it in the meantime locks a file that is gone; `lock` sees that.
            path.unlink(missing_ok=True)


def open_lock(path: Path) -> IO[str]:
    """The file `path` to lock, made where there is none; `UserError` for a symbolic link, which is never followed."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    with disk_errors(path):
        if path.is_symlink():
            raise UserError(f"{path}: a symbolic link where a lock belongs; delete it and run the same command again")
        return open(path, "a", opener=opener)


def lock(file: IO[str], what: Path, fix: str) -> None:
    """Lock the open `file` for this process; `UserError`, naming `what` and `fix`, where another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_gone = os.fstat(file.fileno()).st_nlink == 0
    except OSError:
        is_gone = True
    if is_gone:
        file.close()
        raise UserError(f"{what}: in use by another process; wait for it or {fix}") from None
