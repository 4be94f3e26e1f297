"""Scores beside accuracy, bootstrap intervals against exact ones, verdicts on retention, and the tables."""

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.errors import UserError
from spot.evaluate import tables
from spot.evaluate.comparison import Change, compared
from spot.evaluate.results import Results, TaskScore, averages, read_results, task_score, write_results
from spot.evaluate.source import Data
from spot.evaluate.statistics import compare, majority, pass_at, score, share
from spot.evaluate.task import Group, Task
from spot.schema import Attempt, Problem, Sampling, Verdict

SAMPLING = Sampling()


def answers(questions: Sequence[Sequence[str | None]], right: str = "1") -> list[Attempt]:
    """One attempt for each answer given to each question; `None` is one that cannot be read."""
    return [
        Attempt(
            id=f"q{number}#{sample}",
            problem_id=f"q{number}",
            sample=sample,
            response=f"It is {answer}",
            finish_reason="stop",
            verdict=Verdict(correct=answer == right, answer=answer),
            model="m",
        )
        for number, given in enumerate(questions)
        for sample, answer in enumerate(given)
    ]


def build(data: Data, prompt: str) -> list[Problem]:
    return []


def task(name: str, group: Group) -> Task:
    return Task(name, name.upper(), group, None, build, "{question}")


def results(model: str, found: dict[str, tuple[Group, list[Attempt]]]) -> Results:
    scores = {name: task_score(task(name, group), [], rows) for name, (group, rows) in found.items()}
    return Results(model=model, sampling=SAMPLING, tasks=scores, averages=averages(scores))


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6), st.integers(1, 4))
def test_pass_at_k_is_the_chance_that_some_of_k_is_right(questions: list[list[bool]], k: int) -> None:
    rows = answers([["1" if right else "0" for right in one] for one in questions])
    brute = [np.mean([any(some) for some in combinations(one, k)]) for one in questions]
    assert pass_at(k, rows) == pytest.approx(np.mean(brute))
    assert pass_at(1, rows) == pytest.approx(score(rows).mean)
    with pytest.raises(ValueError, match="5 of 4"):
        pass_at(5, rows)


def test_the_majority_decides_and_ties_count_in_part() -> None:
    assert majority(answers([["1", "1", "2"]])) == 1
    assert majority(answers([["2", "2", "1"]])) == 0
    assert majority(answers([["1", "2"]])) == 0.5
    assert majority(answers([["1", "2", "3", None]])) == pytest.approx(1 / 3)
    assert majority(answers([[None, None, "1"]])) == 1  # what cannot be read has no say
    assert majority(answers([[None, None]])) == 0
    assert majority(answers([["1 ", " 1", "2"]], right="1 ")) == pytest.approx(
        0.5
    )  # alike but for spaces, judged apart


def test_a_share_of_alike_wholes_is_an_accuracy_and_its_error() -> None:
    rows = answers([["1", "0"], ["1", "1"], ["0", "0"], ["1", "0"], ["0", "1"]])
    parts = {f"q{n}": [(float(a.outcome == "correct"), 1.0) for a in rows if a.problem_id == f"q{n}"] for n in range(5)}
    mean, stderr = share(parts)
    assert (mean, stderr) == (pytest.approx(score(rows).mean), pytest.approx(score(rows).stderr))
    mean, stderr = share({"a": [(1, 2), (2, 2)], "b": [(0, 4)]})
    assert mean == pytest.approx(3 / 8) and stderr is not None and stderr > 0
    with pytest.raises(UserError, match="no attempts"):
        share({"a": [(0, 0)]})


def test_the_bootstrap_agrees_with_the_normal_approximation_where_that_holds() -> None:
    rng = np.random.default_rng(1)
    old, new = (
        [["1" if draw < chance else "0" for draw in row] for row in rng.random((400, 5))] for chance in (0.5, 0.6)
    )
    before, after = answers(old), answers(new)
    found = (
        compared(results("a", {"t": ("ood", before)}), results("b", {"t": ("ood", after)}), {"t": (before, after)})
        .tasks["t"]
        .difference
    )
    exact = compare(before, after)
    assert found.mean == pytest.approx(exact.mean)
    assert found.low == pytest.approx(exact.low, abs=0.004) and found.high == pytest.approx(exact.high, abs=0.004)
    assert (found.n, found.better, found.worse) == (400, exact.better, exact.worse)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(30)))
