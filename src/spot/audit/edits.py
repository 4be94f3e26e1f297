"""What a correction changed, pair by pair and over all of them."""

import math
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein, Postfix, Prefix

from spot.audit.summary import BINS, Edits, EditSummary, spread
from spot.pairs.change import SHORTENED, lcs_length


def edits(rejected_ids: Sequence[int], chosen_ids: Sequence[int]) -> Edits:
    """Compare the token ids of two answers; raises `ValueError` where one of them has none."""
    rejected, chosen = list(rejected_ids), list(chosen_ids)
    if not rejected or not chosen:
        raise ValueError("an answer has no tokens")
    longer, shorter = max(len(rejected), len(chosen)), min(len(rejected), len(chosen))
    common = lcs_length(rejected, chosen)
    distance = Levenshtein.distance(rejected, chosen)
    prefix = Prefix.similarity(rejected, chosen)
    return Edits(
        rejected_tokens=len(rejected),
        chosen_tokens=len(chosen),
        change_ratio=1 - common / len(chosen),
        lcs_distance=1 - common / longer,
        edits=distance,
        edit_distance=distance / longer,
        shared_prefix=prefix,
        # What is in the prefix is not in the suffix too: "a a" and "a a a" share two tokens, not four.
        shared_suffix=min(Postfix.similarity(rejected, chosen), shorter - prefix),
        first_edit=prefix / len(rejected),
        length_ratio=len(chosen) / len(rejected),
        shortened=len(chosen) < SHORTENED * len(rejected),
    )


def summarise_edits(rows: Sequence[Edits]) -> EditSummary:
    """All pairs together."""
    ratios, distances = [row.change_ratio for row in rows], [row.edit_distance for row in rows]
    return EditSummary(
        change_ratio=spread(ratios),
        lcs_distance=spread([row.lcs_distance for row in rows]),
        edit_distance=spread(distances),
        first_edit=spread([row.first_edit for row in rows]),
        shared_prefix=spread([row.shared_prefix for row in rows]),
        shared_suffix=spread([row.shared_suffix for row in rows]),
        length_ratio=spread([row.length_ratio for row in rows]),
        shortened=sum(row.shortened for row in rows),
        change_ratio_bins=binned(ratios),
        edit_distance_bins=binned(distances),
        earlier_with_ratio=rank_correlation(ratios, [row.first_edit for row in rows]),
    )


def binned(values: Sequence[float]) -> list[int]:
    """How many of `values`, from 0 to 1, are in each of `BINS` bins; 0 is in the first."""
    counts = [0] * BINS
    for value in values:
        # Rounding undoes 0.55 * 20 = 11.000000000000002.
        counts[max(0, math.ceil(round(value * BINS, 9)) - 1)] += 1
    return counts


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's: the correlation of ranks, ties at their mean; `None` where one side is all the same."""
    left, right = _ranks(first), _ranks(second)
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
