"""Questions whose answers changed: right before and wrong after, as forgetting looks, and the other way round."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spot.connect4.board import COLUMNS, ROWS, Board, Cell
from spot.connect4.draw import draw
from spot.errors import UserError
from spot.evaluate.comparison import TaskResult
from spot.evaluate.registry import BENCHMARKS, benchmark
from spot.evaluate.statistics import question_means
from spot.files.store import read_rows
from spot.report.diff import Span, marked
from spot.report.evaluation import SIDES
from spot.report.examples import Piece, fitted, optional_problems, question_pieces, shortened
from spot.report.prose import one_line, title
from spot.schema import Attempt, Problem, text_of

SHOWN_WORSE, SHOWN_BETTER = 20, 10
"""Questions of a task that are shown of those that fell, and of those that rose."""
LONGEST = 4000
"""Characters shown of an answer, and of a question."""
_OUTCOMES = {"correct": "right", "wrong": "wrong", "truncated": "cut off", "unscored": "unscored"}


@dataclass(frozen=True)
class Side:
    """One answer: how it came out, its text with what the other has not marked, and what the verifier said."""

    outcome: str
    kind: Literal["right", "wrong"]
    pieces: list[Piece]
    answer: str | None
    finish: str
    reason: str


@dataclass(frozen=True)
class Changed:
    """A question with an answer of each side, of the same repetition where one changed.

    `shares` are those of right answers among the question's `repeats`, before and after; `board` is a drawing.
    """

    problem_id: str
    opening: str
    question: list[Piece] | None
    known: str | None
    board: str | None
    shares: tuple[float, float]
    repeats: int
    before: Side
    after: Side


@dataclass(frozen=True)
class ChangedList:
    """The questions of a task that changed one way: how many there are, and those shown, the largest change first."""

    task: str
    title: str
    anchor: str
    number: int
    shown: list[Changed]


@dataclass(frozen=True)
class ChangedAnswers:
    """The lists of all tasks, without empty ones."""

    worse: list[ChangedList]
    better: list[ChangedList]


def changed_answers(run: Path, evaluation: Mapping[str, TaskResult]) -> ChangedAnswers:
    """What changed in the tasks of `evaluation`, read from `eval/`; a task whose answers are not there has no list."""
    worse: list[ChangedList] = []
    better: list[ChangedList] = []
    for place, (task, result) in enumerate(evaluation.items()):
        paths = [run / "eval" / side / f"{task}.jsonl" for side in SIDES]
        if not all(path.exists() for path in paths):
            continue
        old, new = (read_rows(path, Attempt) for path in paths)
        before, after = question_means(old), question_means(new)
        moves = {key: after[key] - before[key] for key in before if key in after}
        problems = optional_problems(run / "eval" / "problems" / f"{task}.jsonl") if any(moves.values()) else {}
        for lists, name, sign, most in ((worse, "worse", -1, SHOWN_WORSE), (better, "better", 1, SHOWN_BETTER)):
            keys = sorted((key for key, move in moves.items() if move * sign > 0), key=lambda key: -abs(moves[key]))
            shown = keys[:most]
            of_question = _of_questions(shown, old), _of_questions(shown, new)
            examples = [
                _changed(task, of_question[0][key], of_question[1][key], problems.get(key), fell=sign < 0)
                for key in shown
            ]
            if shown:
                lists.append(ChangedList(task, title(task, result.title), f"{name}-{place}", len(keys), examples))
    return ChangedAnswers(worse, better)


def _of_questions(keys: Sequence[str], attempts: Sequence[Attempt]) -> dict[str, list[Attempt]]:
    found: dict[str, list[Attempt]] = {key: [] for key in keys}
    for row in attempts:
        if row.problem_id in found:
            found[row.problem_id].append(row)
    return found


def _changed(
    task: str, old: Sequence[Attempt], new: Sequence[Attempt], problem: Problem | None, *, fell: bool
) -> Changed:
    before, after = _pair(old, new, fell=fell)
    asked = None if problem is None else _asked(task, problem, before.sample if fell else after.sample)
    spans = marked(before.response, after.response)
    return Changed(
        problem_id=before.problem_id,
        opening="" if asked is None else one_line(text_of(asked.prompt), 120),
        question=None if asked is None else fitted(question_pieces(asked.prompt), LONGEST),
        known=None if asked is None else _flat(asked.answer),
        board=None if asked is None else drawn(asked),
        shares=(question_means(old)[before.problem_id], question_means(new)[before.problem_id]),
        repeats=max(len(old), len(new)),
        before=_side(before, _shown(spans[0])),
        after=_side(after, _shown(spans[1])),
    )


def _pair(old: Sequence[Attempt], new: Sequence[Attempt], *, fell: bool) -> tuple[Attempt, Attempt]:
    """A right answer of the better side and one of the other that is not: of one repetition where there are such."""
    good, bad = (old, new) if fell else (new, old)
    right = {row.sample: row for row in good if row.outcome == "correct"}
    wrong = {row.sample: row for row in bad if row.outcome != "correct"}
    same = min(right.keys() & wrong.keys(), default=None)
    pair = (right[min(right)], wrong[min(wrong)]) if same is None else (right[same], wrong[same])
    return pair if fell else (pair[1], pair[0])


def _asked(task: str, problem: Problem, sample: int) -> Problem:
    """The question as a repetition was asked it, where it is one of ours that changes it."""
    if task not in BENCHMARKS or problem.source != task:
        return problem
    variant = benchmark(task).variant
    return variant(problem, sample) if variant else problem


def _shown(spans: Sequence[Span]) -> list[Piece]:
    """What stands between changes is shortened first; of the changes the middle goes, since an answer ends with it."""
    return fitted(shortened(spans, longest=sys.maxsize), LONGEST)


def _side(row: Attempt, pieces: list[Piece]) -> Side:
    right = row.outcome == "correct"
    return Side(
        outcome=_OUTCOMES[row.outcome],
        kind="right" if right else "wrong",
        pieces=pieces,
        answer=None if row.verdict.answer is None else _flat(row.verdict.answer),
        finish=row.finish_reason,
        reason=one_line(row.verdict.reason),
    )


def _flat(answer: str) -> str:
    return one_line(" / ".join(answer.strip().splitlines()))


def drawn(problem: Problem) -> str | None:
    """The Connect4 board of a question, with the winning cells that its row names; `None` where it has no board."""
    if problem.source != "connect4" or not isinstance(text := problem.meta.get("board"), str):
        return None
    try:
        board = Board.from_text(text)
    except UserError:
        return None
    return draw(board, _cells(problem.meta.get("mine")), _cells(problem.meta.get("opponent")))


def _cells(found: object) -> list[Cell]:
    """Cells of the board among what a row has for them."""
    rows: list[object] = list(found) if isinstance(found, list) else []
    return [
        Cell(row[0], row[1])
        for row in rows
        if isinstance(row, list) and [type(part) for part in row] == [int, int]
        if 0 <= row[0] < ROWS and 0 <= row[1] < COLUMNS
    ]
