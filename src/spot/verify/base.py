"""A verifier judges one response to one problem; it is found by name or as the user's `module:function`."""

from typing import Protocol

from spot.schema import Problem, Verdict


class Verifier(Protocol):
    """Judges `response`. Never raises on what a model may write; `correct=None` where it cannot judge."""

    def __call__(self, response: str, problem: Problem) -> Verdict:
        """Return the verdict on `response` as an answer to `problem`."""
        ...
