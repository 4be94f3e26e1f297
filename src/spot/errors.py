"""The ways a command ends that is not success, each one line and an exit code."""

import errno
from collections.abc import Generator
from contextlib import contextmanager

from spot.terminal import say


class UserError(Exception):
    """Wrong use: bad input, bad config, a missing file. One line that names the place and the fix. Exit code 2."""


class RunFailed(Exception):
    """The work itself failed (no reply, a loss that is not finite); what was done is kept. Exit code 1."""


class StoppedEarly(Exception):
    """Stopped before the end with everything committed; the same command resumes here. Exit code 3."""


class Interrupted(BaseException):
    """Ctrl-C, or a scheduler's SIGTERM. No `Exception`, so that no library takes it for a failure of its own.

    Its text, where it has one, says where the same command resumes.
    """


@contextmanager
def plain_errors() -> Generator[None]:
    """Print how a command failed in one line and leave with its exit code."""
    try:
        yield
    except UserError as error:
        _leave("error", str(error), 2)
    except RunFailed as error:
        _leave("failed", str(error), 1)
    except StoppedEarly as error:
        _leave("stopped", str(error), 3)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _leave("error", f"{error.strerror}; free some space and run the same command again; it resumes there", 2)
    except Interrupted as error:
        note = str(error) or "what was done is kept; the same command resumes there"
        _leave("stopped", f"interrupted; {note}", 3)


def _leave(kind: str, message: str, code: int) -> None:
    say(kind, message)
    raise SystemExit(code)
