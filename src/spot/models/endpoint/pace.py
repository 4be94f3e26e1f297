"""The servers of a model and how fast each is asked: tries in flight that grow until it refuses, pauses, caps a minute.

Pure bookkeeping: times are seconds of any clock that only goes forward, passed in by the sender.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spot.models.base import Request
from spot.models.endpoint.failures import FailedTry

START = 8
"""Tries in flight to begin with."""

LONGEST_ROUND = 5.0
"""Seconds. Refusals come at once, replies may take minutes: what was not refused for so long was taken."""

SHARE = 1 / 8
"""One refusal in hundreds of tries is chance; this share of a round trip's says that there is too much in flight."""

STEP = 1 / 4
"""Growth in a round trip after that, as a share of the limit that was too much (half a try at least)."""

MINUTE = 60.0


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is tried and how long to wait in between, in seconds.

    Waits double from `first_wait` up to `longest_wait`, with jitter. A server's own Retry-After is obeyed instead, up
    to `longest_retry_after`; one that asks for more is sent nothing more in this run. A server
    that in `tries` round trips in a row gave no reply at all is out; pauses in between grow fourfold, so that with the
    defaults the last try comes more than a minute after the first: limits a minute pass.
    """

    tries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 30.0
    longest_retry_after: float = 300.0

    def wait(self, tries_made: int) -> float:
        """Seconds until a request that failed `tries_made` times is tried again."""
        return random.uniform(0.5, 1) * min(self.first_wait * 2.0 ** min(tries_made - 1, 30), self.longest_wait)

    def pause(self, strikes: int) -> float:
        """Seconds for which a server that failed `strikes` round trips in a row is left alone; none after the first."""
        if strikes < 2:
            return 0.0
        return random.uniform(0.75, 1) * min(self.first_wait * 4.0 ** min(strikes - 2, 30), self.longest_wait)


class Pace:
    """One server's tries in flight, and from when on the next may be sent.

    The limit doubles in a round trip until the first cut, then grows by a fixed step. Refusals halve it, once in a
    round trip, as soon as they are an eighth of it: up to 8 in flight a single one does. What was sent before the last
    cut says nothing new. The step comes from the limit that was cut; several cuts in a row are mostly one storm and
    lower it but slowly, so that what was reached before comes back. After two failed round trips in a row (strikes)
    the server is left alone for a while and then tried with one request at a time until it replies.
    """

    def __init__(self, most: int, policy: RetryPolicy) -> None:
        self.in_flight = 0
        self.sent = 0
        self.strikes = 0
        self.limit = float(min(START, most))
        self._most = most
        self._policy = policy
        self._too_much: float | None = None
        self._refusals = 0
        self._paused_until = -math.inf
        # The number of the last try that had been sent when ...
        self._round = 0  # ... this round trip began
        self._cut = 0  # ... the limit was halved
        self._struck = 0  # ... a round trip was counted as failed
        self._full = 0  # ... the limit was what kept more from being sent
        self._alive = False
        self._round_began = 0.0

    @property
    def allowed(self) -> int:
        """How many tries may be in flight."""
        return 1 if self.strikes > 1 else int(self.limit)

    def wait(self, now: float) -> float:
        """Seconds until a try may be sent: 0 is now, infinity is when one comes back."""
        if now < self._paused_until:
            return self._paused_until - now
        if self.in_flight < self.allowed:
            return 0.0
        if not self._alive or self.strikes or self.limit >= self._most:
            return math.inf
        if (rest := self._round_began + LONGEST_ROUND - now) > 0:
            return rest
        self._round_began = now
        self._grow(self.limit)
        return 0.0 if self.in_flight < self.allowed else LONGEST_ROUND

    def send(self, now: float) -> int:
        """Count a try as sent and give its number."""
        if self.in_flight == 0:
            self._round_began = now
        self.in_flight += 1
        self.sent += 1
        if self.in_flight >= int(self.limit):
            self._full = self.sent
        return self.sent

    def answered(self, number: int) -> None:
        """Try `number` came back with a reply, or with another sign of life."""
        self._count_round(number)
        if number <= self._full:
            self._grow(1)
        self.in_flight -= 1
        self.strikes = 0
        self._alive = True

    def failed(self, number: int, now: float, *, refused: bool = False, retry_after: float | None = None) -> None:
        """Try `number` came back without a reply; `refused` is the server saying that it has too much to do."""
        self._count_round(number)
        self.in_flight -= 1
        if retry_after is not None:
            # A little more than asked, spread out: others were told the same moment.
            self._pause(now + retry_after + random.uniform(0, 0.1) * min(retry_after, 10))
        if refused and number > self._cut:
            self._refusals += 1
            self._round_began = now
            if self._refusals >= self.limit * SHARE:
                self._cut = self.sent
                again = self._too_much is not None and self.limit <= self._too_much / 2
                self._too_much = 0.75 * (self._too_much or 0) if again else self.limit
                self.limit = max(1.0, self.limit / 2)
        if number > self._struck:
            self._struck = self.sent
            self.strikes += 1
            self._pause(now + self._policy.pause(self.strikes))

    def dropped(self) -> None:
        """A try was called off; it says nothing about the server."""
        self.in_flight -= 1

    def rest(self, until: float) -> None:
        """Leave the server alone until then, and after that try it with one request."""
        self.strikes = max(self.strikes, 2)
        self._pause(until)

    def forgive(self) -> None:
        """Take no pause and no strike over into a new run."""
        self.strikes = 0
        self._paused_until = -math.inf

    def _pause(self, until: float) -> None:
        self._paused_until = max(self._paused_until, until)

    def _count_round(self, number: int) -> None:
        if number > self._round:
            self._round, self._refusals = self.sent, 0

    def _grow(self, tries: float) -> None:
        """As after `tries` replies in a full round trip."""
        step = 1.0 if self._too_much is None else max(0.5, self._too_much * STEP) / self.limit
        self.limit = min(self.limit + step * tries, float(self._most))


@dataclass
class Spent:
    """What one try took of a minute's tokens; an estimate until it is back."""

    at: float
    tokens: int
    expired: bool = False


