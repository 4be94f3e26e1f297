"""A batch's requests: admitted by the gate and packed within a provider's limits; and what came back for each.

What a provider sends is read without trust. A line that cannot be read, or is about something else, is skipped.
"""

import asyncio
import json
import re
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

from spot.errors import StoppedEarly
from spot.models.base import Body, Gate, NoMore, Reply, Request
from spot.models.endpoint import completion, error_body
from spot.models.endpoint.completion import UnreadableError
from spot.models.endpoint.failures import RETRIED_STATUS
from spot.models.paid.batch_provider import URL, Provider, Snapshot
from spot.schema import Sampling

WINDOW = 256
"""Requests that stand before the gate at once, so that one commit lets many out."""

GROUP = 200
"""Replies that are committed at once."""

_NO_ROOM = re.compile(r"token_limit_exceeded|enqueued token|\bqueued? .*limit", re.IGNORECASE)
_PASSING = re.compile(r"internal|server_error|timeout|timed out|unavailable|overloaded|try again", re.IGNORECASE)

_SEPARATORS = {text.encode(): json.dumps(text)[1:-1].encode() for text in ("\u0085", "\u2028", "\u2029")}
"""Legal in JSON, yet some servers take them for the end of a line."""

UNRUN_CODES = frozenset({"batch_expired", "batch_cancelled"})


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
    """What is still to be sent. After `ended` nothing more is; `error` says why, `None` if no more is wanted.

    A gate that lets nothing more out for `grace` seconds waits for replies: what was admitted is sent.
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
        """Stop asking the gate; returns what was admitted and not sent, and what may have been admitted."""
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


@dataclass(frozen=True)
class ResultLine:
    """An outcome as it stands in a file; `status` is `None` where there is no response, `error` the line's own."""

    key: str
    status: int | None
    body: object
    error: object


@dataclass(frozen=True)
class Failed:
    """A request that a batch gave no reply for. `charged` is `None` where it may have been worked on.

    `about` says what follows: nothing more (`request`), asking again (`batch`), with fewer at once (`room`), or the end
    of the run: for the account (`money`), or for the set-up (`setup`) if nothing was ever answered.
    """

    about: Literal["request", "batch", "room", "money", "setup"]
    why: str
    charged: bool | None = False


def write_line(key: str, body: bytes) -> bytes:
    """A request as a line of a batch's input; `key` is its custom id."""
    for separator, escaped in _SEPARATORS.items():
        body = body.replace(separator, escaped)
    return b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (key.encode(), URL.encode(), body)


def read_line(raw: bytes) -> ResultLine | None:
    """A line of an output or error file; `None` where it is damaged, so that its request is not known."""
    try:
        line: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    said = cast(dict[str, Any], line)
    key, response = said.get("custom_id"), said.get("response")
    if not isinstance(key, str):
        return None
    if not isinstance(response, dict):
        return ResultLine(key, None, None, said.get("error"))
    answered = cast(dict[str, Any], response)
    status = answered.get("status_code")
    return ResultLine(key, status if isinstance(status, int) else None, answered.get("body"), said.get("error"))


def outcome(request_id: str, line: ResultLine, body: Body) -> Reply | Failed:
    """What a line means for its request; `body` is the line as it is kept."""
    if line.status != 200 or line.error:
        return _failure(line)
    if not isinstance(line.body, dict):
        return Failed("batch", "the reply has no body", charged=None)
    try:
        reply = completion.read(request_id, body)
    except UnreadableError as error:
        return Failed("batch", str(error), charged=None)
    if isinstance(reply, Reply):
        return reply
    charged = None if reply.worked else False
    return _of_status(reply.status, reply.error, f"error {reply.status} inside HTTP 200: {reply.says}", charged)


def _failure(line: ResultLine) -> Failed:
    """In the order of what is sure: the account, the set-up, the request; what is left may be had another time."""
    error: object = line.error
    if not error:
        inner = cast(dict[str, Any], line.body).get("error") if isinstance(line.body, dict) else None
        error = inner or line.body
    code = str(cast(dict[str, Any], error).get("code") or "") if isinstance(error, dict) else ""
    says = error_body.server_says(error, error if isinstance(error, str) else "")
    status = line.status or 0
    why = ": ".join(filter(None, (f"HTTP {status}" if status >= 400 else "", says or code))) or "no answer, no reason"
    # Without a status the server may have been at it, unless it says that it never came to it.
    return _of_status(status, error, why, charged=False if status >= 400 or code in UNRUN_CODES else None)


def _of_status(status: int, error: object, why: str, charged: bool | None) -> Failed:
    says = error_body.server_says(error, error if isinstance(error, str) else "")
    if error_body.out_of_money(status or 429, error, says):
        return Failed("money", why)
    if status in (401, 403, 404):
        return Failed("setup", why)
    if 400 <= status < 500 and (status not in RETRIED_STATUS or error_body.never_fits(status, says)):
        return Failed("request", why)
    return Failed("batch", why, charged)


