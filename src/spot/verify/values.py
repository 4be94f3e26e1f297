r"""Whether two sympy expressions have the same value, whatever their letters stand for.

Exact numbers are compared exactly; only a decimal may be the other number rounded. Expressions with letters are
compared at points of their common domain, as real numbers, with as many digits as their size needs: so that
`\sqrt a\sqrt b` is `\sqrt{ab}` and x is not |x|. What holds an infinity or no value is no number, and an operator that
cannot be evaluated (an integral without a closed form) is like itself only. Only the workers import this module.
"""

import random
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from spot.verify.expression import parts

DECIMAL_PLACES = 6
_NUM_POINTS = 6
_MAX_DIGITS = 20_000
_MAX_POWER = 2_000
"""Powers beyond are not worked out to the last digit."""
_PERCENT = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
_OPERATORS = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative, sympy.Subs)
_INVERSE = (sympy.log, sympy.asin, sympy.acos, sympy.acosh, sympy.atanh)


def same_value(expected: Any, given: Any) -> bool:
    """Whether two expressions have the same value, whatever their letters stand for."""
    if expected.has(_PERCENT) or given.has(_PERCENT):  # 10%, 20% for 10, 20
        without = [one.xreplace({_PERCENT: sympy.Integer(1)}) for one in (expected, given)]
        with_sign = [one.xreplace({_PERCENT: sympy.Rational(1, 100)}) for one in (expected, given)]
        return same_value(*with_sign) or (expected.has(_PERCENT) != given.has(_PERCENT) and same_value(*without))
    known, said = evaluated(expected), evaluated(given)
    if not (_is_value(known) and _is_value(said)):
        return bool(known == said and known in (sympy.oo, -sympy.oo))
    if known == said:
        return True
    if not known.free_symbols and not said.free_symbols:
        if known.has(sympy.Float) or said.has(sympy.Float):
            return _same_decimal(known, said)
        return is_zero(known - said)
    return _same_function(_with_fractions(known), _with_fractions(said))


@lru_cache(maxsize=4096)
def evaluated(expression: Any) -> Any:
    """The expression worked out, with a generic function for each unknown one and a name for each operator left."""
    # Without these two, an integral is done at once or not at all.
    value = expression.doit(meijerg=False, heurisch=False)
    if value.has(*_OPERATORS):
        value = value.replace(lambda node: isinstance(node, _OPERATORS), _named)
    if value.has(AppliedUndef):
        value = value.replace(lambda node: isinstance(node, AppliedUndef), _generic)
    return value


@lru_cache(maxsize=256)
def _named(operator: Any) -> Any:
    """A symbol for an operator that has no closed form, the same for the same operator."""
    return sympy.Dummy(real=True) if operator.as_dummy() == operator else _named(operator.as_dummy())


def _generic(node: Any) -> Any:
    """Some function without any symmetry in place of an unknown one; gcd and lcm are symmetric, cross antisymmetric."""
    name = node.func.__name__
    numbers = random.Random(zlib.crc32(name.encode()))
    scale, shift = (sympy.Rational(numbers.randint(101, 499), 211) for _ in range(2))
    if name in {"gcd", "lcm"}:
        return sympy.sin(scale * sympy.Mul(*((one + shift) ** 2 + one for one in node.args)))
    if name == "cross":
        one, two = (scale * (arg + shift) ** 3 + arg for arg in node.args)
        return one - two
    terms = [sympy.Rational(numbers.randint(101, 499), 223) * one for one in node.args]
    return sympy.sin(scale * sum(terms) + shift) + sum(terms) / 7


def is_undefined(expression: Any) -> bool:
    """Whether an expression, or a side or member of it, has no value."""
    if members := parts(expression):
        return any(map(is_undefined, members))
    return isinstance(expression, sympy.Expr) and evaluated(expression).has(sympy.nan, sympy.zoo)


def _is_value(value: Any) -> bool:
    return isinstance(value, sympy.Expr) and not value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)


def _with_fractions(value: Any) -> Any:
    floats = value.atoms(sympy.Float)
    return value.xreplace({one: sympy.Rational(str(one)) for one in floats}) if floats else value


