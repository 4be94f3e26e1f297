"""Search-and-replace edits: what an Oracle writes in the mode `patch`, how it is applied, and its inverse.

An edit, each marker on a line of its own (followed by the request's nonce if one of them occurs in the material):

    <<<<<<< SEARCH
    old text
    =======
    new text
    >>>>>>> REPLACE

The old text must occur exactly once in the student's answer, byte for byte; an empty new text deletes it. Of a long
one the middle may be left out: a line `.......` stands for everything from the text above it, which must occur exactly
once, to the text below it, which must occur exactly once after that. One newline next to each marker belongs to the
format. All edits refer to the answer as the student wrote it, so their order does not matter. What stands between
edits is ignored.

Where the old text occurs nowhere as it is written, two things are forgiven, and only if the place is then unique: white
space at the ends of lines, on either side, and one newline at the beginning or end of the old text, which is then
dropped from the same end of the new text. White space forgiven in the answer is part of what is replaced. There is no
other fuzzy matching: an edit that may have meant another place is worse than one that is asked for again.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from spot.rectify.parse import Markers

_BLANK = r"[^\S\n]*"  # white space that ends no line
_SHOWN = 200  # characters of a text quoted in a complaint
_NEAR = 60.0  # similarity in percent from which on a place is named that may have been meant


class EditError(ValueError):
    """Edits that cannot be applied; the text says which and why, in words for the Oracle."""


@dataclass(frozen=True)
class Edit:
    """`old` becomes `new`; with `until`, everything from `old` to `until` does."""

    old: str
    new: str
    until: str | None = None

    def written(self, markers: Markers) -> str:
        """The edit as an Oracle writes it."""
        old = self.old if self.until is None else f"{self.old}\n{markers.gap}\n{self.until}"
        new = f"{self.new}\n" if self.new else ""
        return f"{markers.search}\n{old}\n{markers.divider}\n{new}{markers.replace}"


@dataclass(frozen=True)
class Replacement:
    """`response[start:end]` becomes `new`."""

    start: int
    end: int
    new: str


def parse_edits(block: str, markers: Markers) -> list[Edit]:
    """The edits in `block`, in order. Raises `EditError` where there is none or a marker line is missing."""
    lines = (markers.search, markers.gap, markers.divider, markers.replace)
    pieces = re.split(rf"(?m)^({'|'.join(map(re.escape, lines))}){_BLANK}$", block)
    edits: list[Edit] = []
    texts: list[str] = []
    expected = [markers.search]
    for line, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if line not in expected:
            raise EditError(f"edit {len(edits) + 1}: expected the line {expected[-1]!r} before {line!r}")
        if line == markers.replace:
            edits.append(Edit(texts[0], texts[-1], texts[1] if len(texts) == 3 else None))
            texts, expected = [], [markers.search]
            continue
        texts.append(_between(text))
        if line == markers.search:
            expected = [markers.gap, markers.divider]
        else:
            expected = [markers.divider] if line == markers.gap else [markers.replace]
    if texts:
        raise EditError(f"edit {len(edits) + 1}: the line {expected[-1]!r} is missing")
    if not edits:
        raise EditError(f"there is no edit: an edit begins with the line {markers.search!r}")
    return edits


def _between(text: str) -> str:
    """Without the format's own newlines."""
    return text.removeprefix("\n").removesuffix("\n")


def apply_edits(response: str, block: str, markers: Markers) -> str:
    """`response` with the edits in `block`; what is not edited stays as it is.

    Raises `EditError` with a line for every edit that does not occur, occurs more than once, or overlaps another.
    """
    found: list[tuple[Replacement, int]] = []
    complaints: list[str] = []
    for number, edit in enumerate(parse_edits(block, markers), start=1):
        try:
            found.append((locate(response, edit), number))
        except EditError as error:
            complaints.append(f"edit {number}: {error}")
    found.sort(key=lambda item: (item[0].start, item[0].end))
    for (one, first), (other, second) in pairwise(found):
        if other.start < one.end:
            line = _line(response, other.start)
            complaints.append(f"edits {min(first, second)} and {max(first, second)} overlap in line {line}: join them")
    if complaints:
        raise EditError("\n".join(complaints))
    pieces: list[str] = []
    end = 0
    for replacement, _ in found:
        pieces += [response[end : replacement.start], replacement.new]
        end = replacement.end
    return "".join([*pieces, response[end:]])


@dataclass(frozen=True)
class _Place:
    """Where a text stands, and which newlines around it were forgiven."""

    start: int
    end: int
    before: bool = False
    after: bool = False


