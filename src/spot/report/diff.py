"""What a correction changed, word by word, as spans that concatenate back to the two texts exactly."""

import re
from typing import NamedTuple

from rapidfuzz.distance import LCSseq

# A run of white space; a number; one CJK character (no spaces part their words); a word, which keeps whatever is
# neither space nor ASCII punctuation together, so that accents and joined emoji are never torn from their letter; or
# one mark.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_MARKS = r"!-/:-@\[-`{-~"
_TOKEN = re.compile(rf"\s+|\d+|[{_CJK}]|[^\s\d{_MARKS}{_CJK}]+|.", re.DOTALL)


class Span(NamedTuple):
    """A stretch of text; `changed` where the other text does not have it at this place."""

    text: str
    changed: bool


def marked(rejected: str, chosen: str) -> tuple[list[Span], list[Span]]:
    """The two texts as alternating unchanged and changed spans, aligned on their longest common subsequence of words.

    The same subsequence that eq. 1's change ratio counts, here over words instead of tokens. White space between two
    changed words counts as changed, so that a rewritten phrase is one span.
    """
    left, right = _TOKEN.findall(rejected), _TOKEN.findall(chosen)
    numbers = {token: number for number, token in enumerate(dict.fromkeys([*left, *right]))}
    opcodes = LCSseq.opcodes([numbers[token] for token in left], [numbers[token] for token in right])
    changed_left, changed_right = [True] * len(left), [True] * len(right)
    for opcode in opcodes:
        if opcode.tag == "equal":
            length = opcode.src_end - opcode.src_start
            changed_left[opcode.src_start : opcode.src_end] = [False] * length
            changed_right[opcode.dest_start : opcode.dest_end] = [False] * length
    return _spans(left, changed_left), _spans(right, changed_right)


def _spans(tokens: list[str], changed: list[bool]) -> list[Span]:
    spans: list[Span] = []
    for index, token in enumerate(tokens):
        between = 0 < index < len(tokens) - 1 and changed[index - 1] and changed[index + 1]
        state = changed[index] or (token.isspace() and between)
        if spans and spans[-1].changed == state:
            spans[-1] = Span(spans[-1].text + token, state)
        else:
            spans.append(Span(token, state))
    return spans
