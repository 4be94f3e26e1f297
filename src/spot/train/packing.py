"""Which pairs run together: micro-batches of similar lengths under a budget of padded tokens."""

from collections.abc import Sequence

OVERHEAD_TOKENS = 256
"""What one more micro-batch costs beside its tokens (launching, small products), in tokens."""


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut a step's pairs into micro-batches; returns indices into `lengths`, each index once.

    `lengths[i]` is the length of pair `i`'s longer sequence; a micro-batch of `n` pairs holds `2 * n` rows padded to
    its longest one and at most `budget` tokens. Sorted by length, the cuts are those of least total cost (padded
    tokens plus `OVERHEAD_TOKENS` a micro-batch), so that few large micro-batches win until padding costs more. The
    result depends on `lengths` alone. Raises `ValueError` where one pair alone exceeds the budget.
    """
    if not lengths:
        return []
    if 2 * max(lengths) > budget:
        raise ValueError(
            f"a pair of 2 x {max(lengths)} tokens does not fit into micro_batch_tokens={budget}; "
            f"set micro_batch_tokens to at least {2 * max(lengths)}, or max_length lower"
        )
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    # best[end]: the least cost of order[:end], and where its last micro-batch starts.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        earliest = max(0, end - budget // (2 * longest))
        best.append(
            min(
                (best[start][0] + 2 * (end - start) * longest + OVERHEAD_TOKENS, start)
                for start in range(earliest, end)
            )
        )
    cuts: list[list[int]] = []
    end = len(order)
    while end > 0:
        start = best[end][1]
        cuts.append(order[start:end])
        end = start
    return cuts[::-1]
