import math
import random
from collections.abc import Sequence
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.errors import UserError
from spot.evaluate.statistics import (
    STUDENT_975,
    compare,
    direction,
    interval,
    question_means,
    score,
)
from spot.schema import Attempt, FinishReason, Verdict

Samples = Sequence[bool | None]


def attempt(question: str, sample: int, correct: bool | None, finish: FinishReason = "stop") -> Attempt:
    return Attempt(
        id=f"{question}#{sample}",
        problem_id=question,
        sample=sample,
        response="",
        finish_reason=finish,
        verdict=Verdict(correct=correct),
        model="m",
    )


def attempts(questions: Sequence[Samples]) -> list[Attempt]:
    return [attempt(f"q{i}", k, right) for i, samples in enumerate(questions) for k, right in enumerate(samples)]


samples = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=4)
both_sides = st.lists(st.tuples(samples, samples), min_size=1, max_size=35)
few = settings(max_examples=40, deadline=None)


@few
@given(both_sides)
def test_a_side_compared_with_itself_does_not_differ(sides: list[tuple[Samples, Samples]]) -> None:
    side = attempts([before for before, _ in sides])
    same = compare(side, side)
    assert same.mean == 0
    assert same.low <= 0 <= same.high
    assert (same.better, same.worse) == (0, 0)


@few
@given(both_sides)
def test_swapping_the_sides_flips_the_difference(sides: list[tuple[Samples, Samples]]) -> None:
    before, after = (attempts([pair[side] for pair in sides]) for side in (0, 1))
    there, back = compare(before, after), compare(after, before)
    assert there.mean == pytest.approx(-back.mean, abs=1e-12)
    assert (there.better, there.worse) == (back.worse, back.better)
    assert (there.gained, there.lost) == (back.lost, back.gained)


@few
@given(both_sides, st.randoms(use_true_random=False))
def test_the_order_of_rows_is_irrelevant(sides: list[tuple[Samples, Samples]], rng: random.Random) -> None:
    before, after = (attempts([pair[side] for pair in sides]) for side in (0, 1))
    shuffled_before, shuffled_after = rng.sample(before, len(before)), rng.sample(after, len(after))
    assert score(shuffled_before) == score(before)
    assert compare(shuffled_before, shuffled_after) == compare(before, after)


@few
@given(both_sides)
def test_the_difference_of_means_lies_in_its_interval(sides: list[tuple[Samples, Samples]]) -> None:
    before, after = (attempts([pair[side] for pair in sides]) for side in (0, 1))
    difference = compare(before, after)
    assert difference.mean == pytest.approx(score(after).mean - score(before).mean, abs=1e-12)
    assert -1 <= difference.low <= difference.mean <= difference.high <= 1
    assert difference.low < difference.high  # no finite number of questions makes it certain


@few
@given(st.lists(samples, min_size=1, max_size=40))
def test_an_accuracys_interval_stays_on_its_scale(questions: list[Samples]) -> None:
    result = score(attempts(questions))
    assert 0 <= result.low <= result.mean <= result.high <= 1
    assert result.low < result.high


@few
@given(st.lists(samples, min_size=1, max_size=20), st.integers(2, 4))
def test_repeating_every_sample_adds_no_information(questions: list[Samples], times: int) -> None:
    once, repeated = score(attempts(questions)), score(attempts([list(row) * times for row in questions]))
    assert repeated.mean == pytest.approx(once.mean)
    assert repeated.n == once.n
    assert repeated.samples == once.samples * times
    assert repeated.stderr == (None if once.stderr is None else pytest.approx(once.stderr, abs=1e-12))


def test_a_question_counts_once_however_many_samples_it_has() -> None:
    rows = attempts([[True, True, True, True], [False]])
    assert question_means(rows) == {"q0": 1, "q1": 0}
    assert score(rows).mean == 0.5


def test_standard_error_is_that_of_the_question_means() -> None:
    questions = [[True, False], [True, True], [False, False], [True, False], [False, True]]
    means = [0.5, 1.0, 0.0, 0.5, 0.5]
    result = score(attempts(questions))
    assert result.mean == pytest.approx(fmean(means))
    assert result.stderr == pytest.approx(stdev(means) / math.sqrt(5))


