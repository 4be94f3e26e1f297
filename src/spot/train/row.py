"""The packed row: pairs one after the other, the span that a pair's two answers share in it once.

A pair branches where its token ids first differ. Its stretch of the row is the shared span (prompt and the answers'
common beginning), then the rest of the chosen answer, then the rest of the rejected one; both go on at the position
where the shared span ends. A tail's last token is only ever predicted, never an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spot.train.tokenize import TokenizedPair

Side = Literal["chosen", "rejected"]
BOTH: tuple[Side, Side] = ("chosen", "rejected")


@dataclass(frozen=True)
class Stretch:
    """One pair's tokens in a row: how many are shared, how many more each tail has (the second may have none)."""

    shared: int
    first: int
    second: int

    @property
    def length(self) -> int:
        """All its tokens."""
        return self.shared + self.first + self.second


@dataclass(frozen=True)
class Heads:
    """What an attention call is given: how many heads, how wide, and the scale of their products."""

    num_query: int
    num_key: int
    width: int
    value_width: int
    scaling: float | None


@dataclass(frozen=True)
class Sequences:
    """A row as sequences of their own, two a pair, for kernels that take many of varied length.

    Queries stand in the row in this order already. `key_places`, int64, says which of the row's places are each
    sequence's keys; `query_ends` and `key_ends`, `(sequences + 1,)` int32, say where its queries and keys end.
    """

    key_places: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


def sequences(stretches: Sequence[Stretch], device: torch.device) -> Sequences:
    """The first answer of each stretch, then the second one's tail, whose keys are the shared span and itself."""
    places: list[Tensor] = []
    queries: list[int] = []
    begin = 0
    for stretch in stretches:
        shared, tail = begin + stretch.shared, begin + stretch.shared + stretch.first
        places.append(torch.arange(begin, tail))
        queries.append(tail - begin)
        if stretch.second:
            places.append(torch.cat([torch.arange(begin, shared), torch.arange(tail, tail + stretch.second)]))
            queries.append(stretch.second)
        begin += stretch.length
    keys = [len(place) for place in places]

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)

    return Sequences(torch.cat(places).to(device), ends(queries), ends(keys), max(queries), max(keys))


@dataclass
class PackedRow:
    """Pairs ready for one forward. All index tensors are int64 on one device.

    `input_ids` and `position_ids` are `(1, tokens)`. `scored` are the `(scores,)` places in the row whose hidden state
    predicts `targets`; `answers`, `(sides * pairs, longest)`, says which scores make up each answer, a side after the
    other, -1 on padding. `num_calls` counts the attention calls that saw this row, `heads` are the kinds of them.
    `varlen` asks for one attention call a row instead of two a pair.
    """

    stretches: list[Stretch]
    input_ids: Tensor
    position_ids: Tensor
    scored: Tensor
    targets: Tensor
    answers: Tensor
    num_calls: int = field(default=0)
    heads: set[Heads] = field(default_factory=set[Heads])
    varlen: bool = field(default=False)

    @cached_property
    def sequences(self) -> Sequences:
        """The row for kernels of varied length, on its device."""
        return sequences(self.stretches, self.input_ids.device)

    def to(self, device: torch.device) -> "PackedRow":
        """The same row on `device`."""
        names = ("input_ids", "position_ids", "scored", "targets", "answers")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack(pairs: Sequence["TokenizedPair"], sides: Sequence[Side] = BOTH) -> PackedRow:
    """Lay `pairs` out in one row; with one side, a pair is that answer after its prompt and nothing branches."""
    stretches: list[Stretch] = []
    input_ids: list[int] = []
    position_ids: list[int] = []
    scored: list[int] = []
    targets: list[int] = []
    answers: dict[Side, list[list[int]]] = {side: [] for side in sides}
    for pair in pairs:
        begin, first_score = len(input_ids), len(scored)
        completions = [pair.completion(side) for side in sides]
        # One side alone: all but its last token, which no input needs, counts as shared.
        common = pair.num_common if len(sides) == 2 else len(completions[0]) - 1
        shared = [*pair.prompt_ids, *completions[0][:common]]
        input_ids += shared
        position_ids += range(len(shared))
        last_shared = len(input_ids) - 1
        scored += range(begin + len(pair.prompt_ids) - 1, last_shared)
        targets += completions[0][:common]
        common_scores = list(range(first_score, len(scored)))
        tail_inputs = [0, 0]
        for number, (side, completion) in enumerate(zip(sides, completions, strict=True)):
            tail = completion[common:]
            tail_inputs[number] = len(tail) - 1
            # Both tails' first tokens are predicted from the last shared place.
            scored += [last_shared, *range(len(input_ids), len(input_ids) + len(tail) - 1)]
            position_ids += range(len(shared), len(shared) + len(tail) - 1)
            input_ids += tail[:-1]
            targets += tail
            answers[side].append([*common_scores, *range(len(targets) - len(tail), len(targets))])
        stretches.append(Stretch(len(shared), *tail_inputs))
    return PackedRow(
        stretches,
        torch.tensor([input_ids]),
        torch.tensor([position_ids]),
        torch.tensor(scored),
        torch.tensor(targets),
        _padded([row for side in sides for row in answers[side]]),
    )


def _padded(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
