"""The Oracle that is people: a queue of open corrections that outlives the run, and the ways to answer it.

The queue is one SQLite file (WAL, every commit synced) that any number of processes may open at once: the run that
waits, a web app, a script. `HumanOracle` puts failures in and takes out what was submitted; where some are still open
the run stops (exit code 3) and leaves a file beside the queue whose responses can be edited in any editor; the next
run takes the edited rows out of it.

What is asked is kept under a hash of all that a person is shown. So an answer is found again when the same failure
comes back (a run started over, say), and is never given to another response that happens to have the same id.
"""

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spot.errors import StoppedEarly, UserError
from spot.files.disk import write_atomic
from spot.files.escapes import spelled_out
from spot.files.store import numbered_rows
from spot.rectify.base import Correction, Failure
from spot.rectify.imported import ImportedCorrection
from spot.rectify.prompting import problem_text
from spot.schema import Mode
from spot.verify.base import Verifier

CLAIM_SECONDS = 1800.0
"""How long a claim holds after the last sign of its owner; then anybody may take the correction over."""

FROM_FILE = "file"
"""Who is recorded for what was edited in the file beside the queue."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS corrections (
  key TEXT PRIMARY KEY,                 -- hash over attempt id, problem, answer and response
  attempt_id TEXT NOT NULL, place INTEGER NOT NULL,
  problem TEXT NOT NULL, answer TEXT NOT NULL, response TEXT NOT NULL,
  wanted INTEGER NOT NULL,              -- whether the run still lacked it when it last ran
  claimed_by TEXT, claimed_at REAL, draft TEXT,
  note TEXT NOT NULL DEFAULT '',        -- why what was submitted came back
  text TEXT, skipped TEXT, answered_by TEXT, answered_at REAL
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS wanted_attempt ON corrections (attempt_id) WHERE wanted;
"""
_OPEN = "wanted AND text IS NULL AND skipped IS NULL"


@dataclass(frozen=True)
class OpenCorrection:
    """A correction that is wanted: what a person is shown.

    `claimed_by` is who works on it now, `draft` their unfinished text. `note` says why an earlier submission came back;
    the draft is then that submission. `key` stands for all that is shown.
    """

    attempt_id: str
    problem: str
    answer: str
    response: str
    claimed_by: str | None
    draft: str | None
    note: str
    key: str


