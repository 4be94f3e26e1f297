"""The texts a report shows, shortened, and rectifications spread over the change ratio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spot.files.store import read_rows
from spot.report.diff import Span, marked
from spot.report.prose import whole
from spot.schema import Attempt, Pair, Problem, Prompt, Rectification, as_messages, text_of

SHOWN_PAIRS = 5
_CONTEXT = 400  # characters kept of an unchanged stretch on each side of a change
_LONGEST = 6000  # characters shown of one changed stretch, or of a question
_MARK = 30  # characters that the page spends on marking a stretch


@dataclass(frozen=True)
class Piece:
    """A stretch of a shown text. A `gap` stands for `left_out` characters, and says so."""

    kind: Literal["same", "changed", "gap"]
    text: str
    left_out: int = 0


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
                question=question_pieces(pair.prompt),
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


def optional_problems(path: Path) -> dict[str, Problem]:
    """The problems in `path` by id; none where there is no such file, since not every run keeps them."""
    return {problem.id: problem for problem in read_rows(path, Problem)} if path.exists() else {}


def question_pieces(prompt: Prompt) -> list[Piece]:
    """What is asked; of a chat every message with its role."""
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
        gap = _gap(left_out)
        ends = [Piece(kind, text[:head]), gap, Piece(kind, text[len(text) - tail :])]
        pieces += [piece for piece in ends if piece.text]
    return pieces


def fitted(pieces: Sequence[Piece], longest: int) -> list[Piece]:
    """Pieces within `longest` characters, each counted as `_MARK` more: what does not fit goes from the middle."""
    if sum(map(_cost, pieces)) <= longest:
        return list(pieces)
    head, rest = _taken(pieces, longest // 2, from_end=False)
    tail, middle = _taken(rest, longest // 2, from_end=True)
    return [*head, _gap(sum(piece.left_out or len(piece.text) for piece in middle)), *tail]


def _taken(pieces: Sequence[Piece], longest: int, *, from_end: bool) -> tuple[list[Piece], list[Piece]]:
    """What fits into `longest` from one end, and the rest; the piece at which it stops is cut."""
    left = list(pieces)
    taken: list[Piece] = []
    while left:
        piece = left[-1 if from_end else 0]
        if _cost(piece) > longest:
            room = longest - _MARK
            if piece.kind != "gap" and room > 0:
                cut = len(piece.text) - room if from_end else room
                first, second = Piece(piece.kind, piece.text[:cut]), Piece(piece.kind, piece.text[cut:])
                left[-1 if from_end else 0] = first if from_end else second
                taken.append(second if from_end else first)
            break
        longest -= _cost(piece)
        taken.append(left.pop(-1 if from_end else 0))
    return taken[:: -1 if from_end else 1], left


def _cost(piece: Piece) -> int:
    return len(piece.text) + _MARK


def _gap(left_out: int) -> Piece:
    return Piece("gap", f"{whole(left_out)} characters left out", left_out)
