import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.evaluate.comparison import Accuracy, Change, TaskResult
from spot.report.prose import account, duration, listed, one_line, outcome, percent, points, size
from spot.report.summary import Counts, Summary, read_summary


def task(before: float, after: float, low: float, high: float, n: int = 400) -> TaskResult:
    return TaskResult(
        before=Accuracy(mean=before, stderr=0.02, n=n),
        after=Accuracy(mean=after, stderr=0.02, n=n),
        difference=Change(mean=after - before, low=low, high=high, n=n),
    )


@pytest.fixture
def summary(new_run: Callable[..., Path]) -> Summary:
    return read_summary(new_run(questions=2) / "summary.json")


def said(summary: Summary, **tasks: TaskResult) -> str:
    return " ".join(outcome(summary.model_copy(update={"evaluation": tasks})))


def test_a_rise_is_claimed_only_where_the_interval_excludes_zero(summary: Summary) -> None:
    shown = said(summary, ood=task(0.5, 0.6, 0.02, 0.18))
    assert (
        shown == "Accuracy rose on out-of-domain questions (50.0% to 60.0%, +10.0 points, 95% interval +2.0 to +18.0)."
    )
    not_shown = said(summary, ood=task(0.5, 0.6, -0.02, 0.22))
    assert "rose" not in not_shown
    assert "No significant change on out-of-domain questions" in not_shown
    assert "a drop of up to 2.0 points is not ruled out" in not_shown


def test_a_fall_is_said_as_plainly_as_a_rise(summary: Summary) -> None:
    text = said(summary, a=task(0.5, 0.6, 0.02, 0.18), b=task(0.9, 0.8, -0.12, -0.08))
    assert "Accuracy fell on b (90.0% to 80.0%, −10.0 points, 95% interval −12.0 to −8.0)." in text
    assert "No significant drop" not in text


def test_a_slice_that_fell_is_not_hidden_by_its_task(summary: Summary) -> None:
    whole = task(0.5, 0.6, 0.02, 0.18)
    text = said(summary, a=whole.model_copy(update={"slices": {"unseen": task(0.5, 0.4, -0.18, -0.02)}}))
    assert "Within a, “unseen” fell (50.0% to 40.0%" in text


def test_few_questions_are_pointed_out(summary: Summary) -> None:
    assert "Fewer than 30 questions, so read with care: a (29)." in said(summary, a=task(0.1, 0.9, 0.5, 1, n=29))
    assert "Fewer" not in said(summary, a=task(0.1, 0.9, 0.5, 1, n=30))


def test_many_tasks_leave_intervals_to_the_table(summary: Summary) -> None:
    text = said(summary, **{f"t{i}": task(0.5, 0.6, 0.02, 0.18) for i in range(9)})
    assert "t0 (+10.0 points)" in text
    assert "interval" not in text


def test_no_evaluation_is_said(summary: Summary) -> None:
    assert "does not show" in said(summary)


def test_the_account_names_every_kind_of_answer(summary: Summary) -> None:
    first = account(summary)[0]
    assert first == (
        "lab-student answered 2,000 problems; 1,641 were wrong, 35 ran into the length limit, "
        "and 12 could not be scored."
    )


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"truncated": 0, "unscored": 0, "wrong": 1}, "lab-student answered 2,000 problems; 1 was wrong."),
        ({"problems": 1000}, "lab-student gave 2,000 answers to 1,000 problems;"),
        ({"problems": 0}, "2,000 answers by lab-student were taken in;"),
    ],
)
def test_the_account_fits_its_numbers(summary: Summary, changes: dict[str, int], start: str) -> None:
    counts = Counts.model_validate(json.loads(summary.counts.model_dump_json()) | changes)
    assert account(summary.model_copy(update={"counts": counts}))[0].startswith(start)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.949, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (3599.7, "1 h 0 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1 KiB"), (10**6, "977 KiB"), (1_234_567_890, "1.1 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


@given(st.floats(-1, 1))
def test_points_have_a_sign_unless_they_read_as_zero(value: float) -> None:
    text = points(value)
    assert float(text.replace("−", "-")) == pytest.approx(100 * value, abs=0.0501)
    assert text == "0.0" or text[0] in "+−"
    assert text not in ("+0.0", "−0.0")


def test_percent_rounds_to_a_tenth() -> None:
    assert [percent(value) for value in (0, 0.4849, 1)] == ["0.0%", "48.5%", "100.0%"]


@given(st.text(), st.integers(2, 50))
def test_one_line_is_one_printable_line_of_at_most_the_limit(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1
    assert "\x1b" not in line


def test_lists_in_a_sentence() -> None:
    assert [listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b, and c"]