def _same_decimal(known: Any, said: Any) -> bool:
    """Whether two numbers, one of them a decimal, agree: to six places, small ones to five digits, large ones to 12."""
    known, said = (one.evalf(30) for one in (known, said))
    if not (is_finite(known) and is_finite(said)):
        return False
    difference, size = abs(known - said), max(abs(known), abs(said))
    if size < sympy.Rational(1, 10_000):
        return bool(difference <= size / 200_000)
    return bool(difference <= max(sympy.Rational(5, 10 ** (DECIMAL_PLACES + 1)), size / 10**12 if size > 10**6 else 0))


def _same_function(known: Any, said: Any) -> bool:
    difference = known - said
    if difference == 0:
        return True
    names = sorted({one.name for one in difference.free_symbols if not isinstance(one, sympy.Dummy)})
    unnamed = [one for one in difference.free_symbols if isinstance(one, sympy.Dummy)]
    limits = [*_limits(known), *_limits(said)]
    huge = any(node.exp.is_Integer and abs(node.exp) > _MAX_POWER for node in difference.atoms(sympy.Pow))
    for real in (True, False):
        agreed = 0
        for point in points([*names, *(f"_{place}" for place in range(len(unnamed)))]):
            at = {one: point[one.name] for one in difference.free_symbols if one not in unnamed}
            at |= {one: point[f"_{place}"] for place, one in enumerate(unnamed)}
            if real and not all(_allows(limit, at) for limit in limits):
                continue
            value = difference.evalf(10, subs=at, maxn=400) if huge else difference.subs(at)
            if not is_finite(value):
                continue
            if not is_zero(value):
                return False
            agreed += 1
        if agreed:
            return True
    return False


def points(names: list[str]) -> Iterator[dict[str, Any]]:
    """Points to compare at: the first ones positive, then of all signs."""
    for place in range(_NUM_POINTS):
        numbers = random.Random(place)
        yield {
            name: sympy.Rational(numbers.randint(101, 599), numbers.choice((101, 127, 157)))
            * (1 if place < 2 else numbers.choice((1, -1)))
            for name in names
        }


def _limits(value: Any) -> list[tuple[Any, str]]:
    """What must be a real number for `value` to be one: the bases of roots, the arguments of logarithms."""
    found: list[tuple[Any, str]] = []
    for node in sympy.preorder_traversal(value):
        if isinstance(node, sympy.Pow) and not node.exp.is_integer and node.base.free_symbols:
            found.append((node.base, "positive"))
        elif isinstance(node, _INVERSE) and node.free_symbols:
            found.append((node, "real"))
    return found


def _allows(limit: tuple[Any, str], at: dict[Any, Any]) -> bool:
    value = limit[0].subs(at).evalf(10)
    return bool(value.is_nonnegative if limit[1] == "positive" else value.is_real)


def is_finite(value: Any) -> bool:
    """Whether `value` is a number, real or complex."""
    return not value.free_symbols and _is_value(value) and value.evalf(5).is_finite is True


def real_number(expression: Any) -> Any:
    """The value of an expression that is a real number, `None` of others."""
    if not isinstance(expression, sympy.Expr) or not is_finite(value := evaluated(expression)):
        return None
    value = value.evalf(20)
    return value if value.is_Number else None


def is_zero(value: Any) -> bool:
    """Whether a number is 0, with as many digits as the numbers in it may need to cancel."""
    if value.is_Rational:
        return bool(value == 0)
    if _is_significant(value.evalf(5, maxn=60)):
        return False
    digits = 60 + 2 * _size(value)
    if digits > _MAX_DIGITS:
        raise ArithmeticError("too many digits")
    return not _is_significant(value.evalf(5, maxn=digits))


def _is_significant(value: Any) -> bool:
    """Whether sympy knows a digit of the number other than 0."""
    return any(
        part != 0 and not (isinstance(part, sympy.Float) and part._prec == 1)  # pyright: ignore[reportPrivateUsage]
        for part in value.as_real_imag()
    )


def _size(value: Any) -> int:
    """How many digits the numbers in an expression have together."""
    total = 0
    for node in sympy.preorder_traversal(value):
        if isinstance(node, sympy.Rational | sympy.Pow | sympy.exp | sympy.factorial):
            magnitude = abs(node.evalf(5))
            if magnitude.is_Float and magnitude > 0:
                total += abs(int(sympy.log(magnitude, 10).evalf(5))) + 1
            if isinstance(node, sympy.Rational):
                total += int(node.q).bit_length() // 3
    return total
