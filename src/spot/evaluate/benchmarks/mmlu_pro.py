r"""MMLU-Pro: 12,032 questions of 14 subjects with up to ten choices, asked as its authors do: five solved ones first.

Rows: `{"question": "The symmetric group ...", "options": ["0", "1", ...], "answer": "A", "answer_index": 0,
"category": "math", "cot_content": "A: Let's think step by step. ... The answer is (A)."}`; the examples are the first
five of the question's subject in the split `validation`, whose `cot_content` ends in an answer line here.

Its authors draw a letter at random where they can read none; here that is no answer and wrong. Twelve thousand
questions make a small error already, so each is asked once unless told otherwise.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

from spot.evaluate.prompting import CHOICE, fill
from spot.evaluate.source import Data, Record, Source
from spot.evaluate.task import Task
from spot.schema import Message, Problem
from spot.verify.choice import LETTERS

SHOTS = 5
_OPENING = re.compile(r"^A:\s*")
_CLOSING = re.compile(r"\s*The answer is \(([A-Z])\)\.?\s*$")
_REVISION = "b189ec765aa7ed75c8acfea42df31fdae71f97be"


def build(data: Data, prompt: str) -> list[Problem]:
    """The problems, each after the examples of its subject as turns of a chat."""
    shown: defaultdict[str, list[Message]] = defaultdict(list)
    for record in data.examples or ():
        turns = shown[record.text("category")]
        if len(turns) < 2 * SHOTS:
            solution, found = _OPENING.sub("", record.text("cot_content")), _answer(record)
            turns.append(Message(role="user", content=_asked(record, prompt)))
            turns.append(Message(role="assistant", content=f"{_CLOSING.sub('', solution)}\nAnswer: {found}"))
    for record in data:
        if len(shown[record.text("category")]) < 2 * SHOTS:
            place = data.examples.place if data.examples else "no examples"
            raise record.error(f"its subject {record.text('category')!r} has fewer than {SHOTS} examples in {place}")
    return [
        Problem(
            id=f"mmlu_pro-{record.number}",
            prompt=[*shown[record.text("category")], Message(role="user", content=_asked(record, prompt))],
            answer=_answer(record),
            source="mmlu_pro",
            meta={"subject": record.text("category"), "options": _options(record)},
        )
        for record in data
    ]


def _asked(record: Record, prompt: str) -> str:
    shown = "\n".join(f"{LETTERS[place]}. {option}" for place, option in enumerate(_options(record)))
    return fill(prompt, question=record.text("question"), options=shown)


def _options(record: Record) -> list[str]:
    found = record.get("options")
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise record.error("column 'options' is no list")
    return [str(option) for option in cast(Sequence[Any], found) if str(option) != "N/A"]


def _answer(record: Record) -> str:
    letter = record.text("answer")
    if letter not in LETTERS[: len(_options(record))]:
        raise record.error(f"the answer {letter[:20]!r} is none of its {len(_options(record))} options")
    return letter


MMLU_PRO = Task(
    "mmlu_pro",
    "MMLU-Pro",
    "general",
    Source("mmlu_pro/test.jsonl", "TIGER-Lab/MMLU-Pro", _REVISION),
    build,
    CHOICE,
    verifier="choice",
    repeats=1,
    examples=Source("mmlu_pro/validation.jsonl", "TIGER-Lab/MMLU-Pro", _REVISION, "validation"),
    fields=("question", "options"),
)