class Queue:
    """The queue at `path`. Every call is one transaction on a connection of its own: safe across threads and processes.

    Raises `UserError` where the file is missing or not a queue, and for an attempt whose correction is not wanted,
    is answered already, or is claimed by somebody else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def want(self, failures: Sequence[Failure]) -> None:
        """Ask for corrections of `failures` and of nothing else. Makes the file where there is none."""
        rows = [
            {
                "key": failure_key(failure),
                "attempt_id": failure.attempt.id,
                "place": place,
                "problem": problem_text(failure.problem),
                "answer": failure.problem.answer,
                "response": failure.attempt.response,
            }
            for place, failure in enumerate(failures)
        ]
        with self._transaction(make=True) as database:
            database.execute("UPDATE corrections SET wanted = 0 WHERE wanted")
            database.executemany(
                "INSERT INTO corrections (key, attempt_id, place, problem, answer, response, wanted) "
                "VALUES (:key, :attempt_id, :place, :problem, :answer, :response, 1) "
                "ON CONFLICT (key) DO UPDATE SET wanted = 1, place = excluded.place",
                rows,
            )

    def open_corrections(self) -> list[OpenCorrection]:
        """What is wanted and not yet submitted, in the order of the run."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT attempt_id, problem, answer, response, "
                "CASE WHEN claimed_at > ? THEN claimed_by END, draft, note, key FROM corrections "
                "WHERE wanted AND text IS NULL AND skipped IS NULL ORDER BY place",
                (time.time() - CLAIM_SECONDS,),
            ).fetchall()
        return [OpenCorrection(*row) for row in rows]

    def claim(self, attempt_id: str, who: str) -> bool:
        """Whether the correction is now `who`'s to make; false where somebody else works on it."""
        with self._transaction() as database:
            row = _unanswered(self._find(database, attempt_id))
            if _holder(row) not in (None, who):
                return False
            _set(database, row, claimed_by=who, claimed_at=time.time())
        return True

    def save_draft(self, attempt_id: str, text: str, who: str) -> None:
        """Keep an unfinished text; it is `who`'s claim too."""
        with self._transaction() as database:
            row = _free(self._find(database, attempt_id), who)
            _set(database, row, draft=text, claimed_by=who, claimed_at=time.time())

    def submit(self, attempt_id: str, text: str, who: str) -> None:
        """Answer with `text`; the same text twice is once. Raises `UserError` for no text or the wrong answer again."""
        with self._transaction() as database:
            self._submit(database, self._find(database, attempt_id), text, who)

    def skip(self, attempt_id: str, reason: str, who: str = "") -> None:
        """Answer that there is no correction. The run counts reasons, so a few fixed ones serve best."""
        with self._transaction() as database:
            self._skip(database, self._find(database, attempt_id), reason, who)

    def answers(self) -> dict[str, tuple[str | None, str]]:
        """Submissions for what is wanted, by attempt id: the text, or `None` and why it was skipped."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT attempt_id, text, COALESCE(skipped, '') FROM corrections "
                "WHERE wanted AND (text IS NOT NULL OR skipped IS NOT NULL) ORDER BY place"
            ).fetchall()
        return {attempt_id: (text, skipped) for attempt_id, text, skipped in rows}

    def send_back(self, notes: Mapping[str, str]) -> None:
        """Open submitted corrections again, each with a note, by attempt id; what was submitted becomes the draft."""
        with self._transaction() as database:
            database.executemany(
                "UPDATE corrections SET draft = text, text = NULL, note = ?, claimed_by = NULL "
                "WHERE wanted AND attempt_id = ? AND text IS NOT NULL",
                [(note, attempt_id) for attempt_id, note in notes.items()],
            )

    def export_open(self, path: Path) -> int:
        """Write what is open as JSONL for an editor; returns how many rows.

        A row's `response` is to be edited: the wrong answer, or the submission that came back. `meta` holds the
        problem, the known answer, a note, and `skip`, where a reason can be filled in. `submit_file` takes the edited
        file, and so does the Oracle `import`.
        """
        rows = self.open_corrections()
        write_atomic(path, "".join(f"{_exported(row)}\n" for row in rows))
        return len(rows)

    def submit_file(self, path: Path, who: str) -> int:
        """Submit the rows of an exported file that were edited since, all or none; returns how many.

        Raises `UserError` naming file and line for a row that cannot be submitted.
        """
        edited = [
            (number, row) for number, row in numbered_rows(path, ImportedCorrection, by_hand=True) if _is_edited(row)
        ]
        with self._transaction() as database:
            for number, row in edited:
                try:
                    self._take(database, row, who)
                except UserError as error:
                    raise UserError(f"{path}:{number}: {error}") from None
        return len(edited)

    def _take(self, database: sqlite3.Connection, line: ImportedCorrection, who: str) -> None:
        if line.attempt_id is None:
            raise UserError("name what is corrected by its attempt_id")
        row = self._find(database, line.attempt_id, line.meta.get("key"))
        if reason := line.meta.get("skip"):
            self._skip(database, row, str(reason), who)
        else:
            self._submit(database, row, line.response, who)

    def _submit(self, database: sqlite3.Connection, row: sqlite3.Row, text: str, who: str) -> None:
        if row["text"] == text:
            return
        _free(row, who)
        if not text.strip():
            raise UserError(f"attempt {row['attempt_id']!r}: the correction is empty; skip what cannot be corrected")
        if text.strip() == row["response"].strip():
            raise UserError(
                f"attempt {row['attempt_id']!r}: the correction is the wrong answer itself; correct it, or skip it"
            )
        _set(database, row, text=text, note="", answered_by=who, answered_at=time.time())

    def _skip(self, database: sqlite3.Connection, row: sqlite3.Row, reason: str, who: str) -> None:
        reason = " ".join(reason.split())
        if row["skipped"] != reason:
            _set(database, _free(row, who), skipped=reason, answered_by=who, answered_at=time.time())

    def _find(self, database: sqlite3.Connection, attempt_id: str, key: str | None = None) -> sqlite3.Row:
        """The wanted correction of an attempt, or the one under `key`, wanted or not."""
        found = database.execute(
            f"SELECT * FROM corrections WHERE attempt_id = ? AND {'wanted' if key is None else 'key = ?'}",
            (attempt_id,) if key is None else (attempt_id, key),
        ).fetchone()
        if found is None:
            raise UserError(f"attempt {attempt_id!r}: no correction of it is wanted ({self.path})")
        return found

    @contextmanager
    def _transaction(self, make: bool = False) -> Generator[sqlite3.Connection]:
        if not make and not self.path.exists():
            raise UserError(f"{self.path}: no queue of corrections; a run with rectify.oracle=human makes it")
        try:
            with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as database:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA synchronous=FULL")
                if make:
                    database.execute("PRAGMA journal_mode=WAL")
                    database.executescript(_SCHEMA)
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    if database.in_transaction:  # a full disk has ended it already
                        database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: {error}; check that it is a queue of corrections, that it can be written, and "
                "that there is disk space; what was submitted is kept"
            ) from error


class HumanOracle:
    """Waits for people; implements `spot.rectify.base.Oracle`.

    What was submitted to the queue at `queue_path` is given out; where corrections are still open, `StoppedEarly` says
    how many and where to make them. With a `verifier`, what does not verify is sent back to the queue with the reason:
    a slip of the hand should not cost a person's work.
    """

    name = "human"
    mode: Mode = "rewrite"

    def __init__(self, queue_path: Path, verifier: Verifier | None = None) -> None:
        self.queue = Queue(queue_path)
        self.file = queue_path.with_suffix(".jsonl")
        self._verifier = verifier

    async def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        """All that was submitted, in one group. Raises `StoppedEarly` afterwards where that is not all."""
        self.queue.want(failures)
        if self.file.exists():
            self.queue.submit_file(self.file, FROM_FILE)
        # In a thread: verifiers may take their time.
        objections = await asyncio.to_thread(self._objections, failures)
        self.queue.send_back(objections)
        answers = self.queue.answers()
        if answers:
            yield [_correction(attempt_id, *answer) for attempt_id, answer in answers.items()]
        missing = len(failures) - len(answers)
        if not missing:
            self.file.unlink(missing_ok=True)
            return
        self.queue.export_open(self.file)
        back = f" ({len(objections)} came back, meta.note says why)" if objections else ""
        raise StoppedEarly(
            f"{missing} of {len(failures)} corrections are open{back}; edit the responses in {self.file} (or fill in "
            f"meta.skip), or submit to {self.queue.path}, and run the same command again"
        )

    def _objections(self, failures: Sequence[Failure]) -> dict[str, str]:
        """Why submissions do not verify, by attempt id."""
        if self._verifier is None:
            return {}
        problem_of = {failure.attempt.id: failure.problem for failure in failures}
        objections: dict[str, str] = {}
        for attempt_id, (text, _) in self.queue.answers().items():
            if text is None:
                continue
            verdict = self._verifier(text, problem_of[attempt_id])
            if not verdict.correct:
                read = "no answer" if verdict.answer is None else f"the answer {verdict.answer!r}"
                objections[attempt_id] = " ".join(f"does not verify: {read} was read; {verdict.reason}".split())
        return objections


def failure_key(failure: Failure) -> str:
    """A hash over all that a person is shown of a failure."""
    attempt, problem = failure.attempt, failure.problem
    return _digest([attempt.id, problem_text(problem), problem.answer, attempt.response])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _unanswered(row: sqlite3.Row) -> sqlite3.Row:
    if row["text"] is not None or row["skipped"] is not None:
        by = f" by {row['answered_by']}" if row["answered_by"] else ""
        raise UserError(f"attempt {row['attempt_id']!r}: its correction was already submitted{by}")
    if not row["wanted"]:
        raise UserError(f"attempt {row['attempt_id']!r}: the run no longer has the response that was corrected")
    return row


def _free(row: sqlite3.Row, who: str) -> sqlite3.Row:
    """`row`, if it is unanswered and nobody but `who` works on it."""
    if (holder := _holder(_unanswered(row))) not in (None, who):
        raise UserError(f"attempt {row['attempt_id']!r}: {holder} is working on this correction")
    return row


def _holder(row: sqlite3.Row) -> str | None:
    """Who works on a correction now."""
    is_live = row["claimed_by"] is not None and row["claimed_at"] > time.time() - CLAIM_SECONDS
    return row["claimed_by"] if is_live else None


def _set(database: sqlite3.Connection, row: sqlite3.Row, **values: Any) -> None:
    columns = ", ".join(f"{name} = ?" for name in values)
    database.execute(f"UPDATE corrections SET {columns} WHERE key = ?", (*values.values(), row["key"]))


def _correction(attempt_id: str, text: str | None, skipped: str) -> Correction:
    return Correction(attempt_id, text, "" if text is not None else f"skipped: {skipped}".rstrip(": "))


def _exported(row: OpenCorrection) -> str:
    response = row.draft if row.note and row.draft is not None else row.response
    meta = {"problem": row.problem, "answer": row.answer, "note": row.note, "skip": ""}
    line = {
        "attempt_id": row.attempt_id,
        "meta": meta | {"key": row.key, "exported": _digest(response)},
        "response": response,
    }
    return spelled_out(json.dumps(line, ensure_ascii=False))


def _is_edited(row: ImportedCorrection) -> bool:
    return bool(row.meta.get("skip")) or row.meta.get("exported") != _digest(row.response)
