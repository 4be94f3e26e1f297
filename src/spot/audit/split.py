"""Answers cut into steps, and which step of one answer stands for which of the other.

A step is a line, a sentence of it, or a clause of it that ends in a semicolon outside brackets; white space is not
compared. Two answers begin with the same steps up to the edit; those stand on the same premises, so what holds for one
holds for the other. A step after the edit may be the same in words and yet newly wrong.
"""

import re
from collections.abc import Iterator, Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from spot.rectify.steps import split_steps

_CLAUSE = re.compile(r"(?<!\\);\s+(?=\S)")  # LaTeX's \; is a space
_OPENING, _CLOSING = "([{", ")]}"

Aligned = tuple[int | None, int | None]
"""Places of a step in the rejected and in the chosen answer; `None` where it has none."""


def steps_of(text: str) -> list[str]:
    """The steps of `text` in their order, each on one line, none empty."""
    return [flat for step in split_steps(text) for clause in _clauses(step) if (flat := one_line(clause))]


def one_line(text: str) -> str:
    """`text` with single spaces for all white space."""
    return " ".join(text.split())


def _clauses(step: str) -> Iterator[str]:
    start = 0
    for match in _CLAUSE.finditer(step):
        if _balance(step[start : match.start()]) == 0:
            yield step[start : match.end()]
            start = match.end()
    yield step[start:]


def _balance(text: str) -> int:
    return sum((character in _OPENING) - (character in _CLOSING) for character in text)


def shared_start(rejected: Sequence[str], chosen: Sequence[str]) -> int:
    """How many steps both answers begin with."""
    count = 0
    for one, other in zip(rejected, chosen, strict=False):
        if one != other:
            break
        count += 1
    return count


def aligned(rejected: Sequence[str], chosen: Sequence[str]) -> list[Aligned]:
    """Every step of both answers once, in order, with its counterpart where it has one.

    Equal steps are matched first (longest common subsequence). Between them steps are matched in order; where one side
    has more, those that are most alike.
    """
    found: list[Aligned] = []
    row = column = 0
    for block in [*LCSseq.opcodes(list(rejected), list(chosen)), None]:
        if block is not None and block.tag != "equal":
            continue
        ends = (len(rejected), len(chosen)) if block is None else (block.src_start, block.dest_start)
        found += _between(rejected, chosen, range(row, ends[0]), range(column, ends[1]))
        if block is not None:
            row, column = block.src_end, block.dest_end
            found += zip(range(block.src_start, row), range(block.dest_start, column), strict=True)
    return found


def _between(rejected: Sequence[str], chosen: Sequence[str], rows: range, columns: range) -> list[Aligned]:
    """The steps between two matches; all of the shorter side find a counterpart."""
    if len(rows) == len(columns):
        return list(zip(rows, columns, strict=True))
    if len(rows) > len(columns):
        return [(row, column) for column, row in _between(chosen, rejected, columns, rows)]
    likeness = cdist([rejected[row] for row in rows], [chosen[column] for column in columns], scorer=fuzz.ratio)
    spare = len(columns) - len(rows)
    # best[i][s]: the likeness of what follows once i rows are matched and s columns are passed over.
    best = [[0.0] * (spare + 1) for _ in range(len(rows) + 1)]
    for i in reversed(range(len(rows))):
        for s in reversed(range(spare + 1)):
            here = float(likeness[i, i + s]) + best[i + 1][s]
            best[i][s] = max(here, best[i][s + 1]) if s < spare else here
    found: list[Aligned] = []
    i = s = 0
    while i < len(rows) or s < spare:
        passed = s < spare and (i == len(rows) or best[i][s] == best[i][s + 1])
        found.append((None if passed else rows[i], columns[i + s]))
        i, s = (i, s + 1) if passed else (i + 1, s)
    return found
