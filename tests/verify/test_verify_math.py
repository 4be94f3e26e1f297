"""The mathematical verifier as a function: its verdicts, patterns, threads and properties.

Single answers stand in `test_verify_adversarial.py`, real data in `test_verify_golds.py`.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.errors import UserError
from spot.schema import Problem
from spot.verify import math as verify_module
from spot.verify.math import verify, verify_many, verify_problem
from spot.verify.pool import Pool


@pytest.fixture(autouse=True, scope="module")
def short_limit() -> Iterator[None]:
    pool = Pool(cpu_seconds=1.5, wall_seconds=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "SHARED", pool)
        yield
    pool.close()


@pytest.mark.parametrize("response", ["", "It is 5.", r"\boxed{5", r"<think>\boxed{5}", r"<think>\boxed{5}</think> 5"])
def test_nothing_boxed_is_wrong_and_says_so(response: str) -> None:
    verdict = verify(response, "5")
    assert (verdict.correct, verdict.answer, verdict.reason) == (False, None, "no answer")


def test_pattern_instead_of_a_box() -> None:
    pattern = r"A:\s*(.+)"
    assert verify("so 18\nA: 18", "18", pattern).correct is True
    assert verify("A: 25", "5", pattern).correct is False
    assert verify("A: 18\nA: 19", "19", pattern).correct is True
    assert verify(r"\boxed{18}", "18", pattern).reason == "no answer"
    with pytest.raises(UserError):
        verify("A: 18", "18", "A: .+")


def test_many_equals_one_by_one() -> None:
    pairs = [(f"\\boxed{{\\frac{{{number}}}{{6}}}}", f"{number % 3}/6") for number in range(8)]
    assert verify_many(pairs) == [verify(*pair) for pair in pairs]
    assert [verdict.correct for verdict in verify_many(pairs)] == [number < 3 for number in range(8)]
    assert verify_many([]) == []


def test_a_problem_is_judged_by_its_answer() -> None:
    assert verify_problem(r"\boxed{\frac24}", Problem(id="a", prompt="?", answer="0.5")).correct is True


def test_any_thread_may_ask() -> None:
    barrier = threading.Barrier(8)

    def ask(number: int) -> bool:
        barrier.wait()
        return all(
            verify(f"\\boxed{{\\frac{{{number}}}{{{divisor}}}}}", f"{number} \\cdot {divisor}^{{-1}}").correct is True
            and verify(f"\\boxed{{\\frac{{{number}}}{{{divisor}}}}}", f"{number + 1}/{divisor}").correct is False
            for divisor in range(2, 7)
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(1, 9)))


MATHS = st.text(st.sampled_from("0123456789+-*/^_=<>(){}[],.%$&! \\xyzeNonefrac|'~\u0664\u202e∞π√"), max_size=25)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40) | MATHS, st.text(max_size=40) | MATHS)
def test_never_raises_and_repeats_itself(content: str, answer: str) -> None:
    response = f"\\boxed{{{content}}}"
    first, second = verify(response, answer), verify(response, answer)
    assert first.model_dump_json()
    # What takes just about as long as it may can go either way; nothing else can.
    assert first == second or "timeout" in (first.reason, second.reason)


@settings(deadline=None)
@given(st.integers(), st.integers())
def test_integers_are_equal_exactly_when_they_are(given_number: int, known: int) -> None:
    assert verify(f"\\boxed{{{given_number:,}}}", str(known)).correct is (given_number == known)
    assert verify(f"\\boxed{{{known:+}}}", f"{known:,}").correct is True
