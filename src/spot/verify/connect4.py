"""Connect4 answers: two lists of cells, each read from its own line and compared with the known one.

Read is the last statement of each list outside think blocks: its label, a colon, and cells or the word none, on the
same line or below it up to an empty line. Bold, a box, LaTeX's text, brackets, spaces, either order, both on one line:
all the same. What is neither cells nor none (a list with a remark, an empty one, prose) is unreadable and never
credited; the line of the prompt that shows the form, repeated, is no statement.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from spot.connect4.answer import MINE, NONE, OPPONENT, write_answer, write_line
from spot.connect4.board import Cell
from spot.schema import Problem, Verdict
from spot.verify.boxed import without_thoughts

MAX_CHARACTERS = 1000
"""Longer statements are unreadable: all cells of a board written out take a third of it."""

# LaTeX around a statement: line breaks are kept, what only wraps or spaces is not.
_BREAK = re.compile(r"\\\\|\\(?:begin|end)\{[a-z]+\*?\}|\\newline\b")
_SPACE = re.compile(r"\\(?:q?quad|left|right)\b|\\[,;:! ]|[&~]")
_MATHEMATICS = re.compile(r"\\boxed\b|\\begin\b|\\[(\[]|\$")
_MARKUP = re.compile(r"[*_`${}]|\\[()\[\]{}]|\\(?:boxed|fbox)\b")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|sf|tt)|mbox)\b")
# A label starts its line or follows a separator; `[ \t]` and not `\s`, else many empty lines cost their square.
_LABEL = re.compile(
    r"(?:^[ \t>#+•-]*(?:[0-9][.)][ \t]*)?|(?:[;:,.|]|\band\b|(?<=[)\]]))[ \t]*)"
    r"(?:(?P<opponent>(?:my[ \t]+)?opponent(?:['’]?s['’]?)?)|my)[ \t]+winning[ \t]+moves?[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_BULLET = re.compile(r"^[ \t]*[-+•][ \t]", re.MULTILINE)
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
_FORM = re.compile(r"<[^<>]*>|\.{2,3}")
_CELL = re.compile(r"[(\[] ?([0-9]{1,2}) ?, ?([0-9]{1,2}) ?[)\]]")
_CELLS = re.compile(rf"{_CELL.pattern}(?: ?(?:[,;]|,? ?\band\b)? ?{_CELL.pattern})*")

Cells = frozenset[Cell]


@dataclass(frozen=True)
class Reading:
    """The two lists of an answer; `None` for one that is missing or unreadable."""

    mine: Cells | None
    opponent: Cells | None


@dataclass(frozen=True)
class Scores:
    """Shares of `n` answers, from 0 to 1: each list right, both right, and one list or both not to be read."""

    n: int
    mine: float
    opponent: float
    joint: float
    unreadable: float


def verify(response: str, problem: Problem) -> Verdict:
    """Judge `response`: correct where both lists equal the known ones, in any order.

    A list that cannot be read is wrong, with reason "no answer" where neither can. `correct=None` where the known
    answer (see `write_answer`) cannot be read.
    """
    known, given = read(problem.answer), read(response)
    if known.mine is None or known.opponent is None:
        return Verdict(correct=None, reason="the known answer does not state both lists of cells")
    lists = ((MINE, given.mine, known.mine), (OPPONENT, given.opponent, known.opponent))
    stated = [write_line(label, cells) for label, cells, _ in lists if cells is not None]
    if not stated:
        return Verdict(correct=False, reason="no answer")
    faults = [
        f"{label}: {'no answer' if cells is None else 'wrong'}" for label, cells, right in lists if cells != right
    ]
    return Verdict(correct=not faults, answer="\n".join(stated), reason="; ".join(faults))


def read(response: str) -> Reading:
    """The last statement of each list outside think blocks. Never raises; linear in the length of the response."""
    text = unicodedata.normalize("NFKC", without_thoughts(response)).replace("\r\n", "\n")
    if _MATHEMATICS.search(text):  # without, a label in `\\text{}` is quoted LaTeX and no label
        text = _TEXT.sub("", text)
    text = _MARKUP.sub("", _SPACE.sub(" ", _BREAK.sub("\n", text)))
    found: dict[bool, Cells | None] = {}
    labels = list(_LABEL.finditer(text))
    ends = [label.start() for label in labels[1:]] + [len(text)]
    for label, end in zip(labels, ends, strict=False):  # without a label there is no end of one
        statement = _statement(_TEXT.sub("", text[label.end() : end]))
        if not _is_form(statement):
            found[label["opponent"] is not None] = _cells(statement)
    return Reading(found.get(False), found.get(True))


def scores(responses: Sequence[str], problems: Sequence[Problem]) -> Scores:
    """Both scores, the joint one and the unreadable rate of one response to each problem.

    Raises:
        ValueError: no problems, as many responses as problems are not given, or a known answer cannot be read.
    """
    if not problems:
        raise ValueError("scores need at least one problem")
    pairs = [(read(response), read(problem.answer)) for response, problem in zip(responses, problems, strict=True)]
    if any(None in (known.mine, known.opponent) for _, known in pairs):
        raise ValueError("a known answer does not state both lists of cells")
    n = len(pairs)
    return Scores(
        n=n,
        mine=sum(given.mine == known.mine for given, known in pairs) / n,
        opponent=sum(given.opponent == known.opponent for given, known in pairs) / n,
        joint=sum(given == known for given, known in pairs) / n,
        unreadable=sum(None in (given.mine, given.opponent) for given, _ in pairs) / n,
    )


def always_none(problems: Sequence[Problem]) -> Scores:
    """What an answer that says none to both questions scores: `mine` and `opponent` are the two baselines."""
    return scores([write_answer((), ())] * len(problems), problems)


def _statement(text: str) -> str:
    """What stands behind a label: the rest of its line, or the lines below where that is empty."""
    line, _, below = text.partition("\n")
    if line.strip():
        return line.strip()
    return _BULLET.sub("", _EMPTY_LINE.split(below.lstrip(), maxsplit=1)[0]).strip()


def _is_form(statement: str) -> bool:
    """Whether a statement is the form of one, as a prompt shows it."""
    inner = statement.removesuffix(".").strip("[]{}()\"' ")
    return _FORM.fullmatch(inner) is not None or "(row, column)" in statement.lower()


def _cells(statement: str) -> Cells | None:
    """The cells of a statement, none of them for the word none; `None` where it is neither."""
    if len(statement) > MAX_CHARACTERS:
        return None
    inner = " ".join(statement.split()).removesuffix(".").strip()
    if not _CELLS.fullmatch(inner) and inner[:1] + inner[-1:] in {"[]", "()"}:
        inner = inner[1:-1].strip().removesuffix(".")
    if inner.lower() == NONE:
        return frozenset()
    if not _CELLS.fullmatch(inner):
        return None
    return frozenset(Cell(int(row), int(column)) for row, column in _CELL.findall(inner))
