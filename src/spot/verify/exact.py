"""Answers compared word for word."""

from spot.schema import Problem, Verdict
from spot.verify.boxed import last_boxed
from spot.verify.notation import encodable


def verify_exact(response: str, problem: Problem) -> Verdict:
    r"""Judge by the text of the last `\boxed{...}`: it must equal the known answer but for white space.

    Without a box, or with an empty one, the response is wrong with reason "no answer".
    """
    boxed = encodable(last_boxed(response) or "")
    if not boxed:
        return Verdict(correct=False, reason="no answer")
    return Verdict(correct=boxed.split() == problem.answer.split(), answer=boxed)
