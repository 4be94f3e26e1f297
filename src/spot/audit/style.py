"""Style drift: whether corrections are longer, formatted otherwise, or in other words than the student's answers."""

import re
from collections import Counter

from spot.audit.summary import MarkDrift, Style, StyleSummary, WordDrift, spread

MARKS = {
    "line break": re.compile(r"\n"),
    "heading": re.compile(r"^ {0,3}#{1,6} ", re.MULTILINE),
    "list item": re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)]) ", re.MULTILINE),
    "bold": re.compile(r"\*\*(?=\S)[^*\n]+\*\*|__(?=\S)[^_\n]+__"),
    "code": re.compile(r"```|`[^`\n]+`"),
    "formula": re.compile(r"\$\$?[^$\n]+\$\$?|\\\(|\\\["),
    "box": re.compile(r"\\boxed\b"),
    "table row": re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE),
    "tag": re.compile(r"</?[a-zA-Z][\w-]*>"),
}
"""Formatting marks by name, each match one mark."""

WORD = re.compile(r"[^\W\d_]+")
WORDS_SHOWN = 8
AT_LEAST = 0.01
"""A word is shown where at least this share of all pairs brings it in, and at least two of them."""


class StyleAudit:
    """Compares the answers of pairs one by one, and remembers what it takes to sum up."""

    def __init__(self) -> None:
        self._rows: list[Style] = []
        self._brought: Counter[str] = Counter()
        self._taken: Counter[str] = Counter()

    def add(self, rejected: str, chosen: str) -> Style:
        """Compare how two answers are written."""
        theirs, ours = words(rejected), words(chosen)
        self._brought.update(ours - theirs)
        self._taken.update(theirs - ours)
        row = Style(
            rejected_characters=len(rejected),
            chosen_characters=len(chosen),
            rejected_marks=_marks(rejected),
            chosen_marks=_marks(chosen),
            vocabulary=len(ours & theirs) / len(ours) if ours else 1.0,
        )
        self._rows.append(row)
        return row

    def summary(self) -> StyleSummary:
        """All pairs so far together, one at least; marks in the order of `MARKS`, those that occur."""
        rows = self._rows
        return StyleSummary(
            characters_ratio=spread([row.chosen_characters / max(1, row.rejected_characters) for row in rows]),
            vocabulary=spread([row.vocabulary for row in rows]),
            marks=[drift for name in MARKS if (drift := self._drift(name)) is not None],
            words=self._words(),
        )

    def _drift(self, name: str) -> MarkDrift | None:
        sides = [(row.rejected_marks.get(name, 0), row.chosen_marks.get(name, 0)) for row in self._rows]
        if not any(map(any, sides)):
            return None
        return MarkDrift(
            mark=name,
            rejected_rate=_rate([left for left, _ in sides], [row.rejected_characters for row in self._rows]),
            chosen_rate=_rate([right for _, right in sides], [row.chosen_characters for row in self._rows]),
            only_rejected=sum(left > 0 == right for left, right in sides),
            only_chosen=sum(right > 0 == left for left, right in sides),
        )

    def _words(self) -> list[WordDrift]:
        """Those that most more corrections bring in than take out."""
        least = max(2, AT_LEAST * len(self._rows))
        found = [
            WordDrift(word=word, brought=count, taken=self._taken[word])
            for word, count in self._brought.items()
            if count - self._taken[word] >= least
        ]
        return sorted(found, key=lambda row: (row.taken - row.brought, row.word))[:WORDS_SHOWN]


def words(text: str) -> set[str]:
    """The different words of `text` in lower case; numbers are none."""
    return set(WORD.findall(text.casefold()))


def _marks(text: str) -> dict[str, int]:
    counts = {name: len(pattern.findall(text)) for name, pattern in MARKS.items()}
    return {name: count for name, count in counts.items() if count}


def _rate(counts: list[int], characters: list[int]) -> float:
    return 1000 * sum(counts) / max(1, sum(characters))
