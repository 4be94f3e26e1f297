r"""AIME 2024 and 2025, AMC 2023: competition problems whose answers are integers.

Rows (AIME 2024): `{"id": "60", "problem": "Every morning Aya goes ...", "answer": "204", ...}`. Other copies of the
sets call the columns `question` and `expected_answer`; AMC 2023 writes 27 as `27.0`. 30, 30 and 40 questions, which is
few: each is asked 16 times, and the standard error is still about 7 points on a set of 30.
"""

from functools import partial

from spot.evaluate.prompting import MATH, fill
from spot.evaluate.source import Data, Source
from spot.evaluate.task import Task
from spot.schema import Problem


def build(name: str, data: Data, prompt: str) -> list[Problem]:
    """The problems of some rows with an integer answer."""
    problems: list[Problem] = []
    for record in data:
        answer = record.text("answer", "expected_answer").removesuffix(".0")
        if not answer.removeprefix("-").isdecimal():
            raise record.error(f"the answer {answer[:40]!r} is no integer")
        question = fill(prompt, question=record.text("problem", "question"))
        problems.append(Problem(id=f"{name}-{record.number}", prompt=question, answer=str(int(answer)), source=name))
    return problems


def _task(name: str, title: str, source: Source) -> Task:
    return Task(name, title, "in_domain", source, partial(build, name), MATH, repeats=16)


AIME24 = _task(
    "aime24",
    "AIME24",
    Source("aime24/test.jsonl", "HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "train"),
)
AIME25 = _task(
    "aime25",
    "AIME25",
    Source("aime25/test.jsonl", "math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b"),
)
AMC23 = _task(
    "amc23",
    "AMC23",
    Source("amc23/test.jsonl", "math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057"),
)
