r"""What an answer says, as a sympy expression that has all of its letters.

latex2sympy parses; `spot.verify.latex` prepares the text, and here its names get their meaning. A tree in which a
letter of the text is missing is no reading of it: nothing may be compared with what was left over. Only the workers
import this module; an expression is never printed, since `str()` of some does not end.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet
from sympy.core.function import AppliedUndef, UndefinedFunction
from sympy.core.relational import Relational

from spot.verify.latex import DERIVATIVE, both_signs, readable

# Units are off: `quantity` has read them, and the t of 5t would be taken for one.
_NORMALISATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)
# A subscript on a number that names no base: the parser drops it.
_NO_NUMERAL = re.compile(r"(?<![A-Za-z0-9}_.{\\])[0-9]+\s*_")
_NAME_ABOUT = re.compile(r"\A\s*[A-Za-z]\s*\\(?:approx|simeq)(?![A-Za-z])")  # the parser drops it itself

_GREEK = (
    "varepsilon|vartheta|varsigma|varrho|varphi|varpi|upsilon|epsilon|omicron|lambda|alpha|gamma|delta|theta|kappa|"
    "sigma|omega|iota|zeta|beta|eta|rho|tau|phi|chi|psi|mu|nu|xi|hbar|ell|Gamma|Delta|Theta|Lambda|Sigma|Upsilon|"
    "Phi|Psi|Omega|Xi|Pi"
)
_NO_LETTERS = re.compile(
    rf"\\(?:begin|end|text|mbox|mathbb|operatorname)\s*\{{[^{{}}]*\}}|\\(?!(?:{_GREEK})(?![A-Za-z]))[A-Za-z]+"
    r"|\\Gamma(?=\s*\()"
)
_LETTERS = re.compile(rf"{_GREEK}|[A-Za-z]")
_NUMBERS = {"d", "e", "i"}  # a differential's, Euler's number, the imaginary unit

# Functions that the parser knows no command for, by the name that `readable` gives them.
_FUNCTIONS: dict[str, Any] = {
    "sech": sympy.sech,
    "csch": sympy.csch,
    "coth": sympy.coth,
    "sgn": sympy.sign,
    "sign": sympy.sign,
    "erf": sympy.erf,
    "erfc": sympy.erfc,
    "dfact": sympy.factorial2,
    "arrange": sympy.ff,
    "gcd": sympy.igcd,
    "lcm": sympy.ilcm,
    "C": sympy.binomial,
    "zeta": sympy.zeta,
}
_OF_NUMBERS = {"C", "zeta"}
_CONSTANTS = {"pi": sympy.pi, "i": sympy.I, "e": sympy.E}


@lru_cache(maxsize=4096)
def parse(latex: str) -> Any:
    """The sympy expression of `latex`, `None` where it cannot be read or its reading lacks a letter."""
    if _NO_NUMERAL.search(latex):
        return None
    try:
        text = normalize_latex(readable(both_signs(_NAME_ABOUT.sub("", latex))), _NORMALISATION)
        tree: Any = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=_CONVERSION)
        if not isinstance(tree, sympy.Basic | sympy.MatrixBase) or not _letters(text) <= _letters_of(tree):
            return None
        tree = rebuilt(tree, _with_meaning)
        return None if tree.has(sympy.zoo, sympy.nan) else tree
    except Exception:
        return None


def _letters(text: str) -> set[str]:
    return set(_LETTERS.findall(_NO_LETTERS.sub(" ", text))) - _NUMBERS


def _letters_of(tree: Any) -> set[str]:
    """The letters in the names of a tree's symbols and functions, those that are bound too."""
    names: set[str] = set()
    for node in sympy.preorder_traversal(tree):
        if isinstance(node, sympy.Symbol):
            names.add(node.name)
        elif isinstance(node, AppliedUndef):
            names.add(str(node.func.__name__))
    return {letter for name in names for letter in _LETTERS.findall(name)}


def parts(tree: Any) -> list[Any]:
    """The members of a list, set, tuple, chain or relation in the order of the text; `[]` of an expression."""
    if isinstance(tree, And | FiniteSet):
        return list(getattr(tree, "_unsorted_args", tree.args))
    return list(tree.args) if isinstance(tree, sympy.Tuple | Relational | sympy.FiniteSet) else []


def rebuilt(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with each expression in it changed; relations stay as they are written, lists in their order."""
    if members := parts(tree):
        changed = [rebuilt(member, change) for member in members]
        return tree.func(*changed, evaluate=False) if isinstance(tree, Relational) else tree.func(*changed)
    return change(tree)


def _with_meaning(tree: Any) -> Any:
    """An expression with the functions that have a name applied, and the operators that are left set apart."""
    if tree.has(AppliedUndef):
        tree = tree.replace(lambda node: isinstance(node, AppliedUndef), _applied)
    if tree.has(sympy.Derivative):
        tree = tree.replace(lambda node: isinstance(node, sympy.Derivative), _derived)
    imaginary = {symbol: sympy.I for symbol in tree.free_symbols if symbol.name == "i"}
    return tree.subs(imaginary) if imaginary else tree


def _applied(node: Any) -> Any:
    name = re.sub(r"\\(?:text|mathcal)|[\\{} ]", "", node.func.__name__)
    args = node.args
    whole = all(arg.is_Integer for arg in args)
    if name in _CONSTANTS and len(args) == 1:
        return _CONSTANTS[name] * args[0]
    if name == "cong":
        return UndefinedFunction("cong")(sympy.Mod(*args) if whole else args[0], args[1])
    if name in {"gcd", "lcm"} and not whole:
        return sympy.Function(name)(*sympy.ordered(args))
    if name == "cross":
        return sympy.Function(name)(*args)
    function = _FUNCTIONS.get(name)
    if function is None or (name in _OF_NUMBERS and not whole) or (name == "zeta" and args == (1,)):
        return node
    return sympy.sympify(function(*args))


def _derived(node: Any) -> Any:
    """A derivative by what its expression has, to be evaluated; any other would be 0 and is a function of its own."""
    expression, *by = node.args
    if all(variable in expression.free_symbols for variable, _ in by) and not expression.has(AppliedUndef):
        return node
    if isinstance(expression, sympy.Symbol):
        names = "".join(variable.name * count for variable, count in by)
        return sympy.Symbol(f"math{{{DERIVATIVE}{sum(count for _, count in by)}q{expression.name}q{names}}}", real=True)
    names = "".join(f"{variable.name}{count}" for variable, count in by)
    return UndefinedFunction(f"derivative by {names}")(expression)
