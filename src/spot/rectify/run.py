"""Failures in, judged corrections out: every one is verified, whatever its Oracle claims, and every one is recorded."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

from spot.errors import UserError
from spot.plugin import load_function
from spot.rectify.base import Correction, Failure, Oracle
from spot.schema import Rectification, Verdict
from spot.store import Appender
from spot.verify.base import Verifier

OnProgress = Callable[[Sequence[Rectification]], None]


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


def load_oracle(spec: str, **arguments: Any) -> Oracle:
    """The Oracle that the user's `module:function` makes, called with `arguments`.

    The working directory is searched too. Raises `UserError` where the name leads nowhere or to something that is no
    Oracle (`name`, `mode` and `correct`, see `spot.rectify.base`).
    """
    factory = load_function("oracle", spec)
    try:
        oracle: Any = factory(**arguments)
    except TypeError as error:
        raise UserError(f"oracle {spec!r}: calling it failed ({error})") from error
    for attribute in ("name", "mode", "correct"):
        if not hasattr(oracle, attribute):
            raise UserError(
                f"oracle {spec!r}: what it returned is no Oracle, it has no {attribute!r}; see docs/extending.md"
            )
    return cast(Oracle, oracle)
