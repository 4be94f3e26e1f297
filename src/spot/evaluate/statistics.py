"""Scores with their standard error, and paired differences with a 95% interval.

The question is the unit. Samples of one question are averaged first, so that sixteen samples of thirty questions count
as thirty observations and not as 480. An attempt scores 1 where it was verified as correct and 0 otherwise; truncated
and unscored ones score 0 too and are counted apart.

How the 95% intervals are made, for a single mean and for a paired difference alike:

* from 30 questions on, mean +- 1.96 standard errors (normal approximation);
* below 30, Student's t with n - 1 degrees of freedom takes the place of 1.96;
* where every question gave the same value, or there is only one, the observed spread is zero and would feign
  certainty. The interval then allows for the share of questions that may behave otherwise although none of the n did,
  `1 - 0.05 ** (1 / n)` (the exact form of the "rule of three"), each of them at either end of the scale.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from spot.errors import UserError
from spot.schema import Attempt

NORMAL_975 = 1.959964
# 97.5% quantiles of Student's t for 1 to 28 degrees of freedom: 2 to 29 questions.
STUDENT_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448),
    *(2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484),
)
_NO_SPREAD = 1e-9  # below this a standard error is rounding, not spread


@dataclass(frozen=True)
class Score:
    """Accuracy in [0, 1] over `n` questions; `stderr` is `None` for a single question, which shows no spread.

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


@dataclass(frozen=True)
class Difference:
    """After minus before in [-1, 1], averaged over the same `n` questions, with its 95% interval.

    `better` and `worse` count the questions that rose and fell; the others stayed as they were.
    """

    mean: float
    low: float
    high: float
    n: int
    better: int
    worse: int


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
    return Score(
        mean=fmean(means),
        stderr=_stderr(means),
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


def compare(before: Sequence[Attempt], after: Sequence[Attempt]) -> Difference:
    """The paired difference, after minus before, question by question.

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
    differences = [new[problem_id] - old[problem_id] for problem_id in old]
    mean = fmean(differences)
    low, high = _bounds(mean, _stderr(differences), len(differences), -1.0)
    better, worse = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    return Difference(mean, low, high, len(differences), better, worse)


def interval(mean: float, stderr: float | None, n: int) -> tuple[float, float]:
    """The 95% interval of an accuracy in [0, 1] from its standard error over `n` questions."""
    return _bounds(mean, stderr, n, 0.0)


def _stderr(values: Sequence[float]) -> float | None:
    """The standard error of the mean; the sums are exact, so the order of `values` does not matter."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def _bounds(mean: float, stderr: float | None, n: int, lowest: float) -> tuple[float, float]:
    """The interval on a scale from `lowest` to 1, as the module's docstring says."""
    if stderr is None or stderr < _NO_SPREAD:
        share = 1 - 0.05 ** (1 / n)
        return mean - share * (mean - lowest), mean + share * (1 - mean)
    width = stderr * (NORMAL_975 if n >= 30 else STUDENT_975[n - 2])
    return max(lowest, mean - width), min(1.0, mean + width)
