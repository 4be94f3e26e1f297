"""A judge against labels: numbers worked out by hand, identities, and labels that cannot be used."""

import json
import math
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from spot.audit.agreement import (
    Counts,
    LabelledStep,
    accuracy,
    agreement,
    compared,
    estimate,
    kappa,
    precision,
    read_labels,
    recall,
)
from spot.errors import UserError
from spot.evaluate.statistics import interval

# 20 steps in two rows; wrong in both, by the judge alone, by the label alone, right in both.
ROWS = [Counts(2, 0, 1, 7, kinds=2, same_kind=1), Counts(1, 1, 0, 8, kinds=1, same_kind=1)]


def test_the_numbers_are_those_worked_out_by_hand() -> None:
    found = agreement({"a": ROWS[0], "b": ROWS[1]}, {"c": "no_block"}, ["x"] * 9, "hash")
    assert found is not None
    assert (found.rows, found.steps, found.wrong, found.unjudged) == (2, 20, 4, 1)
    assert found.accuracy.value == pytest.approx(18 / 20)
    assert found.precision and found.precision.value == pytest.approx(3 / 4)
    assert found.recall and found.recall.value == pytest.approx(3 / 4)
    assert found.false_alarms and found.false_alarms.value == pytest.approx(1 / 16)
    # Both call 4 of 20 wrong: by chance they agree on 0.2 * 0.2 + 0.8 * 0.8 = 0.68.
    assert found.kappa and found.kappa.value == pytest.approx((0.9 - 0.68) / 0.32)
    assert found.same_kind == pytest.approx(2 / 3)
    assert found.differing == ["x"] * 5
    # Accuracy is 0.9 in either row; a third, unseen row that is all right makes 0.93 +- 4.30 * 0.03, cut at 1.
    assert (found.accuracy.low, found.accuracy.high) == (0, 1)
    # Precision is 1 / 2 without the first row and 1 without the second: the jackknife's error is 0.25, times 12.7.
    assert (found.precision.low, found.precision.high) == (0, 1)


def test_of_equal_rows_the_interval_is_that_of_a_mean() -> None:
    rng = random.Random(0)
    shares = [rng.randint(5, 10) for _ in range(40)]
    rows = [Counts(neither=share, judge=10 - share) for share in shares]
    found = estimate(accuracy, rows)
    values = [share / 10 for share in shares]
    assert found is not None and found.value == pytest.approx(fmean(values))
    expected = interval(fmean(values), stdev(values) / math.sqrt(40), 40)
    assert (found.low, found.high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "value"),
    [
        (Counts(5, 0, 0, 5), 1.0),
        (Counts(0, 5, 5, 0), -1.0),
        (Counts(4, 4, 1, 1), 0.0),  # called wrong as often whatever they are
        (Counts(0, 0, 0, 9), None),  # chance alone agrees always
        (Counts(), None),
    ],
)
def test_kappa_is_agreement_beyond_chance(counts: Counts, value: float | None) -> None:
    assert kappa(counts) == (None if value is None else pytest.approx(value))


def test_kappas_interval_reaches_below_zero() -> None:
    rows = [Counts(1, 1, 1, 1), Counts(2, 1, 1, 2), Counts(1, 2, 2, 1)]
    found = estimate(kappa, rows, lowest=-1.0)
    assert found is not None and -1 <= found.low < 0 < found.high <= 1


def test_what_is_undefined_is_not_a_number() -> None:
    nothing_called = [Counts(0, 0, 2, 8)]
    assert precision(nothing_called[0]) is None and recall(nothing_called[0]) == 0
    found = agreement({"a": nothing_called[0]}, {}, [], "h")
    assert found is not None and found.precision is None and found.same_kind is None
    assert agreement({}, {"a": "no_block"}, [], "h") is None
    assert agreement({"a": Counts()}, {}, [], "h") is None


def test_only_labelled_steps_are_compared() -> None:
    steps = [
        LabelledStep(text="a", right=True),
        LabelledStep(text="b", right=False, kind="logic"),
        LabelledStep(text="c", right=False),
        LabelledStep(text="d"),
        LabelledStep(text="e", right=True),
        LabelledStep(text="f", right=False, kind="unit"),
    ]
    found = compared(steps, ["", "logic", "other", "other", "other", "logic"])
    assert found == Counts(both=3, judge=1, label=0, neither=1, kinds=2, same_kind=1)
    with pytest.raises(ValueError, match="shorter"):
        compared(steps, [""])


def row(*steps: dict[str, Any], **fields: Any) -> str:
    return json.dumps({"id": "r", "prompt": "?", "answer": "1", "steps": list(steps)} | fields) + "\n"


RIGHT, WRONG = {"text": "a", "right": True}, {"text": "b", "right": False}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (row(RIGHT), "no step is labelled wrong"),
        (row(WRONG, {"text": "c"}), "no step is labelled right"),
        (row(RIGHT, WRONG | {"kind": "sums"}), r"labels.jsonl:1: .*'sums' .*arithmetic"),
        (row(RIGHT | {"kind": "logic"}, WRONG), r"labels.jsonl:1: .*not right"),
        (row(RIGHT, WRONG | {"right": "no"}), r"labels.jsonl:1: "),
        (row(RIGHT, WRONG | {"text": " "}), r"labels.jsonl:1: "),
        (row(), r"labels.jsonl:1: "),
        (row(RIGHT, WRONG) * 2, r"labels.jsonl:2: id 'r' was already used"),
        (row(RIGHT, WRONG, response="x"), r"labels.jsonl:1: unknown field 'response'"),
        ("", "no step is labelled right"),
    ],
)
def test_labels_that_cannot_be_used_are_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)


def test_good_labels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(row(RIGHT, WRONG | {"kind": "logic"}, other=[RIGHT]))
    (found,) = read_labels(path)
    assert [step.right for step in (*found.steps, *found.other)] == [True, False, True]
