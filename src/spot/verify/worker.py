r"""A worker: `python -m spot.verify.worker CPU_SECONDS` compares answers with math-verify, one JSON line a request.

Request ``{"gold": str, "answer": str}``, reply ``{"correct": true | false | null, "reason": str}``; the first line,
once the imports are done, is ``{"ready": true}``. Reads standard input to its end.

The process is made to be killed. A comparison that uses more than its CPU time is ended by the kernel (SIGPROF), which
needs no cooperation from the code that hangs and works when the parent is gone. CPU time and not the clock, so that a
busy machine gives the same verdicts. Parsed expressions are never printed: `str()` of some does not end.
"""

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from spot.verify import notation
from spot.verify.quantity import Quantity, alternatives, approximation, quantity

MEMORY_BYTES = 1 << 30
# A subscript on a number that names no base: math-verify drops it.
_NO_NUMERAL = re.compile(r"(?<![A-Za-z0-9}_.{\\])[0-9]+\s*_")


class Judgement(NamedTuple):
    """Whether two expressions are equal, `None` where that could not be told, and why."""

    correct: bool | None
    reason: str = ""


def compare(gold: str, answer: str) -> Judgement:
    """Compare an answer with the known one, both LaTeX or plain notation."""
    if len(notation.items(notation.plain(gold))) > 1 and not re.search(r",\s", answer):
        answer = notation.spaced(answer, lists=True)
    known = quantity(gold)
    letters = re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", known.value))
    given = quantity(answer, single_letters=letters is None)
    expected = _read(known.value)
    if expected is None:
        return Judgement(None, "the known answer cannot be read")
    pairs = _in_one_unit(known, given)
    if not pairs:
        return Judgement(False, "the units measure different things")
    try:
        return _equal_in_any(pairs, gold, answer)
    except Exception as error:
        return Judgement(None, f"comparison failed: {type(error).__name__}")


