r"""Whether an answer is the known one: their units, their values, and their form."""

import re
from collections.abc import Callable
from typing import Any

import sympy

from spot.verify import notation
from spot.verify.equality import equal
from spot.verify.expression import parse
from spot.verify.quantity import Quantity, alternatives, approximation, common_name, quantity
from spot.verify.values import is_undefined, real_number
from spot.verify.worker import Judgement

_MEMBER = re.compile(r"\A\s*\$?\s*[A-Za-z]\s*(?:\\in(?![A-Za-z])|=)\s*(?=\\?\{|\(|\\left)")

_CONDITION = re.compile(
    r"(.*[^\s,(;])\s*(?:[,;]|\(|\\q?quad|\\text\s*\{[ ,(]*(?:where|for|with)?[^{}]*\})\s*(?:\\q?quad|\\[,;: ])*\s*"
    r"([a-z])\s*\\in\s*"
    r"(?:\\mathbb\s*\{?\s*([ZN])\s*\}?|\\(?:mathbf|mathrm|Bbb)\s*\{?\s*([ZN])\s*\}?)\s*\)?\s*\.?\$?",
    re.DOTALL,
)
_BETWEEN = re.compile(r"\A\s*\$?\s*[A-Za-z]\s*\\in\s*(?:\\left)?\s*[(\[\]]")


def load() -> Callable[[str, str], Judgement]:
    """`compare`, for a worker: its first call imports and builds what takes long."""
    compare("x", "x")
    return compare


def compare(gold: str, answer: str) -> Judgement:
    """Compare an answer with the known one, both LaTeX or plain notation."""
    (gold, known_set), (answer, given_set) = _without_condition(gold), _without_condition(answer)
    if known_set is not None and given_set is not None:
        if known_set[1] != given_set[1]:
            return Judgement(False)
        answer = re.sub(rf"(?<![A-Za-z\\]){given_set[0]}(?![A-Za-z])", known_set[0], answer)
    if len(notation.items(notation.plain(gold))) > 1 and not re.search(r",\s", answer):
        answer = notation.spaced(answer, lists=True)
    names = common_name(gold), common_name(answer)
    if names[0] != names[1] and all(names):
        return Judgement(False)
    known = quantity(gold)
    letters = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", known.value))
    given = quantity(answer, single_letters=letters is None)
    expected = _read(known.value)
    if expected is None or is_undefined(expected):
        return Judgement(None, "the known answer cannot be read")
    pairs = _in_one_unit(known, given)
    if not pairs:
        return Judgement(False, "the units measure different things")
    try:
        return _equal_in_any(pairs, gold, answer)
    except Exception as error:
        return Judgement(None, f"comparison failed: {type(error).__name__}")


def _without_condition(text: str) -> tuple[str, tuple[str, str] | None]:
    r"""`x = k\pi` and `("k", "Z")` of `x = k\pi, k \in \mathbb{Z}`."""
    match = _CONDITION.fullmatch(text)
    return (match[1], (match[2], match[3] or match[4])) if match else (text, None)


def _in_one_unit(known: Quantity, given: Quantity) -> list[tuple[str, str]]:
    """Pairs of values; the answer is right if one pair is equal. None where the units measure different things.

    A unit that only one side has is ignored; a per cent or degree sign then also counts as its factor.
    """
    gold, value = known.value, given.value
    for sign, factor in (("%", r"\frac{1}{100}"), ("degree", r"\frac{\pi}{180}")):
        if (known.unit == sign) != (given.unit == sign) and "" in (known.unit, given.unit):
            scaled = (gold, _times(value, factor)) if given.unit == sign else (_times(gold, factor), value)
            return [(gold, value), scaled]
    gold_unit, unit = known.known, given.known
    if gold_unit is None or unit is None or gold_unit == unit:
        return [(gold, value)]
    if gold_unit.kinds != unit.kinds:
        return []
    return [(_times(gold, str(gold_unit.size)), _times(value, str(unit.size)))]


def _times(value: str, factor: str) -> str:
    return rf"{factor} \cdot ({value})"


def _equal_in_any(pairs: list[tuple[str, str]], gold: str, answer: str) -> Judgement:
    for gold_value, value in pairs:
        expected, parsed = _read(gold_value), _read(value)
        if parsed is None:
            return Judgement(False, "the answer cannot be read as mathematics")
        if expected is not None and any(equal(expected, reading) for reading in _with_approximation(value, parsed)):
            return Judgement(_same_form(gold, answer))
    return Judgement(False)


def _with_approximation(value: str, parsed: Any) -> list[Any]:
    """`parsed` and the number that `value` says it is about, if it is within one per cent of it."""
    about = approximation(value)
    if about is None:
        return [parsed]
    rounded = parse(about)
    exact, near = real_number(parsed), real_number(rounded)
    within = exact is not None and near is not None and abs(exact - near) <= max(abs(exact), abs(near)) / 100
    return [parsed, rounded] if within else [parsed]


def _read(value: str) -> Any:
    """What `value` says: `parse`, and the set of solutions of inequalities joined by "or"."""
    parts = [parse(part) for part in alternatives(value)]
    if len(parts) == 1 or None in parts:
        return parts[0] if len(parts) == 1 else None
    if len({symbol for part in parts for symbol in part.free_symbols}) != 1:
        return None
    try:
        return sympy.Union(*(part.as_set() for part in parts))
    except Exception:
        return None


def _same_form(gold: str, answer: str) -> bool:
    """Whether equal values are equal answers: `(1,2)` is not `{1,2}`, and 16, 3, 1, 1 has four parts, not three."""
    if notation.shape(gold) == "" and len(notation.items(notation.plain(gold))) > 1 and _BETWEEN.match(answer):
        return False
    gold, answer = (_MEMBER.sub("", text) for text in (gold, answer))
    shapes = {notation.shape(gold), notation.shape(answer)}
    if shapes == {"set", "tuple"}:
        return False
    counts = {len(notation.items(notation.plain(text))) for text in (gold, answer)}
    return shapes != {""} or re.search(r"\\(?:pm|mp)(?![A-Za-z])", gold + answer) is not None or len(counts) == 1
