r"""Whether two sympy expressions are the same answer.

Exact numbers are compared exactly; only a decimal may be the other number rounded. Expressions with letters are compared
at points of their common domain, as real numbers, with as many digits as their size needs: so that `\sqrt a\sqrt b` is
`\sqrt{ab}` and x is not |x|. What holds an infinity or no value is no number, and an operator that cannot be evaluated
(an integral without a closed form) is like itself only. Only the workers import this module.
"""

import random
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.logic import And
from sympy.core.function import AppliedUndef, UndefinedFunction
from sympy.core.relational import Relational

from spot.verify.expression import parts, rebuilt
from spot.verify.latex import DERIVATIVE

DECIMAL_PLACES = 6
_NUM_POINTS = 6
_MAX_DIGITS = 20_000
_MAX_POWER = 2_000
"""Powers beyond are not worked out to the last digit."""
_PERCENT = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
_OPERATORS = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative, sympy.Subs)
_INVERSE = (sympy.log, sympy.asin, sympy.acos, sympy.acosh, sympy.atanh)
_DERIVATIVE_NAME = re.compile(rf"(math\{{{DERIVATIVE}[0-9]q.+?)(?:q([A-Za-z0-9]*))?\}}")


def equal(expected: Any, given: Any) -> bool:
    """Whether `given` is the answer `expected`: expressions, relations, sets, tuples or matrices."""
    return _same(expected, _in_the_letters_of(expected, given))


# --- Letters ----------------------------------------------------------------------------------------------------------


def _in_the_letters_of(expected: Any, given: Any) -> Any:
    """`given` with its letters in the case that `expected` has, where neither has both cases of one letter.

    A derivative by a dot, a prime or a quotient is the same one in the same way, and a Greek letter its variant.
    """
    known, said = _names(expected), _names(given)
    names = dict(_renamed(known, said))
    if "math{I}" in said - known and expected.has(sympy.I):
        given = rebuilt(given, lambda side: side.subs(sympy.Symbol("math{I}", real=True), sympy.I))
    if not names:
        return given

    def change(expression: Any) -> Any:
        symbols = {one: sympy.Symbol(names[one.name], real=True) for one in expression.free_symbols if one.name in names}
        expression = expression.xreplace(symbols) if symbols else expression
        if any(node.func.__name__ in names for node in expression.atoms(AppliedUndef)):
            return expression.replace(
                lambda node: isinstance(node, AppliedUndef) and node.func.__name__ in names,
                lambda node: UndefinedFunction(names[node.func.__name__])(*node.args),
            )
        return expression

    return rebuilt(given, change)


def _renamed(known: set[str], said: set[str]) -> Iterator[tuple[str, str]]:
    for name in said - known:
        key, by = _key(name)
        alike = [other for other in known if _key(other)[0] == key]
        if len(alike) == 1 and sum(_key(other)[0] == key for other in said) == 1:
            if not by or not (other_by := _key(alike[0])[1]) or by == other_by:
                yield name, alike[0]


def _names(tree: Any) -> set[str]:
    return {one.name for one in tree.free_symbols} | {str(node.func.__name__) for node in tree.atoms(AppliedUndef)}


def _key(name: str) -> tuple[str, str]:
    """What names of one letter have in common, and of a derivative by what it is."""
    name, by = name.replace("\\mathcal", "math"), ""
    if found := _DERIVATIVE_NAME.fullmatch(name):
        name, by = found[1], (found[2] or "").lower()
    return re.sub(r"\\text|math|[\\{}_ ]|(?<![a-z])var(?=[a-z])", "", name).lower(), by


# --- Relations and collections ----------------------------------------------------------------------------------------


