"""The gate between a model and the ledger: every try is committed before it is sent, every body before it is read."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from spot.errors import UserError
from spot.models.base import Body, NoMore, Reply, Request
from spot.models.paid.lease import LEASE, described
from spot.models.paid.ledger import Admission, Admit, Entry, GivenUp, Operation, Received, Refused, Released
from spot.schema import Sampling

if TYPE_CHECKING:
    from spot.models.paid.recorded import RecordedModel

ELSEWHERE_EVERY = 1.0
"""Seconds between looks at what another process is waiting for."""

_log = logging.getLogger(__name__)


class LedgerGate:
    """One call's gate: every try is committed before it is sent. Implements `spot.models.base.Gate`.

    What comes while one commit runs shares the next, so that a sync to the disk serves many requests.
    """

    def __init__(
        self, model: "RecordedModel", key_of: dict[str, str], sampling: Sampling, doubtful: Collection[str] = ()
    ) -> None:
        self.key_of = key_of
        self.proven = model.ledger.has_answered(model.fingerprint)
        self.doubtful = frozenset(id for id, key in key_of.items() if key in doubtful)
        self._said: set[str] = set()
        self._model = model
        self._sampling = sampling
        self.skipped: frozenset[str] = frozenset()
        """Requests of a model in process that another process has sent since they were looked up."""
        self.closed_by_turnstile = False
        self._served: set[str] = set()  # answered from the record here
        self._waiting: list[tuple[Operation, asyncio.Future[Admission]]] = []
        self._committing: asyncio.Task[None] | None = None
        self._open = 0  # tries admitted, or about to be, whose end is not committed yet
        self._changed = asyncio.Event()
        self._unsettled: set[str] = set()  # tried, perhaps charged, and to be tried again

    async def admit(self, request: Request, sampling: Sampling) -> Reply | None:  # noqa: ARG002 (it is this call's)
        """Commit the try; waits for room in the account while something is on its way, and for another process that
        has sent the same, whose reply is given."""
        if self._model.turnstile is not None:
            try:
                await self._model.turnstile.enter(request)
            except NoMore:
                self.closed_by_turnstile = True
                raise
        key = self.key_of[request.id]
        entry = self._model.entry(request, self._sampling, key)
        alone = False
        while (answer := await self._let_out(self._admission(request, entry))) != "done":
            if answer == "on_record":
                self._served.add(request.id)
                return await self._model.recall(key, request.id)
            if answer == "elsewhere":
                await self.wait_for(self._model.ledger.in_flight_elsewhere([key]).values())
            elif answer == "in_batch":
                raise self._in_batch()
            elif self._open or self._yields(request):
                await self._changed.wait()
            elif others := self._model.ledger.others_ask():
                await self.wait_for(others)  # what they have reserved may come back
            elif not alone:
                alone = True  # what another one held may have come back between the two looks
            else:
                self._tell()  # those who wait for what was open
                raise self._model.no_room(entry.worst)
        return None

    def _admission(self, request: Request, entry: Entry) -> Admit:
        return Admit(entry, self._model.max_cost, spare=entry.worst if self._yields(request) else 0.0)

    def _yields(self, request: Request) -> bool:
        """Whether others, whose tries may have been charged, are to be tried again: the reply to one says what its
        tries cost, so room for one more try of them stays free."""
        return bool(self._unsettled) and request.id not in self._unsettled

    async def wait_for(self, owners: Iterable[str]) -> None:
        """Wait before the next look at other processes; say once of each that it is waited for, and what ends that."""
        for who in set(owners) - self._said:
            self._said.add(who)
            _log.warning(
                "%s: waiting for %s, which is sending the same requests or holds what is left of max_cost; this "
                "continues as soon as that process ends (stop it to continue at once), or %.0f s after its last "
                "sign of life",
                *(self._model.ledger.path, described(who), LEASE),
            )
        await asyncio.sleep(ELSEWHERE_EVERY)

    def last_word(self, reply: Reply) -> Reply:
        """The reply; what failed in an earlier command, too, and might pass, is taken to be refused for good."""
        return replace(reply, passing=False) if reply.passing and reply.id in self.doubtful else reply

    def _in_batch(self) -> UserError:
        names = sorted(self._model.ledger.batches(list(self.key_of.values())))
        return UserError(
            f"batch {', '.join(names)} holds requests of this command and is not collected yet; collect it, or "
            "give it up, in batch mode first (rectify.batch=true), or they would be paid for twice"
        )

    async def _let_out(self, operation: Admit) -> Admission:
        self._open += 1
        answer = await self._enqueue(operation)
        self._open -= answer != "done"
        return answer

    async def admit_all(self, requests: Sequence[Request]) -> None:
        """Commit many requests of a model in process at once; they cost nothing."""
        entries = [self._model.entry(request, self._sampling, self.key_of[request.id]) for request in requests]
        answers = await asyncio.to_thread(
            self._model.ledger.apply, [Admit(replace(entry, worst=0.0), max_cost=None) for entry in entries]
        )
        self.skipped = frozenset(
            request.id for request, answer in zip(requests, answers, strict=True) if answer != "done"
        )

    async def received(self, request: Request, body: Body) -> None:
        """Commit what came."""
        await self._enqueue(Received(self.key_of[request.id], body))

    def refused(self, request: Request, charged: bool | None) -> None:
        """Book the end of a try without a reply."""
        if charged is None:
            self._unsettled.add(request.id)
        self._enqueue(Refused(self.key_of[request.id], charged)).add_done_callback(lambda _: self._settled())

    async def replied(self, replies: Sequence[Reply]) -> None:
        """Commit replies. Of an error without a body no try was answered: `refused` has booked them all, and what is
        kept is that the request was given up, for good or for now."""
        fresh = [reply for reply in replies if reply.id not in self._served]
        answers = [reply for reply in fresh if _came(reply)]
        failed = [reply for reply in fresh if not _came(reply)]
        for reply in answers:
            self._model.learn(reply, self._sampling, self._open - 1)
        operations: list[Operation] = [self._model.operation(self.key_of[reply.id], reply) for reply in answers]
        operations += [GivenUp(self.key_of[reply.id], reply.error, final=not reply.passing) for reply in failed]
        await asyncio.gather(*map(self._enqueue, operations))
        self._unsettled.difference_update(reply.id for reply in fresh)
        for _ in answers:
            self._settled()
        if failed:
            self._tell()

    def _settled(self) -> None:
        self._open = max(0, self._open - 1)  # a batch of an earlier process was not admitted here
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _enqueue(self, operation: Operation) -> asyncio.Future[Admission]:
        future: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, future))
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._drain())
        return future

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                done = await asyncio.to_thread(self._model.ledger.apply, [operation for operation, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # some wait for it, some do not
                continue
            for (_, future), result in zip(batch, done, strict=True):
                if not future.done():
                    future.set_result(result)

    async def close(self) -> None:
        """Wait until everything is committed; what is not settled belongs to no process from here on."""
        while self._committing is not None and not self._committing.done():
            await self._committing
        await asyncio.to_thread(self._model.ledger.apply, [Released(list(self.key_of.values()))])


def _came(reply: Reply) -> bool:
    """Whether a server, or a model in process, gave this, be it no answer."""
    return reply.finish_reason != "error" or reply.body is not None or reply.usage is not None
