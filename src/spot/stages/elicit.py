"""The stage `elicit`: the student's answers to the problems, each verified."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from spot import interrupt
from spot.config import DrawnSection, RunConfig
from spot.models.base import Model
from spot.models.paid.ledger import Ledger
from spot.progress import bar
from spot.schema import Attempt, Counts, Dropped, Problem
from spot.stages.asking import Variant, answer, import_answers
from spot.stages.costs import print_spent
from spot.stages.opening import open_model, open_verifier
from spot.stages.place import Place
from spot.verify.base import Verifier


def elicit(config: RunConfig, place: Place, console: Console) -> str:
    """Ask the student, or import its answers, into `place.attempts`; returns how they came out."""
    return tally(attempts_of(config, place, console, config.elicit.samples))


def attempts_of(config: RunConfig, place: Place, console: Console, samples: int) -> list[Attempt]:
    """The student's attempts, `samples` a problem unless they are imported; only what is missing is asked for."""
    imported, skipped = config.elicit.attempts, list[Dropped]()
    problems, verifier = place.read_problems(config), open_verifier(config.problems)
    paid = imported is None and config.student.base_url is not None
    with Ledger(place.ledger) if paid else nullcontext() as ledger:
        if imported is not None:
            with place.writing(place.attempts):
                output, on_bad_row = place.attempts, config.run.on_bad_row
                attempts = import_answers(imported, problems, verifier, output, on_bad_row, skipped)
        else:
            with place.writing(place.attempts, config):
                model = open_model(config.student, ledger=ledger, day=place.day)
                section, seed = config.elicit, config.run.seed
                attempts = ask(problems, model, verifier, section, seed, place.attempts, "elicit", console, samples)
    unusable = [
        Dropped(stage="elicit", id=row.id, reason=row.outcome, detail=row.verdict.reason)
        for row in attempts
        if row.outcome in ("truncated", "unscored")
    ]
    place.drop("elicit", skipped + unusable)
    if paid and place.run is None:
        print_spent(place.ledger, console)
    return attempts


def ask(
    problems: Sequence[Problem],
    model: Model,
    verifier: Verifier,
    section: DrawnSection,
    seed: int,
    output: Path,
    title: str,
    console: Console,
    samples: int = 1,
    variant: Variant | None = None,
) -> list[Attempt]:
    """Ask, verify and store, with progress; elicitation and evaluation both do it here."""
    with bar(console, title) as progress:

        def show(done: int, total: int, counts: Counts) -> None:
            progress.update(done, total, "  ".join(f"{count} {what}" for what, count in counts.items()))

        return interrupt.run(
            answer(
                problems,
                model,
                verifier,
                samples=samples,
                sampling=section.sampling(seed),
                path=output,
                variant=variant,
                on_progress=show,
            )
        )


def tally(attempts: Sequence[Attempt]) -> str:
    """How attempts came out in a few words; why, for the first one that could not be judged."""
    counts = Counter(attempt.outcome for attempt in attempts)
    parts = ", ".join(
        f"{counts[name]:,} {name}" for name in ("correct", "wrong", "truncated", "unscored") if counts[name]
    )
    unscored = next((attempt for attempt in attempts if attempt.outcome == "unscored"), None)
    why = f" (the first, {unscored.id}: {unscored.verdict.reason})" if unscored else ""
    return f"{len(attempts):,} answers: {parts or 'none'}{why}"
