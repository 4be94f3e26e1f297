"""Failures in, judged corrections out: every one is verified, whatever its Oracle claims, and every one is recorded."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from spot.errors import UserError
from spot.rectify.base import Correction, Failure, Oracle
from spot.schema import Rectification, Verdict
from spot.store import Appender, read_rows, repair, write_rows
from spot.verify.base import Verifier

OnProgress = Callable[[Sequence[Rectification]], None]

# Reasons of rectifications that are no judgement of the Oracle's: the request failed.
NOT_ANSWERED = ("no_reply", "no_correction")


def stored(output: Path, attempt_ids: Collection[str], oracle: Oracle) -> list[Rectification]:
    """What `output` holds already. Failures that got no reply are taken out of it: they are asked again."""
    if output.suffix == ".parquet":
        raise UserError(f"{output}: corrections are appended as they come, which Parquet cannot do; name a .jsonl file")
    if not output.exists():
        return []
    repair(output)
    rows = read_rows(output, Rectification)
    for row in rows:
        if row.attempt_id not in attempt_ids or row.oracle != oracle.name:
            what = f"corrects {row.attempt_id!r} by the Oracle {row.oracle!r}, which is not asked for here"
            raise UserError(f"{output}: row {row.id!r} {what}; name another file, or delete this one to start over")
    answered = [row for row in rows if row.reason not in NOT_ANSWERED]
    if len(answered) < len(rows):
        write_rows(output, answered)
    return answered


async def rectify(
    failures: Sequence[Failure],
    oracle: Oracle,
    verifier: Verifier,
    appender: Appender,
    *,
    done: Collection[str] = frozenset(),
    on_progress: OnProgress | None = None,
) -> None:
    """Ask `oracle` for a correction of each failure and append one `Rectification` for each that comes.

    `done` holds the ids of attempts that have their rectification already. `on_progress` gets each group of rows after
    it was committed. A correction is accepted only if it verifies; otherwise its row's `reason` says why: the Oracle's
    own, or `empty`, `same_as_rejected`, `does_not_verify`, `unscored`, `no_correction`.

    Raises `UserError` for an Oracle that answers what it was not asked, and lets the Oracle's errors through.
    """
    open_failures = {failure.attempt.id: failure for failure in failures if failure.attempt.id not in done}
    if not open_failures:
        return
    seen: set[str] = set()

    def commit(corrections: Sequence[Correction]) -> None:
        rows = [
            _judged(_failure_of(correction, open_failures, oracle), correction, oracle, verifier)
            for correction in corrections
        ]
        for row in rows:
            if row.id in seen:
                raise UserError(f"oracle {oracle.name!r} gave two corrections under the id {row.id!r}")
            seen.add(row.id)
        appender.append(rows)
        if on_progress is not None:
            on_progress(rows)

    answered: set[str] = set()
    async for group in oracle.correct(list(open_failures.values())):
        commit(group)
        answered.update(correction.attempt_id for correction in group)
    commit([Correction(id, None, "no_correction") for id in open_failures if id not in answered])


def _failure_of(correction: Correction, failures: dict[str, Failure], oracle: Oracle) -> Failure:
    failure = failures.get(correction.attempt_id)
    if failure is None:
        raise UserError(f"oracle {oracle.name!r} answered attempt {correction.attempt_id!r}, which it was not asked")
    return failure


def _judged(failure: Failure, correction: Correction, oracle: Oracle, verifier: Verifier) -> Rectification:
    text = correction.text or ""
    verdict = verifier(text, failure.problem) if text.strip() else Verdict(correct=None, reason="no text")
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
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return f"{counts}; the first is {first.attempt_id}: {first.reason}{answer}"
