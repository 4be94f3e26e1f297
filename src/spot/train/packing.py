"""Which pairs run together: a step's pairs cut into packed rows of at most a token budget, over all ranks.

A packed row holds nothing but tokens that have to run, so its length is its cost; where pairs are padded instead, a row
costs its longest pair times their number. All ranks of a step get the same
number of rows: with one more module call on one rank, the others would wait for it for ever.
"""

import heapq
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spot.train.tokenize import TokenizedPair

Plan = list[list[list[int]]]
"""By rank, its rows; each row the indices of the pairs in it. A row may be empty where pairs are few."""


def plan_step(lengths: Sequence[int], budget: int, num_ranks: int = 1, *, padded: bool = False) -> Plan:
    """Cut a step into rows: the fewest a rank that fit `budget`, and those as even as can be.

    `lengths[i]` is the number of tokens that pair `i` runs. The longest pairs are placed first, each into the row with
    the most room. The result depends on the arguments alone, so every rank makes the same plan by itself. Raises
    `ValueError` where one pair alone exceeds the budget.
    """
    if max(lengths, default=0) > budget:
        raise ValueError(
            f"a pair of {max(lengths)} tokens does not fit into micro_batch_tokens={budget}; "
            f"set micro_batch_tokens to at least {max(lengths)}, or max_length lower"
        )
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    if padded:
        rows = _padded(lengths, order, budget)
        rows += [[] for _ in range(-len(rows) % num_ranks or (0 if rows else num_ranks))]
        return [rows[rank::num_ranks] for rank in range(num_ranks)]
    rows_a_rank = max(1, math.ceil(sum(lengths) / (budget * num_ranks)))
    while True:
        rows = _spread(lengths, order, rows_a_rank * num_ranks)
        if max(sum(lengths[index] for index in row) for row in rows) <= budget:
            return [rows[rank::num_ranks] for rank in range(num_ranks)]
        rows_a_rank += 1


def shortest(pairs: Sequence["TokenizedPair"]) -> int:
    """The place of the pair that a rank runs, for nothing, where no row is left for it."""
    return min(range(len(pairs)), key=lambda place: pairs[place].length)


def _padded(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for index in order:
        if rows and (len(rows[-1]) + 1) * lengths[rows[-1][0]] <= budget:
            rows[-1].append(index)
        else:
            rows.append([index])
    return rows


def _spread(lengths: Sequence[int], order: Sequence[int], num_rows: int) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    fill = [(0, row) for row in range(num_rows)]
    for index in order:
        tokens, row = heapq.heappop(fill)
        rows[row].append(index)
        heapq.heappush(fill, (tokens + lengths[index], row))
    # Sorted by fill, so that the ranks, which take rows in turn, run rows of like length at the same time.
    return sorted(rows, key=lambda row: -sum(lengths[index] for index in row))
