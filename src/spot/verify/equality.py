r"""Whether two sympy expressions are the same answer: relations, sets, tuples, matrices, and values.

Letters are told apart by case only where one of the two has both cases. Only the workers import this module.
"""

import re
from collections.abc import Iterator
from typing import Any, cast

import sympy
from latex2sympy2_extended.logic import And
from sympy.core.function import AppliedUndef, UndefinedFunction
from sympy.core.relational import Relational

from spot.verify.expression import parts, rebuilt
from spot.verify.latex import DERIVATIVE
from spot.verify.values import evaluated, is_finite, is_zero, points, same_value

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
        symbols = {
            one: sympy.Symbol(names[one.name], real=True) for one in expression.free_symbols if one.name in names
        }
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
        if len(alike) != 1 or sum(_key(other)[0] == key for other in said) != 1:
            continue
        if not by or _key(alike[0])[1] in ("", by):
            yield name, alike[0]


def _names(tree: Any) -> set[str]:
    return {one.name for one in tree.free_symbols} | {str(node.func.__name__) for node in tree.atoms(AppliedUndef)}


def _key(name: str) -> tuple[str, str]:
    """What names of one letter have in common, and of a derivative by what it is."""
    name, by = name.replace("\\mathcal", "math"), ""
    if found := _DERIVATIVE_NAME.fullmatch(name):
        name, by = found[1], (found[2] or "").lower()
    return re.sub(
        r"\\text|math|(?<![a-z])(?:vec|boldsymbol|bm)(?=\{)|[\\{}_ ]|(?<![a-z])var(?=[a-z])", "", name
    ).lower(), by


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
    if _is_matrix(expected) or _is_matrix(given):
        return _same_matrix(expected, given)
    return same_value(expected, given)


def _as_set(tree: Any, other: Any) -> Any:
    """The set of a membership, where the other is an inequality."""
    member = isinstance(tree, sympy.Eq) and isinstance(tree.rhs, sympy.Set) and isinstance(tree.lhs, sympy.Symbol)
    return tree.rhs if member and _is_relation(other) and not _is_equation(other) else tree


def _is_matrix(tree: Any) -> bool:
    return isinstance(tree, sympy.MatrixBase | sympy.MatrixExpr)


def _is_relation(tree: Any) -> bool:
    return isinstance(tree, Relational) or (isinstance(tree, And) and all(map(_is_relation, parts(tree))))


def _is_equation(tree: Any) -> bool:
    return isinstance(tree, sympy.Eq) or (isinstance(tree, And) and all(map(_is_equation, parts(tree))))


def _is_congruence(tree: Any) -> bool:
    return isinstance(tree, AppliedUndef) and tree.func.__name__ == "cong"


def _links(equation: Any) -> list[Any]:
    """The sides of an equation or of a chain of them, in order."""
    relations = _chain(equation)
    return [relations[0].lhs, *(relation.rhs for relation in relations)]


def value_of(equation: Any) -> Any:
    """What a solved equation says: its last side, after a name and sides that are equal; `None` where it is unsolved.

    `x = 2 + 3 = 5`, `f(x) = 2x`, `AB = 5`, `5 = x` and `5! = 120` say something, `x^2 = 9` and `x = 9 - x` do not.
    """
    sides = _links(equation)
    if _is_name(sides[-1]) and not _is_name(sides[0]):
        sides.reverse()
    names: set[Any] = set()
    while len(sides) > 1 and (_is_name(sides[0]) or (_is_matrix(sides[-1]) and not _is_matrix(sides[0]))):
        names |= sides[0].atoms(sympy.Symbol, AppliedUndef) if sides[0].is_Symbol else sides[0].atoms(AppliedUndef)
        sides.pop(0)
    if any(not _same(sides[-1], side) for side in sides[:-1]):
        return None
    value = sides[-1]
    return None if value.has(*names) and value not in names else value


