r"""AIME, AMC, MATH-500, Minerva and OlympiadBench: answers in `\boxed{}`, compared by mathematics.

Rows: AIME and AMC `{"problem": "Every morning Aya goes ...", "answer": "204", ...}`, in other copies `question` and
`expected_answer`; AMC 2023 writes 27 as `27.0`. MATH-500 `{"problem": "Convert the point ...", "answer": "\\left( 3,
\\frac{\\pi}{2} \\right)", "subject": "Precalculus", "level": 2, ...}`. Minerva (undergraduate science) `{"problem":
"Each of the two Magellan ...", "solution": "... \\boxed{1.6} ...", ...}`, in the hub's copy `question` and `answer`.
OlympiadBench, its English mathematics without pictures, `{"question": "Xenia and Sergey ...", "final_answer": ["2"],
"is_multiple_answer": false, "unit": null, "error": null, ...}`.

AIME and AMC have 30, 30 and 40 questions, which is few: each is asked 16 times, and the standard error is still about 7
points on a set of 30.
"""

import ast
from collections.abc import Callable
from typing import Any, cast

from spot.evaluate.prompting import MATH, fill
from spot.evaluate.source import Data, Record, Source
from spot.evaluate.task import Task
from spot.schema import Problem
from spot.verify.boxed import last_boxed


def _task(
    name: str,
    title: str,
    source: Source,
    *,
    question: Callable[[Record], str] = lambda record: record.text("problem", "question"),
    answer: Callable[[Record], str],
    meta: tuple[str, ...] = (),
    repeats: int = 5,
) -> Task:
    """A benchmark whose rows are read by `question` and `answer`; the columns `meta` are kept with the problem."""

    def build(data: Data, prompt: str) -> list[Problem]:
        return [
            Problem(
                id=f"{name}-{record.number}",
                prompt=fill(prompt, question=question(record)),
                answer=answer(record),
                source=name,
                meta={column: record.row.get(column) for column in meta},
            )
            for record in data
        ]

    return Task(name, title, "in_domain", source, build, MATH, repeats=repeats)


def _integer(record: Record) -> str:
    answer = record.text("answer", "expected_answer").removesuffix(".0")
    if not answer.removeprefix("-").isdecimal():
        raise record.error(f"the answer {answer[:40]!r} is no integer")
    return str(int(answer))


def _answer_or_box(record: Record) -> str:
    if record.row.get("answer"):
        return record.text("answer")
    boxed = last_boxed(record.text("solution"))
    if not boxed:
        raise record.error("no answer, and no box in the solution")
    return boxed


def _with_context(record: Record) -> str:
    context = record.row.get("context")
    question = record.text("question", "problem")
    return f"{context}\n\n{question}" if context else question


def _all_answers(record: Record) -> str:
    """All answers to a question; a response must give each, in any order."""
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


AIME24 = _task(
    "aime24",
    "AIME24",
    Source("aime24/test.jsonl", "HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "train"),
    answer=_integer,
    repeats=16,
)
AIME25 = _task(
    "aime25",
    "AIME25",
    Source("aime25/test.jsonl", "math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b"),
    answer=_integer,
    repeats=16,
)
AMC23 = _task(
    "amc23",
    "AMC23",
    Source("amc23/test.jsonl", "math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057"),
    answer=_integer,
    repeats=16,
)
MATH500 = _task(
    "math500",
    "MATH-500",
    Source("math500/test.jsonl", "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    question=lambda record: record.text("problem"),
    answer=lambda record: record.text("answer"),
    meta=("subject", "level"),
)
MINERVA = _task(
    "minerva",
    "Minerva",
    Source("minerva_math/test.jsonl", "math-ai/minervamath", "ee46ddc498933b1977577953250ca5c66be64f96"),
    answer=_answer_or_box,
)
OLYMPIADBENCH = _task(
    "olympiadbench",
    "Olympiad",
    Source("olympiadbench/test.jsonl", "math-ai/olympiadbench", "4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84"),
    question=_with_context,
    answer=_all_answers,
    meta=("subfield", "unit", "error", "answer_type"),
)