@dataclass(eq=False)
class Batch:
    """A batch on its way. `jobs` are those of its requests that are asked for and have no reply yet, by their keys.

    `resumed` says that it was on its way when this run began; `said` is what was last said of it; `fileless` counts
    looks at which it had ended and its files were not there yet.
    """

    token: str
    id: str
    requests: int
    jobs: dict[str, Job]
    resumed: bool = False
    said: str = ""
    fileless: int = 0
    failures: dict[str, Failed] = field(default_factory=dict[str, Failed])
    lines: int = 0
    completions: int = 0
    damaged: int = 0

    def failure(self, snapshot: Snapshot, key: str) -> Failed:
        """Why there is no reply to this one."""
        return self.failures.get(key) or self._whole(snapshot) or self._missing(snapshot)

    def _whole(self, snapshot: Snapshot) -> Failed | None:
        """What is wrong with the batch itself, where it never began."""
        if snapshot.status != "failed" or self.lines or self.damaged or not snapshot.errors:
            return None
        code, message = snapshot.errors[0]
        why = f"batch {self.id} failed: {message}"
        if _NO_ROOM.search(f"{code} {message}"):
            return Failed("room", why)
        if error_body.out_of_money(429, {"code": code}, message):
            return Failed("money", why)
        return Failed("batch" if _PASSING.search(f"{code} {message}") else "setup", why)

    def _missing(self, snapshot: Snapshot) -> Failed:
        """It is in neither file. Whether it was run is known where the provider counts no more than was read."""
        counted = snapshot.completed is not None and snapshot.completed <= self.completions and not self.damaged
        unrun = snapshot.status != "completed" and (counted or not snapshot.output_file_id)
        why = f"batch {self.id} is {snapshot.status} and has no readable line for it"
        return Failed("batch", why, charged=False if unrun else None)


@dataclass
class Settled:
    """What follows for requests that a batch gave no reply for; `uncharged` are those that cost nothing."""

    again: list[Job] = field(default_factory=list[Job])
    finished: list[tuple[Job, Failed]] = field(default_factory=list[tuple[Job, Failed]])
    uncharged: list[str] = field(default_factory=list[str])
    no_room: str = ""


def settle(batch: Batch, snapshot: Snapshot, rounds: int) -> Settled:
    """Sort what is left of an ended batch; what `rounds` batches gave nothing for is finished."""
    settled = Settled()
    for key, job in batch.jobs.items():
        failed = batch.failure(snapshot, key)
        if failed.charged is False:
            settled.uncharged.append(key)
        if failed.about == "room":
            settled.no_room = failed.why
        job.losses += failed.about == "batch"
        if failed.about == "room" or (failed.about == "batch" and job.losses < rounds):
            settled.again.append(job)
            continue
        if failed.about == "batch" and job.losses > 1:
            failed = replace(failed, why=f"{failed.why} ({job.losses} batches)")
        settled.finished.append((job, failed))
    return settled


async def collect(
    batch: Batch,
    snapshot: Snapshot,
    provider: Provider,
    folder: Path,
    receive: Callable[[Job, Body], Awaitable[None]],
) -> AsyncIterator[list[tuple[Job, Reply]]]:
    """The replies in the batch's files, in groups, each line given to `receive` before it is read; failures are kept in
    `batch`.

    Raises `AbsentError` where a file is gone. A line that cannot be read, or is about something else, is passed over.
    """
    for file_id in (snapshot.output_file_id, snapshot.error_file_id):
        if file_id is None:
            continue
        # On the disk first: taking the replies may take longer than a connection lasts.
        with tempfile.TemporaryFile(dir=folder) as file:
            await provider.download(file_id, file)
            file.seek(0)
            for lines in _grouped(file, batch):
                bodies = [provider.body(raw) for _, _, raw in lines]
                came = [(job, body) for (job, line, _), body in zip(lines, bodies, strict=True) if line.status == 200]
                await asyncio.gather(*(receive(job, body) for job, body in came))
                replies = [
                    _read(job, line, body, batch, provider.clean)
                    for (job, line, _), body in zip(lines, bodies, strict=True)
                ]
                yield [reply for reply in replies if reply is not None]


def _grouped(file: IO[bytes], batch: Batch) -> Iterator[list[tuple[Job, ResultLine, bytes]]]:
    """The lines about requests that are asked for, each request's once a group."""
    group: dict[str, tuple[Job, ResultLine, bytes]] = {}
    for raw in file:
        if not raw.strip():
            continue
        line = read_line(raw)
        if line is None:
            batch.damaged += 1
            continue
        batch.lines += 1
        batch.completions += line.status == 200
        if line.key in batch.jobs:
            group.setdefault(line.key, (batch.jobs[line.key], line, raw))
        if len(group) == GROUP:
            yield list(group.values())
            group = {}
    if group:
        yield list(group.values())


def _read(
    job: Job, line: ResultLine, body: Body, batch: Batch, clean: Callable[[str], str]
) -> tuple[Job, Reply] | None:
    found = outcome(job.request.id, line, body)
    if isinstance(found, Failed):
        batch.failures.setdefault(line.key, Failed(found.about, clean(found.why), found.charged))
        return None
    del batch.jobs[line.key]
    return job, found