def _is_name(tree: Any) -> bool:
    """Whether a side of an equation names what the other says: x, f(x), AB, the angle ABC or |AB|."""
    if isinstance(tree, sympy.Abs):
        return _is_name(tree.args[0]) and isinstance(tree.args[0], sympy.Mul)
    if isinstance(tree, sympy.Mul):
        factors = cast(tuple[Any, ...], tree.args)
        names: list[str] = [one.name for one in factors if isinstance(one, sympy.Symbol)]
        letters = [name for name in names if name not in {"angle", "triangle", "measuredangle", "m"}]
        return len(names) == len(factors) and all(re.fullmatch(r"(?:math\{)?[A-Z]\}?(?:_.*)?", one) for one in letters)
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
    said = _with_arguments_of(known[0], said)
    if len(known) == len(said) and all(map(_same, known, said)):
        return True
    if _is_name(known[0]) and _is_name(said[0]) and known[0] == said[0]:
        return all(_same(known[-1], side) for side in said[1:])
    if len(known) != len(said) or len(known) > 2 or any(_is_matrix(one) for one in known + said):
        return False
    return _proportional(known[0] - known[1], said[0] - said[1])


def _with_arguments_of(name: Any, sides: list[Any]) -> list[Any]:
    """The sides of `f(z) = z` for f(x), where they say the same with x."""
    first, *others = sides
    if not (isinstance(name, AppliedUndef) and isinstance(first, AppliedUndef) and name.func == first.func):
        return sides
    if len(name.args) != len(first.args) or not all(one.is_Symbol for one in (*name.args, *first.args)):
        return sides
    free = {symbol for side in others for symbol in getattr(side, "free_symbols", set[Any]())} - set(first.args)
    new = dict(zip(first.args, name.args, strict=True))
    return sides if free & set(name.args) else [side.subs(new, simultaneous=True) for side in sides]


def _proportional(expected: Any, given: Any, positive: bool = False) -> bool:
    """Whether one numerator is the other times a number: then both vanish together."""
    sides = [cast(Any, sympy.fraction(sympy.together(evaluated(side)))[0]) for side in (expected, given)]
    known, said = sides
    names = sorted({one.name for one in known.free_symbols | said.free_symbols})
    if not names:
        return same_value(known, said) or same_value(known, -said)
    for point in points(names):
        values = [side.subs({one: point[one.name] for one in side.free_symbols}) for side in sides]
        if not all(is_finite(value) and not is_zero(value) for value in values):
            continue
        if positive and not (values[0] / values[1]).evalf(10).is_positive:
            return False
        return same_value(known * values[1], said * values[0])
    return False


def _same_inequality(expected: Any, given: Any) -> bool:
    if isinstance(expected, sympy.Ne) or isinstance(given, sympy.Ne):
        sides = [cast(Any, one.lhs) - cast(Any, one.rhs) for one in (expected, given)]
        return type(expected) is type(given) and _proportional(*sides)
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
        if not isinstance(one, sympy.Set) and len(one.free_symbols) != 1:
            return False
        sets.append(one if isinstance(one, sympy.Set) else one.as_set())
    symbols = [one.free_symbols for one in (expected, given) if not isinstance(one, sympy.Set)]
    return (len(symbols) < 2 or symbols[0] == symbols[1]) and _same_collection(*sets)


def _same_collection(expected: Any, given: Any) -> bool:
    expected, given = _as_pair(expected, given), _as_pair(given, expected)
    known, said = _members(expected), _members(given)
    if known is not None and said is not None:
        if _all_named(known) != _all_named(said) and isinstance(given if _all_named(known) else expected, sympy.Tuple):
            known, said = (
                sorted(one, key=lambda link: link.lhs.name) if _all_named(one) else one for one in (known, said)
            )
            return len(known) == len(said) and all(map(_same, known, said))
        if isinstance(expected, sympy.Tuple):
            return len(known) == len(said) and all(map(_same, known, said))
        found = all(any(_same(one, other) for other in said) for one in known)
        return found and all(any(_same(one, other) for one in known) for other in said)
    if isinstance(expected, sympy.Interval) and isinstance(given, sympy.Interval):
        ends = (expected.left_open, expected.right_open) == (given.left_open, given.right_open)
        return ends and same_value(expected.start, given.start) and same_value(expected.end, given.end)
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


def _same_matrix(expected: Any, given: Any) -> bool:
    expected, given = (one.doit() for one in (expected, given))
    if not (isinstance(expected, sympy.MatrixBase) and isinstance(given, sympy.MatrixBase)):
        return False
    return expected.shape == given.shape and all(map(_same, expected.flat(), given.flat()))
