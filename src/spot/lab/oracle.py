"""The scripted Oracle: it knows the lab's rules, so it corrects exactly and costs nothing.

It keeps the student's text up to the end of the last right step, in the style and voice the student wrote in, and
writes the rest right. Among the ways to do so it takes the one nearest to what the student wrote.
"""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

from spot.lab.stories import story_of
from spot.lab.world import World
from spot.rectify.base import Correction, Failure
from spot.schema import Problem

EQUATION = re.compile(r"(\d+) ([+\-*/]) (\d+) = (\d+)")
GROUP = 64


class ScriptedOracle:
    """Corrects in-domain answers of one world; gives no correction for anything else."""

    name: str = "scripted"
    mode: Literal["rewrite"] = "rewrite"

    def __init__(self, world: World) -> None:
        self.world = world

    async def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        """Correct `failures` in groups, in order."""
        for start in range(0, len(failures), GROUP):
            yield [self._correct_one(failure) for failure in failures[start : start + GROUP]]

    def _correct_one(self, failure: Failure) -> Correction:
        if failure.problem.meta.get("family") != "in_domain":
            return Correction(failure.attempt.id, None, "not_a_story")
        return Correction(failure.attempt.id, rewrite(self.world, failure.problem, failure.attempt.response))


def rewrite(world: World, problem: Problem, response: str) -> str:
    """The right answer to `problem` nearest to `response`, every right step of it kept to the letter."""
    story = story_of(problem)
    steps = world.work(story)
    candidates: list[str] = []
    for style in world.styles.values():
        for voice in range(world.voices):
            right = "".join(world.write(story, steps, style, voice))
            candidates += [right, spliced(response, right)]
    return min(candidates, key=lambda text: Levenshtein.distance(response, text))


def spliced(response: str, right: str) -> str:
    """`response` up to the end of its last right step, `right` from there on."""
    kept = 0
    tail = right
    for ours, theirs in zip(EQUATION.finditer(right), EQUATION.finditer(response), strict=False):
        if ours.groups() != theirs.groups():
            break
        kept, tail = theirs.end(), right[ours.end() :]
    return response[:kept] + tail