def test_the_order_of_questions_only_reorders_the_draws(order: list[int]) -> None:
    old = [["1", "0"] if n % 3 else ["0", "0"] for n in range(30)]
    new = [["1", "1"] if n % 2 else ["0", "0"] for n in range(30)]
    plain = compared_alone(old, new)
    mixed = compared_alone([old[n] for n in order], [new[n] for n in order])
    assert mixed.mean == pytest.approx(plain.mean)
    assert mixed.low == pytest.approx(plain.low, abs=0.02) and mixed.high == pytest.approx(plain.high, abs=0.02)


def compared_alone(old: Sequence[Sequence[str]], new: Sequence[Sequence[str]]) -> Change:
    before, after = answers(old), answers(new)
    pair = results("a", {"t": ("ood", before)}), results("b", {"t": ("ood", after)})
    return compared(*pair, {"t": (before, after)}).tasks["t"].difference


def test_nothing_changed_is_no_certainty() -> None:
    same = compared_alone([["1"]] * 20, [["1"]] * 20)
    share_otherwise = 1 - 0.05 ** (1 / 20)
    assert (same.mean, same.low, same.high) == (
        *(0, pytest.approx(-share_otherwise, abs=0.01)),
        pytest.approx(share_otherwise, abs=0.01),
    )
    assert same.verdict(0.02) == "not enough evidence"
    many = compared_alone([["1"]] * 2000, [["1"]] * 2000)
    assert many.verdict(0.02) == "kept"


@pytest.mark.parametrize("n", [2, 10, 30])
def test_one_that_rose_says_nothing_about_those_that_may_fall(n: int) -> None:
    one = compared_alone([["0"]] + [["1"]] * (n - 1), [["1"]] * n)
    assert (one.better, one.worse) == (1, 0) and one.low < -0.02
    assert one.verdict(0.02) == "not enough evidence"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.01, 0.03, "kept"),
        (-0.02, 0.00, "kept"),
        (-0.019, -0.001, "kept"),  # certain, and smaller than what may be lost
        (-0.05, -0.001, "lost"),
        (-0.30, -0.20, "lost"),
        (-0.05, 0.01, "not enough evidence"),
        (0.10, 0.20, "kept"),
    ],
)
def test_what_an_interval_says_of_retention(low: float, high: float, verdict: str) -> None:
    assert Change(mean=(low + high) / 2, low=low, high=high, n=10).verdict(0.02) == verdict


def three() -> tuple[Results, Results, dict[str, tuple[list[Attempt], list[Attempt]]]]:
    rows = {
        "aime": (answers([["1"], ["0"]] * 10), answers([["1"], ["1"]] * 10)),
        "amc": (answers([["1"]] * 40), answers([["1"]] * 40)),
        "gpqa": (answers([["1"], ["0"], ["0"]] * 20), answers([["0"], ["0"], ["1"]] * 20)),
        "ifeval_x": (answers([["1"]] * 30), answers([["0"]] * 30)),
    }
    group: dict[str, Group] = {"aime": "in_domain", "amc": "in_domain", "gpqa": "ood", "ifeval_x": "general"}
    before = results("base", {name: (group[name], old) for name, (old, _) in rows.items()})
    after = results("spot_10%", {name: (group[name], new) for name, (_, new) in rows.items()})
    return before, after, rows


