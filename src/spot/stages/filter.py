"""The stage `filter`: corrections that change little become the pairs to train on."""

import json
from collections import Counter

from rich.console import Console

from spot.config import RunConfig
from spot.errors import UserError
from spot.files.disk import write_atomic
from spot.files.store import write_rows
from spot.hub import model_path
from spot.pairs.filter import make_pairs
from spot.pairs.tokens import load_encoder
from spot.rectify.run import objections
from spot.schema import Attempt, Rectification
from spot.stages.place import Place


def filter_pairs(config: RunConfig, place: Place, console: Console) -> str:
    """Write the pairs within gamma, by the student's tokenizer, in the order of problems and samples.

    Returns how many; raises `UserError` where there is none.
    """
    del console
    problems = place.read_problems(config)
    attempts = place.read(place.attempts, Attempt, "elicit", config)
    rectifications = place.read(place.rectifications, Rectification, "rectify", config)
    number = {problem.id: n for n, problem in enumerate(problems)}
    attempt_of = {attempt.id: attempt for attempt in attempts}
    for row in rectifications:
        attempt = attempt_of.get(row.attempt_id)
        if attempt is None or attempt.problem_id != row.problem_id or row.problem_id not in number:
            raise UserError(f"rectification {row.id!r}: its problem or attempt is not in the files given with it")
    section = config.filter
    limit = min(filter(None, (section.max_pairs, config.rectify.target_pairs)), default=None)
    # An endpoint's replies come in any order; what is trained on, and in which order, must not depend on it.
    rectifications.sort(key=lambda row: (number[row.problem_id], attempt_of[row.attempt_id].sample, row.candidate))
    encode = load_encoder(model_path(config.student.model))
    filtered = make_pairs(problems, attempts, rectifications, encode, section.gamma, limit)
    if not filtered.pairs:
        accepted = sum(row.accepted for row in rectifications)
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(row.reason for row in filtered.dropped).items())
        fix = "raise filter.gamma or correct more" if accepted else "fix the Oracle and rectify again"
        raise UserError(
            f"no pair is left of {accepted} accepted corrections ({why or objections(rectifications)}); {fix}"
        )
    with place.writing(place.pairs):
        write_rows(place.pairs, filtered.pairs)
        if place.run is not None:
            ratios = [round(ratio, 6) for ratio in filtered.ratios]
            write_atomic(place.run / "change_ratios.json", json.dumps(ratios))
        place.drop("filter", filtered.dropped)
    return f"{len(filtered.pairs):,} pairs within gamma {section.gamma:g}"
