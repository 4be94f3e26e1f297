"""The stage `rectify`: an Oracle corrects the wrong attempts, and every correction is verified."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from spot import interrupt
from spot.config import RunConfig
from spot.errors import StoppedEarly, UserError
from spot.files.store import Appender, OnBadRow
from spot.hub import model_path
from spot.models.paid.ledger import Ledger
from spot.pairs.change import change_ratio
from spot.pairs.tokens import load_encoder
from spot.progress import bar
from spot.rectify.base import Failure, Oracle
from spot.rectify.imported import ImportedOracle
from spot.rectify.run import Within, objections, stored
from spot.rectify.run import rectify as run_rectify
from spot.rectify.target import Target
from spot.schema import Attempt, Dropped, Problem, Rectification
from spot.stages.costs import print_spent
from spot.stages.elicit import attempts_of
from spot.stages.opening import Asking, open_oracle, open_verifier
from spot.stages.place import Place
from spot.verify.base import Verifier


def rectify(config: RunConfig, place: Place, console: Console) -> str:
    """Have the Oracle correct the wrong attempts into `place.rectifications`; returns how many verified.

    Raises `UserError` where no correction is accepted, `StoppedEarly` where pairs are missing from
    `rectify.target_pairs`.
    """
    problems = place.read_problems(config)
    attempts = place.read(place.attempts, Attempt, "elicit", config)
    unused: list[Dropped] = []
    wanted, output = config.rectify.target_pairs, place.rectifications
    target = None if wanted is None else Target(wanted)
    within = None if target is None else within_gamma(config)
    verifier = open_verifier(config.problems)
    with Ledger(place.ledger) as ledger:
        say = partial(console.print, highlight=False, soft_wrap=True)
        asking = Asking(ledger, target, problems, place.queue, say, config.run.on_bad_row, unused, place.day)
        oracle = open_oracle(config, asking)
        with place.writing(output):
            while True:
                rows = correct(
                    problems, attempts, oracle, verifier, output, console, unused, within, config.run.on_bad_row
                )
                if target is None or not target.missing or not (more := _more_attempts(config, place, console)):
                    break
                attempts, oracle = more, open_oracle(config, asking)
                unused.clear()
    refused = [
        Dropped(stage="rectify", id=row.id, reason=row.reason, detail=row.verdict.reason)
        for row in rows
        if not row.accepted
    ]
    place.drop("rectify", unused + refused)
    if place.run is None:
        print_spent(place.ledger, console)
    if len(refused) == len(rows):
        # Kept, they would count as done, and the config that they were made with as settled.
        files = f"see {output}; fix the Oracle (the section rectify), delete {output}" if rows else "fix the Oracle"
        raise UserError(
            f"none of {len(rows):,} corrections was accepted ({objections(rows)}); {files}, and run the same command "
            "again"
        )
    if target is not None and target.missing:
        fix = "add attempts" if place.run is None else "raise rectify.max_samples, or lower rectify.target_pairs"
        raise StoppedEarly(
            f"of {target.wanted:,} pairs {target.missing:,} are missing: all wrong attempts were asked about; {fix}, "
            "and run the same command again"
        )
    return _outcome(rows)


def _outcome(rows: Sequence[Rectification]) -> str:
    accepted = sum(row.accepted for row in rows)
    why = f" ({objections(rows)})" if accepted < len(rows) else ""
    return f"{accepted:,} of {len(rows):,} corrections verified{why}"


def _more_attempts(config: RunConfig, place: Place, console: Console) -> list[Attempt]:
    """All attempts after one more sample a problem; empty where there can be no more."""
    if place.run is None or config.elicit.attempts is not None:
        return []
    attempts = place.read(place.attempts, Attempt, "elicit", config)
    samples = 1 + max(attempt.sample for attempt in attempts)
    if len(attempts) < samples * len(place.read_problems(config)):
        return attempts_of(config, place, console, samples)  # a kill cut this sample short
    return attempts_of(config, place, console, samples + 1) if samples < config.rectify.max_samples else []


def correct(
    problems: Sequence[Problem],
    attempts: Sequence[Attempt],
    oracle: Oracle,
    verifier: Verifier,
    output: Path,
    console: Console,
    dropped: list[Dropped],
    within: Within | None = None,
    on_bad_row: OnBadRow = "error",
) -> list[Rectification]:
    """Corrections of the wrong attempts, each verified; those of a file that correct none of them go to `dropped`.

    `within` says whether a verified correction, given with what it corrects, is near enough for a pair. Attempts at
    unknown problems, whose row may have been a bad one, go to `dropped` too with `on_bad_row="skip"`.
    """
    problem_of = {problem.id: problem for problem in problems}
    strays = [attempt for attempt in attempts if attempt.problem_id not in problem_of]
    if strays and on_bad_row == "error":
        raise UserError(
            f"attempt {strays[0].id!r} answers the unknown problem {strays[0].problem_id!r}; add it to the problems"
        )
    dropped += [Dropped(stage="rectify", id=attempt.id, reason="unknown_problem") for attempt in strays]
    attempts = [attempt for attempt in attempts if attempt.problem_id in problem_of]
    failures = [Failure(problem_of[attempt.problem_id], attempt) for attempt in attempts if attempt.outcome == "wrong"]
    if not failures:
        counts = Counter(attempt.outcome for attempt in attempts)
        outcomes = ", ".join(f"{n} {what}" for what, n in counts.items()) or "no attempts"
        raise UserError(f"no wrong attempts to learn from ({outcomes}); ask more or harder problems")
    if isinstance(oracle, ImportedOracle):
        dropped += oracle.unused(attempts)
    rows = stored(output, {failure.attempt.id: failure for failure in failures}, oracle)
    counts = Counter("accepted" if row.accepted else row.reason for row in rows)
    with bar(console, "rectify") as progress, Appender(output) as appender:

        def show(new: Sequence[Rectification]) -> None:
            rows.extend(new)
            counts.update("accepted" if row.accepted else row.reason for row in new)
            note = "  ".join(f"{count} {what}" for what, count in counts.items())
            progress.update(len(rows), len(failures) * getattr(oracle, "candidates", 1), note)

        interrupt.run(run_rectify(failures, oracle, verifier, appender, stored=rows, within=within, on_progress=show))
    order = {failure.attempt.id: i for i, failure in enumerate(failures)}
    return sorted(rows, key=lambda row: (order[row.attempt_id], row.candidate))


def within_gamma(config: RunConfig) -> Within:
    """Whether a correction is near enough for a pair, by the student's tokenizer."""
    encode, gamma = load_encoder(model_path(config.student.model)), config.filter.gamma

    def within(rejected: str, chosen: str) -> bool:
        ids = encode(rejected), encode(chosen)
        return all(ids) and ids[0] != ids[1] and change_ratio(*ids) <= gamma

    return within
