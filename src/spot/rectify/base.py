"""An Oracle corrects wrong attempts; how it does so (script, model, person, file) is its own affair."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from spot.schema import Attempt, Mode, Problem


@dataclass(frozen=True)
class Failure:
    """A wrong attempt beside its problem: what an Oracle is given."""

    problem: Problem
    attempt: Attempt


@dataclass(frozen=True)
class Correction:
    """An Oracle's answer to one failure. `text` is `None` where it gave none; `reason` says why in a word, `detail` in
    what words somebody else did (a server, say). `passing` is one that may be had by asking again: it is not stored."""

    attempt_id: str
    text: str | None
    reason: str = ""
    detail: str = ""
    candidate: int = 0
    prompt_version: str | None = None
    ledger_key: str | None = None
    passing: bool = False


class Oracle(Protocol):
    """Who corrects. `name` is what rows and reports call it."""

    name: str

    @property
    def mode(self) -> Mode:
        """How it corrects; a plain class attribute will do."""
        ...

    def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        """Correct `failures` and yield corrections in groups, each group ready to be committed at once."""
        ...
