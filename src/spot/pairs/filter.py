"""Accepted corrections to training pairs: keep those that change little, record all others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spot.pairs.change import change_ratio
from spot.schema import Attempt, Dropped, Message, Pair, Problem, Rectification, as_messages

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Filtered:
    """The pairs, what was dropped, and the change ratio of every verified correction (dropped ones included)."""

    pairs: list[Pair] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


def make_pairs(
    problems: Sequence[Problem],
    attempts: Sequence[Attempt],
    rectifications: Sequence[Rectification],
    encode: Encode,
    gamma: float,
    max_pairs: int | None = None,
) -> Filtered:
    """Pair each accepted correction with the attempt it corrects where `change_ratio <= gamma`.

    `encode` is the student's tokenizer without special tokens. Pairs are in the order of `rectifications`; those past
    `max_pairs` are dropped as `beyond_max_pairs`.
    """
    problem_of = {problem.id: problem for problem in problems}
    attempt_of = {attempt.id: attempt for attempt in attempts}
    result = Filtered()
    for row in rectifications:
        if not row.accepted:
            continue
        attempt = attempt_of[row.attempt_id]
        rejected, chosen = encode(attempt.response), encode(row.response)
        if not rejected or not chosen:
            result.dropped.append(Dropped(stage="filter", id=row.id, reason="empty"))
            continue
        ratio = change_ratio(rejected, chosen)
        result.ratios.append(ratio)
        if rejected == chosen:
            result.dropped.append(Dropped(stage="filter", id=row.id, reason="unchanged"))
        elif ratio > gamma:
            detail = f"change ratio {ratio:.3f} > gamma {gamma:g}"
            result.dropped.append(Dropped(stage="filter", id=row.id, reason="over_gamma", detail=detail))
        elif max_pairs is not None and len(result.pairs) >= max_pairs:
            result.dropped.append(Dropped(stage="filter", id=row.id, reason="beyond_max_pairs"))
        else:
            meta = {"length_ratio": round(len(chosen) / len(rejected), 4)}
            result.pairs.append(_pair(problem_of[row.problem_id], attempt, row, ratio, meta))
    return result


def _pair(problem: Problem, attempt: Attempt, row: Rectification, ratio: float, meta: dict[str, float]) -> Pair:
    """A pair in TRL's conversational preference format: the student is a chat model, so its prompts are chats."""
    return Pair(
        id=row.id,
        problem_id=problem.id,
        prompt=as_messages(problem.prompt),
        chosen=[Message(role="assistant", content=row.response)],
        rejected=[Message(role="assistant", content=attempt.response)],
        change_ratio=ratio,
        oracle=row.oracle,
        meta=meta,
    )
