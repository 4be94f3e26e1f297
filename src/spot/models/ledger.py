"""The ledger: every paid request is on the disk before it is sent, and what the server sent before anything reads it.

One SQLite file (WAL, every commit synced) that several processes may share. A row is one request; its key covers all
that decides the reply, so nothing stale is ever reused. Of a row's tries, those that were neither turned down nor
answered have an unknown outcome: they were on their way when the process died or the connection broke, and count as
possible spend at the worst they can have cost.
"""

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from spot.errors import UserError
from spot.models import bodies
from spot.models.base import Body, Reply, Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
  key TEXT PRIMARY KEY,
  stage TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL,
  request_id TEXT NOT NULL, candidate INTEGER NOT NULL, attempt INTEGER NOT NULL,
  body TEXT NOT NULL,                  -- JSON: messages, sampling and seed, as sent
  sends INTEGER NOT NULL,              -- tries that were let out
  refused INTEGER NOT NULL DEFAULT 0,  -- of those, turned down and not charged
  replied INTEGER NOT NULL DEFAULT 0,  -- of those, answered: more than 1 where an error reply was asked again
  worst REAL NOT NULL,                 -- the most one try can cost
  owner TEXT NOT NULL,                 -- the process that sent it last
  sent_at REAL NOT NULL,
  replied_at REAL, text TEXT, reasoning TEXT, finish_reason TEXT, error TEXT,
  prompt_tokens INTEGER, completion_tokens INTEGER, cost REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY CHECK (id = 0), spent REAL NOT NULL, open REAL NOT NULL);
INSERT OR IGNORE INTO account VALUES (0, 0, 0);
"""
_ADDED = {"total_tokens": "INTEGER", "reasoning_tokens": "INTEGER", "refusal": "TEXT", "served": "TEXT"}
"""Columns of `requests` that ledgers made before 2026-12 lack; `served` is the model that the reply names."""

FOREIGN_SECONDS = 3600.0
"""How long a request that another host has sent is waited for; longer than a config lets a try take."""

NO_USAGE = ", no usage"
"""Behind the outcome of replies whose server did not say what they used: they are booked at the most they can cost."""

_ROUNDING = 1e-9  # dollars; what sums of reservations, each taken back, leave
_BATCH = 500  # keys in one query; SQLite takes at least 999


@dataclass(frozen=True)
class Prices:
    """What tokens cost, in dollars per million."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, usage: Usage) -> float:
        """Dollars for tokens that were used."""
        return (self.input * usage.prompt_tokens + self.output * usage.completion_tokens) / 1e6


@dataclass(frozen=True)
class Entry:
    """A request as the ledger keeps it; `worst` is the most that one try can cost, in dollars."""

    key: str
    stage: str
    endpoint: str
    model: str
    request_id: str
    candidate: int
    attempt: int
    body: str
    worst: float


@dataclass(frozen=True)
class Admit:
    """Let out one try of `entry`, unless the account would pass `max_cost`."""

    entry: Entry
    max_cost: float | None


@dataclass(frozen=True)
class Refused:
    """A try came to nothing; where it is not known whether it is charged, it stays open."""

    key: str
    charged: bool | None


@dataclass(frozen=True)
class Received:
    """What came for a try, before it is read."""

    key: str
    body: Body


@dataclass(frozen=True)
class Reread:
    """A reply on record in which today's reader finds what an earlier one did not; it was booked then."""

    key: str
    reply: Reply


@dataclass(frozen=True)
class Replied:
    """A reply and its cost in dollars; `None` where the server did not say what it used: the worst is assumed."""

    key: str
    reply: Reply
    cost: float | None


@dataclass(frozen=True)
class Released:
    """Nobody here asks these any more; what of their tries is not settled stays open, and others may ask again."""

    keys: Sequence[str]


Operation = Admit | Refused | Received | Reread | Replied | Released
Answer = Literal["done", "no_room", "on_record", "elsewhere", "in_batch"]
"""What became of an operation. An `Admit` is let out (`done`), or not: the account has no room for it, its reply is
there already, another process that lives is asking the same, or a batch that was submitted holds it."""


