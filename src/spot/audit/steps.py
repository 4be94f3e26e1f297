"""Errors newly introduced: steps that were right in the rejected answer and are wrong in the chosen one.

In the lab the world itself judges every step of an answer, which is exact; elsewhere a model compares the steps of two
answers (`judge`).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spot.audit.summary import NewError, PairAudit, StepChange, StepSummary
from spot.schema import Attempt, Problem

EXAMPLES = 3
"""Pairs named for each kind of error."""


@dataclass(frozen=True)
class JudgedStep:
    """One step of an answer: its text, and the kinds of what is wrong with it, none where it is right.

    `start` is a place in the answer that belongs to the step and to no other, `None` where there is none.
    """

    text: str
    kinds: tuple[str, ...] = ()
    start: int | None = None


Judge = Callable[[Problem, str], Sequence[JudgedStep] | None]
"""All steps that an answer to the problem should have, in their order and as many for any answer, each as this one has
it; `None` for a problem that the judge cannot judge."""


@dataclass(frozen=True)
class Rates:
    """How often each kind of error occurs in some answers, `kinds`, of all the `steps` in them."""

    kinds: Mapping[str, int]
    steps: int

    def of(self, kind: str) -> float | None:
        """The share of steps with an error of `kind`; `None` where none was judged."""
        return self.kinds.get(kind, 0) / self.steps if self.steps else None


def step_changes(judge: Judge, problem: Problem, rejected: str, chosen: str) -> list[StepChange] | None:
    """Each step as both answers have it; `None` where the problem cannot be judged."""
    theirs, ours = judge(problem, rejected), judge(problem, chosen)
    if theirs is None or ours is None:
        return None
    return [
        StepChange(
            step=place,
            rejected_kinds=list(before.kinds),
            chosen_kinds=list(after.kinds),
            rejected_text=before.text,
            chosen_text=after.text,
        )
        for place, (before, after) in enumerate(zip(theirs, ours, strict=True))
    ]


def error_rates(judge: Judge, problems: Mapping[str, Problem], attempts: Iterable[Attempt]) -> Rates:
    """How often each kind of error occurs in `attempts` at `problems`, by id."""
    kinds: Counter[str] = Counter()
    steps = 0
    for attempt in attempts:
        problem = problems.get(attempt.problem_id)
        judged = judge(problem, attempt.response) if problem is not None else None
        for step in judged or ():
            steps += 1
            kinds.update(step.kinds)
    return Rates(kinds, steps)


def summarise_steps(rows: Sequence[PairAudit], before: Rates | None, after: Rates | None) -> StepSummary | None:
    """All pairs that could be judged together, `None` where none could.

    `before` and `after` are the trained-on kinds' rates in the evaluation's answers, where those were judged.
    """
    judged = [row for row in rows if row.steps is not None]
    if not judged:
        return None
    outcomes = Counter(step.outcome for row in judged for step in row.steps or ())
    counts: Counter[str] = Counter()
    pairs: defaultdict[str, list[str]] = defaultdict(list)
    for row in judged:
        kinds = [kind for step in row.steps or () if step.outcome == "new" for kind in step.chosen_kinds]
        counts.update(kinds)
        for kind in dict.fromkeys(kinds):
            pairs[kind].append(row.id)
    found = [
        NewError(
            kind=kind,
            count=count,
            pairs=len(pairs[kind]),
            examples=pairs[kind][:EXAMPLES],
            before=before.of(kind) if before else None,
            after=after.of(kind) if after else None,
        )
        for kind, count in counts.items()
    ]
    return StepSummary(
        pairs=len(judged),
        kept=outcomes["kept"],
        fixed=outcomes["fixed"],
        new=outcomes["new"],
        left=outcomes["left"],
        pairs_with_new=len({name for names in pairs.values() for name in names}),
        kinds=sorted(found, key=lambda error: (-error.count, error.kind)),
    )
