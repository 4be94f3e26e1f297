"""Whether a continuation is one: some servers ignore the request to continue, and their model begins the answer again.

`restarts` looks at one continuation, `restarted` at the reply to a probe, which is cut in the middle of a sentence of
the student's own answer, so that a continuation of it cannot look like a beginning.
"""

import re
import time
from collections.abc import Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from spot.errors import RunFailed, UserError
from spot.models.base import Model, Reply, Request, closed
from spot.rectify.base import Failure
from spot.rectify.steps import split_steps
from spot.schema import Sampling, as_messages

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[-+*/=<>^]")
_OPENING = 10  # words that no continuation shares with the answer's beginning by chance
_PROBED = 8  # words of a probe's reply that are compared with the answer's beginning
_ALIKE, _SAME = 80.0, 95.0  # their similarity in percent from which on they are the same
_PROBE_TOKENS = 64
_FIELDS = ("continue_final_message", "add_generation_prompt")
_LONG, _COPIED = 12, 0.9  # a beginning of so many words is not copied by chance to such a share


async def check_student(student: Model, sampling: Sampling, failures: Sequence[Failure]) -> None:
    """Raise `UserError` where `student`, behind a server, does not continue an answer from its beginning.

    It is asked to continue its own answers to up to two of `failures`, greedily and for a few tokens; one that it
    continues is enough. A model in process continues by construction.
    """
    if not getattr(student, "gated", False):
        return
    greedy = sampling.model_copy(
        update={"temperature": 0.0, "max_new_tokens": min(_PROBE_TOKENS, sampling.max_new_tokens)}
    )
    probes = [(failure, cut) for failure in failures if (cut := probe_of(failure.attempt.response)) is not None][:2]
    for number, (failure, beginning) in enumerate([*probes, *probes[:1]]):
        # The last one under a new key: the server may be another one since the first were recorded.
        attempt = 0 if number < len(probes) else int(time.time())
        request = Request(
            id=f"{failure.attempt.id}~probe.{attempt}",
            messages=tuple(as_messages(failure.problem.prompt)),
            seed=sampling.seed,
            attempt=attempt,
            prefix=beginning,
        )
        try:
            reply = await _answer(student, request, greedy)
            refusal = "" if reply is None else reply.error
        except RunFailed as error:
            reply, refusal = None, str(error)
        if any(field in refusal for field in _FIELDS):
            break
        if reply is None or refusal or not restarted(failure.attempt.response, beginning, reply.text):
            return  # it continues, or fails in another way, which the stage itself will report
    if probes:
        raise UserError(
            f"rectify.mode=continue: the server of {student.name} starts an answer over where it should continue a "
            "given beginning; serve the student where continue_final_message works (vLLM, SGLang), or set rectify.mode "
            "to patch or rewrite"
        )


async def _answer(student: Model, request: Request, sampling: Sampling) -> Reply | None:
    async with closed(student.generate([request], sampling)) as groups:
        async for replies in groups:
            return replies[0]
    return None


def restarts(beginning: str, response: str, text: str) -> bool:
    """Whether `text`, written to follow `beginning`, begins the answer again, repeats a step, or does not join on.

    `response` is the wrong answer that `beginning` was made of.
    """
    said, new = _words(beginning), _words(text)
    if not said or not new:
        return False
    if (beginning[-1].isalnum() or beginning[-1] in ".!?") and text[0].isupper() and text[0].isascii():
        return True  # "... = 4.So ...": a continuation writes the space first
    pairs = zip(beginning, response, strict=False)
    kept = next((place for place, (one, other) in enumerate(pairs) if one != other), len(beginning))
    steps = [*split_steps(beginning), *_steps_until(response, kept)]
    first = next(filter(None, map(_words, split_steps(text))), [])
    if any(first == _words(step) for step in steps) and (len(first) > 2 or any(word[0].isdigit() for word in first)):
        return True
    openings = [said[:_OPENING], _words(response)[:_OPENING]]
    if len(new) >= _OPENING and new[:_OPENING] in openings:
        return True
    head = new[: round(1.2 * len(said))]
    return new[: len(said)] == said or (len(said) >= _LONG and LCSseq.similarity(said, head) >= _COPIED * len(said))


def restarted(response: str, beginning: str, text: str) -> bool:
    """Whether `text`, the reply to a probe that ends within a sentence, begins `response` again."""
    own, new = _words(response), _words(text)
    opening = " ".join(own[:_PROBED])
    alike = _SAME if text[:1].isspace() else _ALIKE  # what continues a line begins with a space
    if opening and fuzz.ratio(opening, " ".join(new[:_PROBED])) >= alike:
        return True
    said = _words(beginning)
    begins = text[:1].isupper() or text[:1] in ("#", "*")
    return begins and LCSseq.similarity(said, new[: 2 * len(said)]) >= 0.3 * len(said)


def probe_of(response: str) -> str | None:
    """About half of `response`, up to a word within a sentence; `None` where it is too short to tell anything."""
    ends = [match.end() for match in re.finditer(r"\w(?= [a-z0-9=+*/-])", response)]
    half = [end for end in ends if len(_words(response[:end])) >= _PROBED]
    return response[: min(half, key=lambda end: abs(2 * end - len(response)))] if half else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _steps_until(text: str, end: int) -> list[str]:
    """The steps of `text` that begin before `end` or there."""
    steps: list[str] = []
    start = 0
    for step in split_steps(text):
        if start > end:
            break
        steps.append(step)
        start += len(step)
    return steps
