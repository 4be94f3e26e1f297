"""What a batch that has ended gives: the replies in its files, and for the rest what became of it."""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from spot.models.base import Body, Reply
from spot.models.endpoint import error_body
from spot.models.paid.batch_lines import Failed, Line, outcome, read_line
from spot.models.paid.batch_outbox import Job
from spot.models.paid.batch_provider import Provider, Snapshot

GROUP = 200
"""Replies that are committed at once."""

_NO_ROOM = re.compile(r"token_limit_exceeded|enqueued token|\bqueued? .*limit", re.IGNORECASE)
_PASSING = re.compile(r"internal|server_error|timeout|timed out|unavailable|overloaded|try again", re.IGNORECASE)


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
        # On the disk first: whoever takes the replies may take longer than a connection lasts.
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


def _grouped(file: IO[bytes], batch: Batch) -> Iterator[list[tuple[Job, Line, bytes]]]:
    """The lines about requests that are asked for, each request's once a group."""
    group: dict[str, tuple[Job, Line, bytes]] = {}
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


def _read(job: Job, line: Line, body: Body, batch: Batch, clean: Callable[[str], str]) -> tuple[Job, Reply] | None:
    found = outcome(job.request.id, line, body)
    if isinstance(found, Failed):
        batch.failures.setdefault(line.key, Failed(found.about, clean(found.why), found.charged))
        return None
    del batch.jobs[line.key]
    return job, found
