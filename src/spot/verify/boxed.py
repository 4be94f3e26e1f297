r"""Reading the final answer out of a response: the last `\boxed{...}`, or a data set's own answer pattern.

What a model writes while it thinks is a draft and never the answer, and a box that is missing or not closed is no
answer: nothing is guessed from the last number in the prose.
"""

import re
from functools import lru_cache

from spot.errors import UserError

_THINK_TAG = re.compile(r"<(/?)think>")
_BOX_OPENING = re.compile(r"\\boxed\s*\{")
_EMPTY = re.compile(r"[\s~]*\}")
# A backslash takes the character after it along, so `\{` does not count as a brace and `\\{` does.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def without_thoughts(response: str) -> str:
    """`response` without what stands inside think blocks; an unclosed block reaches to the end.

    A closing tag without an opening one ends a block that was opened in the prompt, as some chat templates do, so
    everything before it is thought.
    """
    if "think>" not in response:
        return response
    kept: list[str] = []
    thinking, start = False, 0
    for tag in _THINK_TAG.finditer(response):
        closes = bool(tag[1])
        if closes and not thinking:
            kept.clear()
        elif not closes and not thinking:
            kept.append(response[start : tag.start()])
        thinking, start = not closes, tag.end()
    if not thinking:
        kept.append(response[start:])
    # A line break between the pieces: text around a thought must not grow together into a box.
    return "\n".join(kept)


def last_boxed(response: str) -> str | None:
    r"""The content of the last `\boxed{...}` outside think blocks, stripped; `None` where it is missing or unclosed.

    An empty box beside others is a mention of one and is passed over. Of nested boxes the innermost last one counts.
    Time is linear in the length of the response.
    """
    text = without_thoughts(response)
    start = empty = None
    for opening in _BOX_OPENING.finditer(text):
        if _EMPTY.match(text, opening.end()) is None:
            start = opening.end()
        else:
            empty = ""
    if start is None:
        return empty
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip()
    return None


@lru_cache(maxsize=64)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """An answer pattern, checked: a regular expression with exactly one group.

    Raises:
        UserError: the expression is invalid or has no group or several.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"answer pattern {pattern!r} is not a valid regular expression: {error}") from None
    if compiled.groups != 1:
        raise UserError(
            f"answer pattern {pattern!r} has {compiled.groups} groups; it needs exactly one, around the answer, "
            r"as in 'A:\s*(.+)' (write other groups as (?:...))"
        )
    return compiled


def last_match(response: str, pattern: str) -> str | None:
    """What the one group of `pattern` caught in its last match outside think blocks, stripped; `None` without a match.

    Raises:
        UserError: see `compile_pattern`.
    """
    found: str | None = None
    for match in compile_pattern(pattern).finditer(without_thoughts(response)):
        found = match[1]
    return found.strip() if found is not None else None
