"""The ledger: every paid request is on the disk before it is sent, and what the server sent before anything reads it.

One SQLite file (WAL, every commit synced) that several processes may share. A row is one request; its key covers all
that decides the reply, so nothing stale is ever reused. Of a row's tries, those that were neither turned down nor
answered have an unknown outcome: they were on their way when the process died or the connection broke, and count as
possible spend at the worst they can have cost.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from spot.errors import UserError
from spot.models.base import Reply, Usage
from spot.models.paid import bodies, ledger_schema
from spot.models.paid.bookings import (
    Admit,
    Answer,
    Entry,
    GivenUp,
    Line,
    Operation,
    Prices,
    Received,
    Refused,
    Released,
    Replied,
    Reread,
)
from spot.models.paid.lease import Lease, owner

__all__ = [
    "NO_USAGE",
    "Admit",
    "Answer",
    "Entry",
    "GivenUp",
    "Ledger",
    "Line",
    "Operation",
    "Prices",
    "Received",
    "Refused",
    "Released",
    "Replied",
    "Reread",
]

NO_USAGE = ", no usage"
"""Behind the outcome of replies whose server did not say what they used: they are booked at the most they can cost."""

_DAMAGED = (
    "If it is the ledger of this run and was damaged, restore it, or move it away (sqlite3's .recover may still read "
    "it) and run the same command: rows in the output are kept, only what they lack is asked and paid for again"
)

_OUTPUT = "MAX(completion_tokens, COALESCE(total_tokens, 0) - prompt_tokens)"
"""Of `requests`, as `Usage.output_tokens`: some servers count thinking in the total alone."""

_THINKING = f"MAX(COALESCE(reasoning_tokens, 0), {_OUTPUT} - completion_tokens)"

_ROUNDING = 1e-9  # dollars; what sums of reservations, each taken back, leave
_BATCH = 500  # keys in one query; SQLite takes at least 999


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
            ledger_schema.prepare(database)
        return database

    def _to_read(self) -> sqlite3.Connection:
        with self._errors():
            # What nobody has open and nobody may write to beside has no log to look into.
            alone = (
                not os.access(self.path.parent, os.W_OK) and not self.path.with_name(f"{self.path.name}-wal").exists()
            )
            address = f"{self.path.resolve().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
            database = sqlite3.connect(address, uri=True, timeout=60, isolation_level=None)
            ledger_schema.complete_for_reading(database)
            return database

    def __enter__(self) -> "Ledger":
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

    def apply(self, operations: Sequence[Operation]) -> list[Answer]:
        """Commit all `operations` at once; says what became of each."""
        with self.transaction():
            answers: list[Answer] = [self._apply(operation) for operation in operations]
        if any(isinstance(operation, Admit) for operation in operations):
            self.lease.begin()
        return answers

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
            return self._admit(operation.entry, operation.max_cost, operation.spare)
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
        elif isinstance(operation, GivenUp):
            self._database.execute(
                "UPDATE requests SET given_up = given_up + 1, final = MAX(final, ?), error = ?, "
                "owner = CASE owner WHEN ? THEN '' ELSE owner END WHERE key = ? AND replied = 0",
                (operation.final, operation.why, self._owner, operation.key),
            )
        else:
            self._replied(operation)
        return "done"

    def _admit(self, entry: Entry, max_cost: float | None, spare: float) -> Answer:
        if (taken := self._taken(entry.key)) is not None:
            return taken
        spent, open_ = self._database.execute("SELECT spent, open FROM account").fetchone()
        if max_cost is not None and spent + open_ + entry.worst + spare > max_cost:
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
            "SELECT replied > 0 OR final, sends > refused + replied, owner FROM requests WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        replied, is_open, who = row
        if replied:
            return "on_record"
        if not is_open:
            return None
        if self.batches([key]):
            return "in_batch"
        return "elsewhere" if who not in ("", self._owner) and self.lease.is_alive(who) else None

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
        worst, tries = self._database.execute(
            "SELECT worst, sends - refused - replied FROM requests WHERE key = ?", (operation.key,)
        ).fetchone()
        cost = worst if operation.cost is None else operation.cost
        self.under_way.discard(operation.key)
        self._read(operation.key, reply)
        # What came of the tries beside it is not known; the same request whole is taken for the most that one cost.
        rest = min(worst, cost) if reply.finish_reason != "error" else worst
        self._database.execute(
            "UPDATE requests SET replied = replied + 1, cost = COALESCE(cost, 0) + ?, worst = ? WHERE key = ?",
            (cost, rest, operation.key),
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
        settled = tries * worst - (tries - 1) * rest
        self._database.execute("UPDATE account SET spent = spent + ?, open = open - ?", (cost, settled))

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

        Among them are errors that were charged, and the server's last word on what it refuses for good.
        """
        keys = list(ids_by_key)
        for first in range(0, len(keys), _BATCH):
            part = keys[first : first + _BATCH]
            marks = ", ".join("?" * len(part))
            with self._errors():
                rows = self._database.execute(
                    f"SELECT key, {', '.join(_REPLY)} FROM requests WHERE (replied > 0 OR final) AND key IN ({marks})",
                    part,
                ).fetchall()
            if rows:
                yield [_reply(ids_by_key[key], *values) for key, *values in rows]

    def in_flight_elsewhere(self, keys: Sequence[str]) -> dict[str, str]:
        """Of `keys`, those that another process that may be alive has sent and not yet settled; which process.

        What is in a batch has no owner: it is on its way whether or not anybody lives who sent it.
        """
        found: dict[str, str] = {}
        for first in range(0, len(keys), _BATCH):
            part = keys[first : first + _BATCH]
            rows = self._database.execute(
                "SELECT key, owner FROM requests WHERE sends > refused + replied AND owner NOT IN ('', ?) "
                f"AND key IN ({', '.join('?' * len(part))})",
                [self._owner, *part],
            ).fetchall()
            found.update((key, who) for key, who in rows if self.lease.is_alive(who))
        return found

    def others_ask(self) -> list[str]:
        """The other processes that may be alive and have sent something that is not settled."""
        rows = self._database.execute(
            "SELECT DISTINCT owner FROM requests WHERE sends > refused + replied AND owner NOT IN ('', ?)",
            (self._owner,),
        ).fetchall()
        return [who for (who,) in rows if self.lease.is_alive(who)]

    def has_answered(self, endpoint: str) -> bool:
        """Whether any request to `endpoint` has a reply on record."""
        query = "SELECT EXISTS (SELECT 1 FROM requests WHERE endpoint = ? AND replied > 0)"
        return bool(self._database.execute(query, (endpoint,)).fetchone()[0])

    def longest_beyond_limit(self, endpoint: str) -> int:
        """Output tokens of the longest reply of `endpoint` that was longer than its request allowed; 0 without one."""
        query = (
            f"SELECT MAX(output) FROM (SELECT {_OUTPUT} / replied AS output, "
            "json_extract(body, '$.sampling.max_new_tokens') AS most FROM requests WHERE endpoint = ? AND replied > 0 "
            "AND prompt_tokens IS NOT NULL) WHERE output > most"
        )
        return int(self._database.execute(query, (endpoint,)).fetchone()[0] or 0)

    def given_up(self, keys: Sequence[str]) -> dict[str, int]:
        """Of `keys`, those that earlier commands have tried in vain and that have no reply since: how many have."""
        found: dict[str, int] = {}
        for first in range(0, len(keys), _BATCH):
            part = keys[first : first + _BATCH]
            marks = ", ".join("?" * len(part))
            query = f"SELECT key, given_up FROM requests WHERE given_up AND NOT (replied OR final) AND key IN ({marks})"
            found.update(self._database.execute(query, part).fetchall())
        return found

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
                "WHEN sends > refused AND NOT final THEN 'unknown' "
                "ELSE 'refused' END AS outcome, COUNT(*), COALESCE(SUM(prompt_tokens), 0), "
                f"COALESCE(SUM({_OUTPUT}), 0), COALESCE(SUM({_THINKING}), 0), COALESCE(SUM(cost), 0), "
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
        except (sqlite3.Error, ledger_schema.UnknownSchemaError) as error:
            full = "full" in str(error)
            if isinstance(error, ledger_schema.UnknownSchemaError) or "not a database" in str(error):
                why = "" if isinstance(error, sqlite3.Error) else f" ({error})"
                raise UserError(
                    f"{self.path}: not a ledger{why}; name a run directory or its ledger.sqlite. {_DAMAGED}"
                ) from error
            if "malformed" in str(error):
                raise UserError(f"{self.path}: {error}. {_DAMAGED}") from error
            mend = "free some room and run the same command again" if full else "can it be read and written?"
            raise UserError(f"{self.path}: {error}; {mend}; what was committed is kept") from error


_REPLY = (
    *("text", "reasoning", "finish_reason", "error", "refusal", "served"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens"),
)


def _reply(
    id: str,
    text: str | None,
    reasoning: str | None,
    finish_reason: Any,
    error: str | None,
    refusal: str | None,
    served: str | None,
    prompt: int | None,
    completion: int | None,
    *more: int | None,
) -> Reply:
    usage = None if prompt is None or completion is None else Usage(prompt, completion, *more)
    finish_reason = finish_reason or "error"  # refused for good: there never was a reply
    return Reply(
        *(id, text or "", finish_reason, None, error or "", reasoning or "", usage, refusal or "", served or "")
    )
