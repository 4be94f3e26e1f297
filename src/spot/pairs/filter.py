"""Accepted corrections to training pairs: keep those that change little, record all others."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from spot.pairs.change import change_ratio, edit_distance
from spot.pairs.tokens import TEXTS_AT_ONCE, Encode, encode_all
from spot.schema import Attempt, Dropped, Message, Pair, Problem, Rectification, as_messages


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
    """Pair each attempt with its nearest accepted correction among those with `change_ratio <= gamma`.

    The nearest has the smallest edit distance, the first of equals; the others are dropped as `not_nearest`. `encode`
    is the student's tokenizer without special tokens. Pairs are in the order of `rectifications`; those past
    `max_pairs` are dropped as `beyond_max_pairs`.
    """
    attempt_of = {attempt.id: attempt for attempt in attempts}
    result = Filtered()
    within = _within(rectifications, attempt_of, encode, gamma, result)
    nearest: dict[str, _Candidate] = {}
    for candidate in within:
        best = nearest.setdefault(candidate.attempt.id, candidate)
        if candidate.distance < best.distance:
            nearest[candidate.attempt.id] = candidate
    problem_of = {problem.id: problem for problem in problems}
    for candidate in within:
        if nearest[candidate.attempt.id] is not candidate:
            result.dropped.append(Dropped(stage="filter", id=candidate.row.id, reason="not_nearest"))
        elif max_pairs is not None and len(result.pairs) >= max_pairs:
            result.dropped.append(Dropped(stage="filter", id=candidate.row.id, reason="beyond_max_pairs"))
        else:
            result.pairs.append(_pair(problem_of[candidate.row.problem_id], candidate))
    return result


@dataclass(frozen=True)
class _Candidate:
    """A correction that changes little enough."""

    row: Rectification
    attempt: Attempt
    ratio: float
    distance: float
    length_ratio: float


def _within(
    rectifications: Sequence[Rectification],
    attempt_of: Mapping[str, Attempt],
    encode: Encode,
    gamma: float,
    result: Filtered,
) -> list[_Candidate]:
    """The accepted corrections within gamma; what is not goes to `result`, and so does every ratio."""
    within: list[_Candidate] = []
    several = Counter(row.attempt_id for row in rectifications if row.accepted)
    for row, attempt, rejected, chosen in _encoded(rectifications, attempt_of, encode):
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
        else:
            # Of one there is nothing to choose.
            distance = edit_distance(rejected, chosen) if several[attempt.id] > 1 else 0.0
            within.append(_Candidate(row, attempt, ratio, distance, len(chosen) / len(rejected)))
    return within


def _encoded(
    rectifications: Sequence[Rectification], attempt_of: Mapping[str, Attempt], encode: Encode
) -> Iterator[tuple[Rectification, Attempt, list[int], list[int]]]:
    """Each accepted correction with its attempt and both answers' token ids."""
    accepted = iter(row for row in rectifications if row.accepted)
    while rows := list(islice(accepted, TEXTS_AT_ONCE // 2)):
        attempts = [attempt_of[row.attempt_id] for row in rows]
        # An attempt that was corrected several times is encoded once.
        texts = list(dict.fromkeys(row.response for row in (*attempts, *rows)))
        ids = dict(zip(texts, encode_all(encode, texts), strict=True))
        for row, attempt in zip(rows, attempts, strict=True):
            yield row, attempt, ids[attempt.response], ids[row.response]


def _pair(problem: Problem, candidate: _Candidate) -> Pair:
    """A pair in TRL's conversational preference format: the student is a chat model, so its prompts are chats."""
    return Pair(
        id=candidate.row.id,
        problem_id=problem.id,
        prompt=as_messages(problem.prompt),
        chosen=[Message(role="assistant", content=candidate.row.response)],
        rejected=[Message(role="assistant", content=candidate.attempt.response)],
        change_ratio=candidate.ratio,
        oracle=candidate.row.oracle,
        meta={"length_ratio": round(candidate.length_ratio, 4)},
    )
