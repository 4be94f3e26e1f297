"""The texts a report shows: rectifications spread over the change ratio, and what was forgotten."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spot.errors import UserError
from spot.evaluate.statistics import compare, question_means
from spot.report.diff import Span, marked
from spot.report.prose import whole
from spot.schema import Attempt, Pair, Problem, Prompt, Rectification, as_messages, text_of
from spot.store import read_rows

SHOWN_PAIRS, SHOWN_FORGOTTEN = 5, 3
_CONTEXT = 400  # characters kept of an unchanged stretch on each side of a change
_LONGEST = 6000  # characters shown of one changed stretch, or of a question


@dataclass(frozen=True)
class Piece:
    """A stretch of a shown text. A `gap` stands for text that was left out, and says how much."""

    kind: Literal["same", "changed", "gap"]
    text: str


@dataclass(frozen=True)
class Rectified:
    """A training pair side by side. `known` and `said` are the known and the student's answer, where recorded."""

    problem_id: str
    question: list[Piece]
    known: str | None
    said: str | None
    change_ratio: float
    oracle: str
    rejected: list[Piece]
    chosen: list[Piece]


@dataclass(frozen=True)
class Forgotten:
    """A question answered better before training than after; the shares of right samples and one answer of each."""

    task: str
    problem_id: str
    question: list[Piece] | None
    known: str | None
    share_before: float
    share_after: float
    before: list[Piece]
    after: list[Piece]


def rectified_examples(
    pairs: Sequence[Pair],
    problems: Mapping[str, Problem],
    attempts: Sequence[Attempt],
    rectifications: Sequence[Rectification],
) -> list[Rectified]:
    """Five pairs at even quantiles of the change ratio: the least changed, the most changed, three between."""
    said = {(row.problem_id, row.response): row.verdict.answer for row in attempts}
    verified = {(row.problem_id, row.response): row.verdict.answer for row in rectifications if row.accepted}
    examples: list[Rectified] = []
    for pair in spread(pairs):
        rejected, chosen = text_of(pair.rejected), text_of(pair.chosen)
        left, right = marked(rejected, chosen)
        recorded = pair.meta.get("answer")
        known = problems[pair.problem_id].answer if pair.problem_id in problems else None
        if known is None:
            known = recorded if isinstance(recorded, str) else verified.get((pair.problem_id, chosen))
        examples.append(
            Rectified(
                problem_id=pair.problem_id,
                question=_question(pair.prompt),
                known=known,
                said=said.get((pair.problem_id, rejected)),
                change_ratio=pair.change_ratio,
                oracle=pair.oracle,
                rejected=shortened(left),
                chosen=shortened(right),
            )
        )
    return examples


def spread(pairs: Sequence[Pair], wanted: int = SHOWN_PAIRS) -> list[Pair]:
    """At most `wanted` different pairs at even quantiles of the change ratio, ties by id, whatever their order."""
    ordered = sorted(pairs, key=lambda pair: (pair.change_ratio, pair.id))
    if len(ordered) <= wanted:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (wanted - 1))] for index in range(wanted)]


def evaluated_tasks(run: Path) -> list[str]:
    """Tasks whose attempts lie in `eval/before` and `eval/after`. Raises `UserError` where one side is missing."""
    sides = [{file.stem for file in (run / "eval" / side).glob("*.jsonl")} for side in ("before", "after")]
    for missing, there in ((sides[0] - sides[1], "after"), (sides[1] - sides[0], "before")):
        if missing:
            raise UserError(f"{run / 'eval' / there / min(missing)}.jsonl: no such file; finish the run with spot run")
    return sorted(sides[0])


def forgotten_examples(run: Path) -> list[Forgotten]:
    """Up to three questions that were right before and are wrong now, from the tasks in turn, the largest fall first.

    Reads `eval/before/<task>.jsonl` and `eval/after/<task>.jsonl`, and the questions' text from
    `eval/problems/<task>.jsonl` where the run keeps it. Raises `UserError` where the two sides do not match.
    """
    columns: list[list[Forgotten]] = []
    for task in evaluated_tasks(run):
        before = read_rows(run / "eval" / "before" / f"{task}.jsonl", Attempt)
        after = read_rows(run / "eval" / "after" / f"{task}.jsonl", Attempt)
        compare(before, after)  # refuses sides that hold different questions
        old, new = question_means(before), question_means(after)
        lost = sorted((new[key] - old[key], key) for key in old if new[key] < old[key])[:SHOWN_FORGOTTEN]
        problems = optional_problems(run / "eval" / "problems" / f"{task}.jsonl") if lost else {}
        columns.append([_forgotten(task, key, (before, after), problems.get(key)) for _, key in lost])
    in_turn = [column[rank] for rank in range(SHOWN_FORGOTTEN) for column in columns if rank < len(column)]
    return in_turn[:SHOWN_FORGOTTEN]


def optional_problems(path: Path) -> dict[str, Problem]:
    """The problems in `path` by id; none where there is no such file, since not every run keeps them."""
    return {problem.id: problem for problem in read_rows(path, Problem)} if path.exists() else {}


def _forgotten(
    task: str, problem_id: str, sides: tuple[Sequence[Attempt], Sequence[Attempt]], problem: Problem | None
) -> Forgotten:
    before, after = ([row for row in side if row.problem_id == problem_id] for side in sides)
    right = next(row for row in before if row.outcome == "correct")
    wrong = next(row for row in after if row.outcome != "correct")
    left_spans, right_spans = marked(right.response, wrong.response)
    return Forgotten(
        task=task,
        problem_id=problem_id,
        question=_question(problem.prompt) if problem else None,
        known=problem.answer if problem else None,
        share_before=question_means(before)[problem_id],
        share_after=question_means(after)[problem_id],
        before=shortened(left_spans),
        after=shortened(right_spans),
    )


def _question(prompt: Prompt) -> list[Piece]:
    messages = as_messages(prompt)
    lone = len(messages) == 1
    text = "\n\n".join(message.content if lone else f"[{message.role}] {message.content}" for message in messages)
    return shortened([Span(text, False)], context=_LONGEST // 2)


def shortened(spans: Sequence[Span], context: int = _CONTEXT, longest: int = _LONGEST) -> list[Piece]:
    """Spans as pieces to show: long unchanged stretches lose their middle, very long changed ones their end."""
    pieces: list[Piece] = []
    for index, (text, changed) in enumerate(spans):
        kind = "changed" if changed else "same"
        head = longest if changed else 0 if index == 0 and len(spans) > 1 else context
        tail = 0 if changed or (index == len(spans) - 1 and len(spans) > 1) else context
        left_out = len(text) - head - tail
        if left_out < context:  # not worth a gap
            pieces.append(Piece(kind, text))
            continue
        gap = Piece("gap", f"{whole(left_out)} characters left out")
        ends = [Piece(kind, text[:head]), gap, Piece(kind, text[len(text) - tail :])]
        pieces += [piece for piece in ends if piece.text]
    return pieces
