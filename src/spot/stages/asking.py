"""Problems in, judged attempts out: the one machinery that asks a model, verifies, stores and resumes.

Elicitation and evaluation are two uses of it. What the file at `path` has is kept; only what it lacks is asked for.
Replies are committed a group at a time, in the groups in which the model gives them, each as soon as it is judged.
An attempt that ended in an error was refused. The next call takes it out of the file and asks for it again, so an id
never stands in the file twice; behind a ledger that costs no request, since what is refused for good is on record.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spot.errors import RunFailed, UserError
from spot.files.store import Appender, OnBadRow, read_rows, repair, write_rows
from spot.models.base import Model, Reply, Request, Unanswered, closed
from spot.schema import (
    Attempt,
    Counts,
    Dropped,
    FinishReason,
    Id,
    Problem,
    Row,
    Sampling,
    Verdict,
    as_messages,
    derived_seed,
)
from spot.verify.base import Verifier

Progress = Callable[[int, int, Counts], None]
"""Called with attempts stored, attempts wanted, and the number of those stored by outcome."""
Variant = Callable[[Problem, int], Problem]
"""A problem as one sample of it is asked."""


@dataclass(frozen=True)
class _Asked:
    """One sample of one problem, and the request that asks for it."""

    problem: Problem
    sample: int
    request: Request


async def answer(
    problems: Sequence[Problem],
    model: Model,
    verifier: Verifier,
    *,
    samples: int,
    sampling: Sampling,
    path: Path,
    variant: Variant | None = None,
    on_progress: Progress | None = None,
) -> list[Attempt]:
    """Ask each problem `samples` times and return the judged attempts in the order of problems and samples.

    With `variant` a sample is asked, and judged, as it says. All attempts are in the JSONL file at `path` when this
    returns, in the order in which they came. Truncated replies are judged like whole ones; `Attempt.outcome` tells them
    apart. A request that is refused becomes an attempt without a verdict whose reason is the error. Raises `UserError`
    where `path` holds rows that were not asked for here, `StoppedEarly` where requests failed in a way that may pass,
    `RunFailed` where it cannot be written or the model leaves requests without any reply.
    """
    unanswered = Unanswered()
    asked = _asked(problems, samples, sampling, variant)
    stored = _stored(path, asked, model.name, sampling)
    outcomes = Counter(attempt.outcome for attempt in stored.values())
    if on_progress:
        on_progress(len(stored), len(asked), dict(outcomes))
    missing = asked.keys() - stored.keys()
    if missing:
        requests = [one.request for one in asked.values()]
        with Appender(path) as file:
            async with closed(model.generate(requests, sampling, frozenset(stored))) as groups:
                async for group in groups:
                    replies = unanswered.sift(group)
                    # In a thread, so that a model behind a network keeps answering meanwhile.
                    attempts = await asyncio.to_thread(_judged, replies, asked, verifier, model.name, sampling)
                    file.append(attempts)
                    for attempt in attempts:
                        missing.remove(attempt.id)  # a KeyError here is a model that repeats itself
                        stored[attempt.id] = attempt
                        outcomes[attempt.outcome] += 1
                    if on_progress:
                        on_progress(len(stored), len(asked), dict(outcomes))
    unanswered.check(len(asked))
    if missing:
        raise RunFailed(
            f"{model.name}: no reply to {len(missing)} of {len(asked)} requests, {min(missing)!r} among them; "
            "run the same command again, it asks only for these"
        )
    return [stored[identity] for identity in asked]


def _asked(problems: Sequence[Problem], samples: int, sampling: Sampling, variant: Variant | None) -> dict[str, _Asked]:
    """Everything that is wanted, by attempt id, in the order of problems and samples."""
    asked: dict[str, _Asked] = {}
    for problem in problems:
        messages = tuple(as_messages(problem.prompt))
        for sample in range(samples):
            identity = f"{problem.id}#{sample}"
            if identity in asked:
                raise UserError(f"problem id {problem.id!r} is used twice; ids must be unique")
            seed = derived_seed(sampling.seed, problem.id, sample)
            if variant is None:
                asked[identity] = _Asked(problem, sample, Request(identity, messages, seed))
            else:
                this = variant(problem, sample)
                request = Request(identity, tuple(as_messages(this.prompt)), seed)
                asked[identity] = _Asked(this, sample, request)
    return asked


def _stored(path: Path, asked: dict[str, _Asked], model: str, sampling: Sampling) -> dict[str, Attempt]:
    """The answered attempts that `path` holds, by id; a torn last line and rows of errors are taken out of the file."""
    if path.suffix == ".parquet":
        raise UserError(f"{path}: attempts are appended as they come, which Parquet cannot do; name a .jsonl file")
    if not path.exists():
        return {}
    repair(path)
    rows = read_rows(path, Attempt)
    for row in rows:
        if mismatch := _mismatch(row, asked, model, sampling):
            raise UserError(f"{path}: row {row.id!r} {mismatch}; name another file, or delete this one to start over")
    answered = [row for row in rows if row.finish_reason != "error"]
    if len(answered) < len(rows):
        write_rows(path, answered)
    return {row.id: row for row in answered}


def _mismatch(row: Attempt, asked: dict[str, _Asked], model: str, sampling: Sampling) -> str:
    """Why `row` is not an answer to what is asked here; empty where it is."""
    one = asked.get(row.id)
    if one is None or (row.problem_id, row.sample) != (one.problem.id, one.sample):
        return "belongs to other problems, or to more samples of each, than are asked here"
    if row.model != model:
        return f"was answered by the model {row.model!r}, not by {model!r}"
    if row.sampling != sampling:
        return f"was sampled with ({row.sampling}), not with ({sampling})"
    return ""


def _judged(
    replies: Sequence[Reply], asked: dict[str, _Asked], verifier: Verifier, model: str, sampling: Sampling
) -> list[Attempt]:
    attempts: list[Attempt] = []
    for reply in replies:
        one = asked[reply.id]
        failed = reply.finish_reason == "error"
        attempts.append(
            Attempt(
                id=reply.id,
                problem_id=one.problem.id,
                sample=one.sample,
                response=reply.text,
                finish_reason=reply.finish_reason,
                verdict=Verdict(correct=None, reason=reply.error) if failed else verifier(reply.text, one.problem),
                model=model,
                sampling=sampling,
                token_ids=None if reply.token_ids is None else list(reply.token_ids),
            )
        )
    return attempts


class Answer(Row):
    """An answer that was given elsewhere, as `elicit.attempts` reads it; it is verified here like any other."""

    problem_id: Id
    response: str
    sample: int = 0
    model: str = "import"
    finish_reason: FinishReason = "stop"

    @property
    def id(self) -> str:
        """What it answers; two rows for one sample of a problem are refused like any repeated id."""
        return f"problem {self.problem_id}, sample {self.sample}"


def import_answers(
    path: Path,
    problems: Sequence[Problem],
    verifier: Verifier,
    output: Path,
    on_bad_row: OnBadRow,
    dropped: list[Dropped] | None,
) -> list[Attempt]:
    """Answers given elsewhere as attempts, each verified here; `output` holds all of them or is not written.

    With `on_bad_row="skip"` bad rows and answers to unknown problems go to `dropped`; else `UserError` names them.
    """
    problem_of = {problem.id: problem for problem in problems}
    attempts: list[Attempt] = []
    for row in read_rows(path, Answer, on_bad_row, dropped, by_hand=True):
        attempt_id = f"{row.problem_id}#{row.sample}"
        if row.problem_id not in problem_of:
            if on_bad_row == "skip" and dropped is not None:
                dropped.append(Dropped(stage="elicit", id=attempt_id, reason="unknown_problem"))
                continue
            raise UserError(f"{path}: an answer to the unknown problem {row.problem_id!r}; add it to problems.source")
        attempts.append(
            Attempt(
                id=attempt_id,
                problem_id=row.problem_id,
                sample=row.sample,
                response=row.response,
                finish_reason=row.finish_reason,
                verdict=verifier(row.response, problem_of[row.problem_id]),
                model=row.model,
            )
        )
    write_rows(output, attempts)
    return attempts
