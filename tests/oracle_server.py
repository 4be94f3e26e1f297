"""A server that answers like a good Oracle: the lab's script behind an OpenAI-compatible endpoint."""

import json
import random
import re
from collections.abc import Sequence

from tests.fake_server import Answer, Seen, completion, failure

from spot.lab.scripted_model import ScriptedModel
from spot.lab.world import World
from spot.rectify.parse import Markers
from spot.schema import Problem, text_of

_PROBLEM = re.compile(r"=== PROBLEM (\w+) ===\n(.*?)\n===", re.DOTALL)
_RESPONSE = re.compile(r"=== STUDENT'S ANSWER (\w+) ===\n(.*)\n=== END OF MATERIAL \1 ===", re.DOTALL)


class LabOracle:
    """A script for `tests.fake_server.FakeServer`; takes the mode from the prompt."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._problem_of = {text_of(problem.prompt): problem for problem in problems}
        world = World.load()
        self._models = {mode: ScriptedModel(world, problems, mode) for mode in ("rewrite", "patch", "continue")}

    def __call__(self, seen: Seen) -> Answer:
        if not seen.path.endswith("/chat/completions"):
            return failure(404)
        written = self.written(seen.question)
        if written is None:
            return failure(400, "this Oracle only corrects")
        body = json.loads(completion(written).body)
        usage = {"prompt_tokens": len(seen.question) // 4, "completion_tokens": len(written) // 4}
        return Answer(body=json.dumps(body | {"usage": usage}).encode())

    def written(self, prompt: str) -> str | None:
        """What the Oracle writes; nothing where it is not asked to correct."""
        problem, response = _PROBLEM.search(prompt), _RESPONSE.search(prompt)
        if problem is None or response is None:
            return None
        mode = "rewrite" if "SEARCH" not in prompt else "continue" if "first wrong step, copied" in prompt else "patch"
        return self._models[mode]._written(  # pyright: ignore[reportPrivateUsage]
            self._problem_of[problem[2]], response[2], Markers(problem[1]), random.Random(0)
        )