def _in_one_unit(known: Quantity, given: Quantity) -> list[tuple[str, str]]:
    """The pairs of values one of which must be equal; none where the units measure different things.

    A unit on one side only is left out. Per cent and degrees then also count as what they stand for.
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
        if expected is not None and any(_equal(expected, reading) for reading in _with_approximation(value, parsed)):
            return Judgement(_same_form(gold, answer))
    return Judgement(False)


def _with_approximation(value: str, parsed: Any) -> list[Any]:
    """`parsed` and the number that `value` says it is about, if it is within one per cent of it."""
    about = approximation(value)
    if about is None:
        return [parsed]
    rounded = _parse(about)
    exact, near = _number(parsed), _number(rounded)
    return [parsed, rounded] if exact is not None and near is not None and _close(exact, near, 0.01) else [parsed]


def _read(value: str) -> Any:
    """What `value` says: `_parse`, and the set of solutions of inequalities joined by "or"."""
    from sympy import Union

    parts = [_parse(part) for part in alternatives(value)]
    if len(parts) == 1 or None in parts:
        return parts[0] if len(parts) == 1 else None
    if len({symbol for part in parts for symbol in _symbols(part)}) != 1:
        return None
    try:
        return Union(*(part.as_set() for part in parts))
    except Exception:
        return None


def _same_form(gold: str, answer: str) -> bool:
    """Whether equal values are equal answers: `(1,2)` is not `{1,2}`, and 16, 3, 1, 1 has four parts, not three."""
    shapes = {notation.shape(gold), notation.shape(answer)}
    if shapes == {"set", "tuple"}:
        return False
    counts = {len(notation.items(notation.plain(text))) for text in (gold, answer)}
    return shapes != {""} or r"\pm" in gold + answer or len(counts) == 1


def _equal(expected: Any, parsed: Any) -> bool:
    """Whether two expressions are equal, by math-verify and by what it leaves out."""
    from sympy import Eq, I, Symbol
    from sympy.logic.boolalg import Boolean

    if isinstance(parsed, Eq):
        if isinstance(parsed.rhs, Symbol) and not parsed.lhs.free_symbols:
            parsed = parsed.lhs  # 5 = x
        elif not parsed.free_symbols and not _math_verify(parsed.lhs, parsed.rhs):
            return False  # 6 = 5
    if isinstance(expected, Boolean) and isinstance(parsed, Boolean):
        try:
            return _math_verify(expected, parsed) or _same_solutions(expected, parsed)
        except Exception:
            return _same_solutions(expected, parsed)
    if _math_verify(expected, parsed):
        return not _differ_when_small(expected, parsed)
    if _same_when_large(expected, parsed):
        return True
    # math-verify takes the i of 4i for a variable.
    units = {symbol: I for side in (expected, parsed) for symbol in _symbols(side) if symbol.name == "i"}
    return bool(units) and _math_verify(expected.subs(units), parsed.subs(units))


def _math_verify(expected: Any, parsed: Any) -> bool:
    from math_verify import verify

    # Its own timeouts are signals and turn into "wrong" silently: off. Errors are raised, not turned into "wrong".
    return verify(expected, parsed, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)


def _symbols(expression: Any) -> set[Any]:
    return getattr(expression, "free_symbols", set())


def _same_solutions(expected: Any, parsed: Any) -> bool:
    """Whether two relations in the same variable have the same solutions (`1 < x < 2` and `2 > x > 1`)."""
    if len(_symbols(expected)) != 1 or _symbols(expected) != _symbols(parsed):
        return False
    try:
        return bool(expected.as_set() == parsed.as_set())
    except Exception:
        return False


def _same_when_large(expected: Any, parsed: Any) -> bool:
    """Whether two large numbers, one a decimal, are equal to twelve digits: math-verify compares six decimals."""
    from sympy import Float

    known, given = _number(expected), _number(parsed)
    if known is None or given is None or abs(known) < 1e6 or not (expected.has(Float) or parsed.has(Float)):
        return False
    return _close(known, given, 1e-12)


def _differ_when_small(expected: Any, parsed: Any) -> bool:
    """Whether two numbers only agree because both are small: math-verify rounds to six decimals and drops the rest."""
    known, given = _number(expected), _number(parsed)
    if known is None or given is None:
        return False
    return max(abs(known), abs(given)) < 1e-4 and not _close(known, given, 1e-4)


def _close(known: Any, given: Any, tolerance: float) -> bool:
    return bool(abs(known - given) <= tolerance * max(abs(known), abs(given)))


def _number(expression: Any) -> Any:
    """The value of an expression that is a real number, as sympy's float that knows no limits; `None` for others."""
    try:
        value = expression.doit().evalf(20)  # without doit, 1 - 1 comes out as 1e-126
    except (TypeError, ValueError, AttributeError):
        return None
    return value if getattr(value, "is_Number", False) and value.is_finite else None


@lru_cache(maxsize=4096)
def _parse(latex: str) -> Any:
    """The sympy expression of `latex`, `None` where it cannot be read. Nothing is fished out of the text around it."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units are off: `quantity` has read them, and math-verify would take the t of 5t for one.
    normalisation = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    if _NO_NUMERAL.search(latex):
        return None
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalisation)
    try:
        found = parse(rf"\boxed{{{latex}}}", [config], fallback_mode="no_fallback", parsing_timeout=0)
    except Exception:
        return None
    return found[0] if found else None


def run(load: Callable[[], Callable[[str, str], Judgement]]) -> None:
    """Serve with what `load` gives, which compares a known answer and another; its `ImportError` is reported.

    Standard output is kept for the protocol, memory is limited, and each line may use the processor time of the
    command line before the kernel ends us.
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        judge = load()
    except ImportError as error:
        _send(replies, {"error": str(error)})
        return
    _send(replies, {"ready": True})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
        request = json.loads(line)
        judgement = judge(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, judgement._asdict())


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def _ready() -> Callable[[str, str], Judgement]:
    _parse("1")  # imports what takes long
    return compare


if __name__ == "__main__":
    run(_ready)
