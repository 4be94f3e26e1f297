"""Requests that are to be sent in batches: let out by the gate, packed within a provider's limits."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

from spot.errors import StoppedEarly
from spot.models.base import Gate, NoMore, Reply, Request
from spot.schema import Sampling

WINDOW = 256
"""Requests that stand before the gate at once, so that one commit lets many out."""


@dataclass(frozen=True)
class Limits:
    """The most that one batch may hold; OpenAI's limits, which most others share."""

    requests: int = 50_000
    bytes: int = 200_000_000


@dataclass(eq=False)
class Job:
    """A request without a reply; `losses` counts batches that ended without one for it, `line` is how it is sent."""

    request: Request
    key: str
    losses: int = 0
    line: bytes = b""


class Outbox:
    """What is still to be sent. After `ended` nothing more is; `error` says why, `None` if nobody wants more.

    A gate that lets nothing more out for `grace` seconds waits for replies: what was let out is sent.
    """

    def __init__(
        self, gate: Gate | None, sampling: Sampling, write: Callable[[Request, str], bytes], grace: float
    ) -> None:
        self.ended = False
        self.error: Exception | None = None
        self.too_large: list[Job] = []
        self.served: list[tuple[Job, Reply]] = []
        """Those that the gate had a reply for."""
        self._gate = gate
        self._sampling = sampling
        self._write = write
        self._grace = grace
        self._fresh: deque[Job] = deque()
        self._admitting: dict[asyncio.Task[Reply | None], Job] = {}
        self._admitted: list[Job] = []
        self._size = 0

    def __len__(self) -> int:
        """Requests that were not sent."""
        return len(self._fresh) + len(self._admitting) + len(self._admitted)

    def add(self, jobs: Iterable[Job]) -> None:
        """Send these, too."""
        self._fresh.extend(jobs)

    def end(self, error: Exception | None) -> None:
        """Send nothing more; the first reason stays."""
        if not self.ended:
            self.ended, self.error = True, error

    async def pack(self, file: IO[bytes], limits: Limits, *, patient: bool) -> list[Job]:
        """The next batch's requests, its input written to `file`; none where there is nothing to send.

        If `patient`, there are no replies that the gate might be waiting for.
        """
        self._size = sum(len(job.line) for job in self._admitting.values())
        while not self.ended:
            self._ask(limits)
            if not self._admitting:
                break
            timeout = None if patient and not self._admitted else self._grace
            done, _ = await asyncio.wait(self._admitting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in [task for task in self._admitting if task in done]:
                self._pass(task, file)
        if self.ended:
            return []
        jobs, self._admitted = self._admitted, []
        return jobs

    async def close(self) -> tuple[list[Job], list[Job]]:
        """Leave the gate alone; returns who was let out and not sent, and who may have been let out."""
        doubtful: list[Job] = []
        for task, job in self._admitting.items():
            if task.cancel():
                doubtful.append(job)
        replies = await asyncio.gather(*self._admitting, return_exceptions=True)
        passed: list[Job] = []
        for job, reply in zip(self._admitting.values(), replies, strict=True):
            if isinstance(reply, Reply):
                self.served.append((job, reply))
            elif reply is None:
                passed.append(job)
        self._admitting.clear()
        return self._admitted + passed, [job for job in doubtful if job not in passed]

    def _ask(self, limits: Limits) -> None:
        """Have as many requests before the gate as the batch has room for."""
        while self._fresh and len(self._admitting) < WINDOW:
            job = self._fresh[0]
            job.line = job.line or self._write(job.request, job.key)
            if len(job.line) > limits.bytes:
                self.too_large.append(self._fresh.popleft())
                continue
            many = len(self._admitting) + len(self._admitted) >= limits.requests
            if many or self._size + len(job.line) > limits.bytes:
                return
            self._fresh.popleft()
            self._size += len(job.line)
            self._admitting[asyncio.ensure_future(self._admit(job.request))] = job

    async def _admit(self, request: Request) -> Reply | None:
        return None if self._gate is None else await self._gate.admit(request, self._sampling)

    def _pass(self, task: asyncio.Task[Reply | None], file: IO[bytes]) -> None:
        try:
            reply = task.result()
        except NoMore:
            self.end(None)
        except StoppedEarly as error:
            self.end(error)
        else:
            job = self._admitting.pop(task)
            if reply is not None:
                self.served.append((job, reply))
                self._size -= len(job.line)
            else:
                file.write(job.line)
                self._admitted.append(job)
            job.line = b""
