"""What a ledger is told and what it tells: prices, requests, what becomes of their tries, and sums over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spot.models.base import Body, Reply, Usage


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
    """Let out one try of `entry`, unless the account would pass `max_cost` with it and `spare` dollars more."""

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
    """Nobody here asks these any more; what of their tries is not settled stays open, and others may ask again."""

    keys: Sequence[str]


@dataclass(frozen=True)
class GivenUp:
    """A request was tried as often as may be and has no reply; `final` is the server's last word on it."""

    key: str
    why: str
    final: bool


Operation = Admit | Refused | Received | Reread | Replied | Released | GivenUp
Answer = Literal["done", "no_room", "on_record", "elsewhere", "in_batch"]
"""What became of an operation. An `Admit` is let out (`done`), or not: the account has no room for it, its reply is
there already, another process that lives is asking the same, or a batch that was submitted holds it."""


@dataclass(frozen=True)
class Line:
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
