"""Which pairs run together: a step's pairs cut into packed rows of at most a token budget, over all ranks.

A packed row holds nothing but tokens that have to run, so its length is its cost. All ranks of a step get the same
number of rows: with one more module call on one rank, the others would wait for it for ever.
"""

import heapq
import math
from collections.abc import Sequence

Plan = list[list[list[int]]]
"""By rank, its rows; each row the indices of the pairs in it. A row may be empty where pairs are few."""


def plan_step(lengths: Sequence[int], budget: int, num_ranks: int = 1) -> Plan:
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
    rows_a_rank = max(1, math.ceil(sum(lengths) / (budget * num_ranks)))
    while True:
        rows = _spread(lengths, order, rows_a_rank * num_ranks)
        if max(sum(lengths[index] for index in row) for row in rows) <= budget:
            return [rows[rank::num_ranks] for rank in range(num_ranks)]
        rows_a_rank += 1


def _spread(lengths: Sequence[int], order: Sequence[int], num_rows: int) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    fill = [(0, row) for row in range(num_rows)]
    for index in order:
        tokens, row = heapq.heappop(fill)
        rows[row].append(index)
        heapq.heappush(fill, (tokens + lengths[index], row))
    # Sorted by fill, so that the ranks, which take rows in turn, run rows of like length at the same time.
    return sorted(rows, key=lambda row: -sum(lengths[index] for index in row))


def fill(plan: Plan, lengths: Sequence[int]) -> float:
    """The share of the step's token slots that hold a token: ranks wait for the longest row among them."""
    loads = [[sum(lengths[index] for index in row) for row in rows] for rows in plan]
    slots = sum(max(row) for row in zip(*loads, strict=True)) * len(plan)
    return sum(map(sum, loads)) / slots if slots else 1.0