class Caps:
    """At most so many requests, and so many tokens, in any 60 seconds; `None` is no cap.

    A request that wants more tokens than a whole minute has is let through alone.
    """

    def __init__(self, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> None:
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute
        self._window: deque[Spent] = deque()
        self._sum = 0

    @property
    def counts_tokens(self) -> bool:
        """Whether requests have to say how many tokens they may take."""
        return self._tokens is not None

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until a try of so many tokens may be sent."""
        self._expire(now)
        waits = [0.0]
        if self._requests is not None and len(self._window) >= self._requests:
            waits.append(self._window[0].at + MINUTE - now)
        if self._tokens is not None and self._sum + tokens > self._tokens:
            left = self._sum
            for spent in self._window:
                if left == 0 or left + tokens <= self._tokens:
                    break
                left -= spent.tokens
                waits.append(spent.at + MINUTE - now)
        return max(waits)

    def send(self, tokens: int, now: float) -> Spent:
        """Count a try as sent."""
        spent = Spent(now, tokens)
        if self._requests is not None or self._tokens is not None:
            self._window.append(spent)
            self._sum += tokens
        return spent

    def correct(self, spent: Spent, tokens: int) -> None:
        """Put what a try really took in place of its estimate."""
        if not spent.expired:
            self._sum += tokens - spent.tokens
        spent.tokens = tokens

    def _expire(self, now: float) -> None:
        while self._window and self._window[0].at + MINUTE <= now:
            spent = self._window.popleft()
            spent.expired = True
            self._sum -= spent.tokens


@dataclass(eq=False)
class Server:
    """One URL. `out` says why nothing but a rare probe is sent there; `failing` holds requests since its last reply.
    `told` is whether it was said that it fails from the beginning."""

    base_url: str
    pace: Pace
    reached: bool = False
    answered: bool = False
    out: FailedTry | None = None
    told: bool = False
    failing: dict[str, FailedTry] = field(default_factory=dict[str, FailedTry])

    def lives(self) -> None:
        """It gave a reply."""
        self.reached = self.answered = True
        self.out = None
        self.failing.clear()


@dataclass(eq=False)
class Pending:
    """A request that has no reply yet; `avoid` is where it failed last."""

    request: Request
    tries: int = 0
    refusals: int = 0
    avoid: Server | None = None


class Servers:
    """The servers of one model, and what all its runs share: at most `most` tries in flight."""

    def __init__(self, base_urls: Sequence[str], most: int, policy: RetryPolicy, caps: Caps) -> None:
        self.servers = [Server(base_url, Pace(most, policy)) for base_url in base_urls]
        self.most = most
        self.policy = policy
        self.caps = caps
        self.listeners: set[Callable[[], None]] = set()

    def wake(self) -> None:
        """Something came back: all runs look whether they may send."""
        for listener in tuple(self.listeners):
            listener()

    @property
    def is_full(self) -> bool:
        """Whether nothing may be sent before something comes back."""
        return sum(server.pace.in_flight for server in self.servers) >= self.most

    def revive(self) -> None:
        """A new run begins; where no server was left, all get another chance."""
        if all(server.out for server in self.servers):
            for server in self.servers:
                server.out = None
                server.failing.clear()
                server.pace.forgive()

    def pick(self, job: Pending, tokens: int, now: float) -> tuple[Server | None, float]:
        """Where to send a try now, the server with the fewest in flight; or in how many seconds to ask again."""
        if (wait := self.caps.wait(tokens, now)) > 0:
            return None, wait
        waits = [server.pace.wait(now) for server in self.servers]
        if (wait := min(waits)) > 0:
            return None, wait
        free = [server for server, wait in zip(self.servers, waits, strict=True) if wait <= 0]
        return min(free, key=lambda server: (server is job.avoid, server.pace.in_flight, server.pace.sent)), 0.0
