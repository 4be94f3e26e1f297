"""Failures in, judged corrections out: every one is verified, whatever its Oracle claims, and every one is recorded."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from spot.errors import RunFailed, UserError
from spot.files.store import Appender, read_rows, repair, write_rows
from spot.models.base import Unanswered, closed
from spot.rectify.base import Correction, Failure, Oracle
from spot.rectify.imported import ImportedOracle
from spot.rectify.model_oracle import ModelOracle
from spot.rectify.own import OwnOracle
from spot.schema import Rectification, Verdict
from spot.verify.base import Verifier

OnProgress = Callable[[Sequence[Rectification]], None]

Within = Callable[[str, str], bool]
"""Whether a correction (the second text) is near enough to what it corrects (the first) for a pair."""

# Reasons of rectifications that are no judgement of the Oracle's: the request failed.
NOT_ANSWERED = ("no_reply", "no_correction")


def stored(output: Path, failures: Mapping[str, Failure], oracle: Oracle) -> list[Rectification]:
    """What `output` holds already of corrections of `failures`, which are by the attempt's id.

    Rows without a reply are removed from it, to be asked again, and so are imported corrections whose file has another
    text now. Raises `UserError` where a row is of another Oracle, or what would be asked now is different.
    """
    if output.suffix == ".parquet":
        raise UserError(f"{output}: corrections are appended as they come, which Parquet cannot do; name a .jsonl file")
    if not output.exists():
        return []
    repair(output)
    rows = read_rows(output, Rectification)
    for row in rows:
        failure, what = failures.get(row.attempt_id), ""
        if failure is None or (row.oracle, row.mode) != (oracle.name, oracle.mode):
            what = f"corrects {row.attempt_id!r} by the Oracle {row.oracle!r} ({row.mode}), not the one asked here"
        elif row.asked != asked(oracle, failure, row.candidate):
            what = "answers another attempt, prompt, sampling or Oracle setting than today's"
        if what:
            raise UserError(f"{output}: row {row.id!r} {what}; name another file, or delete this one to start over")
    answered = [
        row
        for row in rows
        if row.reason not in NOT_ANSWERED
        and not (isinstance(oracle, ImportedOracle) and oracle.text_of(failures[row.attempt_id]) != row.response)
    ]
    if len(answered) < len(rows):
        write_rows(output, answered)
    return answered


def asked(oracle: Oracle, failure: Failure, candidate: int) -> str:
    """A hash that tells a correction from one of another answer, or one requested in other words."""
    if isinstance(oracle, ModelOracle):
        return oracle.identity(failure, candidate)
    material: tuple[object, ...] = (failure.attempt.response, failure.problem.answer)
    if isinstance(oracle, OwnOracle) and oracle.options:
        material += (sorted(oracle.options.items()),)
    return hashlib.sha256(repr(material).encode("utf-8", "surrogatepass")).hexdigest()[:16]


async def rectify(
    failures: Sequence[Failure],
    oracle: Oracle,
    verifier: Verifier,
    appender: Appender,
    *,
    stored: Sequence[Rectification] = (),
    within: Within | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Ask `oracle` for corrections of each failure and append one `Rectification` for each that comes.

    `stored` are the rectifications that there are already; failures that have all of theirs are not passed on.
    `on_progress` gets each group of rows after it was committed. A correction is accepted only if it verifies;
    otherwise its row's `reason` says why: the Oracle's own, or `empty`, `same_as_rejected`, `does_not_verify`,
    `unscored`, `no_correction`. An Oracle that asks only for what is wanted is told of each correction whether it
    makes a pair, `within` considered. What got no reply for a reason that may pass has no row.

    Raises `StoppedEarly` where there is such, once all others are committed and unless so many pairs are there as are
    wanted, `RunFailed` for an Oracle that answers what it was not asked, and lets the Oracle's errors through.
    """
    failure_of = {failure.attempt.id: failure for failure in failures}

    def tell(correction: Correction, row: Rectification) -> None:
        if isinstance(oracle, ModelOracle):
            rejected = failure_of[row.attempt_id].attempt.response
            oracle.judged(correction, row.accepted and (within is None or within(rejected, row.response)))

    for row in stored:
        if isinstance(oracle, ModelOracle):
            oracle.have(failure_of[row.attempt_id], row.candidate)
        tell(Correction(row.attempt_id, row.response, candidate=row.candidate), row)
    count = Counter(row.attempt_id for row in stored)
    candidates = oracle.candidates if isinstance(oracle, ModelOracle) else 1
    open_failures = {id: failure for id, failure in failure_of.items() if count[id] < candidates}
    if not open_failures:
        return
    have, seen = {row.id for row in stored}, set[str]()

    unanswered = Unanswered()

    async def commit(group: Sequence[Correction]) -> None:
        corrections = [correction for correction in group if not correction.passing]
        for correction in group:
            if correction.passing:
                unanswered.why[f"{correction.attempt_id}.{correction.candidate}"] = correction.detail
                if isinstance(oracle, ModelOracle):
                    oracle.judged(correction, accepted=False)
        # In a thread: an Oracle that is asked over the network continues meanwhile.
        rows = await asyncio.to_thread(_all_judged, corrections, open_failures, oracle, verifier)
        for row in rows:
            if row.id in seen:
                raise RunFailed(f"oracle {oracle.name!r} gave two corrections under the id {row.id!r}")
            seen.add(row.id)
        new = [row for row in rows if row.id not in have]
        appender.append(new)
        for correction, row in zip(corrections, rows, strict=True):
            tell(correction, row)
        if on_progress is not None:
            on_progress(new)

    answered: set[str] = set()
    async with closed(oracle.correct(list(open_failures.values()))) as groups:
        async for group in groups:
            await commit(group)
            answered.update(correction.attempt_id for correction in group)
    if not enough(oracle):
        unanswered.check(len(open_failures) * candidates)
        await commit([Correction(id, None, "no_correction") for id in open_failures if id not in answered])


