"""Scores with their standard error, and 95% intervals for accuracies and for paired differences.

The question is the unit. Samples of one question are averaged first, so that sixteen samples of thirty questions count
as thirty observations and not as 480. An attempt scores 1 where it was verified as correct and 0 otherwise; truncated
and unscored ones score 0 too and are counted apart.

Both intervals are percentiles of a Bayesian bootstrap with one question more than were asked. A replicate gives the n
questions and that unseen one random weights that sum to 1 (uniform on the simplex). What nobody saw may be extreme:

* in the interval of an accuracy the unseen question is all wrong in three quarters of the replicates of the lower bound
  and all right in the rest, for the upper bound the other way round. With one sample a question this lies halfway
  between the mid-P and the Clopper-Pearson interval of a binomial share (with half, and with all, it is these two);
* in that of a difference the unseen question stood before where one of those asked did, give or take one sample, and
  its answers after are all wrong in half of the replicates and all right in the others. Where the samples of every
  question agree they tell no more than one sample would.

The unseen question weighs 1/(n+1) on average, so it matters where questions are few or all alike: of 30 questions of
which none fell, up to one in ten may fall. Replicates are the same for all data of n questions and their weights are
positive, so both bounds of a difference rise, or stay, when any answer after is raised. (Gaffke 2005 and Learned-Miller
and Thomas 2019, arXiv 1905.06208, bound means by such weights; Rubin 1981 is the bootstrap.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

import numpy as np

from spot.errors import UserError
from spot.schema import Attempt

REPLICATES = 10_000
ALL_WRONG = 0.75
"""In how many of the replicates of an accuracy's lower bound the unseen question is all wrong."""
LOW, HIGH = 0.025, 0.975
ROUNDING = 1e-12
_BLOCKS = 256

NORMAL_975 = 1.959964
# 97.5% quantiles of Student's t for 1 to 28 degrees of freedom.
STUDENT_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448),
    *(2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484),
)


@dataclass(frozen=True)
class Score:
    """Accuracy in [0, 1] over `n` questions and its 95% interval; a single question shows no spread (`stderr` `None`).

    Of the `samples`, which all score 0: `truncated` were cut off, in `unanswered` no answer could be read, `unscored`
    could not be judged.
    """

    mean: float
    stderr: float | None
    n: int
    samples: int
    truncated: int
    unscored: int
    unanswered: int = 0
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Difference:
    """After minus before in [-1, 1], averaged over the same `n` questions, with its 95% interval.

    `better` and `worse` count the questions that rose and fell. `gained` are those that went from wrong to right
    (0->1), `lost` those from right to wrong (1->0); of several samples a question is right where more than half are.
    """

    mean: float
    low: float
    high: float
    n: int
    better: int
    worse: int
    gained: int
    lost: int
    replicates: np.ndarray = field(repr=False, compare=False)


def direction(low: float, high: float) -> Literal["rose", "fell", "level"]:
    """`rose` or `fell` where the interval from `low` to `high` excludes zero, else `level`."""
    return "rose" if low > 0 else "fell" if high < 0 else "level"