def test_averages_are_means_of_tasks_and_carry_every_task_s_doubt() -> None:
    before, after, rows = three()
    found = compared(before, after, rows)
    assert before.averages == {
        "in_domain": 0.75,
        "ood": pytest.approx(1 / 3),
        "general": 1,
        "all": pytest.approx(17 / 24),
    }
    average = found.averages["in_domain"]
    change = average.difference
    assert (average.before, average.after, change.mean) == (0.75, 1, 0.25)
    alone, steady = found.tasks["aime"].difference, found.tasks["amc"].difference
    assert steady.mean == 0 and steady.low < 0 < steady.high
    expected = math.hypot((alone.mean - alone.low) / 2, (steady.mean - steady.low) / 2)
    assert change.mean - change.low == pytest.approx(expected, rel=0.02)
    assert found.averages["all"].difference.mean == pytest.approx(
        np.mean([one.difference.mean for one in found.tasks.values()])
    )
    assert found.averages["all"].difference.n == 150


@pytest.mark.parametrize("n", range(1, 60))
@pytest.mark.parametrize(("old", "new"), [("0", "1"), ("1", "0")])
def test_an_interval_past_the_ends_of_the_scale_is_cut_there(n: int, old: str, new: str) -> None:
    rows = answers([[old]] * n), answers([[new]] * n)
    before, after = (results("m", {"s": ("ood", side), "t": ("ood", side)}) for side in rows)
    found = compared(before, after, {"s": rows, "t": rows})
    for one in (*found.tasks.values(), *found.averages.values()):
        assert -1 <= one.difference.low <= one.difference.mean <= one.difference.high <= 1


def test_the_tables_have_the_paper_s_order_and_say_the_same() -> None:
    before, after, rows = three()
    found = compared(before, after, rows)
    titles = [column.title for column in tables.columns(found)]
    assert titles == ["AIME", "AMC", "in-domain avg", "GPQA", "IFEVAL_X", "avg"]
    text = tables.markdown(found)
    assert "| **in-domain avg** | **75.0** | **100.0** | **+25.0 [" in text and "| lost | 30 |" in text
    latex = tables.latex(found)
    assert "| 10 | 0 | kept | 20 |" in text and r"$1\to0$ & 0 & 0 & 0 & 20 & 30 & 50 \\" in latex
    assert r"spot\_10\% & 100.0 & 100.0 & 100.0 &" in latex and latex.count("&") == 9 * 6
    content = json.loads(tables.as_json(found))
    assert content["tasks"]["ifeval_x"]["verdict"] == "lost" and content["averages"]["in_domain"]["mean"] == 0.25


def test_other_questions_are_refused_and_one_sided_tasks_named() -> None:
    before, after, rows = three()
    rows["aime"] = (rows["aime"][0], rows["aime"][1][:-1])
    with pytest.raises(UserError, match="different questions"):
        compared(before, after, rows)
    less = Results(model="x", sampling=SAMPLING, tasks={"aime": before.tasks["aime"]}, averages={})
    old = rows["aime"][0]
    assert compared(before, less, {"aime": (old, old)}).only_one == ["amc", "gpqa", "ifeval_x"]
    with pytest.raises(UserError, match="no task in common"):
        compared(before, less, {})


def test_results_go_to_the_disk_and_back(tmp_path: Path) -> None:
    before, _, _ = three()
    write_results(tmp_path, before)
    assert read_results(tmp_path) == before
    score_ = before.tasks["aime"]
    assert isinstance(score_, TaskScore) and score_.pass_at == {1: 0.5} and score_.low < 0.5 < score_.high
    (tmp_path / "results.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match="damaged or of another version"):
        read_results(tmp_path)
    with pytest.raises(UserError, match="no such file; spot eval --output"):
        read_results(tmp_path / "none")


def test_what_scores_nothing_is_counted_apart() -> None:
    rows = answers([["1", None], ["0", "1"]])
    rows[2] = rows[2].model_copy(update={"finish_reason": "length"})
    rows[3] = rows[3].model_copy(update={"verdict": Verdict(correct=None, reason="timeout")})
    found = task_score(task("t", "ood"), [], rows)
    assert (found.truncated, found.unanswered, found.unscored, found.mean) == (1, 1, 1, 0.25)
    assert found.same_answers == 0
    assert task_score(task("t", "ood"), [], answers([["1", "1"], ["0", "1"]])).same_answers == 0.5
