"""The lab's Oracle as a model that is prompted: it answers in any mode, and errs at given rates."""

import random
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from spot.errors import UserError
from spot.lab.oracle import EQUATION, ScriptedOracle, rewrite
from spot.lab.world import World
from spot.models.base import Reply, Request, Usage
from spot.rectify.own import Setting
from spot.rectify.parse import Markers
from spot.rectify.patch import Edit, write_edits
from spot.rectify.steps import write_step
from spot.schema import Mode, Problem, Sampling

GROUP = 64
_MATERIAL = re.compile(r"=== STUDENT'S ANSWER (\w+) ===\n(.*)\n=== END OF MATERIAL \1 ===", re.DOTALL)
_WORDS = re.compile(r"\s*\S+|\s+")


@dataclass(frozen=True)
class ErrorRates:
    """How often, of all replies, a correction is wrong, and how often it cannot be used: its old text stands in the
    answer more than once (in `rewrite`: the reply holds two results), or not at all (there: no result)."""

    wrong: float = 0.0
    ambiguous: float = 0.0
    misfit: float = 0.0

    def __bool__(self) -> bool:
        return any((self.wrong, self.ambiguous, self.misfit))


class ScriptedModel:
    """Corrects in-domain answers to `problems` of one world; implements `spot.models.base.Model`.

    Errors are drawn from the request's seed and attempt. Tokens in `usage` are words.
    """

    name: str = "scripted"

    def __init__(self, world: World, problems: Sequence[Problem], mode: Mode, errors: ErrorRates | None = None) -> None:
        self._world = world
        self._problem_of = {problem.id: problem for problem in problems}
        self._mode: Mode = mode
        self._errors = errors or ErrorRates()

    @property
    def fingerprint(self) -> str:
        """What decides its replies beside what it is asked."""
        return f"{self.name} {self._mode} {self._errors}"

    async def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,  # noqa: ARG002 (a script does not sample)
        done: frozenset[str] = frozenset(),
    ) -> AsyncIterator[list[Reply]]:
        """Answer in groups, in order."""
        todo = [request for request in requests if request.id not in done]
        for start in range(0, len(todo), GROUP):
            yield [self._reply(request) for request in todo[start : start + GROUP]]

    def _reply(self, request: Request) -> Reply:
        prompt = next(message.content for message in reversed(request.messages) if _MATERIAL.search(message.content))
        material = _MATERIAL.search(prompt)
        assert material is not None
        problem = self._problem_of[request.about.rpartition("#")[0]]
        if problem.meta.get("family") != "in_domain":
            return Reply(request.id, "", "error", error="the scripted Oracle knows the lab's stories only")
        text = self._written(problem, material[2], Markers(material[1]), random.Random(f"{request.seed} {request.id}"))
        words = (sum(len(message.content.split()) for message in request.messages), len(text.split()))
        return Reply(request.id, text, "stop", usage=Usage(*words))

    def _written(self, problem: Problem, response: str, markers: Markers, rng: random.Random) -> str:
        right = rewrite(self._world, problem, response)
        error = rng.random()
        if error < self._errors.wrong:
            right = _spoiled(right, rng)
        error -= self._errors.wrong
        ambiguous = 0 <= error < self._errors.ambiguous
        misfit = 0 <= error - self._errors.ambiguous < self._errors.misfit
        if self._mode == "rewrite":
            block = "" if misfit else markers.enclose(right)
            return f"{block}\n{block}" if ambiguous else block or right
        if ambiguous or misfit:
            old = " " if ambiguous else f"{response} that was never written"
            return markers.enclose(Edit(old, right).written(markers))
        if self._mode == "patch":
            return markers.enclose(write_edits(response, right, markers, _WORDS.findall))
        return markers.enclose(write_step(response, right, markers)) if right != response else markers.enclose("none")


def oracle(
    *, wrong_rate: float = 0.0, ambiguous_rate: float = 0.0, misfit_rate: float = 0.0, setting: Setting
) -> ScriptedOracle | ScriptedModel:
    """The lab's Oracle; where it is to err, or to correct in another mode, a model that is prompted.

    Raises `UserError` for a rate that is no share.
    """
    rates: dict[str, Any] = {"wrong_rate": wrong_rate, "ambiguous_rate": ambiguous_rate, "misfit_rate": misfit_rate}
    for name, rate in rates.items():
        if not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise UserError(f"rectify.oracle_options: {name} must be a number from 0 to 1 (got {rate!r})")
    world, errors = World.load(**setting.problem_options), ErrorRates(*map(float, rates.values()))
    if not setting.prompted and not errors:
        return ScriptedOracle(world)
    return ScriptedModel(world, setting.problems, setting.mode, errors)


def _spoiled(right: str, rng: random.Random) -> str:
    """`right` with another result in one of its equations, and another number in its box."""
    equations = list(EQUATION.finditer(right))
    if not equations:
        return re.sub(r"\d+", lambda found: str(int(found[0]) + 1), right)
    place = rng.choice(equations)
    start, end = place.span(4)
    spoiled = right[:start] + str(int(place[4]) + rng.randint(1, 9)) + right[end:]
    boxed = spoiled.rfind("\\boxed{")
    return spoiled[:boxed] + re.sub(r"\d+", lambda found: str(int(found[0]) + 1), spoiled[boxed:], count=1)
