"""Steps of an answer, and what an Oracle writes in the mode `continue`: the first wrong step, set right.

A step is a line, or a sentence within a line, with the white space that follows it (blank lines too). The Oracle's
block is one edit as in `spot.rectify.patch`: its old text is the first wrong step, copied, its new text that step set
right. The student continues from there, so of the new text only the beginning counts, up to and including the first
step that differs from the student's own: whatever else the Oracle wrote, the student writes itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from spot.rectify.parse import Markers
from spot.rectify.patch import Edit, EditError, locate, parse_edits

# What ends in a full stop but ends no sentence: some abbreviations, the number of a list's item.
_ABBREVIATED = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|jr|eqs?|fig|vs|approx|resp|cf|e\.g|i\.e|w\.r\.t|w\.l\.o\.g)|^\s*(?:\(?\d+|[a-z]))\.$",
    re.IGNORECASE,
)
# A sentence's end with the quotes, brackets and emphasis that close with it, then white space and what can begin one.
_END = re.compile(
    r"[.!?]+[\"'\u2019\u201d)\]*_$]*[^\S\n]+(?=[^\sa-z,;:.!?)\]=+\-<>])"
    r"|[\u3002\uff01\uff1f]+[\u201d\u300d\uff09]*[^\S\n]*(?=[^\s\u3002\uff01\uff1f\u201d\u300d\uff09])"
)
_LINE = re.compile(r"\n(?:[^\S\n]*\n)*")


class StepError(ValueError):
    """A step that cannot be used; the text says why, in words for the Oracle."""


@dataclass(frozen=True)
class Step:
    """The student continues from `response[:start] + text`."""

    start: int
    text: str


def split_steps(text: str) -> list[str]:
    """The steps of `text`; joined they are `text` again. Each holds more than white space, unless `text` does not."""
    steps: list[str] = []
    start = 0
    for line_end in [*(match.end() for match in _LINE.finditer(text)), len(text)]:
        for match in _END.finditer(text, start, line_end):
            if not _ABBREVIATED.search(text[start : match.end()].rstrip()):
                steps.append(text[start : match.end()])
                start = match.end()
        if text[start:line_end].strip():
            steps.append(text[start:line_end])
            start = line_end
    if start < len(text):  # white space that follows or is everything
        steps[-1:] = ["".join(steps[-1:]) + text[start:]]
    return steps


def read_step(response: str, block: str, markers: Markers) -> Step:
    """The first wrong step in `response`, set right, from the Oracle's `block`.

    Raises `StepError` where the block is not one edit, the quoted step is not in the answer exactly once (white space
    as in `spot.rectify.patch`), or its right version is missing or the same.
    """
    try:
        edits = parse_edits(block, markers)
    except EditError as error:
        raise StepError(str(error)) from None
    if len(edits) > 1:
        raise StepError(f"there are {len(edits)} edits: write one, for the first wrong step only")
    edit = edits[0]
    try:
        place = locate(response, edit)
    except EditError as error:
        raise StepError(str(error).replace("its old text", "the quoted step")) from None
    quoted = response[place.start : place.end]
    if not place.new.strip():
        raise StepError("the step's right version is missing: write it between the last two marker lines")
    if place.new.split() == quoted.split():
        raise StepError("the step's right version is the same as the quoted step: quote the first step that is wrong")
    return Step(place.start, _first_new(place.new, response[place.start :], quoted))


def _first_new(new: str, old: str, quoted: str) -> str:
    """`new` up to its first step that `old` has not at the same place, and the line's end after it.

    White space within a line is left to the student, whose tokens hold the space before a word.
    """
    theirs, own = split_steps(new), split_steps(old)
    count = 1
    for one, other in zip(theirs, own, strict=False):
        if one.split() != other.split():
            break
        count += 1
    kept, replaced = "".join(theirs[:count]), "".join(own[: min(count, len(theirs))])
    if count < len(theirs):
        gap = _gap(kept)
    else:  # where only a part of the step was quoted, its rest is the student's to write
        gap = _gap(replaced) if len(quoted.rstrip()) >= len(replaced.rstrip()) else ""
    return kept.rstrip() + (gap if "\n" in gap else "")


def _gap(text: str) -> str:
    return text[len(text.rstrip()) :]


def write_step(rejected: str, chosen: str, markers: Markers) -> str:
    """The block that quotes the first step of `rejected` that `chosen` has not, and writes it as `chosen` does.

    What `read_step` makes of it is the beginning of `chosen`, white space between steps aside. Where `rejected` is
    `chosen` and more, the last step that is right is quoted with what follows it. Raises `ValueError` where the texts
    differ in white space alone or `chosen` is empty, or where a text could be taken for a marker.
    """
    if markers.clash(rejected) or markers.clash(chosen):
        raise ValueError("a text holds a marker or the nonce: derive markers from both texts")
    if rejected.split() == chosen.split() or not chosen.strip():
        raise ValueError("no step differs, or there is no right one")
    wrong, right = split_steps(rejected), split_steps(chosen)
    pairs = zip_longest(map(str.split, wrong), map(str.split, right))
    first = next((index for index, (one, other) in enumerate(pairs) if one != other), 0)
    start, end = max(0, min(first, len(right) - 1, len(wrong) - 1)), first + 1
    last = min(first, len(right) - 1)
    while True:
        old, new = _quote(wrong[start:end]), "".join(right[start : last + 1]).strip()
        if rejected.find(old) == rejected.rfind(old) and old.split() != new.split():
            return Edit(old, new).written(markers)
        if end < len(wrong):
            end += 1  # costs nothing: of what follows nothing is kept
        elif start > 0:
            start -= 1
        else:
            last += 1


def _quote(steps: Sequence[str]) -> str:
    text = "".join(steps)
    return text.strip() or text  # an answer of white space only is quoted as it is