@dataclass(frozen=True)
class Line:
    """A sum over requests of one stage, model and outcome: tokens, dollars, and dollars that may have been spent."""

    stage: str
    model: str
    outcome: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    possible: float


class Ledger:
    """The ledger at `path`, made at its first use where there is none; with `read_only` there must be one.

    Raises `UserError` where the file is no ledger, cannot be written, or the disk is full.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._owner = owner()
        self._turn = threading.Lock()
        self.under_way: set[str] = set()  # let out here and not settled

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
            database.executescript(_SCHEMA + bodies.SCHEMA)
            for name in _ADDED.keys() - _columns(database):
                database.execute(f"ALTER TABLE requests ADD COLUMN {name} {_ADDED[name]}")
        return database

    def _to_read(self) -> sqlite3.Connection:
        with self._errors():
            # What nobody has open and nobody may write to beside has no log to look into.
            alone = (
                not os.access(self.path.parent, os.W_OK) and not self.path.with_name(f"{self.path.name}-wal").exists()
            )
            address = f"{self.path.resolve().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
            return sqlite3.connect(address, uri=True, timeout=60, isolation_level=None)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if "_database" in self.__dict__:
            self._database.close()
            del self._database

    def apply(self, operations: Sequence[Operation]) -> list[Answer]:
        """Commit all `operations` at once; says what became of each."""
        with self.transaction():
            return [self._apply(operation) for operation in operations]

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
    def reading(self) -> Generator[sqlite3.Connection]:
        """The connection, to look something up."""
        with self._errors():
            yield self._database

    def _apply(self, operation: Operation) -> Answer:
        if isinstance(operation, Admit):
            return self._admit(operation.entry, operation.max_cost)
        if isinstance(operation, Refused):
            self._refused(operation)
        elif isinstance(operation, Received):
            bodies.keep(self._database, operation.key, operation.body)
        elif isinstance(operation, Reread):
            self._read(operation.key, operation.reply)
        elif isinstance(operation, Released):
            self.under_way.difference_update(operation.keys)
            self._database.executemany(
                "UPDATE requests SET owner = '' WHERE key = ? AND owner = ? AND sends > refused + replied",
                [(key, self._owner) for key in operation.keys],
            )
        else:
            self._replied(operation)
        return "done"

    def _admit(self, entry: Entry, max_cost: float | None) -> Answer:
        if (taken := self._taken(entry.key)) is not None:
            return taken
        spent, open_ = self._database.execute("SELECT spent, open FROM account").fetchone()
        if max_cost is not None and spent + open_ + entry.worst > max_cost:
            return "no_room"
        # What is open of an earlier go was reserved at the prices of then.
        self._database.execute(
            "UPDATE account SET open = open + COALESCE((SELECT (? - worst) * (sends - refused - replied) FROM requests "
            "WHERE key = ?), 0)",
            (entry.worst, entry.key),
        )
        self._database.execute(
            "INSERT INTO requests (key, stage, endpoint, model, request_id, candidate, attempt, body, sends, worst, "
            "owner, sent_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET sends = sends + 1, worst = excluded.worst, owner = excluded.owner, "
            "sent_at = excluded.sent_at",
            (
                *(entry.key, entry.stage, entry.endpoint, entry.model, entry.request_id, entry.candidate),
                *(entry.attempt, entry.body, entry.worst, self._owner, time.time()),
            ),
        )
        self._database.execute("UPDATE account SET open = open + ?", (entry.worst,))
        self.under_way.add(entry.key)
        return "done"

    def _taken(self, key: str) -> Answer | None:
        """Why a request need not be sent; it is asked in the transaction that lets it out, so no two are let out."""
        row = self._database.execute(
            "SELECT replied > 0, sends > refused + replied, owner, sent_at FROM requests WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        replied, is_open, who, sent_at = row
        if replied:
            return "on_record"
        if not is_open:
            return None
        if self.batches([key]):
            return "in_batch"
        return "elsewhere" if who not in ("", self._owner) and is_alive(who, time.time() - sent_at) else None

    def batches(self, keys: Sequence[str]) -> list[str]:
        """The provider's names of batches that hold any of `keys` and are not collected; a file's where that is all
        that is known."""
        with self._errors():
            tables = self._database.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'batched'").fetchone()
            if not tables[0]:
                return []
            rows = self._database.execute(
                "SELECT DISTINCT COALESCE(batch_id, file_id) FROM batched JOIN batches USING (token) WHERE outcome = "
                f"'open' AND file_id IS NOT NULL AND state != 'planned' AND key IN ({', '.join('?' * len(keys))})",
                list(keys),
            )
            return [name for (name,) in rows]

    def _refused(self, operation: Refused) -> None:
        self.under_way.discard(operation.key)
        if operation.charged is not False:
            return
        worst = self._worst(operation.key)
        self._database.execute("UPDATE requests SET refused = refused + 1 WHERE key = ?", (operation.key,))
        self._database.execute("UPDATE account SET open = open - ?", (worst,))

    def _replied(self, operation: Replied) -> None:
        reply, usage = operation.reply, operation.reply.usage
        worst = self._worst(operation.key)
        cost = worst if operation.cost is None else operation.cost
        self.under_way.discard(operation.key)
        self._read(operation.key, reply)
        self._database.execute(
            "UPDATE requests SET replied = replied + 1, cost = COALESCE(cost, 0) + ? WHERE key = ?",
            (cost, operation.key),
        )
        if usage is not None:
            self._database.execute(
                "UPDATE requests SET prompt_tokens = COALESCE(prompt_tokens, 0) + ?1, "
                "completion_tokens = COALESCE(completion_tokens, 0) + ?2, "
                "total_tokens = COALESCE(total_tokens + ?3, ?3, total_tokens), "
                "reasoning_tokens = COALESCE(reasoning_tokens + ?4, ?4, reasoning_tokens) WHERE key = ?5",
                (
                    *(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.reasoning_tokens),
                    operation.key,
                ),
            )
        self._database.execute("UPDATE account SET spent = spent + ?, open = open - ?", (cost, worst))

    def _read(self, key: str, reply: Reply) -> None:
        # A good reply stays, whatever comes after it (from another process, say); what that costs is booked as well.
        self._database.execute(
            "UPDATE requests SET replied_at = ?, text = ?, reasoning = ?, finish_reason = ?, error = ?, refusal = ?, "
            "served = ? WHERE key = ? AND (replied = 0 OR finish_reason = 'error')",
            (
                *(time.time(), reply.text, reply.reasoning, reply.finish_reason, reply.error, reply.refusal),
                *(reply.model, key),
            ),
        )

    def _worst(self, key: str) -> float:
        return float(self._database.execute("SELECT worst FROM requests WHERE key = ?", (key,)).fetchone()[0])

    def replies(self, ids_by_key: dict[str, str]) -> Iterator[list[Reply]]:
        """The replies on record under these keys as they were read then, in groups, each under the request id that is
        asked now.

        Errors that cost nothing are not there: those are asked again.
        """
        keys = list(ids_by_key)
        with self._errors():
            present = _columns(self._database)
        # A ledger that is only looked at keeps the columns that it was made with.
        columns = ", ".join(name if name in present else "NULL" for name in _REPLY)
        for first in range(0, len(keys), _BATCH):
            part = keys[first : first + _BATCH]
            marks = ", ".join("?" * len(part))
            with self._errors():
                rows = self._database.execute(
                    f"SELECT key, {columns} FROM requests WHERE replied > 0 AND key IN ({marks})", part
                ).fetchall()
            if rows:
                yield [_reply(ids_by_key[key], *values) for key, *values in rows]

    def in_flight_elsewhere(self, keys: Sequence[str]) -> set[str]:
        """Of `keys`, those that another process that is still alive has sent and not yet settled.

        What is in a batch has no owner: it is on its way whether or not anybody lives who sent it.
        """
        found: set[str] = set()
        for first in range(0, len(keys), _BATCH):
            part = keys[first : first + _BATCH]
            rows = self._database.execute(
                f"SELECT key, owner, sent_at FROM requests WHERE sends > refused + replied AND owner NOT IN ('', ?) "
                f"AND key IN ({', '.join('?' * len(part))})",
                [self._owner, *part],
            ).fetchall()
            now = time.time()
            found.update(key for key, who, sent_at in rows if is_alive(who, now - sent_at))
        return found

    def others_ask(self) -> bool:
        """Whether another process that is still alive has sent something that is not settled."""
        rows = self._database.execute(
            "SELECT owner, MAX(sent_at) FROM requests WHERE sends > refused + replied AND owner NOT IN ('', ?) "
            "GROUP BY owner",
            (self._owner,),
        ).fetchall()
        now = time.time()
        return any(is_alive(who, now - sent_at) for who, sent_at in rows)

    def spent(self) -> tuple[float, float]:
        """Dollars spent, and dollars that open tries may cost or have cost."""
        spent, open_ = self._database.execute("SELECT spent, open FROM account").fetchone()
        return float(spent), float(open_) if open_ > _ROUNDING else 0.0

    def lines(self) -> list[Line]:
        """The account by stage, model and outcome."""
        with self._errors():
            rows = self._database.execute(
                "SELECT stage, model, CASE WHEN replied > 0 AND prompt_tokens IS NULL AND cost > 0 "
                f"THEN finish_reason || '{NO_USAGE}' WHEN replied > 0 THEN finish_reason "
                "WHEN sends > refused THEN 'unknown' "
                "ELSE 'refused' END AS outcome, COUNT(*), COALESCE(SUM(prompt_tokens), 0), "
                "COALESCE(SUM(completion_tokens), 0), COALESCE(SUM(cost), 0), "
                "SUM(worst * (sends - refused - replied)) FROM requests GROUP BY stage, model, outcome "
                "ORDER BY MIN(sent_at), outcome"
            ).fetchall()
        return [Line(*row) for row in rows]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every request with all that is known of it, in the order in which they were last sent."""
        with self._errors():
            cursor = self._database.execute("SELECT * FROM requests ORDER BY sent_at, key")
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            full = "full" in str(error)
            if "not a database" in str(error):
                raise UserError(f"{self.path}: not a ledger; name a run directory or its ledger.sqlite") from error
            mend = "free some room and run the same command again" if full else "can it be read and written?"
            raise UserError(f"{self.path}: {error}; {mend}; what was committed is kept") from error


def _columns(database: sqlite3.Connection) -> set[str]:
    return {name for _, name, *_ in database.execute("PRAGMA table_info(requests)")}


_REPLY = (
    *("text", "reasoning", "finish_reason", "error", "refusal", "served"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens"),
)


def _reply(
    id: str,
    text: str,
    reasoning: str,
    finish_reason: Any,
    error: str,
    refusal: str | None,
    served: str | None,
    prompt: int | None,
    completion: int | None,
    *more: int | None,
) -> Reply:
    usage = None if prompt is None or completion is None else Usage(prompt, completion, *more)
    refusal, served = refusal or "", served or ""
    return Reply(id, text, finish_reason, None, error, reasoning, usage, refusal, served)


def owner() -> str:
    """This process: host, pid, and when it started, since pids come round again."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def is_alive(who: str, seconds_ago: float = 0.0) -> bool:
    """Whether the process that `owner` named, last heard of `seconds_ago`, may still run.

    Of another host that cannot be told: it is assumed for `FOREIGN_SECONDS`.
    """
    host, pid, started = who.rsplit(":", 2)
    if host != socket.gethostname():
        return seconds_ago < FOREIGN_SECONDS
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    try:
        # The 22nd field, counted after the command's name, which may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"
