r"""GPQA-Diamond: 198 questions of graduate science, four choices each, in an order drawn anew for each repetition.

The authors ask that items are not shown in the open, so no row is shown here and the set comes from the hub, where its
terms have to be accepted, or from the user's `gpqa_diamond.csv`: columns `Question`, `Correct Answer`, `Incorrect
Answer 1` to `3`.

An order drawn once for all repetitions would make the letter a property of the question; the draw depends on the
question and the repetition alone, so that all models see the same orders and can be compared in pairs.
"""

import random

from spot.evaluate.prompting import CHOICE, fill
from spot.evaluate.source import Data, Source
from spot.evaluate.task import Task
from spot.schema import Problem, derived_seed
from spot.verify.choice import LETTERS

WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def build(data: Data, prompt: str) -> list[Problem]:
    """The problems, each asked as its first repetition is; `meta` has what the others need."""
    problems: list[Problem] = []
    for record in data:
        options = [record.text("Correct Answer"), *(record.text(name) for name in WRONG)]
        meta = {"question": record.text("Question"), "template": prompt, "options": options}
        problems.append(
            shuffled(Problem(id=f"gpqa-{record.number}", prompt="?", answer="A", source="gpqa", meta=meta), 0)
        )
    return problems


def shuffled(problem: Problem, sample: int) -> Problem:
    """The problem as repetition `sample` asks it: the right option of `meta` is the first, wherever it is shown."""
    options: list[str] = problem.meta["options"]
    order = list(range(len(options)))
    random.Random(derived_seed(0, "gpqa", problem.id, sample)).shuffle(order)
    shown = [options[index] for index in order]
    lines = "\n".join(f"{LETTERS[place]}. {option}" for place, option in enumerate(shown))
    return problem.model_copy(
        update={
            "prompt": fill(problem.meta["template"], question=problem.meta["question"], options=lines),
            "answer": LETTERS[order.index(0)],
            "meta": problem.meta | {"shown": shown},
        }
    )


GPQA = Task(
    "gpqa",
    "GPQA-D",
    "ood",
    Source(
        "gpqa_diamond.csv",
        "Idavidrein/gpqa",
        "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        "train",
        "gpqa_diamond",
        note="its authors give it to those who accept its terms",
    ),
    build,
    CHOICE,
    verifier="choice",
    variant=shuffled,
    fields=("question", "options"),
)
