"""What the ledger's file remembers of batches, so that any later process can resume them.

A batch is noted before it is sent, with a token that it carries as metadata and the keys of its requests, which are
their custom ids. Whether a request is still open says the ledger's own table; here stands in which batch it is. What
becomes of a batch and what its requests cost are one commit.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Literal

from spot.models.paid.lease import owner
from spot.models.paid.ledger import AMONG, Ledger

BatchState = Literal["planned", "submitting", "submitted"]


@dataclass(frozen=True)
class Noted:
    """A batch of which some requests are open: `keys`, of those that were looked up."""

    token: str
    state: BatchState
    file_id: str | None
    batch_id: str | None
    requests: int
    since: float
    keys: tuple[str, ...]


class BatchBook:
    """The tables of batches in `ledger`'s file. Raises what the ledger raises."""

    def __init__(self, ledger: Ledger, endpoint: str) -> None:
        self._ledger = ledger
        self._endpoint = endpoint
        self._owner = owner()

    def on_their_way(self, keys: Sequence[str]) -> list[Noted]:
        """The batches that hold any of `keys`, oldest first."""
        in_batch: dict[str, list[str]] = {}
        with self._ledger.transaction() as database:
            rows = database.execute(
                "SELECT b.key, b.token, state = 'planned' OR r.key IS NULL OR r.sends > r.refused + r.replied "
                "FROM batched b JOIN batches USING (token) LEFT JOIN requests r ON r.key = b.key "
                f"WHERE b.outcome = 'open' AND b.{AMONG}",
                (json.dumps(list(keys)),),
            ).fetchall()
            for key, token, is_open in rows:
                if is_open:
                    in_batch.setdefault(token, []).append(key)
            # Their outcome was committed, and the process killed before it was noted here.
            _over(database, [key for key, _, is_open in rows if not is_open])
            noted: list[Noted] = []
            for token, its_keys in in_batch.items():
                columns = "token, state, file_id, batch_id, requests, since"
                row = database.execute(f"SELECT {columns} FROM batches WHERE token = ?", (token,)).fetchone()
                noted.append(Noted(*row, keys=tuple(its_keys)))
        return sorted(noted, key=lambda batch: batch.since)

    def losses(self, keys: Sequence[str]) -> dict[str, int]:
        """For each key, if any, how many batches gave nothing for it since it was last replied to or given up."""
        query = f"SELECT key, COUNT(*) FROM batched WHERE outcome = 'lost' AND {AMONG} GROUP BY key"
        with self._ledger.transaction() as database:
            return dict(database.execute(query, (json.dumps(list(keys)),)).fetchall())

    def claim(self, token: str) -> str | None:
        """Handle a batch from now on; returns another process that does and may be alive."""
        self._ledger.lease.begin()
        with self._ledger.transaction() as database:
            for (who,) in database.execute("SELECT owner FROM batches WHERE token = ?", (token,)):
                if who not in ("", self._owner) and self._ledger.lease.is_alive(who):
                    return str(who)
            database.execute(
                "UPDATE batches SET owner = ?, seen_at = ? WHERE token = ?", (self._owner, time.time(), token)
            )
        return None

    def lives(self, who: str) -> bool:
        """Whether a sign of life of that process has been seen."""
        return self._ledger.lease.state(who) == "lives"

    def plan(self, token: str, keys: Sequence[str]) -> None:
        """Note, before they are admitted, which requests are going to be sent under `token`, or parts of it."""
        with self._ledger.transaction() as database:
            self._note(database, token, "planned", 0)
            _plan(database, token, keys)

    def unplan(self, token: str, keys: Sequence[str]) -> None:
        """These of a plan are not going to be sent."""
        if keys:
            with self._ledger.transaction() as database:
                gone = [(key, token) for key in keys]
                database.executemany("DELETE FROM batched WHERE key = ? AND token = ?", gone)

    def begin(self, plan: str, token: str, keys: Sequence[str]) -> None:
        """Note that these of a plan's requests are about to be sent as the batch `token`."""
        with self._ledger.transaction() as database:
            self._note(database, token, "submitting", len(keys))
            database.executemany(
                "UPDATE batched SET token = ? WHERE token = ? AND key = ?", [(token, plan, key) for key in keys]
            )

    def uploaded(self, token: str, file_id: str) -> None:
        """Note the batch's input; until then no batch can have come of it."""
        with self._ledger.transaction() as database:
            database.execute("UPDATE batches SET file_id = ?, since = ? WHERE token = ?", (file_id, time.time(), token))

    def submitted(self, token: str, batch_id: str) -> None:
        """Note the batch's id. From now on its requests are in no process's hands."""
        with self._ledger.transaction() as database:
            database.execute(
                "UPDATE batches SET state = 'submitted', batch_id = ?, since = ? WHERE token = ?",
                (batch_id, time.time(), token),
            )
            database.execute(
                "UPDATE requests SET owner = '' WHERE key IN (SELECT key FROM batched WHERE token = ?)", (token,)
            )

    def seen(self, token: str, status: str) -> None:
        """Note how a batch stands, and that somebody looks after it."""
        with self._ledger.transaction() as database:
            database.execute("UPDATE batches SET status = ?, seen_at = ? WHERE token = ?", (status, time.time(), token))

    def over(self, keys: Sequence[str]) -> None:
        """These were replied to, or are given up."""
        with self._ledger.transaction() as database:
            _over(database, keys)

    def settled(
        self,
        token: str,
        *,
        uncharged: Sequence[str],
        over: Sequence[str],
        again: Sequence[str],
        plan: str,
        count: bool,
    ) -> None:
        """A batch has ended: these cost nothing, these are given up, and these are planned anew.

        Without `count` it is not held against the last that it gave nothing for them.
        """
        with self._ledger.transaction() as database:
            _refuse(database, uncharged)
            _over(database, over)
            outcome = "lost" if count else "over"
            database.executemany(
                "UPDATE batched SET outcome = ? WHERE token = ? AND key = ?", [(outcome, token, key) for key in again]
            )
            _plan(database, plan, again)

    def void(self, token: str, keep: Sequence[str] = ()) -> None:
        """A batch or plan that came to nothing: what was admitted for it was not sent and costs nothing.

        `keep` are keys that may be about to be admitted; they stay until what is left of it is voided.
        """
        kept = set(keep)
        with self._ledger.transaction() as database:
            keys = [key for (key,) in database.execute("SELECT key FROM batched WHERE token = ?", (token,))]
            gone = [(key, token) for key in keys if key not in kept]
            admitted = [
                key
                for key, who in database.execute(
                    "SELECT r.key, r.owner FROM requests r JOIN batched b ON b.key = r.key AND b.token = ? "
                    f"WHERE r.sent_at >= b.planned_at AND r.{AMONG}",
                    (token, json.dumps([key for key, _ in gone])),
                )
                if who in ("", self._owner)
                or not self._ledger.lease.is_alive(who)  # another live process has sent it by itself
            ]
            _refuse(database, admitted)
            database.executemany("DELETE FROM batched WHERE key = ? AND token = ?", gone)
            if len(gone) == len(keys):
                database.execute("DELETE FROM batches WHERE token = ?", (token,))

    def release(self) -> None:
        """Leave this process's batches to the next."""
        with self._ledger.transaction() as database:
            database.execute("UPDATE batches SET owner = '' WHERE owner = ?", (self._owner,))

    def _note(self, database: Connection, token: str, state: BatchState, requests: int) -> None:
        now = time.time()
        database.execute(
            "INSERT OR IGNORE INTO batches (token, endpoint, state, requests, since, owner, seen_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (token, self._endpoint, state, requests, now, self._owner, now),
        )


def _plan(database: Connection, token: str, keys: Sequence[str]) -> None:
    now = time.time()
    database.executemany("INSERT OR REPLACE INTO batched VALUES (?, ?, 'open', ?)", [(key, token, now) for key in keys])


def _over(database: Connection, keys: Sequence[str]) -> None:
    database.executemany("UPDATE batched SET outcome = 'over' WHERE key = ?", [(key,) for key in keys])


def _refuse(database: Connection, keys: Sequence[str]) -> None:
    """As the ledger books a try that was refused and not charged, of requests that are open."""
    for key in keys:
        database.execute(
            "UPDATE account SET open = open - COALESCE((SELECT worst FROM requests "
            "WHERE key = ? AND sends > refused + replied), 0)",
            (key,),
        )
        database.execute(
            "UPDATE requests SET refused = refused + 1 WHERE key = ? AND sends > refused + replied", (key,)
        )
