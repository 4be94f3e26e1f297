"""Rows that the tests of this folder share."""

from collections.abc import Callable

import pytest

from spot.rectify.base import Failure
from spot.schema import Attempt, Problem, Prompt, Verdict

MakeFailure = Callable[..., Failure]


@pytest.fixture
def make_failure() -> MakeFailure:
    def make(number: int = 0, response: str = "2 + 2 = 5, so \\boxed{5}", prompt: Prompt = "What is 2 + 2?") -> Failure:
        problem = Problem(id=f"p{number}", prompt=prompt, answer="4")
        attempt = Attempt(
            id=f"p{number}#0",
            problem_id=problem.id,
            sample=0,
            response=response,
            finish_reason="stop",
            verdict=Verdict(correct=False),
            model="student",
        )
        return Failure(problem, attempt)

    return make
