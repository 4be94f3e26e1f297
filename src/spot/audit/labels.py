"""Labelled rows from a run's own pairs: in the lab the exact judge labels them, elsewhere people fill the labels in.

A row's id is its pair's, so the judge is asked about it in the words of the audit itself, and pays for it once.
"""

from collections.abc import Mapping, Sequence

from spot.audit.agreement import LabelledAnswer, LabelledStep
from spot.audit.split import steps_of
from spot.audit.steps import Judge
from spot.schema import Pair, Problem, text_of

LAB_KINDS = {
    "rule": "wrong-formula",
    "statement": "wrong-formula",
    "arithmetic": "arithmetic",
    "carry": "carried-over",
    "item": "unit",
    "start": "misread-question",
    "answer": "carried-over",
}
"""The judge's kinds for those of the lab, by their first word."""


def labelled_rows(pairs: Sequence[Pair], problems: Mapping[str, Problem], judge: Judge | None) -> list[LabelledAnswer]:
    """A row for each pair with a problem; with `judge` only those of the lab that can be labelled step by step.

    An answer that leaves a step out, or has one that nothing asks for, has an error that is none of its steps'. Without
    `judge` every label is open.
    """
    rows: list[LabelledAnswer] = []
    for pair in pairs:
        problem = problems.get(pair.problem_id)
        sides = [steps_of(text_of(side)) for side in (pair.rejected, pair.chosen)]
        if problem is None or not all(sides):
            continue
        labelled = [_labelled(judge, problem, steps) for steps in sides]
        if labelled[0] is not None and labelled[1] is not None:
            rows.append(
                LabelledAnswer(
                    id=pair.id, prompt=problem.prompt, answer=problem.answer, steps=labelled[0], other=labelled[1]
                )
            )
    return rows


def _labelled(judge: Judge | None, problem: Problem, steps: Sequence[str]) -> list[LabelledStep] | None:
    if judge is None:
        return [LabelledStep(text=step) for step in steps]
    kinds = lab_verdicts(judge, problem, steps)
    if kinds is None:
        return None
    return [LabelledStep(text=step, right=not kind, kind=kind) for step, kind in zip(steps, kinds, strict=True)]


def lab_verdicts(judge: Judge, problem: Problem, steps: Sequence[str]) -> list[str] | None:
    """The kind of each step's first error, empty where it is right; `None` where the lab cannot say it by step."""
    text = "\n".join(steps)
    judged = judge(problem, text)
    if judged is None:
        return None
    ends: list[int] = []
    for step in steps:
        ends.append((ends[-1] + 1 if ends else 0) + len(step))
    kinds = [""] * len(steps)
    for part in judged:
        for kind in part.kinds:
            name = LAB_KINDS.get(kind.partition(" ")[0])
            if name is None or part.start is None:
                return None
            place = next(place for place, end in enumerate(ends) if part.start <= end)
            kinds[place] = kinds[place] or name
    return kinds
