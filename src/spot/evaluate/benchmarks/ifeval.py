r"""IFEval: 541 prompts with 834 instructions of 25 kinds, each of which a program can check.

Rows: `{"key": 1001, "prompt": "I am planning a trip to Japan, ...", "instruction_id_list": ["punctuation:no_comma"],
"kwargs": [{}]}`; in the hub's copy each of the `kwargs` has all names, most of them `null`.

A prompt counts as right where all of its instructions are followed strictly (prompt level, strict). The measures are
the other three of the four numbers: prompt level loose, and instruction level, the share of all instructions, strict
and loose. Truncated and empty answers follow nothing; what could not be judged is no part of the measures.
"""

import json
from collections.abc import Mapping
from typing import Any

from spot.evaluate.prompting import fill
from spot.evaluate.source import Data, Record, Source
from spot.evaluate.statistics import is_unanswered
from spot.evaluate.task import Part, Task
from spot.schema import Attempt, Problem


def build(data: Data, prompt: str) -> list[Problem]:
    """The problems; each prompt is the row's own text, unchanged, and `meta` has its instructions."""
    problems: list[Problem] = []
    for record in data:
        record.text("prompt")
        names, kwargs = _list(record, "instruction_id_list", str), _list(record, "kwargs", dict)
        if len(names) != len(kwargs):
            raise record.error(f"{len(names)} instructions, but kwargs for {len(kwargs)}")
        given = [{name: value for name, value in some.items() if value is not None} for some in kwargs]
        problems.append(
            Problem(
                id=f"ifeval-{record.text('key')}",
                prompt=fill(prompt, question=str(record.get("prompt"))),
                answer=", ".join(names),
                source="ifeval",
                meta={"instruction_id_list": names, "kwargs": given},
            )
        )
    return problems


def _list(record: Record, name: str, kind: type) -> list[Any]:
    found = record.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(one, kind) for one in found):
        raise record.error(f"column {name!r} is no list of {'texts' if kind is str else 'objects'}")
    return found


def measures(attempt: Attempt, problem: Problem) -> Mapping[str, Part]:
    """The attempt's part in the three other numbers, without those that could not be judged."""
    given = len(problem.meta["instruction_id_list"])
    if attempt.outcome == "truncated" or is_unanswered(attempt):
        return {
            "prompt_loose": (0.0, 1.0),
            "instruction_strict": (0.0, float(given)),
            "instruction_loose": (0.0, float(given)),
        }
    if attempt.verdict.answer is None:
        return {}
    followed: dict[str, list[int | None]] = json.loads(attempt.verdict.answer)
    parts: dict[str, Part] = {}
    if None not in followed["loose"]:
        parts["prompt_loose"] = (float(all(followed["loose"])), 1.0)
    for level in ("strict", "loose"):
        judged = [one for one in followed[level] if one is not None]
        parts[f"instruction_{level}"] = (float(sum(judged)), float(len(judged)))
    return parts


IFEVAL = Task(
    "ifeval",
    "IFEval",
    "general",
    Source("ifeval/input_data.jsonl", "google/IFEval", "966cd89545d6b6acfd7638bc708b98261ca58e84", "train"),
    build,
    "{question}",
    verifier="ifeval",
    measures=measures,
    has_one_answer=False,
)
