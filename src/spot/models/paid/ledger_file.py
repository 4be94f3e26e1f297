"""The ledger's file: its tables, also as earlier versions made them, its transactions, and what its errors mean."""

import os
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Self

from spot.errors import UserError
from spot.models.paid.lease import Lease, owner

_DAMAGED = (
    "If it is the ledger of this run and was damaged, restore it, or move it away (sqlite3's .recover may still read "
    "it) and run the same command: rows in the output are kept, only what they lack is sent and paid for again"
)

_COLUMNS = {
    "key": "TEXT PRIMARY KEY",
    "stage": "TEXT NOT NULL DEFAULT ''",
    "endpoint": "TEXT NOT NULL DEFAULT ''",
    "model": "TEXT NOT NULL DEFAULT ''",
    "request_id": "TEXT NOT NULL DEFAULT ''",
    "candidate": "INTEGER NOT NULL DEFAULT 0",
    "attempt": "INTEGER NOT NULL DEFAULT 0",
    "body": "TEXT NOT NULL DEFAULT '{}'",  # JSON: messages, sampling and seed, as sent
    "sends": "INTEGER NOT NULL DEFAULT 0",  # tries that were admitted
    "refused": "INTEGER NOT NULL DEFAULT 0",  # of those, refused and not charged
    "replied": "INTEGER NOT NULL DEFAULT 0",  # of those, answered: more than 1 where an error reply was sent again
    "given_up": "INTEGER NOT NULL DEFAULT 0",  # commands that tried it as often as they may and failed
    "final": "INTEGER NOT NULL DEFAULT 0",  # 1 where the server refuses it for good: `error` says why
    "worst": "REAL NOT NULL DEFAULT 0",  # the most one open try can cost
    "owner": "TEXT NOT NULL DEFAULT ''",  # the process that sent it last
    "sent_at": "REAL NOT NULL DEFAULT 0",
    "replied_at": "REAL",
    "text": "TEXT",
    "reasoning": "TEXT",
    "finish_reason": "TEXT",
    "error": "TEXT",
    "prompt_tokens": "INTEGER",
    "completion_tokens": "INTEGER",
    "total_tokens": "INTEGER",
    "reasoning_tokens": "INTEGER",
    "refusal": "TEXT",
    "served": "TEXT",  # the model that the reply names
    "cost": "REAL",
}
"""Of the table `requests`; a new one needs a default, since older ledgers get it added."""

_REQUIRED = ("key", "stage", "model", "body")
"""Without these a table of this name is no account of requests."""

_OTHERS = """
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY CHECK (id = 0), spent REAL NOT NULL, open REAL NOT NULL);
INSERT OR IGNORE INTO account SELECT 0, COALESCE(SUM(cost), 0), COALESCE(SUM(worst * (sends - refused - replied)), 0)
  FROM requests;
CREATE TABLE IF NOT EXISTS processes (owner TEXT PRIMARY KEY, beat INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bodies (
  key TEXT NOT NULL, number INTEGER NOT NULL,  -- the key's first, second, ... body
  came_at REAL NOT NULL, content_type TEXT NOT NULL,
  redacted INTEGER NOT NULL,                   -- 1: it held the endpoint's key, which was taken out
  content BLOB NOT NULL,
  UNIQUE (key, number)
);
CREATE TABLE IF NOT EXISTS batches (
  token TEXT PRIMARY KEY,   -- ours; the batch carries it as metadata
  endpoint TEXT NOT NULL,
  state TEXT NOT NULL,      -- planned (nothing was sent), submitting (it may have been) or submitted (it has an id)
  requests INTEGER NOT NULL,
  file_id TEXT, batch_id TEXT, status TEXT,  -- the provider's
  since REAL NOT NULL,      -- when the state or the file came to be
  owner TEXT NOT NULL,      -- the process that handles it, if any
  seen_at REAL NOT NULL     -- when it last did
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batched (
  key TEXT NOT NULL, token TEXT NOT NULL,
  outcome TEXT NOT NULL,    -- open, lost (the batch is over and gave nothing for it) or over (replied to or given up)
  planned_at REAL NOT NULL,
  PRIMARY KEY (key, token)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batched_by_token ON batched (token);
"""

