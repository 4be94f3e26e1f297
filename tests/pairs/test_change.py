"""Eq. 1 and the filter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot import change_ratio
from spot.pairs.filter import make_pairs
from spot.schema import Attempt, Problem, Rectification, Verdict

Ids = st.lists(st.integers(0, 5), max_size=30)


def slow_lcs(a: list[int], b: list[int]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(rejected=Ids, chosen=Ids.filter(len))
def test_change_ratio_is_eq_1(rejected: list[int], chosen: list[int]) -> None:
    assert change_ratio(rejected, chosen) == pytest.approx(1 - slow_lcs(rejected, chosen) / len(chosen))


@given(ids=Ids.filter(len))
def test_identical_is_zero_and_disjoint_is_one(ids: list[int]) -> None:
    assert change_ratio(ids, ids) == 0
    assert change_ratio([i + 100 for i in ids], ids) == 1


def test_large_token_ids_do_not_collide() -> None:
    assert change_ratio([151_000, 2**31], [151_000, 2**31 - 1]) == 0.5


def test_empty_chosen_is_an_error() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        change_ratio([1], [])


def rows(corrections: list[tuple[str, str, bool]]) -> tuple[list[Problem], list[Attempt], list[Rectification]]:
    problems, attempts, rectifications = [], [], []
    for i, (wrong, right, accepted) in enumerate(corrections):
        problems.append(Problem(id=f"p{i}", prompt="q", answer="1"))
        verdict = Verdict(correct=False)
        attempts.append(
            Attempt(
                id=f"p{i}#0",
                problem_id=f"p{i}",
                sample=0,
                response=wrong,
                finish_reason="stop",
                verdict=verdict,
                model="m",
            )
        )
        rectifications.append(
            Rectification(
                id=f"p{i}#0~o.0",
                attempt_id=f"p{i}#0",
                problem_id=f"p{i}",
                oracle="o",
                mode="rewrite",
                candidate=0,
                response=right,
                verdict=Verdict(correct=True),
                accepted=accepted,
            )
        )
    return problems, attempts, rectifications


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_filter_keeps_small_changes_and_records_the_rest() -> None:
    given_rows = rows([("abcd", "abce", True), ("abcd", "wxyz", True), ("abcd", "abcd", True), ("", "a", True),
                       ("abcd", "abcf", False), ("abcd", "abcg", True)])  # fmt: skip
    found = make_pairs(*given_rows, encode, gamma=0.6, max_pairs=1)
    assert [pair.problem_id for pair in found.pairs] == ["p0"]
    assert found.pairs[0].change_ratio == 0.25
    assert {row.id: row.reason for row in found.dropped} == {
        "p1#0~o.0": "over_gamma", "p2#0~o.0": "unchanged", "p3#0~o.0": "empty", "p5#0~o.0": "beyond_max_pairs",
    }  # fmt: skip
    assert found.ratios == [0.25, 1.0, 0.0, 0.25]


@given(gamma=st.floats(0, 1))
def test_every_accepted_correction_is_a_pair_or_dropped(gamma: float) -> None:
    given_rows = rows([("abcdef", "abcdef"[: i + 1] + "z" * i, True) for i in range(6)])
    found = make_pairs(*given_rows, encode, gamma)
    assert len(found.pairs) + len(found.dropped) == 6
    assert all(pair.change_ratio <= gamma for pair in found.pairs)


@pytest.mark.parametrize(("gamma", "kept"), [(0.25, 1), (0.249, 0)])
def test_a_correction_at_gamma_itself_is_a_pair(gamma: float, kept: int) -> None:
    found = make_pairs(*rows([("abcd", "abce", True)]), encode, gamma)
    assert found.ratios == [0.25] and len(found.pairs) == kept


def test_of_several_corrections_the_nearest_within_gamma_becomes_the_pair() -> None:
    problems, attempts, [first] = rows([("abcdefgh", "abcdwxyz", True)])
    texts = {0: "abcdwxyz", 1: "ab", 2: "abcdefgz", 3: "abcdefzz", 4: "abcdefgx"}  # 1 only deletes: eq. 1 gives it 0
    candidates = [
        first.model_copy(update={"id": f"p0#0~o.{number}", "candidate": number, "response": text})
        for number, text in texts.items()
    ]
    refused = first.model_copy(update={"id": "p0#0~o.5", "response": "abcdefg", "accepted": False})
    found = make_pairs(problems, attempts, [*candidates, refused], encode, gamma=0.3, max_pairs=1)
    assert [pair.id for pair in found.pairs] == ["p0#0~o.2"]  # as near as 4, and before it
    reasons = {row.id: row.reason for row in found.dropped}
    assert reasons == {
        "p0#0~o.0": "over_gamma", "p0#0~o.1": "not_nearest", "p0#0~o.3": "not_nearest", "p0#0~o.4": "not_nearest",
    }  # fmt: skip