def _same(expected: Any, given: Any) -> bool:
    expected, given = _as_set(expected, given), _as_set(given, expected)
    if _is_equation(given) and not _is_relation(expected):
        given = value_of(given)
    elif _is_equation(expected) and not _is_relation(given):
        expected = value_of(expected)
    if expected is None or given is None:
        return False
    if _is_congruence(given) and not _is_congruence(expected):
        given = given.args[0]  # 2 modulo 5, where 2 is asked for
    if _is_relation(expected) or _is_relation(given):
        return _same_relation(expected, given)
    if isinstance(expected, sympy.Set | sympy.Tuple) or isinstance(given, sympy.Set | sympy.Tuple):
        return _same_collection(expected, given)
    if isinstance(expected, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(given, sympy.MatrixBase | sympy.MatrixExpr):
        return _same_matrix(expected, given)
    return same_value(expected, given)


def _as_set(tree: Any, other: Any) -> Any:
    """The set of a membership, where the other is an inequality."""
    member = isinstance(tree, sympy.Eq) and isinstance(tree.rhs, sympy.Set) and isinstance(tree.lhs, sympy.Symbol)
    return tree.rhs if member and _is_relation(other) and not _is_equation(other) else tree


def _is_relation(tree: Any) -> bool:
    return isinstance(tree, Relational) or (isinstance(tree, And) and all(map(_is_relation, parts(tree))))


def _is_equation(tree: Any) -> bool:
    return isinstance(tree, sympy.Eq) or (isinstance(tree, And) and all(map(_is_equation, parts(tree))))


def _is_congruence(tree: Any) -> bool:
    return isinstance(tree, AppliedUndef) and tree.func.__name__ == "cong"


def _links(equation: Any) -> list[Any]:
    """The sides of an equation or of a chain of them, in order."""
    relations = parts(equation) if isinstance(equation, And) else [equation]
    return [relations[0].lhs, *(relation.rhs for relation in relations)]


def value_of(equation: Any) -> Any:
    """What a solved equation says: its last side, after a name and sides that are equal; `None` where it is unsolved.

    `x = 2 + 3 = 5`, `f(x) = 2x`, `AB = 5`, `5 = x` and `5! = 120` say something, `x^2 = 9` and `x = 9 - x` do not.
    """
    sides = _links(equation)
    if _is_name(sides[-1]) and not _is_name(sides[0]):
        sides.reverse()
    names: set[Any] = set()
    while len(sides) > 1 and _is_name(sides[0]):
        names |= sides[0].atoms(sympy.Symbol, AppliedUndef) if sides[0].is_Symbol else sides[0].atoms(AppliedUndef)
        sides.pop(0)
    if any(not _same(sides[-1], side) for side in sides[:-1]):
        return None
    value = sides[-1]
    return None if value.has(*names) and not (value in names) else value


def _is_name(tree: Any) -> bool:
    """Whether a side of an equation names what the other says: x, f(x), AB, the angle ABC or |AB|."""
    if isinstance(tree, sympy.Abs):
        return _is_name(tree.args[0]) and isinstance(tree.args[0], sympy.Mul)
    if isinstance(tree, sympy.Mul):
        names = [one.name for one in tree.args if isinstance(one, sympy.Symbol)]
        letters = [name for name in names if name not in {"angle", "triangle", "measuredangle", "m"}]
        return len(names) == len(tree.args) and all(re.fullmatch(r"(?:math\{)?[A-Z]\}?(?:_.*)?", one) for one in letters)
    return isinstance(tree, sympy.Symbol | AppliedUndef | sympy.Tuple) and tree.is_number is not True


def _same_relation(expected: Any, given: Any) -> bool:
    if isinstance(expected, sympy.Set) or isinstance(given, sympy.Set):
        return _same_solutions(expected, given)
    if not (_is_relation(expected) and _is_relation(given)):
        return False
    if _is_equation(expected) and _is_equation(given):
        return _same_equation(expected, given)
    known, said = _chain(expected), _chain(given)
    if len(known) == len(said) and all(any(_same_inequality(one, other) for other in said) for one in known):
        return True
    return _same_solutions(expected, given)


def _chain(relation: Any) -> list[Any]:
    return parts(relation) if isinstance(relation, And) else [relation]


def _same_equation(expected: Any, given: Any) -> bool:
    known, said = _links(expected), _links(given)
    if isinstance(known[-1], sympy.Set | sympy.Tuple) or isinstance(said[-1], sympy.Set | sympy.Tuple):
        return _same(known[0], said[0]) and _same(known[-1], said[-1])
    if isinstance(known[0], AppliedUndef) and isinstance(said[0], AppliedUndef) and known[0].func == said[0].func:
        said = [side.subs(dict(zip(said[0].args, known[0].args, strict=False))) for side in said]
    if _is_name(known[0]) and _is_name(said[0]) and known[0] == said[0]:
        return all(_same(known[-1], side) for side in said[1:])
    if len(known) != len(said) or len(known) > 2:
        return False
    return _proportional(known[0] - known[1], said[0] - said[1])


def _proportional(expected: Any, given: Any, positive: bool = False) -> bool:
    """Whether one numerator is the other times a number: then both vanish together."""
    known, said = (sympy.fraction(sympy.together(_evaluated(side)))[0] for side in (expected, given))
    names = sorted({one.name for one in known.free_symbols | said.free_symbols})
    for point in _points(names):
        values = [side.subs({one: point[one.name] for one in side.free_symbols}) for side in (known, said)]
        if any(_is_zero(value) or not _is_finite(value) for value in values):
            continue
        if positive and not (values[0] / values[1]).evalf(10).is_positive:
            return False
        return same_value(known * values[1], said * values[0])
    return False


def _same_inequality(expected: Any, given: Any) -> bool:
    if isinstance(expected, sympy.Ne) or isinstance(given, sympy.Ne):
        return type(expected) is type(given) and _proportional(expected.lhs - expected.rhs, given.lhs - given.rhs)
    if isinstance(expected, sympy.Eq) or isinstance(given, sympy.Eq):
        return _is_equation(expected) and _is_equation(given) and _same_equation(expected, given)
    strict = [isinstance(one, sympy.StrictGreaterThan | sympy.StrictLessThan) for one in (expected, given)]
    sides = [one.gts - one.lts for one in (expected, given)]
    if strict[0] != strict[1]:
        return False
    if any(sympy.fraction(sympy.together(side))[1].free_symbols for side in sides):
        return same_value(*sides)
    return _proportional(*sides, positive=True)


def _same_solutions(expected: Any, given: Any) -> bool:
    """Whether relations in one variable, or a relation and a set, have the same solutions."""
    sets: list[Any] = []
    for one in (expected, given):
        if not isinstance(one, sympy.Set):
            if len(one.free_symbols) != 1:
                return False
            one = one.as_set()
        sets.append(one)
    symbols = [one.free_symbols for one in (expected, given) if not isinstance(one, sympy.Set)]
    return (len(symbols) < 2 or symbols[0] == symbols[1]) and _same_collection(*sets)


def _same_collection(expected: Any, given: Any) -> bool:
    expected, given = _as_pair(expected, given), _as_pair(given, expected)
    known, said = _members(expected), _members(given)
    if known is not None and said is not None:
        if _all_named(known) != _all_named(said) and isinstance(given if _all_named(known) else expected, sympy.Tuple):
            known, said = (sorted(one, key=_name_of) if _all_named(one) else one for one in (known, said))
            return len(known) == len(said) and all(map(_same, known, said))
        if isinstance(expected, sympy.Tuple):
            return len(known) == len(said) and all(map(_same, known, said))
        return _all_found(known, said) and _all_found(said, known, turned=True)
    if isinstance(expected, sympy.Interval) and isinstance(given, sympy.Interval):
        ends = (expected.left_open, expected.right_open) == (given.left_open, given.right_open)
        return ends and _same_end(expected.start, given.start) and _same_end(expected.end, given.end)
    if not (isinstance(expected, sympy.Set) and isinstance(given, sympy.Set)):
        return False
    expected, given = expected.doit(), given.doit()
    return bool(expected == given or expected.symmetric_difference(given).is_empty)


def _as_pair(tree: Any, other: Any) -> Any:
    """An open interval as the pair that is written alike, where the other is a list, a set or a tuple."""
    if isinstance(tree, sympy.Interval) and isinstance(other, sympy.FiniteSet | sympy.Tuple):
        return sympy.Tuple(tree.start, tree.end) if tree.is_open else tree
    return tree


def _members(tree: Any) -> list[Any] | None:
    """The members of a finite collection; an expression is a collection of one."""
    if isinstance(tree, sympy.FiniteSet | sympy.Tuple):
        return parts(tree)
    if isinstance(tree, sympy.Set):
        return None
    return [tree]


def _all_named(members: list[Any]) -> bool:
    """Whether each of several members gives its own name a value: `x = 3, y = 4`."""
    names = [one.lhs for one in members if isinstance(one, sympy.Eq) and isinstance(one.lhs, sympy.Symbol)]
    return len(members) == len(names) == len(set(names)) > 1


def _name_of(equation: Any) -> str:
    return equation.lhs.name


def _all_found(wanted: list[Any], members: list[Any], turned: bool = False) -> bool:
    return all(any(_same(two, one) if turned else _same(one, two) for two in members) for one in wanted)


def _same_end(expected: Any, given: Any) -> bool:
    return bool(expected == given) or same_value(expected, given)


def _same_matrix(expected: Any, given: Any) -> bool:
    expected, given = (one.doit() for one in (expected, given))
    if not (isinstance(expected, sympy.MatrixBase) and isinstance(given, sympy.MatrixBase)):
        return False
    return expected.shape == given.shape and all(map(_same, expected.flat(), given.flat()))


# --- Values -----------------------------------------------------------------------------------------------------------


def same_value(expected: Any, given: Any) -> bool:
    """Whether two expressions have the same value, whatever their letters stand for."""
    if expected.has(_PERCENT) or given.has(_PERCENT):  # 10%, 20% for 10, 20
        without = [one.xreplace({_PERCENT: sympy.Integer(1)}) for one in (expected, given)]
        with_sign = [one.xreplace({_PERCENT: sympy.Rational(1, 100)}) for one in (expected, given)]
        return same_value(*with_sign) or (expected.has(_PERCENT) != given.has(_PERCENT) and same_value(*without))
    known, said = _evaluated(expected), _evaluated(given)
    if not (_is_value(known) and _is_value(said)):
        return bool(known == said and known in (sympy.oo, -sympy.oo))
    if known == said:
        return True
    if not known.free_symbols and not said.free_symbols:
        if known.has(sympy.Float) or said.has(sympy.Float):
            return _same_decimal(known, said)
        return _is_zero(known - said)
    return _same_function(_with_fractions(known), _with_fractions(said))


@lru_cache(maxsize=4096)
def _evaluated(expression: Any) -> Any:
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
    """Some function without any symmetry in place of an unknown one; gcd and lcm look alike from both sides."""
    name = node.func.__name__
    numbers = random.Random(zlib.crc32(name.encode()))
    scale, shift = (sympy.Rational(numbers.randint(101, 499), 211) for _ in range(2))
    if name in {"gcd", "lcm"}:
        return sympy.sin(scale * sympy.Mul(*((one + shift) ** 2 + one for one in node.args)))
    terms = [sympy.Rational(numbers.randint(101, 499), 223) * one for one in node.args]
    return sympy.sin(scale * sum(terms) + shift) + sum(terms) / 7


def is_undefined(expression: Any) -> bool:
    """Whether an expression, or a side or member of it, has no value."""
    if members := parts(expression):
        return any(map(is_undefined, members))
    return isinstance(expression, sympy.Expr) and _evaluated(expression).has(sympy.nan, sympy.zoo)


def _is_value(value: Any) -> bool:
    return isinstance(value, sympy.Expr) and not value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)