def question_means(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Each question's share of correct samples, by problem id in order of first appearance."""
    return {
        problem_id: fmean(float(attempt.outcome == "correct") for attempt in values)
        for problem_id, values in _by_question(attempts).items()
    }


def score(attempts: Sequence[Attempt]) -> Score:
    """Mean accuracy and its standard error over questions. Raises `UserError` where there is nothing to score."""
    means = list(question_means(attempts).values())
    if not means:
        raise UserError("no attempts to score; evaluate on at least one question")
    low, high = accuracy_interval(means)
    return Score(
        mean=fmean(means),
        stderr=_stderr(means),
        low=low,
        high=high,
        n=len(means),
        samples=len(attempts),
        truncated=sum(attempt.outcome == "truncated" for attempt in attempts),
        unscored=sum(attempt.outcome == "unscored" for attempt in attempts),
        unanswered=sum(is_unanswered(attempt) for attempt in attempts),
    )


def is_unanswered(attempt: Attempt) -> bool:
    """Whether an answer that was not cut off was judged wrong because none could be read in it."""
    return attempt.outcome == "wrong" and attempt.verdict.answer is None


def share(parts: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[float, float | None]:
    """The sum of the first over that of the second, over the parts of each question, and its standard error.

    The unit is the question here, too: the error is that of a ratio of means over questions (linearised), which for
    wholes that are all alike is the one of `score`. `None` where one question alone shows no spread.
    """
    sums = [(math.fsum(got for got, _ in some), math.fsum(whole for _, whole in some)) for some in parts.values()]
    whole = math.fsum(one for _, one in sums)
    if not whole:
        raise UserError("no attempts to score; evaluate on at least one question")
    ratio = math.fsum(got for got, _ in sums) / whole
    if len(sums) < 2:
        return ratio, None
    residuals = math.fsum((got - ratio * one) ** 2 for got, one in sums)
    return ratio, math.sqrt(residuals * len(sums) / (len(sums) - 1)) / whole


def pass_at(k: int, attempts: Sequence[Attempt]) -> float:
    """The chance that `k` answers to a question, drawn from its samples without replacement, hold a correct one.

    The unbiased estimate of Chen et al. 2021 (arXiv 2107.03374), the mean over questions. Raises `ValueError` where a
    question has fewer than `k` samples.
    """
    chances: list[float] = []
    for values in _by_question(attempts).values():
        n, correct = len(values), sum(attempt.outcome == "correct" for attempt in values)
        if n < k:
            raise ValueError(f"{k} of {n} samples")
        chances.append(1.0 - math.comb(n - correct, k) / math.comb(n, k))
    return fmean(chances)


def majority(attempts: Sequence[Attempt]) -> float:
    """The share of questions whose most frequent answer is correct (maj@k over all k samples).

    Answers are alike where they are written alike; of equally frequent ones each counts in part. Answers that could not
    be read or were cut off have no say, and a question without any other is wrong.
    """
    shares: list[float] = []
    for values in _by_question(attempts).values():
        votes: dict[str, list[bool]] = {}
        for attempt in values:
            if attempt.verdict.answer is not None and attempt.outcome in ("correct", "wrong"):
                votes.setdefault("".join(attempt.verdict.answer.split()), []).append(attempt.outcome == "correct")
        most = max(map(len, votes.values()), default=0)
        winners = [fmean(found) for found in votes.values() if len(found) == most]
        shares.append(fmean(winners) if winners else 0.0)
    return fmean(shares)


def _by_question(attempts: Sequence[Attempt]) -> dict[str, list[Attempt]]:
    grouped: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        grouped.setdefault(attempt.problem_id, []).append(attempt)
    return grouped


def compare(before: Sequence[Attempt], after: Sequence[Attempt], seed: int = 0) -> Difference:
    """The paired difference, after minus before, question by question; `seed` decides the replicates.

    The number of samples may differ between the two sides. Raises `UserError` unless both hold the same questions.
    """
    old, new = question_means(before), question_means(after)
    if old.keys() != new.keys():
        only_before, only_after = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
        raise UserError(
            f"before and after hold different questions ({len(only_before)} only before, {len(only_after)} only after,"
            f" such as {(only_before or only_after)[0]!r}); evaluate both on the same problems"
        )
    if not old:
        raise UserError("no attempts to compare; evaluate on at least one question")
    pairs = [(value, new[problem_id]) for problem_id, value in old.items()]
    sides = np.array(pairs).T
    drawn = difference_replicates(sides[0], sides[1], max(1, len(before) // len(old)), np.random.default_rng(seed))
    mean = fmean(new - old for old, new in pairs)
    low, high = percentiles(drawn, mean)
    return Difference(
        mean,
        low,
        high,
        n=len(pairs),
        better=sum(new - old > ROUNDING for old, new in pairs),
        worse=sum(old - new > ROUNDING for old, new in pairs),
        gained=sum(old <= 0.5 < new for old, new in pairs),
        lost=sum(new <= 0.5 < old for old, new in pairs),
        replicates=drawn,
    )


def percentiles(replicates: np.ndarray, mean: float) -> tuple[float, float]:
    """The 95% interval that `replicates` give; it holds the `mean` that they stand for."""
    low, high = np.quantile(replicates, (LOW, HIGH))
    return min(float(low), mean), max(float(high), mean)


def accuracy_interval(means: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of an accuracy from the questions' shares of correct samples, each in [0, 1]."""
    low, high = accuracy_bounds(np.asarray(means, dtype=float))
    mean = fmean(means)
    return min(max(0.0, float(low)), mean), max(min(1.0, float(high)), mean)


def accuracy_bounds(means: np.ndarray) -> np.ndarray:
    """The ends of the 95% intervals of `means`, whose first axis are the questions: the other axes, after one of 2."""
    drawn, unseen = _weighted(np.sort(means, axis=0), np.random.default_rng(0))
    worst = np.arange(REPLICATES) < ALL_WRONG * REPLICATES
    ends = (
        np.quantile(drawn + _along(unseen * right, drawn), q, axis=0) for right, q in ((~worst, LOW), (worst, HIGH))
    )
    return np.stack(list(ends))


def difference_replicates(before: np.ndarray, after: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """`REPLICATES` draws of the mean difference, after minus before, of questions with `samples` answers before.

    The percentiles `LOW` and `HIGH` are its interval. Both sides have the questions on their first axis, in any order;
    the result has the replicates there.
    """
    drawn, unseen = _weighted(np.sort(after - before, axis=0), rng)
    # Samples that never disagree tell no more than one would; where nothing was right, nothing can fall.
    alike = np.all((before == 0) | (before == 1), axis=0) & np.any(before == 1, axis=0)
    step = np.where(alike, 1.0, 1.0 / samples)
    # Evenly spread over the questions, in an order of its own.
    stood = np.sort(before, axis=0)[rng.permutation(REPLICATES) * len(before) // REPLICATES]
    falls = _along(rng.permutation(REPLICATES) % 2 == 0, drawn)
    ends = np.where(falls, -np.minimum(1.0, stood + step), 1.0 - np.maximum(0.0, stood - step))
    return drawn + _along(unseen, drawn) * ends


def _weighted(values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The weighted sums of sorted `values` over their first axis in each replicate, and the weight left for one more.

    Of many values neighbours are nearly equal, so their mean stands for them with the sum of their weights.
    """
    blocks = min(len(values), _BLOCKS)
    edges = np.arange(blocks + 1) * len(values) // blocks
    sizes = np.diff(edges)
    means = np.add.reduceat(values, edges[:-1], axis=0) / _along(sizes, values)
    weights = rng.standard_gamma([*sizes, 1.0], size=(REPLICATES, blocks + 1))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, :-1] @ means, weights[:, -1]


def _along(row: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`row` as the first axis of what has the axes of `like`."""
    return row.reshape(-1, *(1,) * (like.ndim - 1))


def interval(mean: float, stderr: float | None, n: int) -> tuple[float, float]:
    """The 95% interval of a share in [0, 1] of which only a standard error over `n` units is known.

    Student's t over the n units and one that nobody saw, which is 0 for the lower bound and 1 for the upper: so the
    interval has a width where all units gave the same value, and reaches further towards the end that is further away.
    """
    squares = 0.0 if stderr is None else stderr**2 * (n - 1)  # of the units' differences from their mean, over n
    quantile = STUDENT_975[n - 1] if n <= len(STUDENT_975) else NORMAL_975

    def bound(unseen: float, side: int) -> float:
        center = (n * mean + unseen) / (n + 1)
        return center + side * quantile * math.sqrt((squares + (mean - unseen) ** 2 / (n + 1)) / (n + 1))

    return min(max(0.0, bound(0.0, -1)), mean), max(min(1.0, bound(1.0, 1)), mean)


def _stderr(values: Sequence[float]) -> float | None:
    """The standard error of the mean; the sums are exact, so the order of `values` does not matter."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
