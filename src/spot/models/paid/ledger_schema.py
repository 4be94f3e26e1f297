"""The tables of a ledger, and how one that an earlier version made is brought up to them or read as it is."""

from sqlite3 import Connection

from spot.models.paid import bodies

COLUMNS = {
    "key": "TEXT PRIMARY KEY",
    "stage": "TEXT NOT NULL DEFAULT ''",
    "endpoint": "TEXT NOT NULL DEFAULT ''",
    "model": "TEXT NOT NULL DEFAULT ''",
    "request_id": "TEXT NOT NULL DEFAULT ''",
    "candidate": "INTEGER NOT NULL DEFAULT 0",
    "attempt": "INTEGER NOT NULL DEFAULT 0",
    "body": "TEXT NOT NULL DEFAULT '{}'",  # JSON: messages, sampling and seed, as sent
    "sends": "INTEGER NOT NULL DEFAULT 0",  # tries that were let out
    "refused": "INTEGER NOT NULL DEFAULT 0",  # of those, turned down and not charged
    "replied": "INTEGER NOT NULL DEFAULT 0",  # of those, answered: more than 1 where an error reply was asked again
    "given_up": "INTEGER NOT NULL DEFAULT 0",  # commands that tried it as often as they may, in vain
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
"""

# What an older table says in other columns.
_DERIVED = {"replied": "UPDATE requests SET replied = 1 WHERE text IS NOT NULL"}


class UnknownSchemaError(Exception):
    """A table `requests` that is none of ours."""


def prepare(database: Connection) -> None:
    """Make the tables, or add what an earlier version's lack; nothing that is there is changed.

    Raises `UnknownSchemaError` for a table of that name that is none of ours.
    """
    columns = ", ".join(f"{name} {declared}" for name, declared in COLUMNS.items())
    database.execute("BEGIN IMMEDIATE")  # two processes may open it at the same time
    try:
        database.execute(f"CREATE TABLE IF NOT EXISTS requests ({columns}) WITHOUT ROWID")
        for name in (missing := _missing(database)):
            database.execute(f"ALTER TABLE requests ADD COLUMN {name} {COLUMNS[name]}")
        for name in missing:
            if name in _DERIVED:
                database.execute(_DERIVED[name])
        for statement in (_OTHERS + bodies.SCHEMA).split(";"):
            database.execute(statement)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def complete_for_reading(database: Connection) -> None:
    """Have a connection that may not write see an earlier version's table with the columns of today.

    Raises `UnknownSchemaError` as `prepare` does.
    """
    if missing := _missing(database):
        absent = ", ".join(f"{_default(COLUMNS[name])} AS {name}" for name in missing)
        # A temporary view hides the table behind its own name, for this connection only.
        database.execute(f"CREATE TEMP VIEW requests AS SELECT *, {absent} FROM main.requests")


def _missing(database: Connection) -> list[str]:
    """Columns that `requests` lacks, in the order of `COLUMNS`."""
    there = {row[1] for row in database.execute("PRAGMA main.table_info(requests)")}
    if lacks := [name for name in _REQUIRED if name not in there]:
        raise UnknownSchemaError(f"it has no column {lacks[0]!r}" if there else "it has no table of requests")
    return [name for name in COLUMNS if name not in there]


def _default(declared: str) -> str:
    return declared.partition(" DEFAULT ")[2] or "NULL"