def _with_fractions(value: Any) -> Any:
    floats = value.atoms(sympy.Float)
    return value.xreplace({one: sympy.Rational(str(one)) for one in floats}) if floats else value


def _same_decimal(known: Any, said: Any) -> bool:
    """Whether two numbers, one of them a decimal, agree: to six places, large ones to twelve digits, small ones to four."""
    known, said = (one.evalf(30) for one in (known, said))
    if not (_is_finite(known) and _is_finite(said)):
        return False
    difference, size = abs(known - said), max(abs(known), abs(said))
    if size < sympy.Rational(1, 10_000):
        return bool(difference <= size / 10_000)
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
        for point in _points([*names, *(f"_{place}" for place in range(len(unnamed)))]):
            at = {one: point[one.name] for one in difference.free_symbols if one not in unnamed}
            at |= {one: point[f"_{place}"] for place, one in enumerate(unnamed)}
            if real and not all(_allows(limit, at) for limit in limits):
                continue
            value = difference.evalf(10, subs=at, maxn=400) if huge else difference.subs(at)
            if not _is_finite(value):
                continue
            if not _is_zero(value):
                return False
            agreed += 1
        if agreed:
            return True
    return False


def _points(names: list[str]) -> Iterator[dict[str, Any]]:
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


def _is_finite(value: Any) -> bool:
    """Whether `value` is a number, real or complex."""
    return not value.free_symbols and _is_value(value) and value.evalf(5).is_finite is True


def _is_zero(value: Any) -> bool:
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
