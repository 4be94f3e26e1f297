"""What a correction changed, word by word, as spans that concatenate back to the two texts exactly."""

import re
from itertools import groupby
from typing import NamedTuple

from rapidfuzz.distance import LCSseq, Opcode

# A run of white space; a number; one CJK character (no spaces part their words); a word, which keeps whatever is
# neither space nor ASCII punctuation together, so that accents and joined emoji are never torn from their letter; or
# one mark.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_MARKS = r"!-/:-@\[-`{-~"
_TOKEN = re.compile(rf"\s+|\d+|[{_CJK}]|[^\s\d{_MARKS}{_CJK}]+|.", re.DOTALL)

_MOST_CELLS = 2**30  # of rapidfuzz's alignment, a bit each


class Span(NamedTuple):
    """A stretch of text; `changed` where the other text does not have it at this place."""

    text: str
    changed: bool


def marked(rejected: str, chosen: str) -> tuple[list[Span], list[Span]]:
    """The two texts as alternating unchanged and changed spans, aligned on their longest common subsequence of words.

    The same subsequence that eq. 1's change ratio counts, here over words instead of tokens. White space between two
    changed words counts as changed, so that a rewritten phrase is one span. Between their common beginning and end,
    texts too long to be aligned in 128 MiB (some 32,000 words on both sides) are marked as changed throughout.
    """
    left, right = _TOKEN.findall(rejected), _TOKEN.findall(chosen)
    changed_left, changed_right = [True] * len(left), [True] * len(right)
    for opcode in _aligned(left, right):
        if opcode.tag == "equal":
            length = opcode.src_end - opcode.src_start
            changed_left[opcode.src_start : opcode.src_end] = [False] * length
            changed_right[opcode.dest_start : opcode.dest_end] = [False] * length
    return _spans(left, changed_left), _spans(right, changed_right)


def _aligned(left: list[str], right: list[str]) -> list[Opcode]:
    shorter = min(len(left), len(right))
    head = next((place for place in range(shorter) if left[place] != right[place]), shorter)
    rest = shorter - head
    tail = next((place for place in range(rest) if left[-1 - place] != right[-1 - place]), rest)
    if (len(left) - head - tail) * (len(right) - head - tail) > _MOST_CELLS:
        ends = (len(left) - tail, len(left), len(right) - tail, len(right))
        return [Opcode("equal", 0, head, 0, head), Opcode("equal", *ends)]
    numbers = {token: number for number, token in enumerate(dict.fromkeys([*left, *right]))}
    return list(LCSseq.opcodes([numbers[token] for token in left], [numbers[token] for token in right]))


def _spans(tokens: list[str], changed: list[bool]) -> list[Span]:
    last = len(tokens) - 1
    states = [
        changed[place] or (token.isspace() and 0 < place < last and changed[place - 1] and changed[place + 1])
        for place, token in enumerate(tokens)
    ]
    runs = groupby(zip(tokens, states, strict=True), key=lambda pair: pair[1])
    return [Span("".join(token for token, _ in run), state) for state, run in runs]
