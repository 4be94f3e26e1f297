"""The Oracle that is a file: corrections that people or other tools have made."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from spot.errors import UserError
from spot.files.store import OnBadRow, read_rows
from spot.rectify.base import Correction, Failure
from spot.schema import Attempt, Dropped, Id, Mode, Row


class ImportedCorrection(Row):
    """One line of the file: a correction of one attempt, or of every wrong attempt at one problem.

    A row of `attempts.jsonl` whose response was corrected by hand is one too: its `id` is the attempt's.
    """

    attempt_id: Id | None = None
    problem_id: Id | None = None
    response: str
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """What it corrects; two rows for one target are refused like any repeated id."""
        return f"attempt {self.attempt_id}" if self.attempt_id is not None else f"problem {self.problem_id}"

    @model_validator(mode="before")
    @classmethod
    def _from_attempt(cls, row: Any) -> Any:
        if not isinstance(row, dict) or "id" not in row or "attempt_id" in row:
            return row
        # What else the row says (its verdict, its tokens) is of the answer as it was before it was corrected.
        others = {key: value for key, value in row.items() if key not in Attempt.model_fields or key == "response"}
        return others | {"attempt_id": row["id"]}

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

    mode: Mode = "import"

    def __init__(
        self, path: Path, name: str = "import", on_bad_row: OnBadRow = "error", dropped: list[Dropped] | None = None
    ) -> None:
        self.name = name
        self._path = path
        rows = read_rows(path, ImportedCorrection, on_bad_row, dropped, by_hand=True)
        self._by_attempt = {row.attempt_id: row.response for row in rows if row.attempt_id is not None}
        self._by_problem = {row.problem_id: row.response for row in rows if row.problem_id is not None}

    async def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        """All corrections in one group."""
        yield [self._correction(failure) for failure in failures]

    def _correction(self, failure: Failure) -> Correction:
        known = failure.attempt.id in self._by_attempt or failure.attempt.problem_id in self._by_problem
        text = self.text_of(failure) if known else None
        return Correction(attempt_id=failure.attempt.id, text=text, reason="" if known else "not_in_file")

    def text_of(self, failure: Failure) -> str:
        """The file's correction of `failure`, empty where it has none."""
        attempt = failure.attempt
        return self._by_attempt.get(attempt.id, self._by_problem.get(attempt.problem_id, ""))

    def unused(self, attempts: Sequence[Attempt]) -> list[Dropped]:
        """The corrections that no wrong one of `attempts` takes, each with why. Raises `UserError` where all are."""
        outcome_of = {attempt.id: attempt.outcome for attempt in attempts}
        at_problem: defaultdict[str, list[Attempt]] = defaultdict(list)
        for attempt in attempts:
            at_problem[attempt.problem_id].append(attempt)
        unused: list[Dropped] = []

        def drop(target: str, detail: str, reason: str = "no_such_failure") -> None:
            unused.append(Dropped(stage="rectify", id=target, reason=reason, detail=detail))

        for target in self._by_attempt:
            if outcome_of.get(target) != "wrong":
                found = outcome_of.get(target)
                drop(target, f"this attempt is {found}, not wrong" if found else "there is no attempt of this id")
        for target in self._by_problem:
            wrong = [attempt.id for attempt in at_problem[target] if attempt.outcome == "wrong"]
            if not wrong:
                drop(target, "no attempt at this problem is wrong" if at_problem[target] else "no attempt is at it")
            elif self._by_attempt.keys() >= set(wrong):
                drop(target, "each wrong attempt at this problem has a correction of its own", "superseded")
        if len(unused) == len(self._by_attempt) + len(self._by_problem):
            first = f" (the first, {unused[0].id!r}: {unused[0].detail})" if unused else ""
            raise UserError(
                f"{self._path}: none of its {len(unused)} corrections is of a wrong attempt{first}; name wrong "
                "attempts by attempt_id, or their problems by problem_id"
            )
        return unused
