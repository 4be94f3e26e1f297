"""How much of an answer a correction changed, over tokens."""

from collections.abc import Sequence

from rapidfuzz.distance import LCSseq


def change_ratio(rejected_ids: Sequence[int], chosen_ids: Sequence[int]) -> float:
    """Eq. 1: `1 - |LCS(rejected, chosen)| / |chosen|`, the share of the chosen answer's tokens that are new.

    0 where the chosen answer is a subsequence of the rejected one (a pure deletion too, however long: look at the
    lengths as well), 1 where they share nothing. Raises `ValueError` for an empty chosen answer.
    """
    if not chosen_ids:
        raise ValueError("the chosen answer has no tokens")
    return 1.0 - LCSseq.similarity(list(rejected_ids), list(chosen_ids)) / len(chosen_ids)
