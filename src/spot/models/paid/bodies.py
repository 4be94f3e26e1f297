"""What servers sent, byte for byte, in the ledger's file: committed before it is read, so that a reader that is
improved later finds in it what today's does not, and nothing is paid for again.

The columns of `requests` say what was read in a body when it came; a model in process has no bodies, only those.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from sqlite3 import Connection
from typing import TYPE_CHECKING

from spot.models.base import Body, Reply

if TYPE_CHECKING:
    from spot.models.paid.ledger import Ledger

SCHEMA = """
CREATE TABLE IF NOT EXISTS bodies (
  key TEXT NOT NULL, number INTEGER NOT NULL,  -- the key's first, second, ... body
  came_at REAL NOT NULL, content_type TEXT NOT NULL,
  redacted INTEGER NOT NULL,                   -- 1: it held the endpoint's key, which was taken out
  content BLOB NOT NULL,
  UNIQUE (key, number)
);
"""
_GROUP = 50  # requests whose bodies are held at once


@dataclass(frozen=True)
class Kept:
    """What is on record of one request: the reply as it was read when it came, `None` where that did not happen, and
    its bodies, oldest first."""

    key: str
    reply: Reply | None
    bodies: tuple[Body, ...]


def keep(database: Connection, key: str, body: Body) -> None:
    """Add a body to what is kept of `key`; part of the caller's transaction."""
    database.execute(
        "INSERT INTO bodies (key, number, came_at, content_type, redacted, content) "
        "SELECT ?1, COALESCE(MAX(number), 0) + 1, ?2, ?3, ?4, ?5 FROM bodies WHERE key = ?1",
        (key, time.time(), body.content_type, body.redacted, body.content),
    )


def kept(ledger: "Ledger", ids_by_key: dict[str, str]) -> Iterator[list[Kept]]:
    """All that is on record under these keys, in groups, replies under the request ids that are asked now.

    A request without a reply is there if a body came for it and the process was killed before it was read, or could not
    read it; not while it is on its way, here or in another process that lives.
    """
    keys = list(ids_by_key)
    for first in range(0, len(keys), _GROUP):
        part = keys[first : first + _GROUP]
        replies = {reply.id: reply for group in ledger.replies({key: key for key in part}) for reply in group}
        busy = ledger.in_flight_elsewhere(part).keys() | ledger.under_way
        group: list[Kept] = []
        for key in part:
            reply, bodies = replies.get(key), _bodies(ledger, key)
            if reply is not None or (bodies and key not in busy):
                group.append(Kept(key, reply and replace(reply, id=ids_by_key[key]), bodies))
        if group:
            yield group


def _bodies(ledger: "Ledger", key: str) -> tuple[Body, ...]:
    with ledger.reading() as database:
        rows = database.execute(
            "SELECT content, content_type, redacted FROM bodies WHERE key = ? ORDER BY number", (key,)
        ).fetchall()
    return tuple(Body(content, content_type, bool(redacted)) for content, content_type, redacted in rows)