# What an older table says in other columns.
_DERIVED = {"replied": "UPDATE requests SET replied = 1 WHERE text IS NOT NULL"}


class _UnknownSchemaError(Exception):
    """A table `requests` that is none of ours."""


def _prepare(database: sqlite3.Connection) -> None:
    """Make the tables, or add what an earlier version's lack; nothing that is there is changed.

    Raises `_UnknownSchemaError` for a table of that name that is none of ours.
    """
    columns = ", ".join(f"{name} {declared}" for name, declared in _COLUMNS.items())
    database.execute("BEGIN IMMEDIATE")  # two processes may open it at the same time
    try:
        database.execute(f"CREATE TABLE IF NOT EXISTS requests ({columns}) WITHOUT ROWID")
        for name in (missing := _missing(database)):
            database.execute(f"ALTER TABLE requests ADD COLUMN {name} {_COLUMNS[name]}")
        for name in missing:
            if name in _DERIVED:
                database.execute(_DERIVED[name])
        for statement in _OTHERS.split(";\n"):
            database.execute(statement)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _complete_for_reading(database: sqlite3.Connection) -> None:
    """Have a connection that may not write see an earlier version's table with the columns of today.

    Raises `_UnknownSchemaError` as `_prepare` does.
    """
    if missing := _missing(database):
        absent = ", ".join(f"{_default(_COLUMNS[name])} AS {name}" for name in missing)
        # A temporary view hides the table behind its own name, for this connection only.
        database.execute(f"CREATE TEMP VIEW requests AS SELECT *, {absent} FROM main.requests")


def _missing(database: sqlite3.Connection) -> list[str]:
    """Columns that `requests` lacks, in the order of `_COLUMNS`."""
    there = {row[1] for row in database.execute("PRAGMA main.table_info(requests)")}
    if lacks := [name for name in _REQUIRED if name not in there]:
        raise _UnknownSchemaError(f"it has no column {lacks[0]!r}" if there else "it has no table of requests")
    return [name for name in _COLUMNS if name not in there]


def _default(declared: str) -> str:
    return declared.partition(" DEFAULT ")[2] or "NULL"


class LedgerFile:
    """The file at `path`, made at its first use where there is none; with `read_only` there must be one.

    Raises `UserError` where the file is no ledger, cannot be written, or the disk is full.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._owner = owner()
        self._turn = threading.Lock()

    @cached_property
    def lease(self) -> Lease:
        """This process's sign of life in the file, and others'."""
        return Lease(lambda: self._owner, self.transaction, lambda: self._database)

    @cached_property
    def _database(self) -> sqlite3.Connection:
        if self._read_only:
            return self._to_read()
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Writes come from whichever thread has the turn, one at a time.
            database = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            _prepare(database)
        return database

    def _to_read(self) -> sqlite3.Connection:
        with self._errors():
            # A file that no process has open, in a folder that cannot be written to, has no log to read.
            alone = (
                not os.access(self.path.parent, os.W_OK) and not self.path.with_name(f"{self.path.name}-wal").exists()
            )
            address = f"{self.path.resolve().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
            database = sqlite3.connect(address, uri=True, timeout=60, isolation_level=None)
            _complete_for_reading(database)
            return database

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if "lease" in self.__dict__:
            self.lease.end()
            del self.lease
        if "_database" in self.__dict__:
            self._database.close()
            del self._database

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """What is done to the connection inside is one commit, or nothing; one thread has it at a time."""
        with self._errors(), self._turn:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # a full disk has ended it already
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (sqlite3.Error, _UnknownSchemaError) as error:
            full = "full" in str(error)
            if isinstance(error, _UnknownSchemaError) or "not a database" in str(error):
                why = "" if isinstance(error, sqlite3.Error) else f" ({error})"
                raise UserError(
                    f"{self.path}: not a ledger{why}; name a run directory or its ledger.sqlite. {_DAMAGED}"
                ) from error
            if "malformed" in str(error):
                raise UserError(f"{self.path}: {error}. {_DAMAGED}") from error
            fix = "free some space and run the same command again" if full else "check that it can be read and written"
            raise UserError(f"{self.path}: {error}; {fix}; what was committed is kept") from error
