"""The mathematical verifier: one named row an adversarial case, then properties and real data."""

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.errors import UserError
from spot.schema import Problem
from spot.verify import math as verify_module
from spot.verify.math import verify, verify_many, verify_problem
from spot.verify.pool import Pool

SHARED_DATA = Path(os.environ.get("SPOT_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


@pytest.fixture(autouse=True, scope="module")
def short_limit() -> Iterator[None]:
    pool = Pool(cpu_seconds=1.5, wall_seconds=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "SHARED", pool)
        yield
    pool.close()


def case(name: str, answer: str, boxed: str, expected: bool | None) -> Any:
    return pytest.param(answer, boxed, expected, id=name)


MATRIX = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"
CASES = [
    # integers
    case("25 is not 5", "5", "25", False),
    case("5 is not 25", "25", "5", False),
    case("equal integers", "18", "18", True),
    case("thousands comma", "1234567", "1,234,567", True),
    case("thousands comma in the known answer", "70,000", "70000", True),
    case("misplaced comma is no thousands comma", "1234", "12,34", False),
    case("LaTeX thousands {,}", "1234", "1{,}234", True),
    case("LaTeX thousands thin space", "1234", r"1\,234", True),
    case("LaTeX thousands negative space", "11111111100", r"11,\! 111,\! 111,\! 100", True),
    case("leading plus", "5", "+5", True),
    case("minus matters", "5", "-5", False),
    case("Unicode minus", "-5", "\u22125", True),
    case("minus zero", "0", "-0", True),
    case("leading zeros are the same number", "7", "007", True),
    case("final period", "18", "18.", True),
    case("dollars around", "18", "$18$", True),
    case("currency", "18", r"\$18", True),
    case("Arabic digits", "42", "\u0664\u0662", True),
    case("right-to-left marks", "42", "\u200f42\u200e", True),
    case("right-to-left override does not turn digits round", "42", "\u202e24", False),
    case("bold", "5", r"\mathbf{5}", True),
    case("text", "5", r"\text{5}", True),
    # fractions, decimals, powers
    case("decimal of an integer", "5", "5.0", True),
    case("almost an integer", "5", "5.00001", False),
    case("fraction and decimal", r"\frac{1}{2}", "0.5", True),
    case("fraction and slash", r"\frac{3}{4}", "3/4", True),
    case("fraction to six places", r"\frac13", "0.333333", True),
    case("fraction cut short", r"\frac13", "0.33", False),
    case("unreduced fraction", r"\frac12", r"\frac{2}{4}", True),
    case("mixed number", r"1\frac12", "3/2", True),
    case("mixed number is no product", r"1\frac12", "1/2", False),
    case("nested fraction", r"\frac{\frac{1}{2}}{3}", r"\frac{1}{6}", True),
    case("fraction without braces", r"-\frac{1}{3}", "-1./3", True),
    case("scientific notation", "100000", "1e5", True),
    case("scientific notation in LaTeX", "4.5e33", r"4.5 \times 10^{33}", True),
    case("small numbers are not all zero", "2.88e-19", "1.325e-27", False),
    case("sum", "5", "4+1", True),
    case("surd", r"2\sqrt{2}", r"\sqrt{8}", True),
    case("pi cut short", r"\pi", "3.14", False),
    case("factorial", "120", "5!", True),
    case("division by zero is no answer to 5", "5", r"\frac{1}{0}", False),
    case("infinity is not 5", "5", r"\infty", False),
    # per cent and units
    case("per cent sign as unit", "10", r"10\%", True),
    case("per cent of one", r"10\%", "0.1", True),
    case("per cent wrong", r"10\%", "0.2", False),
    case("degrees", "90", r"90^\circ", True),
    case("unit in text", "5", r"5\text{ cm}", True),
    case("unit in words", "18", "18 dollars", True),
    case("unit of several words", "18", "18 dollars per week", True),
    case("square unit", "864", r"864 \mbox{ inches}^2", True),
    case("other unit of the same kind", r"5 \text{ m}", r"5 \text{ cm}", False),
    case("converted unit", r"5 \text{ m}", r"500 \text{ cm}", True),
    case("unit of another kind", r"5 \text{ m}", r"5 \text{ kg}", False),
    case("million is no unit", "5", "5 million", False),
    case("million in text is no unit", "5", r"5\text{ million}", False),
    case("million is a number", "5000000", r"5 \text{ million dollars}", True),
    case("a product in words is no unit", "5", "5 times x", False),
    case("a dollar sign between digits does not vanish", "56", "5$6", False),
    case("dollar sign behind", "5", r"5\$", True),
    case("variable is no unit", "5t", "5", False),
    case("product of variables is no unit", "2abc", "2", False),
    case("numerals of two bases", "52_8", "52_9", False),
    case("one number in two bases", "52_8", "42_{10}", True),
    # words, templates
    case("None is no expression", "5", "None", False),
    case("None as known answer", r"\text{None}", "None", True),
    case("None is not a product of letters", "None", r"o \cdot n \cdot N \cdot e + 1", False),
    case("echoed template", "5", "ANSWER", False),
    case("echoed template with brackets", "5", "<answer>", False),
    case("echoed dots", "5", r"\ldots", False),
    case("word", r"\text{Evelyn}", "Evelyn", True),
    case("word in another case", r"\text{True}", "true", True),
    case("anagram", r"\text{east}", "seat", False),
    case("word and number", "5", "five apples", False),
    case("date", r"\text{June 20}", "June 20", True),
    case("choice", r"\text{(C)}", "C", True),
    case("other choice", r"\text{(C)}", "D", False),
    case("Hebrew word", "5", "\u05e9\u05dc\u05d5\u05dd", False),
    case("Chinese character", "5", "五", False),
    case("emoji", "5", "🦆", False),
    case("lone surrogate", "5", "\ud800", False),
    case("null character", "5", "\x00", False),
    # algebra
    case("expanded", "(x+1)^2", "x^2+2x+1", True),
    case("not expanded right", "(x+1)^2", "x^2+1", False),
    case("assignment for a value", "5", "x = 5", True),
    case("value for an assignment", "x=5", "5", True),
    case("assignment to something else", "5", "x = 6", False),
    case("other variable", "5x", "5y", False),
    case("equation for its right side", "2x+1", "y = 2x+1", True),
    case("flipped inequality", "x > 5", "5 < x", True),
    case("inequality the wrong way", "x > 5", "x < 5", False),
    case("integral", r"\frac12", r"\int_0^1 x\,dx", True),
    # sets, tuples, intervals, matrices
    case("set in another order", r"\{1,2\}", r"\{2,1\}", True),
    case("set with one more", r"\{1,2\}", r"\{1,2,3\}", False),
    case("list for one", "5", "5, 6", False),
    case("either-or for one", "5", "5 or 6", False),
    case("one for a list", "5, 6", "5", False),
    case("tuple in another order", "(1,2)", "(2,1)", False),
    case("tuple", r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", True),
    case("open is not closed", "[1,2)", "[1,2]", False),
    case("open is not half-open", "(1,2)", "[1,2)", False),
    case("interval to infinity", r"(-\infty, 3)", r"(-\infty,3)", True),
    case("union in another order", r"(0,1) \cup (2,3)", r"(2,3) \cup (0,1)", True),
    case("matrix", MATRIX, MATRIX.replace(" ", ""), True),
    case("bracketed matrix", MATRIX, MATRIX.replace("pmatrix", "bmatrix"), True),
    case("transposed matrix", MATRIX, r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", False),
    case("matrix for a number", "5", MATRIX, False),
    case("plus-minus", r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2", True),
    # nothing to read, nothing to judge
    case("empty box", "5", "", False),
    case("blank box", "5", r"  ", False),
    case("broken LaTeX", "5", r"\frac{1}{}", False),
    case("unbalanced parenthesis", "5", "((5", False),
    case("known answer is empty", "", "5", None),
    case("known answer cannot be read", r"\frac{1}{", "5", None),
    case("known answer is undefined", r"\frac{1}{0}", "5", None),
    case("tower of powers", "5", "9^{9^{9^9}}", None),
    case("tower of powers as known answer", "9^{9^{9^9}}", "9^{9^{9^{8}}}", None),
    case("the same tower of powers", "9^{9^{9^9}}", "9^{9^{9^9}}", True),
    case("prose beyond measure", "5", "very " * 1000, None),
    case("nesting beyond measure", "5", "{" * 900 + "5" + "}" * 900, None),
]


@pytest.mark.parametrize(("answer", "boxed", "expected"), CASES)
def test_case(answer: str, boxed: str, expected: bool | None) -> None:
    verdict = verify(f"So it is $\\boxed{{{boxed}}}$.", answer)
    assert verdict.correct is expected, verdict
    assert expected is not None or verdict.reason


def test_the_number_of_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("response", ["", "It is 5.", r"\boxed{5", r"<think>\boxed{5}", r"<think>\boxed{5}</think> 5"])
def test_nothing_boxed_is_wrong_and_says_so(response: str) -> None:
    verdict = verify(response, "5")
    assert (verdict.correct, verdict.answer, verdict.reason) == (False, None, "no answer")


def test_a_megabyte_of_digits() -> None:
    nines = "9" * 1_000_000
    start = time.process_time()
    assert verify(f"\\boxed{{{nines}}}", nines).correct is True
    assert verify(f"\\boxed{{{nines}8}}", f"{nines}9").correct is False
    assert verify(f"\\boxed{{-00{nines}}}", f"-{nines}").correct is True
    assert verify(f"\\boxed{{{nines}}}", "5").correct is False
    assert verify(f"\\boxed{{{nines}.5}}", "5").correct is None
    assert time.process_time() - start < 20


def test_pattern_instead_of_a_box() -> None:
    pattern = r"A:\s*(.+)"
    assert verify("so 18\nA: 18", "18", pattern).correct is True
    assert verify("A: 25", "5", pattern).correct is False
    assert verify("A: 18\nA: 19", "19", pattern).correct is True
    assert verify(r"\boxed{18}", "18", pattern).reason == "no answer"
    with pytest.raises(UserError):
        verify("A: 18", "18", "A: .+")


def test_many_equals_one_by_one() -> None:
    pairs = [(f"\\boxed{{{row.values[1]}}}", str(row.values[0])) for row in CASES[::4] if row.values[2] is not None]
    assert verify_many(pairs) == [verify(*pair) for pair in pairs]
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


def rows_of(name: str) -> list[dict[str, Any]]:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs shared data: {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_math500_known_answers_verify_against_themselves() -> None:
    answers = [row["answer"] for row in rows_of("math500/test.jsonl")]
    verdicts = verify_many([(row["solution"], row["answer"]) for row in rows_of("math500/test.jsonl")])
    assert sum(verdict.correct is True for verdict in verdicts) == len(answers) == 500


def test_math500_known_answers_are_equal_to_themselves_for_the_workers() -> None:
    """Past the rule that like text is alike: the expressions themselves must be read."""
    pool = verify_module.SHARED
    answers = [row["answer"] for row in rows_of("math500/test.jsonl")][::5]
    assert [judgement.correct for judgement in pool.judge_many([(a, a) for a in answers])] == [True] * 100


def test_gsm8k_recorded_answers_are_judged_as_their_authors_did() -> None:
    rows = rows_of("gsm8k/example_model_solutions.jsonl")
    pairs: list[tuple[str, str]] = []
    recorded: list[bool] = []
    for row in rows:
        known = row["ground_truth"].rsplit("A: ", 1)[1]
        for solution in (value for value in row.values() if isinstance(value, dict)):
            pairs.append((solution["solution"], known))
            recorded.append(solution["is_correct"])
    verdicts = verify_many(pairs, r"A:\s*(.+)")
    assert [verdict.correct for verdict in verdicts] == recorded
    assert len(recorded) == 4 * 1319