def locate(response: str, edit: Edit) -> Replacement:
    """Where `edit` applies. Raises `EditError` where that is nowhere or in several places."""
    if response and (not edit.old or edit.until == ""):
        raise EditError("its old text is empty: copy the text to be replaced; to insert, copy what stands beside it")
    if edit.until is None:
        first = last = _place(response, edit.old, "its old text", 0)
    else:
        first = _place(response, edit.old, "its old text's beginning", 0)
        last = _place(response, edit.until, "its old text's end", first.end)
    new = edit.new.removeprefix("\n") if first.before else edit.new
    return Replacement(first.start, last.end, new.removesuffix("\n") if last.after else new)


def _place(response: str, text: str, what: str, start: int) -> _Place:
    """The one place of `text` after `start`."""
    places = [_Place(found, found + len(text)) for found in _occurrences(response, text, start)]
    if not places:
        places = next(filter(None, _forgiven(response, text, start)), [])
    where = "in the answer" + (" after its beginning" if start else "")
    if not places:
        raise EditError(f"{what} is not {where}: {_shown(text)}{_nearest(response, text, start)}")
    if len(places) > 1:
        raise EditError(
            f"{what} is {where} {len(places)} times ({_lines(response, places)}): {_shown(text)}; "
            "copy more of the text around the place that is meant"
        )
    return places[0]


def _occurrences(text: str, part: str, start: int) -> Iterator[int]:
    """Where `part` begins in `text` after `start`; places may overlap."""
    start = text.find(part, start)
    while start >= 0:
        yield start
        start = text.find(part, start + 1)


def _forgiven(response: str, text: str, start: int) -> Iterator[list[_Place]]:
    """The places for each way to forgive, from the least that is forgiven to the most."""
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        if (before and not text.startswith("\n")) or (after and not text.endswith("\n")):
            continue
        part = text.removeprefix("\n") if before else text
        part = part.removesuffix("\n") if after else part
        if part.strip():
            # A place that begins in white space is found once for every beginning; its end tells places apart.
            spans = {end: begin for begin, end in reversed(list(_loosely(response, part, start)))}
            yield [_Place(begin, end, before, after) for end, begin in sorted(spans.items())]


def _loosely(response: str, text: str, start: int) -> Iterator[tuple[int, int]]:
    """Where `text` occurs if white space at the ends of lines does not count."""
    lines = text.split("\n")
    pattern = rf"{_BLANK}\n".join(re.escape(line.rstrip()) for line in lines)
    if lines[-1] != lines[-1].rstrip():
        pattern += rf"{_BLANK}(?=\n|\Z)"
    compiled = re.compile(pattern)
    match = compiled.search(response, start)
    while match:
        yield match.span()
        match = compiled.search(response, match.start() + 1)


def _line(response: str, position: int) -> int:
    return response.count("\n", 0, position) + 1


def _lines(response: str, places: Sequence[_Place]) -> str:
    numbers = sorted({_line(response, place.start) for place in places})
    shown = ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
    return f"line {shown}" if len(numbers) == 1 else f"lines {shown}"


def _shown(text: str) -> str:
    half = _SHOWN // 2
    return f"\u00ab{text if len(text) <= _SHOWN else f'{text[:half]} [...] {text[-half:]}'}\u00bb"


def _nearest(response: str, text: str, start: int) -> str:
    """The lines after `start` that were probably meant."""
    rest = response[start:]
    found = fuzz.partial_ratio_alignment(text, rest, score_cutoff=_NEAR) if rest else None
    if found is None:
        return ""
    first = response.rfind("\n", 0, start + found.dest_start) + 1
    last = response.find("\n", start + max(found.dest_start, found.dest_end - 1))
    return f"; the nearest is in line {_line(response, first)}: {_shown(response[first : last if last >= 0 else None])}"


def write_edits(
    rejected: str, chosen: str, markers: Markers, split: Callable[[str], Sequence[str]] | None = None
) -> str:
    """Edits that turn `rejected` into `chosen` exactly, with about as few characters as that takes.

    With `split` (which must lose nothing: `"".join(split(text)) == text`) an edit's texts are made of whole parts, as a
    model would write them. Raises `ValueError` where a text could be taken for a marker.
    """
    if markers.clash(rejected) or markers.clash(chosen):
        raise ValueError("a text holds a marker or the nonce: derive markers from both texts")
    edits = _Writer(rejected, chosen, markers, split).edits() if rejected else [Edit("", chosen)]
    return "\n".join(edit.written(markers) for edit in edits)


@dataclass(frozen=True)
class _Hunk:
    """`rejected[start:end]` is `chosen[new_start:new_end]` in the other text."""

    start: int
    end: int
    new_start: int
    new_end: int


@dataclass(frozen=True)
class _Plan:
    """Edits for the first hunks: their cost in characters and where they end in `rejected`."""

    cost: int
    end: int
    edits: tuple[Edit, ...] = ()


