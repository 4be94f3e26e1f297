import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from spot.errors import UserError
from spot.evaluate.comparison import Accuracy
from spot.evaluate.statistics import Score
from spot.report.summary import Summary, read_metrics, read_summary

MINIMAL = {
    "name": "x", "student": "s", "oracle": "o", "objective": "sft",
    "counts": {
        "problems": 1, "attempts": 1, "correct": 0, "wrong": 1, "unscored": 0, "truncated": 0, "rectified": 1,
        "pairs": 1,
    },
    "change_ratio": {"gamma": 0.6}, "training": {"steps": 0},
}  # fmt: skip


def test_a_summary_survives_writing_and_reading(new_run: Callable[..., Path]) -> None:
    path = new_run() / "summary.json"
    summary = read_summary(path)
    path.write_text(summary.model_dump_json())
    assert read_summary(path) == summary


def test_the_statistics_fit_the_summary_as_they_are() -> None:
    score = Score(0.5, None, 1, 1, 0, 0, low=0.05, high=0.95)
    assert Accuracy(**asdict(score)).model_dump() == asdict(score)


def test_what_a_short_run_lacks_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(MINIMAL))
    summary = read_summary(tmp_path / "summary.json")
    assert summary == Summary.model_validate(MINIMAL)
    assert (summary.evaluation, summary.notes, summary.counts.dropped) == ({}, [], {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON summary"),
        ('{"name": "x"', "not a JSON summary"),
        ("[]", "not a JSON summary"),
        (b"\xff\xfe", "not a JSON summary"),
        (json.dumps({**MINIMAL, "training": {}}), "'training.steps'"),
        (json.dumps({**MINIMAL, "extra": 1}), "'extra'"),
        (json.dumps({**MINIMAL, "peak_memory_bytes": "1"}), "'peak_memory_bytes'"),
        (json.dumps({**MINIMAL, "change_ratio": {"gamma": 0.6, "values": [float("nan")]}}), "'change_ratio.values.0'"),
    ],
)
def test_a_damaged_summary_is_one_clear_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_summary(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_summary_names_the_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json: no such file; .*spot run"):
        read_summary(tmp_path / "summary.json")


def test_metrics_are_sorted_and_a_repeated_step_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "loss": 0.5}\n{"step": 1, "loss": 9, "note": "x", "done": true}\n\n'
        '{"step": 2, "loss": 0.4}\n{"step": 2, "rewards/chosen": 1}\n{"step": 3, "loss": NaN}\n'
    )
    rows = read_metrics(path)
    assert rows[:2] == [{"step": 1, "loss": 9}, {"step": 2, "loss": 0.4, "rewards/chosen": 1}]
    assert str(rows[2]["loss"]) == "nan"


@pytest.mark.parametrize("line", ["{", "[1]", '"step"', '{"loss": 1}', '{"step": "1"}', '{"step": NaN}', "7"])
def test_a_damaged_metrics_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(path)
