"""Batches on their way, from the gate to the last reply: what earlier processes left, what is sent, what comes back."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from spot.errors import StoppedEarly, UserError
from spot.models.base import Body, Gate, Reply
from spot.models.endpoint.failures import PATIENCE, FailedTry, no_money
from spot.models.paid.batch_book import BatchBook, Noted
from spot.models.paid.batch_provider import AbsentError, BusyError, Provider, Snapshot, UnansweredError, UnclearError
from spot.models.paid.batch_requests import Batch, Failed, Job, Limits, Outbox, collect, settle
from spot.models.paid.lease import LEASE, described

GROWTH = 1.5
"""How much longer every wait between two looks is than the one before."""


@dataclass(frozen=True)
class Waits:
    """Seconds: between looks at a batch, growing from `first` to `longest`; until a batch that was created, if it was,
    is surely in the provider's list; until a gate that lets nothing out is taken to be waiting for replies."""

    first: float = 5.0
    longest: float = 120.0
    listed: float = 30.0
    grace: float = 2.0


@dataclass(eq=False)
class Terms:
    """How batches are sent and waited for. How much a provider takes at once is found out: `limits` and `abreast`."""

    wait: bool
    limits: Limits
    rounds: int
    give_up: frozenset[str]
    waits: Waits
    say: Callable[[str], None]
    folder: Path
    abreast: int | None = None

    def make_room(self, requests: int, others: int) -> None:
        """A batch was refused for lack of room: send fewer at a time, and smaller ones where it was alone."""
        self.abreast = max(1, others)
        if not others:
            self.limits = Limits(max(1, requests // 2), self.limits.bytes)


class BatchRun:
    """One call of `generate`, for `jobs` by their keys."""

    def __init__(
        self,
        terms: Terms,
        book: BatchBook,
        provider: Provider,
        outbox: Outbox,
        gate: Gate | None,
        jobs: dict[str, Job],
    ) -> None:
        self._terms = terms
        self._book = book
        self._say = terms.say
        self._provider = provider
        self._outbox = outbox
        self._gate = gate
        self._jobs = jobs
        self._plan = secrets.token_hex(16)
        self._running: list[Batch] = []
        self._answered = False
        self._unanswered = 0

    async def replies(self) -> AsyncIterator[list[Reply]]:
        """All replies, from earlier processes' batches and from this one's."""
        await self._resume()
        pause = self._terms.waits.first
        while True:
            if not any(batch.resumed for batch in self._running) and await self._submit():
                pause = self._terms.waits.first
            if self._outbox.too_large:
                yield self._too_large()
            if served := self._served():
                yield served
            if not self._running:
                break
            ended = False
            for batch in tuple(self._running):
                snapshot = await self._look(batch)
                if snapshot is not None and snapshot.ended:
                    ended = True
                    async for group in self._collect(batch, snapshot):
                        yield group
            if isinstance(self._outbox.error, UserError):
                raise self._outbox.error  # it will be no better a day later
            if ended:
                continue
            if not self._terms.wait:
                raise self._come_back()
            await asyncio.sleep(pause)
            pause = min(pause * GROWTH, self._terms.waits.longest)
        if self._outbox.error is not None:
            raise self._outbox.error

    async def close(self) -> None:
        """Book what was admitted and not sent, and leave the batches to the next process."""
        unsent, doubtful = await self._outbox.close()
        for job in unsent:
            self._gate_is_done(job)
        self._served()
        self._book.void(self._plan, keep=[job.key for job in doubtful])
        self._book.release()

    # What is on its way

    async def _resume(self) -> None:
        """Find what earlier processes left, and plan the rest."""
        found = self._book.on_their_way(list(self._jobs))
        for noted in found:
            if (other := await self._claimed(noted)) is not None:
                raise StoppedEarly(
                    f"{described(other)} is handling batch {noted.batch_id or noted.token}; stop it, or run the same "
                    "command again when it has ended"
                )
            if noted.batch_id is not None:
                self._resume_batch(noted, noted.batch_id)
            else:
                await self._clear_up(noted)
        waiting = {key for batch in self._running for key in batch.jobs}
        fresh = [job for key, job in self._jobs.items() if key not in waiting]
        self._book.plan(self._plan, [job.key for job in fresh])
        self._outbox.add(fresh)
        for key, losses in self._book.losses(list(self._jobs)).items():
            self._jobs[key].losses = losses

    async def _claimed(self, noted: Noted) -> str | None:
        """Handle a batch from now on; returns the live process that already does, if there is one.

        Whether one of another machine lives shows only after a while.
        """
        said = False
        while (other := self._book.claim(noted.token)) is not None:
            if self._book.lives(other):
                return other
            if not said:
                self._say(
                    f"batch {noted.batch_id or noted.token}: waiting for a sign of life from {described(other)}, which "
                    f"was handling it; without one within {LEASE:.0f} s this process takes it over"
                )
                said = True
            await asyncio.sleep(min(1.0, self._terms.waits.first))
        return None

    async def _clear_up(self, noted: Noted) -> None:
        """A batch without an id may have been submitted, or not."""
        if noted.state == "planned" or noted.file_id is None:
            self._book.void(noted.token)
        elif self._terms.give_up & {noted.file_id, noted.token}:
            self._book.over(noted.keys)
        elif found := await self._looked_up(noted.token, noted.file_id, noted.since):
            self._book.submitted(noted.token, found.id)
            self._resume_batch(noted, found.id)
        else:
            self._book.void(noted.token)

    def _resume_batch(self, noted: Noted, batch_id: str) -> None:
        if self._terms.give_up & {batch_id, noted.token}:
            self._book.over(noted.keys)
            return
        jobs = {key: self._jobs[key] for key in noted.keys}
        self._running.append(Batch(noted.token, batch_id, noted.requests, jobs, resumed=True))

    async def _looked_up(self, token: str, file_id: str, since: float) -> Snapshot | None:
        """The batch of that token, once it would surely be listed."""
        # The clock may have been set since, or be another machine's: never wait longer than it takes.
        listed = self._terms.waits.listed
        certain = time.monotonic() + min(listed, max(0.0, since + listed - time.time()))
        while True:
            last = time.monotonic() >= certain
            try:
                found = await self._provider.find(file_id, token, since)
            except AbsentError as error:
                raise UserError(
                    f"{self._provider.base_url} may have a batch of the file {file_id}, but lists no batches "
                    f"({error}); look there, or give up {file_id} to send, and perhaps pay for, its requests again"
                ) from None
            if found or last:
                return found
            await asyncio.sleep(min(self._terms.waits.first, max(0.0, certain - time.monotonic())))

    # Sending

    async def _submit(self) -> bool:
        """Send what may be sent now; whether anything was."""
        sent = False
        while self._terms.abreast is None or len(self._running) < self._terms.abreast:
            with tempfile.TemporaryFile(dir=self._terms.folder) as file:
                jobs = await self._outbox.pack(file, self._terms.limits, patient=not self._running)
                if not jobs:
                    break
                try:
                    await self._send(jobs, file)
                except BusyError:
                    if not self._running:
                        raise
                    self._terms.make_room(len(jobs), len(self._running))
                    self._book.plan(self._plan, [job.key for job in jobs])
                    self._outbox.add(jobs)
            sent = True
        return sent

    async def _send(self, jobs: list[Job], file: IO[bytes]) -> None:
        token = secrets.token_hex(16)
        self._book.begin(self._plan, token, [job.key for job in jobs])
        try:
            file_id = await self._provider.upload(f"spot-{token}.jsonl", file)
            self._book.uploaded(token, file_id)
            made = await self._created(token, file_id)
        except _UnknownError:
            raise  # the next run looks it up
        except Exception:
            for job in jobs:
                self._gate_is_done(job)
            self._book.void(token)
            raise
        self._book.submitted(token, made.id)
        self._running.append(Batch(token, made.id, len(jobs), {job.key: job for job in jobs}))
        self._say(f"batch {made.id}: {len(jobs):,} requests submitted")

    async def _created(self, token: str, file_id: str) -> Snapshot:
        """The batch, created once, however unclear the answers are."""
        since, why = time.time(), ""
        for _ in range(PATIENCE):
            try:
                return await self._provider.create(file_id, token)
            except UnclearError as error:
                why = str(error)
            try:
                found = await self._looked_up(token, file_id, since)
            except (StoppedEarly, UserError) as error:
                raise _UnknownError(f"it is not known whether a batch was created ({why}): {error}") from None
            if found:
                return found
            since = time.time()
        raise UnansweredError(f"{self._provider.base_url} created no batch: {why}; run the same command again")

    # Collecting

    async def _look(self, batch: Batch) -> Snapshot | None:
        """A batch's status; `None` where the provider did not answer this time."""
        try:
            snapshot = await self._provider.retrieve(batch.id)
        except AbsentError as error:
            raise self._gone(batch, f"batch {batch.id}", error) from None
        except UnansweredError as error:
            self._unanswered += 1
            if self._unanswered >= PATIENCE or not self._terms.wait:
                raise
            self._say(str(error))
            return None
        self._unanswered = 0
        self._book.seen(batch.token, snapshot.status)
        said = f"{snapshot.done:,} of {batch.requests:,} done ({snapshot.status})"
        if said != batch.said:
            batch.said = said
            self._say(f"batch {batch.id}: {said}")
        batch.fileless += snapshot.fileless
        if batch.fileless >= PATIENCE:
            raise StoppedEarly(
                f"batch {batch.id}: {said}, and its provider names no file of results; run the same command again "
                f"later, or give up {batch.id} to send and pay for its requests again"
            )
        return snapshot

    async def _collect(self, batch: Batch, snapshot: Snapshot) -> AsyncIterator[list[Reply]]:
        try:
            async for found in collect(batch, snapshot, self._provider, self._terms.folder, self._received):
                for _, reply in found:
                    self._answered = self._answered or reply.finish_reason != "error"
                yield [reply for _, reply in found]
                # Whoever took them has committed them.
                self._book.over([job.key for job, _ in found])
        except AbsentError as error:
            raise self._gone(batch, f"a result file of batch {batch.id}", error) from None
        if replies := self._settled(batch, snapshot):
            yield replies
        self._running.remove(batch)

    async def _received(self, job: Job, body: Body) -> None:
        if self._gate is not None:
            await self._gate.received(job.request, body)

    def _settled(self, batch: Batch, snapshot: Snapshot) -> list[Reply]:
        """What becomes of requests that the batch gave no reply for; those that end here have an error reply."""
        settled = settle(batch, snapshot, self._terms.rounds)
        again = [job.key for job in settled.again]
        for job in batch.jobs.values():
            self._gate_is_done(job)
        self._book.settled(
            batch.token,
            uncharged=settled.uncharged,
            over=[job.key for job, _ in settled.finished],
            again=again,
            plan=self._plan,
            count=not settled.no_room,
        )
        self._outbox.add(settled.again)
        more = f", {len(again):,} are sent again" if again else ""
        self._say(f"batch {batch.id}: {snapshot.status}, {batch.completions:,} of {batch.requests:,} answered{more}")
        if settled.no_room:
            self._make_room(batch, settled.no_room)
        return [
            Reply(job.request.id, "", "error", error=failed.why, passing=failed.about != "request")
            for job, failed in settled.finished
            if not self._ends(failed)
        ]

    def _ends(self, failed: Failed) -> bool:
        """Whether a failure ends the run, and end it."""
        if failed.about == "money":
            self._outbox.end(no_money(self._provider.base_url, FailedTry("", "money", failed.why)))
        elif failed.about == "setup" and not (self._answered or (self._gate is not None and self._gate.proven)):
            self._outbox.end(UserError(f"{self._provider.base_url}: {failed.why}"))
        else:
            return False
        return True

    def _make_room(self, batch: Batch, why: str) -> None:
        others = len(self._running) - 1
        if batch.requests == 1 and not others:
            self._outbox.end(StoppedEarly(f"{why}; wait, and run the same command again"))
        self._terms.make_room(batch.requests, others)

    def _too_large(self) -> list[Reply]:
        jobs, self._outbox.too_large = self._outbox.too_large, []
        self._book.over([job.key for job in jobs])
        return [
            Reply(job.request.id, "", "error", error=f"{len(job.line):,} bytes are more than a batch may hold")
            for job in jobs
        ]

    def _served(self) -> list[Reply]:
        """What need not be sent; it is in no plan any more, whose tries are this process's own."""
        served, self._outbox.served = self._outbox.served, []
        self._book.unplan(self._plan, [job.key for job, _ in served])
        return [reply for _, reply in served]

    def _gate_is_done(self, job: Job) -> None:
        if self._gate is not None:
            self._gate.refused(job.request, None)

    def _gone(self, batch: Batch, what: str, why: Exception) -> UserError:
        return UserError(
            f"{self._provider.base_url} does not know {what} any more ({why}); check that the API key belongs to the "
            f"account that submitted the batch, or give up {batch.id} to send and pay for its requests again"
        )

    def _come_back(self) -> StoppedEarly:
        batches = ", ".join(f"batch {batch.id}: {batch.said or 'not known'}" for batch in self._running)
        more = f"; {len(self._outbox):,} more requests are sent then" if len(self._outbox) else ""
        more = f"; {self._outbox.error}" if self._outbox.error else more
        return StoppedEarly(f"{batches}; run the same command again to collect{more}")


class _UnknownError(StoppedEarly):
    """A batch may have been created or not."""
