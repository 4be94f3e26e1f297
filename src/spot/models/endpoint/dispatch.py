"""Requests on their way to one server or several: who is sent where and when, and what is tried again.

Everything here runs in one event loop; a try is a task, all else happens between its awaits.
"""

import asyncio
import heapq
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from spot.errors import UserError
from spot.models.base import Gate, NoMore, Reply, Request
from spot.models.endpoint.failures import PATIENCE, FailedTry, Outcome, no_money, no_server_left
from spot.models.endpoint.pace import Pending, Server, Servers, Spent
from spot.schema import Sampling

GRACE = 2.0
"""Seconds for which a pending gate is waited for when a run is called off; a commit takes less."""

REFUSALS = 5
"""A request may be refused (429) this many times as often as it may fail: mostly that is not about the request."""

UNREADABLE = 2
"""Tries of a request whose replies cannot be read: the same again is paid for again, and says nothing new."""

STALLED = 0.5
"""Seconds after which a run says that all its requests wait for the gate."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Flight:
    """A try on its way: `admitting` while the gate decides, `landed` when it is booked, `done` if it was the last."""

    job: Pending
    server: Server
    number: int
    spent: Spent
    admitting: bool = False
    landed: bool = False
    done: bool = False


class Dispatch:
    """One call of `generate`: requests to send, in flight, and back, until all are done or something ends it.

    Of its requests at most `pool.most` are in flight or not yet committed: no more are lost if the process is killed.
    """

    def __init__(
        self,
        pool: Servers,
        requests: Sequence[Request],
        sampling: Sampling,
        send: Callable[[Server, Request], Awaitable[Outcome]],
        gate: Gate | None,
        answered: bool,
        doubtful: frozenset[str] = frozenset(),
    ) -> None:
        self.error: Exception | None = None
        self.ended = False
        self._draining = True
        self._drained_by = math.inf
        self.answered = answered
        self._doubtful = doubtful
        self._pool = pool
        self._sampling = sampling
        self._send = send
        self._gate = gate
        self._fresh = deque(Pending(request) for request in requests)
        self._retries: list[tuple[float, int, Pending]] = []  # a heap by when they are due
        self._order = itertools.count()
        self._flights: dict[asyncio.Task[None], _Flight] = {}
        self._back: list[tuple[Request, Outcome]] = []
        self._taken = 0
        self._open = 0
        self._arrived = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        pool.revive()
        pool.listeners.add(self._pump)

    async def next(self) -> list[Outcome] | None:
        """What came back since the last call, whose outcomes are taken to be committed; empty at the end.

        `None` where nothing is on its way because all wait for the gate, which may be waiting for what is held back.
        """
        self._open -= self._taken
        self._taken = 0
        self._pump()
        while not self._back:
            if self.ended and not (self._draining and self._under_way() and self._loop.time() < self._drained_by):
                return []
            if not (self._flights or self._fresh or self._retries):
                return []
            self._arrived.clear()
            try:
                patience = STALLED if self._gate is not None or self._drained_by < math.inf else None
                async with asyncio.timeout(patience):  # `wait_for` may lose a cancellation that comes with the event
                    await self._arrived.wait()
            except TimeoutError:
                if not self.ended and self._all_admitting() and not self._back and not self._retry_beside():
                    return None
        outcomes, self._back = [outcome for _, outcome in self._back], []
        self._taken = len(outcomes)
        return outcomes

    @property
    def in_vain(self) -> list[FailedTry]:
        """Requests that failed since a server last gave a reply, and may be to blame for it themselves."""
        failing = [failure for server in self._pool.servers for failure in server.failing.values()]
        return [failure for failure in failing if failure.about == "unclear"]

    def _all_admitting(self) -> bool:
        return bool(self._flights) and all(flight.admitting for flight in self._flights.values())

    def _retry_beside(self) -> bool:
        """Where all that may be in flight waits for the gate, and the gate perhaps for what is tried again: whether
        something is, or will be; one try beside the others."""
        if not self._retries:
            return False
        job, now = self._retries[0][2], self._loop.time()
        servers = [server for server in self._pool.servers if not server.out] or self._pool.servers
        if self._retries[0][0] <= now:
            server = min(servers, key=lambda server: (server is job.avoid, server.pace.in_flight))
            heapq.heappop(self._retries)
            self._launch(job, server, self._tokens(job.request) if self._pool.caps.counts_tokens else 0, now)
        return True

    def end(self, error: Exception | None, drain: bool = True, at_most: float = math.inf) -> None:
        """Send nothing more; what is in flight is waited for with `drain`, `at_most` seconds, else called off."""
        if not self.ended:
            self.ended, self.error, self._draining = True, error, drain
            self._drained_by = self._loop.time() + at_most
            self._arrived.set()

    async def close(self) -> None:
        """Call off what is in flight; nothing of this run is left when this returns."""
        self.end(None, drain=False)
        self._pool.listeners.discard(self._pump)
        if self._timer:
            self._timer.cancel()
        for task in self._under_way():
            task.cancel()
        if self._flights:
            # A gate is better not interrupted: it would not be known whether the try was admitted.
            await asyncio.wait(self._flights, timeout=GRACE)
        for task in self._flights:
            task.cancel()
        await asyncio.gather(*self._flights, return_exceptions=True)
        for request, outcome in self._back:
            if isinstance(outcome, Reply):
                self._tell(request, None)  # it came too late to be used
        self._back = []

    def _under_way(self) -> list[asyncio.Task[None]]:
        """The tries that may have been sent."""
        return [task for task, flight in self._flights.items() if not flight.admitting]

    def _pump(self) -> None:
        """Send what may be sent now, and arrange to be called again when more may be."""
        pool, now = self._pool, self._loop.time()
        wait = math.inf
        while not self.ended and self._open < pool.most and not pool.is_full:
            job = self._first(now)
            if job is None:
                wait = self._retries[0][0] - now if self._retries else math.inf
                break
            tokens = self._tokens(job.request) if pool.caps.counts_tokens else 0
            server, wait = pool.pick(job, tokens, now)
            if server is None:
                break
            wait = math.inf
            self._take(job)
            self._launch(job, server, tokens, now)
        self._wake_in(wait, now)

    def _launch(self, job: Pending, server: Server, tokens: int, now: float) -> None:
        self._open += 1
        flight = _Flight(job, server, server.pace.send(now), self._pool.caps.send(tokens, now))
        task = self._loop.create_task(self._fly(flight))
        self._flights[task] = flight
        task.add_done_callback(self._gone)

    def _wake_in(self, wait: float, now: float) -> None:
        if wait == math.inf or (self._timer and now < self._timer.when() <= now + wait and not self._timer.cancelled()):
            return  # woken too early is woken in time
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(now + wait, self._pump)

    def _first(self, now: float) -> Pending | None:
        """Who is next: a retry that is due before a fresh request, but not where nothing is known to work.

        What fails while a server is only probed tells most about it if the requests are different ones.
        """
        due = self._retries[0][2] if self._retries and self._retries[0][0] <= now else None
        struck = all(server.pace.strikes > 1 for server in self._pool.servers)
        fresh = self._fresh[0] if self._fresh else None
        return (fresh or due) if struck else (due or fresh)

    def _take(self, job: Pending) -> None:
        if self._fresh and job is self._fresh[0]:
            self._fresh.popleft()
        else:
            heapq.heappop(self._retries)

    def _tokens(self, request: Request) -> int:
        """The most tokens that a request is likely to take: a quarter of its characters, and all it may answer."""
        characters = sum(len(message.content) for message in request.messages)
        return math.ceil(characters / 4) + self._sampling.max_new_tokens

    async def _fly(self, flight: _Flight) -> None:
        """One try, from the gate to what it means."""
        request = flight.job.request
        try:
            if self.ended:  # after this was put in line, before its turn came
                return
            if self._gate is not None:
                admitted = await self._admitted(self._gate, flight)
                if isinstance(admitted, Reply):
                    flight.done = self._done(flight.job, admitted)
                if admitted is not True:
                    return
            try:
                outcome = await self._send(flight.server, request)
            except BaseException:
                self._tell(request, None)
                raise
            flight.landed = True
            flight.done = self._land(flight, outcome)
        except Exception as error:
            self.end(error)

    def _gone(self, task: asyncio.Task[None]) -> None:
        """A try is over, however it ended; one that was called off before it began never entered `_fly`."""
        flight = self._flights.pop(task)
        if not flight.landed:
            flight.server.pace.dropped()
        if not flight.done:
            self._open -= 1
        self._arrived.set()
        self._pool.wake()

    async def _admitted(self, gate: Gate, flight: _Flight) -> Reply | bool:
        """Whether to send a try, or the reply that the gate has for it."""
        flight.admitting = True
        try:
            reply = await gate.admit(flight.job.request, self._sampling)
        except NoMore:
            self.end(None)
            return False
        finally:
            flight.admitting = False
        if reply is None and self.ended:
            self._tell(flight.job.request, False)
        return reply or not self.ended

    def _tell(self, request: Request, charged: bool | None) -> None:
        if self._gate is not None:
            self._gate.refused(request, charged)

    def _land(self, flight: _Flight, outcome: Outcome) -> bool:
        """Book what came back; whether its request is done with."""
        server, now = flight.server, self._loop.time()
        if isinstance(outcome, Reply):
            server.pace.answered(flight.number)
            server.lives()
            self.answered = True
            if outcome.usage:
                used = outcome.usage.prompt_tokens + outcome.usage.output_tokens
                self._pool.caps.correct(flight.spent, used)
            return self._done(flight.job, outcome)
        self._tell(flight.job.request, outcome.charged)
        if outcome.charged is False:
            self._pool.caps.correct(flight.spent, 0)
        server.reached = server.reached or outcome.status is not None
        if outcome.about in ("setup", "money", "request") and self._believed(server, outcome):
            server.pace.answered(flight.number)
            if outcome.about != "request" and self._goes_elsewhere(server, outcome, now):
                return self._again(flight.job, server, outcome, now)
            if outcome.about == "setup":
                # Those beside it are told the same in a moment, and are then known to have cost nothing.
                self.end(UserError(outcome.why), at_most=math.inf if self.answered else GRACE)
            elif outcome.about == "money":
                self.end(no_money(server.base_url, outcome))
            return outcome.about == "request" and self._done(flight.job, outcome)
        if outcome.about == "unreadable":
            server.pace.answered(flight.number)  # it is up, and gives something else
            return self._again(flight.job, server, outcome, now)
        server.pace.failed(flight.number, now, refused=outcome.refused, retry_after=outcome.retry_after)
        if outcome.id not in self._doubtful:
            server.failing[outcome.id] = outcome
        self._judge(server, outcome, now)
        return self._again(flight.job, server, outcome, now)

    def _believed(self, server: Server, failure: FailedTry) -> bool:
        """A server that refuses requests and never answered one may be the odd one out: another is tried first."""
        others = [other for other in self._pool.servers if other is not server and not other.out]
        return failure.about != "request" or server.answered or not others

    def _goes_elsewhere(self, server: Server, failure: FailedTry, now: float) -> bool:
        """Take a server out that answered and now refuses key, model or account, if another one is left."""
        if not server.answered or all(other.out for other in self._pool.servers if other is not server):
            return False
        self._take_out(server, failure, now + self._pool.policy.longest_wait)
        return True

    def _take_out(self, server: Server, failure: FailedTry, until: float) -> None:
        known, server.out = server.out, failure
        server.pace.rest(until)
        if not known and not all(other.out for other in self._pool.servers):
            _log.warning("%s is out (%s); its requests go to the others", server.base_url, failure.why)

    def _judge(self, server: Server, failure: FailedTry, now: float) -> None:
        """Take a server out that does not exist, asks for too long a wait, or has failed for too long."""
        policy, servers = self._pool.policy, self._pool.servers
        too_long = failure.retry_after is not None and failure.retry_after > policy.longest_retry_after
        # Few requests that fail again and again may be to blame themselves.
        tells = failure.about in ("busy", "gone") or len(server.failing) >= PATIENCE
        if not (too_long or failure.about == "absent" or (server.pace.strikes >= policy.tries and tells)):
            return
        if too_long:
            wait = failure.retry_after or 0.0
            failure = replace(failure, why=f"{failure.why}; it asks to wait {wait:.0f} s", until=time.time() + wait)
        # One that hangs would keep a probe for minutes.
        until = math.inf if failure.hung else now + max(policy.longest_wait, failure.retry_after or 0)
        self._take_out(server, failure, until)
        out = [other.out for other in servers if other.out]
        if len(out) == len(servers):
            last = sorted(out, key=lambda other: other is failure)
            error = no_server_left(server.base_url, len(servers), last, self.answered)
            # Those beside it are mostly told the same in a moment, and are then known to have cost nothing.
            self.end(error, at_most=math.inf if self.answered else GRACE)

    def _again(self, job: Pending, server: Server, failure: FailedTry, now: float) -> bool:
        """Put a request back in line, or give it up (`True`) where it was tried often enough."""
        tries = self._pool.policy.tries
        job.avoid = server
        if failure.about == "busy":
            job.refusals += 1
        elif failure.about not in ("gone", "absent", "setup", "money"):
            job.tries += 1
        if (
            job.tries >= (min(tries, UNREADABLE) if failure.about == "unreadable" else tries)
            or job.refusals >= REFUSALS * tries
        ):
            made = job.tries + job.refusals
            return self._done(job, replace(failure, why=f"{failure.why} ({made} tries)"))
        if not server.answered and failure.about in ("unclear", "unreadable") and not server.told:
            server.told = True  # at once, not when all tries are made
            _log.warning("%s: %s; trying again", server.base_url, failure.why)
        heapq.heappush(self._retries, (now + self._pool.policy.wait(max(1, job.tries)), next(self._order), job))
        return False

    def _done(self, job: Pending, outcome: Outcome) -> bool:
        self._back.append((job.request, outcome))
        return True
