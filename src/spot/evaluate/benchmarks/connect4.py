r"""Connect4: 500 boards from random games; which moves win at once, mine and my opponent's.

The boards are made here, with a seed of their own, so there is nothing to load; a row is what `spot connect4` writes. A
board counts as right where both lists are. The measures are each list alone and how often one could not be read; always
answering "none" scores half of my lists, two fifths of the opponent's and a fifth of the boards: a bare mean of
the lists misleads.
"""

from collections.abc import Mapping, Sequence

from spot.connect4.dataset import build_dataset
from spot.evaluate.prompting import fill
from spot.evaluate.source import Data
from spot.evaluate.task import Part, Task
from spot.schema import Attempt, Problem, text_of
from spot.verify.connect4 import always_none, read

SEED = 2603
"""Not the default of `spot connect4`: who trains on its boards has not seen these."""


def build(data: Data, prompt: str) -> list[Problem]:
    """The boards; a template of the user's has the whole question in `{question}`."""
    del data
    return [
        row.model_copy(update={"prompt": fill(prompt, question=text_of(row.prompt)), "source": "connect4"})
        for row in build_dataset(500, SEED)
    ]


def measures(attempt: Attempt, problem: Problem) -> Mapping[str, Part]:
    """Each list by itself; a truncated answer has none."""
    given, known = read(attempt.response if attempt.outcome != "truncated" else ""), read(problem.answer)
    unreadable = given.mine is None or given.opponent is None
    return {
        "mine": (float(given.mine == known.mine), 1.0),
        "opponent": (float(given.opponent == known.opponent), 1.0),
        "unreadable": (float(unreadable), 1.0),
    }


def baselines(problems: Sequence[Problem]) -> Mapping[str, float]:
    """What always answering "none" scores."""
    none = always_none(problems)
    return {"always none": none.joint, "always none, mine": none.mine, "always none, opponent": none.opponent}


CONNECT4 = Task(
    "connect4",
    "Connect4",
    "ood",
    None,
    build,
    "{question}",
    verifier="connect4",
    measures=measures,
    baselines=baselines,
)
