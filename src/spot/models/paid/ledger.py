"""The ledger: every paid request is on the disk before it is sent, and what the server sent before anything reads it.

One SQLite file (WAL, every commit synced) that several processes may share. A row is one request; its key covers all
that decides the reply, so nothing stale is ever reused. Of a row's tries, those that were neither refused nor
answered have an unknown outcome: they were on their way when the process died or the connection broke, and count as
possible spend at the worst they can have cost.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spot.models.base import Body, Reply, Usage
from spot.models.paid.ledger_file import LedgerFile

NO_USAGE = ", no usage"
"""Behind the outcome of replies whose server did not say what they used: they are booked at the most they can cost."""

_OUTPUT = "MAX(completion_tokens, COALESCE(total_tokens, 0) - prompt_tokens)"
"""Of `requests`, as `Usage.output_tokens`: some servers count thinking in the total alone."""

_THINKING = f"MAX(COALESCE(reasoning_tokens, 0), {_OUTPUT} - completion_tokens)"

_ROUNDING = 1e-9  # dollars; what sums of reservations, each taken back, leave
_GROUP = 50  # requests whose replies and bodies are held at once

AMONG = "key IN (SELECT value FROM json_each(?))"
"""With a JSON list of keys as its parameter."""


@dataclass(frozen=True)
class Prices:
    """What tokens cost, in dollars per million."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, usage: Usage) -> float:
        """Dollars for tokens that were used."""
        return (self.input * usage.prompt_tokens + self.output * usage.output_tokens) / 1e6


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
    """Admit one try of `entry`, unless the account would pass `max_cost` with it and `spare` dollars more."""

    entry: Entry
    max_cost: float | None
    spare: float = 0.0


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
    """This process sends these no more; tries that are not settled stay open, and others may send them again."""

    keys: Sequence[str]


@dataclass(frozen=True)
class GivenUp:
    """A request was tried as often as may be and has no reply; `final` is the server's last word on it."""

    key: str
    why: str
    final: bool


Operation = Admit | Refused | Received | Reread | Replied | Released | GivenUp
Admission = Literal["done", "no_room", "on_record", "elsewhere", "in_batch"]
"""What became of an operation. An `Admit` is admitted (`done`), or not: the account has no room for it, its reply is
there already, a live process has sent the same, or a batch that was submitted holds it."""


@dataclass(frozen=True)
class AccountLine:
    """A sum over requests of one stage, model and outcome: tokens, dollars, and dollars that may have been spent.

    `completion_tokens` are all that were charged as output; `reasoning_tokens` are those of them that the server calls
    so, or that it counts in the total and nowhere else.
    """

    stage: str
    model: str
    outcome: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost: float
    possible: float


@dataclass(frozen=True)
class Kept:
    """What is on record of one request: the reply as it was read when it came, `None` where that did not happen, and
    its bodies, oldest first."""

    key: str
    reply: Reply | None
    bodies: tuple[Body, ...]