class _Writer:
    """Groups the places where two texts differ into edits, each with the least context that makes it unique."""

    def __init__(
        self, rejected: str, chosen: str, markers: Markers, split: Callable[[str], Sequence[str]] | None
    ) -> None:
        self.rejected, self.chosen, self.markers = rejected, chosen, markers
        self.overhead = len(Edit("", "").written(markers)) + 1
        parts: tuple[Sequence[str], Sequence[str]] = (split(rejected), split(chosen)) if split else (rejected, chosen)
        self.cuts, new_cuts = map(_boundaries, parts)
        self.hunks: list[_Hunk] = []
        for code in Levenshtein.opcodes(*parts):
            if code.tag != "equal":
                start, end = self.cuts[code.src_start], self.cuts[code.src_end]
                self._add(_Hunk(start, end, new_cuts[code.dest_start], new_cuts[code.dest_end]))
        self.hunks = self.hunks or [_Hunk(0, 0, 0, 0)]

    def _add(self, hunk: _Hunk) -> None:
        """Hunks whose gap costs less, written twice, than another edit's markers are one."""
        last = self.hunks[-1] if self.hunks else None
        if last and 2 * (hunk.start - last.end) <= self.overhead:
            self.hunks[-1] = _Hunk(last.start, hunk.end, last.new_start, hunk.new_end)
        else:
            self.hunks.append(hunk)

    def edits(self) -> Sequence[Edit]:
        """The cheapest edits; one for everything from the first hunk to the last is always among the possible ones."""
        plans: list[_Plan | None] = [_Plan(0, 0)]
        for last in range(len(self.hunks)):
            grown = (self._grown(plans[first], first, last) for first in range(last + 1))
            plans.append(min(filter(None, grown), key=lambda plan: plan.cost, default=None))
        assert plans[-1] is not None
        return plans[-1].edits

    def _grown(self, plan: _Plan | None, first: int, last: int) -> _Plan | None:
        """`plan` and one more edit, for the hunks from `first` to `last`."""
        if plan is None:
            return None
        one, other = self.hunks[first], self.hunks[last]
        limit = self.hunks[last + 1].start if last + 1 < len(self.hunks) else len(self.rejected)
        possible: list[_Plan] = []
        span = self._unique_span(plan.end, one.start, other.end, limit)
        if span is not None:
            start, end = span
            new = self.chosen[one.new_start - (one.start - start) : other.new_end + (end - other.end)]
            possible.append(self._with(plan, Edit(self.rejected[start:end], new), end))
        ends = self._ends(one.start, other.end)
        if ends is not None:
            edit = Edit(ends[0], self.chosen[one.new_start : other.new_end], ends[1])
            possible.append(self._with(plan, edit, other.end))
        return min(possible, key=lambda plan: plan.cost, default=None)

    def _with(self, plan: _Plan, edit: Edit, end: int) -> _Plan:
        return _Plan(plan.cost + len(edit.written(self.markers)) + 1, end, (*plan.edits, edit))

    def _ends(self, start: int, end: int) -> tuple[str, str] | None:
        """The shortest beginning and end of `start:end` that are found again where its middle is left out."""
        cuts = self.cuts[bisect_right(self.cuts, start) : bisect_left(self.cuts, end)]
        index = bisect_left(cuts, True, key=lambda cut: self._is_unique(start, cut))
        if index == len(cuts):
            return None
        first, rest = cuts[index], cuts[index:]
        length = bisect_left(range(1, len(rest) + 1), True, key=lambda count: self._is_unique(rest[-count], end, first))
        return (self.rejected[start:first], self.rejected[rest[-length - 1] : end]) if length < len(rest) else None

    def _unique_span(self, lowest: int, start: int, end: int, highest: int) -> tuple[int, int] | None:
        """The shortest span around `start:end`, within `lowest:highest`, whose text occurs once."""
        lefts = self.cuts[bisect_left(self.cuts, lowest) : bisect_right(self.cuts, start)]
        rights = self.cuts[bisect_left(self.cuts, end) : bisect_right(self.cuts, highest)]
        best: tuple[int, int] | None = None
        for left in reversed(lefts):
            if best and best[1] - best[0] <= end - left:
                break
            # The longer, the rarer: what is unique stays so when it grows.
            index = bisect_left(rights, True, key=lambda right, left=left: self._is_unique(left, right))
            if index < len(rights) and (best is None or rights[index] - left < best[1] - best[0]):
                best = (left, rights[index])
        return best

    def _is_unique(self, start: int, end: int, after: int = 0) -> bool:
        part = self.rejected[start:end]
        return bool(part) and self.rejected.find(part, after) == start and self.rejected.find(part, start + 1) < 0


def _boundaries(parts: Sequence[str]) -> list[int]:
    return [0, *accumulate(map(len, parts))]
