"""IFEval: whether a response follows all instructions of its prompt, as lm_eval's checkers tell.

The checkers (`spot.verify.ifeval_checkers` says how they differ from lm_eval's) run in killable workers, since some
hang on long runs of blanks. Judged is what stands outside think blocks. Strict is the
response as it is; loose is any of eight versions of it, with and without asterisks, the first and the last line.
"""

import json
from functools import cache
from importlib.util import find_spec
from typing import Any

from spot.schema import Problem, Verdict
from spot.verify.boxed import without_thoughts
from spot.verify.pool import Program, shared_pool
from spot.verify.worker import Judgement

PACKAGES = ("lm_eval", "langdetect", "immutabledict", "nltk", "punkt")
PROGRAM = Program(
    "spot.verify.ifeval_checkers",
    "instructions",
    "lm_eval",
    # One thread for numpy, which NLTK imports: many would reserve more memory than the worker may have.
    {"OPENBLAS_NUM_THREADS": "1"},
)
# A response may take longer than an expression, being longer.
SHARED = shared_pool(cpu_seconds=10.0, wall_seconds=60.0, program=PROGRAM)


def verify(response: str, problem: Problem) -> Verdict:
    """Judge a response: `correct` where all instructions are followed, strictly. Safe in any thread.

    `problem.meta` has the data set's `instruction_id_list` and `kwargs`. An empty response follows nothing.

    Returns:
        `answer` says of each instruction whether it is followed, `null` where that could not be judged:
        `{"strict": [1, 0], "loose": [1, 1]}`; `reason` names those not followed strictly. `correct=None` where one
        could not be judged, though others may be broken: else hard prompts would only count when they go wrong.

    Raises:
        RunFailed: the workers cannot be started on this machine.
    """
    text = without_thoughts(response)
    if text != response:
        text = text.strip()  # the empty lines after a thought would count as a first line, or a paragraph
    if not text.strip():
        return Verdict(correct=False, reason="no answer")
    if lacking := missing():
        return Verdict(correct=None, reason=lacking)
    names, all_kwargs = problem.meta.get("instruction_id_list"), problem.meta.get("kwargs")
    if not isinstance(names, list) or not isinstance(all_kwargs, list) or not 0 < len(names) == len(all_kwargs):
        return Verdict(correct=None, reason="the problem's meta has no instruction_id_list with as many kwargs")
    judged = [_judge(name, kwargs, text) for name, kwargs in zip(names, all_kwargs, strict=True)]
    strict, loose = [one.correct for one, _ in judged], [one.correct for _, one in judged]
    broken = [name for name, one in zip(names, strict, strict=True) if one is False]
    faults = [f"not followed: {', '.join(broken)}"] if broken else []
    for name, pair in zip(names, judged, strict=True):
        faults += [f"not judged: {name} ({one.reason})" for one in pair if one.correct is None][:1]
    return Verdict(
        correct=None if None in strict else all(strict),
        answer=json.dumps({"strict": [_digit(one) for one in strict], "loose": [_digit(one) for one in loose]}),
        reason="; ".join(faults),
    )


@cache
def missing() -> str:
    """Which packages are missing and how to install them; empty if none are."""
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    if not lacking:
        return ""
    return f"IFEval's checkers need {', '.join(lacking)}; pip install 'spot-posttraining[ifeval]'"


def _judge(name: str, kwargs: dict[str, Any], text: str) -> tuple[Judgement, Judgement]:
    """Strict and loose; the response as it is comes first of the loose versions, so that strict often settles both."""
    strict = _ask(name, kwargs, text, loose=False)
    return strict, _ask(name, kwargs, text, loose=True) if strict.correct is False else strict


def _ask(name: str, kwargs: dict[str, Any], text: str, loose: bool) -> Judgement:
    return SHARED.judge(json.dumps({"id": name, "kwargs": kwargs, "loose": loose}), text)


def _digit(followed: bool | None) -> int | None:
    return None if followed is None else int(followed)
