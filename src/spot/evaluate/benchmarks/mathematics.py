r"""MATH-500, Minerva and OlympiadBench: problems whose answers are expressions, compared by mathematics.

Rows: MATH-500 `{"problem": "Convert the point ...", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject":
"Precalculus", "level": 2, ...}`; Minerva (undergraduate science) `{"problem": "Each of the two Magellan ...",
"solution": "... \\boxed{1.6} ...", ...}`, in the hub's copy `question` and `answer`; OlympiadBench, its English
mathematics without pictures, `{"question": "Xenia and Sergey ...", "final_answer": ["2"], "is_multiple_answer": false,
"unit": null, "error": null, ...}`.
"""

import ast
from typing import Any, cast

from spot.evaluate.prompting import MATH, fill
from spot.evaluate.source import Data, Record, Source
from spot.evaluate.task import Task
from spot.schema import Problem
from spot.verify.boxed import last_boxed


def build_math500(data: Data, prompt: str) -> list[Problem]:
    """The problems of MATH-500's rows."""
    return [
        Problem(
            id=f"math500-{record.number}",
            prompt=fill(prompt, question=record.text("problem")),
            answer=record.text("answer"),
            source="math500",
            meta={"subject": record.row.get("subject"), "level": record.row.get("level")},
        )
        for record in data
    ]


def build_minerva(data: Data, prompt: str) -> list[Problem]:
    """The problems of Minerva's rows; where there is no answer, it stands in the solution's last box."""
    return [
        Problem(
            id=f"minerva-{record.number}",
            prompt=fill(prompt, question=record.text("problem", "question")),
            answer=_minerva_answer(record),
            source="minerva",
        )
        for record in data
    ]


def _minerva_answer(record: Record) -> str:
    if record.row.get("answer"):
        return record.text("answer")
    boxed = last_boxed(record.text("solution"))
    if not boxed:
        raise record.error("no answer, and no box in the solution")
    return boxed


def build_olympiad(data: Data, prompt: str) -> list[Problem]:
    """The problems of OlympiadBench's rows; several answers to one question are all asked for, in any order."""
    problems: list[Problem] = []
    for record in data:
        context = record.row.get("context")
        question = record.text("question", "problem")
        problems.append(
            Problem(
                id=f"olympiadbench-{record.number}",
                prompt=fill(prompt, question=f"{context}\n\n{question}" if context else question),
                answer=_olympiad_answer(record),
                source="olympiadbench",
                meta={name: record.row.get(name) for name in ("subfield", "unit", "error", "answer_type")},
            )
        )
    return problems


def _olympiad_answer(record: Record) -> str:
    found = record.get("final_answer", "answer")
    if isinstance(found, str) and found.startswith("["):
        try:
            found = ast.literal_eval(found)
        except (ValueError, SyntaxError):
            raise record.error("column 'final_answer' is no list of answers") from None
    answers = [str(one).strip() for one in cast(list[Any], found)] if isinstance(found, list) else [str(found).strip()]
    if not all(answers):
        raise record.error("column 'final_answer' is empty")
    return ", ".join(answers)


MATH500 = Task(
    "math500",
    "MATH-500",
    "in_domain",
    Source("math500/test.jsonl", "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    build_math500,
    MATH,
)
MINERVA = Task(
    "minerva",
    "Minerva",
    "in_domain",
    Source("minerva_math/test.jsonl", "math-ai/minervamath", "ee46ddc498933b1977577953250ca5c66be64f96"),
    build_minerva,
    MATH,
)
OLYMPIADBENCH = Task(
    "olympiadbench",
    "Olympiad",
    "in_domain",
    Source("olympiadbench/test.jsonl", "math-ai/olympiadbench", "4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84"),
    build_olympiad,
    MATH,
)
