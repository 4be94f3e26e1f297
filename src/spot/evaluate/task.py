"""A benchmark is one `Task`: where its rows come from, how they are asked, who judges, and how often each is asked.

`benchmarks` defines them and `registry` finds them by name. They are asked by the same machinery that elicits
(`spot.stages.asking`), and by inspect_ai (`inspect_tasks`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spot.evaluate.source import Data, Source
from spot.schema import Attempt, Problem, derived_seed
from spot.stages.asking import Variant

Group = Literal["in_domain", "ood", "general", "other"]
GROUPS: dict[Group, str] = {"in_domain": "in-domain", "ood": "OOD", "general": "general", "other": "other"}
"""What a benchmark measures, in the paper's words; `other` counts in no average but that of all."""

Build = Callable[[Data, str], list[Problem]]
"""The problems of some rows, asked in the words of a prompt."""

Part = tuple[float, float]
"""What an attempt has of a measure, and what it could have: a measure is the sum of the former over that of the latter.
An accuracy has (0 or 1, 1); a share of instructions those followed and those given."""
Measures = Callable[[Attempt, Problem], Mapping[str, Part]]
"""Scores beside accuracy that one attempt has, by name; `problem` is as the repetition asked it."""


@dataclass(frozen=True)
class Task:
    """A benchmark. `prompt` is text with the field `{question}`, and others that `build` fills.

    `verifier` is a name for `spot.verify.resolve`, empty where the caller chooses. `repeats` is how often each question
    is asked by default, `variant` how a repetition changes it; `measures` are scores beside accuracy, `baselines` the
    scores of constant answers. `scored_by` is `likelihood` where nothing is generated: the known choices (`meta`,
    `choices`) are compared by their log-probabilities. `examples` are rows that the prompt shows solved; `fields` are
    required in a user's template. Repetitions can vote where a question `has_one_answer`.
    """

    name: str
    title: str
    group: Group
    source: Source | None
    build: Build
    prompt: str
    verifier: str = "math"
    repeats: int = 5
    variant: Variant | None = None
    measures: Measures | None = None
    baselines: Callable[[Sequence[Problem]], Mapping[str, float]] | None = None
    scored_by: Literal["answers", "likelihood"] = "answers"
    examples: Source | None = None
    fields: tuple[str, ...] = ("question",)
    has_one_answer: bool = True

    def problems(self, data_dir: Path | None, prompt: str | None = None, limit: int | None = None) -> list[Problem]:
        """The questions; `limit` of them are drawn, the same every time, since rows may be sorted by subject.

        Raises `UserError` if the rows cannot be read or used.
        """
        data = Data("", []) if self.source is None else self.source.read(data_dir)
        if self.examples is not None:
            data = replace(data, examples=self.examples.read(data_dir))
        problems = self.build(data, prompt or self.prompt)
        if limit is None or limit >= len(problems) or self.source is None:
            return problems[:limit]
        places = random.Random(derived_seed(0, "questions", self.name)).sample(range(len(problems)), limit)
        return [problems[place] for place in sorted(places)]
