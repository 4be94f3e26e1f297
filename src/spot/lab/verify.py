"""The lab's verifier: numbers by `verify.math`, other boxed answers to the letter, instructions by their checks."""

from spot.lab import instructions
from spot.schema import Problem, Verdict
from spot.verify.exact import verify_exact
from spot.verify.math import verify as verify_math


def verify(response: str, problem: Problem) -> Verdict:
    """Judge `response` by the rules of its problem's family (`meta["family"]`)."""
    family = problem.meta.get("family")
    if family == "in_domain":
        return verify_math(response, problem.answer)
    if family == "ood":
        return verify_exact(response, problem)
    if family == "instructions":
        broken = instructions.broken(response, problem.meta["constraints"])
        return Verdict(
            correct=not broken, answer=response, reason=f"not satisfied: {', '.join(broken)}" if broken else ""
        )
    return Verdict(correct=None, reason=f"not a lab problem (family {family!r})")
