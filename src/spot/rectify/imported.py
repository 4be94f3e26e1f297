"""The Oracle that is a file: corrections that people or other tools have made."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from spot.errors import UserError
from spot.rectify.base import Correction, Failure
from spot.schema import Dropped, Row
from spot.store import OnBadRow, read_rows


class ImportedCorrection(Row):
    """One line of the file: a correction of one attempt, or of every wrong attempt at one problem."""

    attempt_id: str | None = None
    problem_id: str | None = None
    response: str
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_target(self) -> "ImportedCorrection":
        if (self.attempt_id is None) == (self.problem_id is None):
            raise PydanticCustomError("target", "needs either 'attempt_id' or 'problem_id', and not both")
        return self


class ImportedOracle:
    """Corrections read from JSONL or Parquet; implements `spot.rectify.base.Oracle`.

    A row for the attempt goes before one for its problem. A failure that the file does not know is answered with the
    reason `not_in_file`. Raises `UserError`, naming file and line, for bad rows and for two rows with one target.
    """

    mode: Literal["rewrite", "patch", "continue", "import"] = "import"

    def __init__(
        self, path: Path, name: str = "import", on_bad_row: OnBadRow = "error", dropped: list[Dropped] | None = None
    ) -> None:
        self.name = name
        self._by_attempt: dict[str, str] = {}
        self._by_problem: dict[str, str] = {}
        for row in read_rows(path, ImportedCorrection, on_bad_row, dropped):
            texts, target = (
                (self._by_problem, row.problem_id) if row.attempt_id is None else (self._by_attempt, row.attempt_id)
            )
            assert target is not None
            if target in texts:
                field = "problem_id" if row.attempt_id is None else "attempt_id"
                raise UserError(f"{path}: two rows for {field} {target!r}; keep one of them")
            texts[target] = row.response

    async def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        """All corrections in one group."""
        yield [self._correction(failure) for failure in failures]

    def _correction(self, failure: Failure) -> Correction:
        attempt = failure.attempt
        text = self._by_attempt.get(attempt.id, self._by_problem.get(attempt.problem_id))
        return Correction(attempt_id=attempt.id, text=text, reason="not_in_file" if text is None else "")
