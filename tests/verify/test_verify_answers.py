r"""Answers with letters, functions, exact numbers, equations and collections, right ones and wrong ones.

`answers.txt` has them: `@` a known answer, then `+` what is right beside it and `-` what is wrong, `?` what cannot be
judged. Then rules on the known answers of real sets: changed in one number or letter they are refused, and none of them
is the answer to another question.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_verify_golds import known_answers, rows_of

from spot.verify import math as verify_module
from spot.verify import notation
from spot.verify.expression import parse
from spot.verify.math import verify, verify_many
from spot.verify.pool import Pool

VERDICTS = {"+": True, "-": False, "?": None}


@pytest.fixture(autouse=True, scope="module")
def patient_pool() -> Iterator[None]:
    pool = Pool(cpu_seconds=10, wall_seconds=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "SHARED", pool)
        yield
    pool.close()


def read_table() -> dict[str, list[tuple[str, str]]]:
    """The signs and answers beside each known answer."""
    table: dict[str, list[tuple[str, str]]] = {}
    known = ""
    for line in (Path(__file__).parent / "answers.txt").read_text("utf-8").splitlines():
        if line.startswith("@"):
            known = line[1:].strip()
        elif line and not line.startswith("#"):
            table.setdefault(known, []).append((line[0], line[1:].strip()))
    return table


TABLE = read_table()


@pytest.mark.parametrize("known", TABLE)
def test_right_and_wrong_answers(known: str) -> None:
    rows = TABLE[known]
    responses = [answer if r"\boxed" in answer else rf"\boxed{{{answer}}}" for _, answer in rows]
    verdicts = verify_many([(response, known) for response in responses])
    found = {answer: verdict.correct for (_, answer), verdict in zip(rows, verdicts, strict=True)}
    assert found == {answer: VERDICTS[sign] for sign, answer in rows}


def test_the_table_is_large_and_of_both_signs() -> None:
    signs = [sign for rows in TABLE.values() for sign, _ in rows]
    assert signs.count("+") > 300 and signs.count("-") > 350 and set(signs) == set(VERDICTS)


@pytest.mark.parametrize("size", [50, 100, 200, 1000])
def test_exact_numbers_have_no_tolerance(size: int) -> None:
    for form in (
        r"1-\frac{{1}}{{2^{{{}}}}}",
        r"\frac{{2^{{{0}}}-1}}{{2^{{{0}}}}}",
        r"\sqrt{{2}}+\frac{{1}}{{3^{{{}}}}}",
    ):
        assert verify(rf"\boxed{{{form.format(size)}}}", form.format(size)).correct is True
        assert verify(rf"\boxed{{{form.format(size - 1)}}}", form.format(size)).correct is False
        assert verify(rf"\boxed{{\left({form.format(size)}\right)}}", form.format(size)).correct is True


@pytest.mark.parametrize("letter", [*"abcghjkmnpqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"])
def test_every_letter_is_a_letter(letter: str) -> None:
    other = "w" if letter.lower() != "w" else "z"
    known = f"{letter}^2-1"
    assert verify(rf"\boxed{{({letter}-1)({letter}+1)}}", known).correct is True
    assert verify(rf"\boxed{{{letter}^2-4}}", known).correct is False
    assert verify(rf"\boxed{{{other}^2-1}}", known).correct is False


@pytest.mark.parametrize(
    "name",
    [
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"),
        *("xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda"),
        *("Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "hbar", "ell"),
    ],
)
def test_every_greek_letter_is_a_letter(name: str) -> None:
    known = rf"(\{name}^{{2}}-1) x"
    assert verify(rf"\boxed{{x(\{name}-1)(\{name}+1)}}", known).correct is True
    assert verify(rf"\boxed{{(\{name}^2-9) x}}", known).correct is False
    assert verify(r"\boxed{(q^2-1) x}", known).correct is False
    assert verify(r"\boxed{-x}", known).correct is False


def test_a_reading_that_lost_a_letter_is_none() -> None:
    for text in (r"\mathbb{R}^{n}", r"\dim V", r"\aleph_0", r"\ker f"):
        assert parse(text) is None
    assert parse(r"\Gamma(5)") is not None


# --- Known answers of real sets ---------------------------------------------------------------------------------------

TOKEN = re.compile(r"\\[A-Za-z]+|[0-9]+|[A-Za-z]")
WRAPPED = re.compile(r"\\(?:text|mbox|mathrm|begin|end|mathbb|operatorname)\s*\{[^}]*\}|[A-Za-z]\s*\([A-Za-z]\)\s*=")
GREEK = {r"\pi", r"\alpha", r"\theta", r"\gamma", r"\lambda", r"\omega", r"\zeta", r"\beta", r"\sigma", r"\tau"}


def changed(answer: str, rng: random.Random) -> str | None:
    """The answer with one of its numbers or letters another one; `None` where it has none."""
    wrapped = [(found.start(), found.end()) for found in WRAPPED.finditer(answer)]
    tokens = [
        found
        for found in TOKEN.finditer(answer)
        if (found[0].isalnum() or found[0] in GREEK) and not any(a <= found.start() < b for a, b in wrapped)
    ]
    if not tokens:
        return None
    token = rng.choice(tokens)
    if token[0].isdigit():
        new = str(int(token[0]) + rng.choice((1, 2, 3)))
    else:
        new = r"\rho " if token[0] in GREEK else rng.choice([one for one in "pqwz" if one != token[0].lower()])
    return answer[: token.start()] + new + answer[token.end() :]


@pytest.mark.parametrize("name", ["math500", "minerva_math", "olympiadbench"])
def test_known_answers_changed_in_one_place_are_refused(name: str) -> None:
    rng = random.Random(13)
    pairs = [(new, known) for known in sorted(set(known_answers(name))) if (new := changed(known, rng)) is not None]
    verdicts = verify_many([(rf"\boxed{{{new}}}", known) for new, known in pairs])
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct] == []
    assert len(pairs) > 200


@pytest.mark.parametrize("name", ["math500", "minerva_math", "olympiadbench"])
def test_known_answers_of_other_questions_are_refused(name: str) -> None:
    """Of all credited pairs among 20,000 of each set only these are left: all are the same answer in other words."""
    answers = sorted(set(known_answers(name)))
    pairs = random.Random(0).sample([(one, two) for one in answers for two in answers if one != two], 1500)
    verdicts = verify_many([(rf"\boxed{{{one}}}", two) for one, two in pairs])
    credited = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct]
    assert [pair for pair in credited if not _alike(*pair)] == []


def _alike(one: str, two: str) -> bool:
    """Whether two known answers are the same one: but for spaces, dollars, a unit, a name or an order."""
    same = [{"36", r"36^\circ", "40_9"}, {r"\frac14", r"\frac{1}{4}"}, {r"\pi", r"180^\circ"}, {"120", r"120^\circ"}]
    same += [{"5", "x=5"}, {"-2,1", "(-2,1)"}, {"1", "f(x)=1"}, {"8", r"8 \%"}, {r"\frac{1}{3}", "1/3"}, {"40", "40_9"}]
    same += [{"f(z)=z", "f(n)=n"}, {r"15\mbox{ cm}^2", "15"}]
    pair = {text.strip("$") for text in (one, two)}
    return any(pair <= group for group in same) or len({text.replace(" ", "") for text in pair}) == 1


def test_a_letter_that_is_gone_from_a_known_answer_is_missed() -> None:
    """Known answers of DeepMath that have one letter: the answer without it is refused."""
    rows = [str(row["ground_truth"]) for row in rows_of("deepmath_rlvr/math_deepmath_deal.jsonl")]
    single = sorted(
        {row for row in rows if len(row) < 60 and len(re.findall(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])", row)) == 1}
    )
    pairs = [
        (re.sub(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])", "1", row), row)
        for row in single
        if not re.search(r"[=<>]|text|\bi\b|\be\b|\bd\b", row)
    ]
    verdicts = verify_many([(rf"\boxed{{{new}}}", known) for new, known in pairs])
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct] == []
    assert len(pairs) > 30


def test_no_known_answer_of_a_set_needs_more_than_the_rules() -> None:
    """What the worker reads of a known answer has all of its letters: `None` are the two that are no mathematics."""
    unread = {text for name in ("math500", "minerva_math") for text in known_answers(name) if _unread(text)}
    assert unread == set()


def _unread(text: str) -> bool:
    content = notation.clean(text)
    return notation.words(content) is None and verify_module.SHARED.judge(content, content).correct is not True
