"""How much of an answer a correction changed, over tokens."""

from collections.abc import Sequence

from rapidfuzz.distance import LCSseq, Levenshtein

SHORTENED = 0.7
"""A chosen answer with less than this share of the rejected one's tokens is flagged: eq. 1 does not see deletions."""


def lcs_length(rejected_ids: Sequence[int], chosen_ids: Sequence[int]) -> int:
    """Tokens in the longest common subsequence of both answers."""
    # Lists: rapidfuzz reads arrays at half their speed.
    return LCSseq.similarity(list(rejected_ids), list(chosen_ids))


def change_ratio(rejected_ids: Sequence[int], chosen_ids: Sequence[int]) -> float:
    """Eq. 1: `1 - |LCS(rejected, chosen)| / |chosen|`, the share of the chosen answer's tokens that are new.

    0 where the chosen answer is a subsequence of the rejected one (a pure deletion too, however long: look at the
    lengths as well), 1 where they share nothing. Raises `ValueError` for an empty chosen answer.
    """
    if not chosen_ids:
        raise ValueError("the chosen answer has no tokens")
    return 1.0 - lcs_length(rejected_ids, chosen_ids) / len(chosen_ids)


def edit_distance(rejected_ids: Sequence[int], chosen_ids: Sequence[int]) -> float:
    """Levenshtein distance over the longer answer's tokens: 0 for the same answers, 1 where no token stays in place.

    Deletions count, which eq. 1 does not see. Raises `ValueError` where both answers are empty.
    """
    if not rejected_ids and not chosen_ids:
        raise ValueError("neither answer has tokens")
    return Levenshtein.normalized_distance(list(rejected_ids), list(chosen_ids))
