"""A server that answers like a judge of steps: the lab's exact one behind an OpenAI-compatible endpoint, and erring."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.fake_server import Answer, Seen, completion, failure

from spot.audit.labels import lab_verdicts
from spot.lab.step_judge import LabJudge
from spot.lab.world import World
from spot.rectify.parse import Markers
from spot.schema import Problem, text_of

_PROBLEM = re.compile(r"=== PROBLEM (\w+) ===\n(.*?)\n=== RIGHT FINAL ANSWER \1 ===\n", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """What a judge's prompt asks: the steps of each answer by its letter, and the numbers that want a verdict."""

    problem: str
    markers: Markers
    answers: dict[str, list[str]]
    numbers: list[str]


def read_prompt(prompt: str) -> Asked | None:
    """The question in a prompt of the package's; `None` where it is another prompt."""
    problem = _PROBLEM.search(prompt)
    if problem is None:
        return None
    nonce = problem[1]
    material, _, rest = prompt[problem.end() :].partition(f"\n=== END OF MATERIAL {nonce} ===")
    answers: dict[str, list[str]] = {}
    for part in material.split("\n=== ANSWER ")[1:]:
        heading, *lines = part.split("\n")
        assert heading[1:] == f" {nonce} ===", heading
        answers[heading[0]] = [line.partition("| ")[2] for line in lines]
    asked = re.search(r"none for any other:\n(.*)\n", rest)
    assert asked is not None
    return Asked(problem[2], Markers(nonce), answers, asked[1].split())


class LabJudgeServer:
    """A script for `tests.fake_server.FakeServer`. It finds `finds` of the wrong steps and calls `invents` of the right
    ones wrong, drawn by the step itself, so that the same question always gets the same answer.
    """

    def __init__(self, problems: Sequence[Problem], finds: float = 1.0, invents: float = 0.0) -> None:
        self._problem_of = {text_of(problem.prompt): problem for problem in problems}
        self._judge = LabJudge(World.load())
        self.finds, self.invents = finds, invents
        self.unreadable: set[str] = set()
        """Problems, by id, to whose questions the reply is no verdict at all."""

    def __call__(self, seen: Seen) -> Answer:
        written = self.written(seen.question) if seen.path.endswith("/chat/completions") else None
        if written is None:
            return failure(400, "this judge only judges")
        body = json.loads(completion(written).body)
        usage = {"prompt_tokens": len(seen.question) // 4, "completion_tokens": len(written) // 4}
        return Answer(body=json.dumps(body | {"usage": usage}).encode())

    def written(self, prompt: str) -> str | None:
        """The reply to a prompt."""
        asked = read_prompt(prompt)
        if asked is None:
            return None
        problem = self._problem_of[asked.problem]
        if problem.id in self.unreadable:
            return "All of this looks right to me."
        lines = [f"{number} {self.verdict(problem, asked, number)}" for number in asked.numbers]
        return "I have worked it out.\n" + asked.markers.enclose("\n".join(lines))

    def verdict(self, problem: Problem, asked: Asked, number: str) -> str:
        """What it says of one step."""
        steps, place = asked.answers[number[0]], int(number[1:]) - 1
        kinds = lab_verdicts(self._judge, problem, steps)
        kind = "other" if kinds is None else kinds[place]
        draw = random.Random(f"{problem.id} {place} {steps}").random()
        if kind:
            return f"wrong {kind}" if draw < self.finds else "right"
        return "wrong other" if draw < self.invents else "right"