def test_truncated_and_unscored_score_zero_and_are_counted_apart() -> None:
    rows = [
        attempt("a", 0, True),
        attempt("b", 0, True, finish="length"),  # cut off: whatever it says was not finished
        attempt("c", 0, None),
        attempt("d", 0, False),
        attempt("e", 0, None, finish="error"),
    ]
    result = score(rows)
    assert (result.mean, result.truncated, result.unscored, result.samples) == (0.2, 1, 2, 5)


def test_different_questions_are_refused_with_an_example() -> None:
    with pytest.raises(UserError, match=r"1 only before, 2 only after, such as 'q1'"):
        compare([attempt("q0", 0, True), attempt("q1", 0, True)], [attempt(q, 0, True) for q in ("q0", "q2", "q3")])


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(UserError, match="no attempts"):
        score([])
    with pytest.raises(UserError, match="no attempts"):
        compare([], [])


def test_one_question_shows_no_standard_error_and_almost_no_bounds() -> None:
    result = score(attempts([[True]]))
    assert result.stderr is None
    assert (result.low, result.high) == pytest.approx((0.025 / 0.75, 1), abs=0.01)
    assert interval(result.mean, result.stderr, result.n) == (0, 1)


def test_no_spread_follows_the_rule_of_three() -> None:
    same = compare(attempts([[True]] * 300), attempts([[True]] * 300))
    assert same.high == pytest.approx(3 / 300, rel=0.05)
    assert same.low == pytest.approx(-3 / 300, rel=0.05)


def test_transitions_count_questions_and_not_samples() -> None:
    before = attempts([[True], [False], [True, True, False], [False, True], [True, False, False], [True]])
    after = attempts([[False], [True], [False, False, True], [True, True], [True, True, True], [True]])
    found = compare(before, after)
    assert (found.gained, found.lost) == (3, 2)  # half right is not right: 2 of 4 is 0, so question 3 gained
    assert (found.better, found.worse) == (3, 2)


def test_equal_differences_of_unequal_floats_count_as_no_spread() -> None:
    before = attempts([[True, False, False, False, False], [True, True, False, False, False]] * 20)
    after = attempts([[True, True, True, False, False], [True, True, True, True, False]] * 20)
    difference = compare(before, after)  # 0.6 - 0.2 and 0.8 - 0.4 differ in their last bit
    assert difference.high - difference.low > 0.01


def test_direction_needs_an_interval_without_zero() -> None:
    assert [direction(0.01, 0.2), direction(-0.2, -0.01), direction(-0.1, 0.2), direction(0, 0.2)] == [
        "rose", "fell", "level", "level",
    ]  # fmt: skip


def test_students_quantiles_by_integrating_the_density() -> None:
    for freedom, quantile in enumerate(STUDENT_975, start=1):
        scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
        steps = 4000
        width = quantile / steps
        density = [scale * (1 + (k * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for k in range(steps + 1)]
        simpson = width / 3 * (density[0] + density[-1] + 4 * sum(density[1::2]) + 2 * sum(density[2:-1:2]))
        assert 0.5 + simpson == pytest.approx(0.975, abs=1e-5)


def test_the_interval_agrees_with_a_bootstrap_over_questions() -> None:
    rng = random.Random(3)
    sides = [
        [[rng.random() < chance for _ in range(2)] for _ in range(300)]
        for chance in (0.4, 0.5)
    ]  # fmt: skip
    before, after = attempts(sides[0]), attempts(sides[1])
    old, new = question_means(before), question_means(after)
    differences = [new[question] - old[question] for question in old]
    resampled = sorted(fmean(rng.choices(differences, k=len(differences))) for _ in range(2000))
    difference = compare(before, after)
    assert difference.low == pytest.approx(resampled[50], abs=0.01)
    assert difference.high == pytest.approx(resampled[1950], abs=0.01)