def enough(oracle: Oracle) -> bool:
    """Whether `oracle` was to give so many pairs and has."""
    target = oracle.target if isinstance(oracle, ModelOracle) else None
    return target is not None and not target.missing


def _all_judged(
    corrections: Sequence[Correction], failures: dict[str, Failure], oracle: Oracle, verifier: Verifier
) -> list[Rectification]:
    return [
        _judged(_failure_of(correction, failures, oracle), correction, oracle, verifier) for correction in corrections
    ]


def _failure_of(correction: Correction, failures: dict[str, Failure], oracle: Oracle) -> Failure:
    failure = failures.get(correction.attempt_id)
    if failure is None:
        raise RunFailed(f"oracle {oracle.name!r} answered attempt {correction.attempt_id!r}, which it was not asked")
    return failure


def _judged(failure: Failure, correction: Correction, oracle: Oracle, verifier: Verifier) -> Rectification:
    text = correction.text or ""
    nothing = Verdict(correct=None, reason=correction.detail or "no text")
    verdict = verifier(text, failure.problem) if text.strip() else nothing
    reason = correction.reason or _objection(text, failure.attempt.response, verdict)
    return Rectification(
        id=f"{correction.attempt_id}~{oracle.name}.{correction.candidate}",
        attempt_id=correction.attempt_id,
        problem_id=failure.problem.id,
        oracle=oracle.name,
        mode=oracle.mode,
        candidate=correction.candidate,
        prompt_version=correction.prompt_version,
        ledger_key=correction.ledger_key,
        asked=asked(oracle, failure, correction.candidate),
        response=text,
        verdict=verdict,
        accepted=not reason,
        reason=reason,
    )


def _objection(text: str, rejected: str, verdict: Verdict) -> str:
    """Why a correction cannot be accepted; empty where it can."""
    if not text.strip():
        return "empty"
    if text.strip() == rejected.strip():
        return "same_as_rejected"
    if verdict.correct is None:
        return "unscored"
    return "" if verdict.correct else "does_not_verify"


def objections(rows: Sequence[Rectification]) -> str:
    """Why those of `rows` that were not accepted were not, in a few words: counts by reason, and the first of them."""
    refused = [row for row in rows if not row.accepted]
    if not refused:
        return "no corrections"
    reasons = Counter(row.reason for row in refused)
    first = refused[0]
    answer = "" if first.verdict.answer is None else f", it answers {first.verdict.answer[:60]!r}"
    why = f" ({first.verdict.reason})" if first.reason == "no_reply" and first.verdict.reason != "no text" else ""
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return f"{counts}; the first is {first.attempt_id}: {first.reason}{why}{answer}"