class Ledger(LedgerFile):
    """The account in the file at `path`: requests, their tries, replies and costs."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        super().__init__(path, read_only=read_only)
        self.under_way: set[str] = set()  # admitted here and not settled

    def apply(self, operations: Sequence[Operation]) -> list[Admission]:
        """Commit all `operations` at once; return what became of each."""
        with self.transaction():
            answers: list[Admission] = [self._apply(operation) for operation in operations]
        if any(isinstance(operation, Admit) for operation in operations):
            self.lease.begin()
        return answers

    def _apply(self, operation: Operation) -> Admission:
        match operation:
            case Admit(entry, max_cost, spare):
                return self._admit(entry, max_cost, spare)
            case Refused(key, charged):
                self._refused(key, charged)
            case Received(key, body):
                self._database.execute(
                    "INSERT INTO bodies (key, number, came_at, content_type, redacted, content) "
                    "SELECT ?1, COALESCE(MAX(number), 0) + 1, ?2, ?3, ?4, ?5 FROM bodies WHERE key = ?1",
                    (key, time.time(), body.content_type, body.redacted, body.content),
                )
            case Reread(key, reply):
                self._read(key, reply)
            case Replied(key, reply, cost):
                self._replied(key, reply, cost)
            case Released(keys):
                self.under_way.difference_update(keys)
                self._database.executemany(
                    "UPDATE requests SET owner = '' WHERE key = ? AND owner = ? AND sends > refused + replied",
                    [(key, self._owner) for key in keys],
                )
            case GivenUp(key, why, final):
                self._database.execute(
                    "UPDATE requests SET given_up = given_up + 1, final = MAX(final, ?), error = ?, "
                    "owner = CASE owner WHEN ? THEN '' ELSE owner END WHERE key = ? AND replied = 0",
                    (final, why, self._owner, key),
                )
        return "done"

    def _admit(self, entry: Entry, max_cost: float | None, spare: float) -> Admission:
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

    def _taken(self, key: str) -> Admission | None:
        """Why a request need not be sent; checked in the transaction that admits it, so that no two are admitted."""
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
            rows = self._database.execute(
                "SELECT DISTINCT COALESCE(batch_id, file_id) FROM batched JOIN batches USING (token) WHERE outcome = "
                f"'open' AND file_id IS NOT NULL AND state != 'planned' AND {AMONG}",
                (json.dumps(list(keys)),),
            )
            return [name for (name,) in rows]

    def _refused(self, key: str, charged: bool | None) -> None:
        self.under_way.discard(key)
        if charged is False:
            self._database.execute(
                "UPDATE account SET open = open - (SELECT worst FROM requests WHERE key = ?)", (key,)
            )
            self._database.execute("UPDATE requests SET refused = refused + 1 WHERE key = ?", (key,))

    def _replied(self, key: str, reply: Reply, cost: float | None) -> None:
        worst, tries = self._database.execute(
            "SELECT worst, sends - refused - replied FROM requests WHERE key = ?", (key,)
        ).fetchone()
        cost = worst if cost is None else cost
        self.under_way.discard(key)
        self._read(key, reply)
        # What became of the other tries is not known; each is taken to have cost at most as much.
        rest = min(worst, cost) if reply.finish_reason != "error" else worst
        self._database.execute(
            "UPDATE requests SET replied = replied + 1, cost = COALESCE(cost, 0) + ?, worst = ? WHERE key = ?",
            (cost, rest, key),
        )
        if usage := reply.usage:
            self._database.execute(
                "UPDATE requests SET prompt_tokens = COALESCE(prompt_tokens, 0) + ?1, "
                "completion_tokens = COALESCE(completion_tokens, 0) + ?2, "
                "total_tokens = COALESCE(total_tokens + ?3, ?3, total_tokens), "
                "reasoning_tokens = COALESCE(reasoning_tokens + ?4, ?4, reasoning_tokens) WHERE key = ?5",
                (*(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.reasoning_tokens), key),
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

    def replies(self, ids_by_key: dict[str, str]) -> Iterator[list[Reply]]:
        """The replies on record under these keys as they were read then, in groups, each under the request id that is
        asked now.

        Among them are errors that were charged, and the server's last word on what it refuses for good.
        """
        keys = list(ids_by_key)
        query = f"SELECT key, {', '.join(_REPLY)} FROM requests WHERE (replied > 0 OR final) AND {AMONG}"
        for first in range(0, len(keys), _GROUP):
            with self._errors():
                rows = self._database.execute(query, (json.dumps(keys[first : first + _GROUP]),)).fetchall()
            if rows:
                yield [_reply(ids_by_key[key], *values) for key, *values in rows]

    def kept(self, ids_by_key: dict[str, str]) -> Iterator[list[Kept]]:
        """All that is on record under these keys, in groups, replies under the present request ids.

        A request without a reply is there if a body came for it and the process was killed before it was read, or could
        not read it; not while it is on its way, here or in another process that lives.
        """
        keys = list(ids_by_key)
        for first in range(0, len(keys), _GROUP):
            part = keys[first : first + _GROUP]
            replies = {reply.id: reply for group in self.replies({key: key for key in part}) for reply in group}
            busy = self.in_flight_elsewhere(part).keys() | self.under_way
            group: list[Kept] = []
            for key in part:
                reply, bodies = replies.get(key), self._bodies(key)
                if reply is not None or (bodies and key not in busy):
                    group.append(Kept(key, reply and replace(reply, id=ids_by_key[key]), bodies))
            if group:
                yield group

    def _bodies(self, key: str) -> tuple[Body, ...]:
        with self._errors():
            query = "SELECT content, content_type, redacted FROM bodies WHERE key = ? ORDER BY number"
            rows = self._database.execute(query, (key,)).fetchall()
        return tuple(Body(content, content_type, bool(redacted)) for content, content_type, redacted in rows)

    def in_flight_elsewhere(self, keys: Sequence[str]) -> dict[str, str]:
        """Of `keys`, those that another process that may be alive has sent and not yet settled; which process.

        What is in a batch has no owner: it is on its way whether or not anybody lives who sent it.
        """
        rows = self._database.execute(
            f"SELECT key, owner FROM requests WHERE sends > refused + replied AND owner NOT IN ('', ?) AND {AMONG}",
            (self._owner, json.dumps(list(keys))),
        ).fetchall()
        return {key: who for key, who in rows if self.lease.is_alive(who)}

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
        """Of `keys`, those that failed in earlier commands and have no reply since: in how many."""
        query = f"SELECT key, given_up FROM requests WHERE given_up AND NOT (replied OR final) AND {AMONG}"
        return dict(self._database.execute(query, (json.dumps(list(keys)),)).fetchall())

    def spent(self) -> tuple[float, float]:
        """Dollars spent, and dollars that open tries may cost or have cost."""
        spent, open_ = self._database.execute("SELECT spent, open FROM account").fetchone()
        return float(spent), float(open_) if open_ > _ROUNDING else 0.0

    def lines(self) -> list[AccountLine]:
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
        return [AccountLine(*row) for row in rows]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every request with all that is known about it, in the order in which they were last sent."""
        with self._errors():
            cursor = self._database.execute("SELECT * FROM requests ORDER BY sent_at, key")
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))


_REPLY = (
    *("text", "reasoning", "finish_reason", "error", "refusal", "served"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens"),
)


def _reply(id: str, *values: Any) -> Reply:
    """A reply from the columns `_REPLY`; without a `finish_reason` the request was refused for good."""
    text, reasoning, finish_reason, error, refusal, served, prompt, completion, total, thought = values
    usage = None if prompt is None or completion is None else Usage(prompt, completion, total, thought)
    return Reply(
        id,
        text or "",
        finish_reason or "error",
        error=error or "",
        reasoning=reasoning or "",
        usage=usage,
        refusal=refusal or "",
        model=served or "",
    )
