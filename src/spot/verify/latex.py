r"""LaTeX rewritten so that the parser keeps every letter of it.

latex2sympy reads `\gamma` as a number, `f'` as `f`, a second derivative as a quotient of products and `5!=120` as "5 is
not 120"; it knows no `\pmod`, `C_{10}^3` or `\operatorname{sech}`. Each is written here in words that it does read:
a symbol as `\mathcal{name}`, a function as `\text{name}(...)`. What the names mean, `spot.verify.expression` says.
Nothing in this module imports more than the standard library.
"""

import re
from collections.abc import Callable

DERIVATIVE = "der"
"""How the symbol of a derivative begins: `der2qx_oqt` is the second one of `x_o` by t, `der1qx` a dot or a prime."""

_LETTER = r"(?:[A-Za-z]|\\[A-Za-z]+)"
_SUBSCRIPT = r"(?:\s*_\s*(?:\{[^{}]*\}|[A-Za-z0-9]))?"
_SYMBOL = rf"{_LETTER}{_SUBSCRIPT}"
_D = r"(?:\\partial(?![A-Za-z])|d)"
_ORDER = r"(?:\s*\^\s*\{?\s*([0-9])\s*\}?)?"
_BY = rf"((?:\s*{_D}\s*{_LETTER}{_ORDER.replace('([0-9])', '[0-9]')})+)"
_ONE_BY = re.compile(rf"{_D}\s*({_LETTER}){_ORDER}")
_OF = rf"\s*{_D}{_ORDER}\s*({_SYMBOL})?(?:\s*\(\s*{_LETTER}\s*\))?\s*"
_FRACTION_DERIVATIVE = re.compile(rf"\\frac\s*\{{{_OF}\}}\s*\{{{_BY}\s*\}}")
_SLASH_DERIVATIVE = re.compile(rf"(?<![A-Za-z\\]){_OF}/{_BY}(?![A-Za-z])")
_DOTS = re.compile(rf"\\(d{{1,4}}ot)\s*(?:\{{\s*({_LETTER})\s*\}}|({_LETTER}))({_SUBSCRIPT})")
_PRIME = r"(?:\s*(?:'+|\^\s*\{\s*(?:\\prime\s*)+\}|\^\s*\\prime(?![A-Za-z])))+"
_PRIMES = re.compile(rf"({_LETTER})(?:({_SUBSCRIPT})({_PRIME})|({_PRIME})({_SUBSCRIPT}))")

_NO_SYMBOLS = {r"\prime", r"\left", r"\right", r"\sin", r"\cos", r"\tan", r"\log", r"\ln", r"\exp"}

_INTEGER = r"(?:\{\s*([0-9]+)\s*\}|([0-9]))"
_CHOOSE = [  # 10 over 3, in the ways that schools of several countries write it
    re.compile(rf"(?:\{{\s*\}}\s*)?[_^]\s*{_INTEGER}\s*(?:\\(?:mathrm|text)\{{C\}}|C)\s*_\s*{_INTEGER}"),
    re.compile(rf"(?<![A-Za-z0-9\\}}])C\s*_\s*{_INTEGER}\s*\^\s*{_INTEGER}"),
    re.compile(rf"(?<![A-Za-z0-9\\}}])C\s*\^\s*{_INTEGER}\s*_\s*{_INTEGER}"),
]
_ARRANGE = re.compile(rf"(?:\{{\s*\}}\s*)?[_^]\s*{_INTEGER}\s*(?:\\(?:mathrm|text)\{{P\}}|P)\s*_\s*{_INTEGER}")
_LISTED = re.compile(
    r"(?:\\(?:operatorname\*?|text|mathrm)\s*\{\s*(gcd|lcm|GCD|LCM|hcf|max|min)\s*\}|\\(gcd|lcm|max|min)(?![A-Za-z])"
    r"|(?<![A-Za-z\\])(gcd|lcm|max|min)(?=\s*\())\s*(?:\\left)?\s*(?:\(|\\?\{)"
)
_NAMED = re.compile(r"\\operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}|\\(sech|csch|coth|sgn|erf)(?![A-Za-z])")
_KNOWN_OPERATORS = {"arsinh", "arcosh", "artanh", "arcsinh", "arccosh", "arctanh", "floor", "ceil", "det"}
_CALL = re.compile(
    r"(\\text\s*\{[a-z]{2,}\}|\\Gamma|\\mathcal\{der[^{}]*\}"
    r"|(?<![A-Za-z\\])(?<![A-Za-z] )(?:[fghFGH]|\\(?:var)?phi|\\psi)"
    r"(?:_\{[^{}]*\}|_[A-Za-z0-9])?)\s*(?:\\left)?\s*\("
)
_DOUBLE_FACTORIAL = re.compile(r"([A-Za-z0-9]+|\([^()]*\))\s*!\s*!")
_FACTORIAL_IS = re.compile(r"(?:(?<=[0-9)}\]])\s*|(?<=[A-Za-z])(?=!\s+=))!\s*=")
_CONGRUENT = re.compile(
    r"\A(?:\s*[A-Za-z]\s*(?:=|\\equiv(?![A-Za-z])|\\cong))?\s*(.+?)\s*"
    r"(?:\\pmod\s*(?:\{([^{}]+)\}|([0-9A-Za-z]))|\(\s*\\?(?:bmod|mod|text\s*\{\s*mod\s*\})\s*([^()]+)\))\s*\Z"
)
_PLAIN: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # An array in brackets is a matrix, unless a line parts its columns.
        (
            r"(?:\\left\s*)?[\[(]\s*\\begin\s*\{array\}\s*\{[lcr\s]*\}((?:(?!\\begin|\\end)[\s\S])*)\\end\s*\{array\}"
            r"\s*(?:\\right\s*)?[\])]",
            r"\\begin{pmatrix}\1\\end{pmatrix}",
        ),
        (r"\\mathrm\s*\{\s*d\s*\}|\\mathop\{d\}|\\dd(?![A-Za-z])", " d"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\\bmod(?![A-Za-z])", r"\\mod "),
        (r"\\lg(?![A-Za-z])", r"\\log_{10}"),
        (r"\\lb(?![A-Za-z])", r"\\log_{2}"),
        (r"(\\to\s*[A-Za-z0-9]+)\s*\^\s*\{?\s*([+-])\s*\}?", r"\1^{\2}"),
        (r"_\s*(?:\{\s*\\(odot|max|min)\s*\}|\\(odot|max|min)(?![A-Za-z]))", r"_{\1\2}"),
        (r"_\s*(\\[A-Za-z]+)(?!\s*\{)", r"_{\1}"),
        (r"\A\s*[A-Za-z]\s*\([^()]*\)\s*=(?=[^=<>]*\\(?:pm|mp)(?![A-Za-z]))", ""),
        (
            r"\^\s*(?:\{\s*(?:\\(?:mathrm|text|mathsf)\{T\}|\\top|\\intercal|T)\s*\}|\\(?:mathrm|text|mathsf)\{T\}|T(?![A-Za-z])|"
            r"\\(?:top|intercal)(?![A-Za-z]))",
            r"^{\\mathcal{T}}",
        ),
        # Letters that the parser takes for numbers; Gamma is a function where it is applied.
        (r"\\gamma(?![A-Za-z])", r"\\mathcal{gamma}"),
        (r"\\Gamma(?![A-Za-z]|\s*(?:\\left)?\s*\()", r"\\mathcal{Gamma}"),
    )
]
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_NAME_IS = re.compile(r"\A\s*[A-Za-z](?:_[A-Za-z0-9]|_\{[^{}]*\})?\s*=")
_NO_SINGLE = re.compile(r"[=<>,;]|\\(?:[lg]eq?|in|text|begin|\{|or|and)(?![A-Za-z])")
_VECTOR = (
    rf"(?:\\nabla(?![A-Za-z])|\\(?:vec|mathbf|boldsymbol|bm|hat)\s*(?:\{{\s*{_LETTER}\s*\}}|{_LETTER}){_SUBSCRIPT})"
)
_CROSS = re.compile(rf"({_VECTOR})\s*\\times(?![A-Za-z])\s*({_VECTOR})")
_LONE = re.compile(  # after what is no letter of its own: a subscript, a command and its text, the sign of a derivative
    r"_\s*(?:\{[^{}]*\}|[A-Za-z0-9])|\\frac\s*\{\s*d\s*\}\s*\{\s*d\s*\\?[A-Za-z]+\s*\}"
    r"|\\(?:text|mbox|math[a-z]+|operatorname|begin|end|hat|vec|bar|tilde|overline|widehat|widetilde)\s*\{[^{}]*\}"
    r"|\\[A-Za-z]+|([EI])|(d)"
)


def readable(text: str) -> str:
    """`text` in words that the parser reads without losing a letter."""
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    text = _CONGRUENT.sub(lambda found: rf"\text{{cong}}({found[1]}, {found[2] or found[3] or found[4]})", text)
    text = _CROSS.sub(r"\\text{cross}(\1, \2)", text)
    text = _DOUBLE_FACTORIAL.sub(r"\\text{dfact}(\1)", text)
    text = _FACTORIAL_IS.sub("! =", text)
    if "C" in text or "P" in text:
        text = _choices(text)
    if "d" in text or "\\partial" in text:
        text = _SLASH_DERIVATIVE.sub(_derivative, _FRACTION_DERIVATIVE.sub(_derivative, text))
    text = _DOTS.sub(lambda found: _symbol(found[1].count("d"), (found[2] or found[3]) + found[4], ""), text)
    if "'" in text or "prime" in text:
        text = _PRIMES.sub(_primed, text)
    text = _NAMED.sub(_named, text)
    text = _with_list(text)
    integral = r"\int" in text or r"\iint" in text  # where d x is no product

    def alone(found: re.Match[str]) -> str:
        letter = found[1] or (None if integral else found[2])
        return rf"\mathcal{{{letter}}}" if letter else found[0]

    return _each_call(_LONE.sub(alone, text))


def both_signs(text: str) -> str:
    r"""`\frac{1 \pm a}{2}` as the two values that it stands for; the parser knows the sign outside braces only."""
    found = _PLUS_MINUS.search(text)
    inside = found is not None and text[: found.start()].count("{") > text[: found.start()].count("}")
    if not inside or _NO_SINGLE.search(value := _NAME_IS.sub("", text)):
        return text
    upper, lower = (_PLUS_MINUS.sub(lambda sign, turn=turn: "+-"[(sign[1] == "mp") ^ turn], value) for turn in (0, 1))
    return f"{upper}, {lower}"


def _choices(text: str) -> str:
    first, *others = _CHOOSE
    text = first.sub(lambda found: rf"\binom{{{found[1] or found[2]}}}{{{found[3] or found[4]}}}", text)
    if not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+|C", "", text)):  # with other letters C may be a constant
        for pattern in others:
            text = pattern.sub(_larger_over_smaller, text)
    return _ARRANGE.sub(lambda found: rf"\text{{arrange}}({found[1] or found[2]}, {found[3] or found[4]})", text)


def _larger_over_smaller(found: re.Match[str]) -> str:
    first, second = sorted((int(found[1] or found[2]), int(found[3] or found[4])))
    return rf"\binom{{{second}}}{{{first}}}"


def _symbol(order: int, of: str, by: str) -> str:
    def name(text: str) -> str:
        return re.sub(r"[^A-Za-z0-9]", "", text.replace(r"\text", ""))

    return rf" \mathcal{{{DERIVATIVE}{order}q{name(of)}{f'q{name(by)}' if by else ''}}}"


def _derivative(found: re.Match[str]) -> str:
    """A derivative of a symbol as a symbol of its own; the operator alone once for each order."""
    order, of, by = int(found[1] or 1), found[2], found[3]
    variables = [(one[1], int(one[2] or 1)) for one in _ONE_BY.finditer(by)]
    if sum(count for _, count in variables) != order or order > 4:
        return found[0]
    names = [name for name, count in variables for _ in range(count)]
    if of is None:
        return "".join(rf" \frac{{d}}{{d{name}}}" for name in names)
    return _symbol(order, of, "".join(sorted(names))) if of not in names else found[0]


def _primed(found: re.Match[str]) -> str:
    primes = found[3] or found[4]
    if found[1] in _NO_SYMBOLS:
        return found[0]
    return _symbol(primes.count("'") + primes.count("prime"), found[1] + (found[2] or found[5] or ""), "")


def _named(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    return found[0] if name in _KNOWN_OPERATORS else rf"\text{{{name}}}"


def _with_list(text: str) -> str:
    r"""`\max\{a, b\}` and its kin with parentheses, and gcd and lcm as functions of ours."""

    def rewrite(inner: str, found: re.Match[str]) -> str:
        name = (found[1] or found[2] or found[3]).lower().replace("hcf", "gcd")
        return rf"\{name}({inner})" if name in {"max", "min"} else rf"\text{{{name}}}({inner})"

    return _with_arguments(text, _LISTED, rewrite)


def _each_call(text: str) -> str:
    """`f(2x)` with a comma after its argument: without one it would be a product."""

    def rewrite(inner: str, found: re.Match[str]) -> str:
        comma = "" if "," in inner or found[1] == r"\Gamma" else ","
        return f"{found[1]}({_each_call(inner)}{comma})"

    return _with_arguments(text, _CALL, rewrite)


def _with_arguments(text: str, opening: re.Pattern[str], rewrite: Callable[[str, re.Match[str]], str]) -> str:
    """`text` with each call of `opening` rewritten; calls that are not closed stay as they are."""
    pieces: list[str] = []
    place = 0
    while (found := opening.search(text, place)) is not None:
        end = _closing(text, found.end())
        if end is None:
            break
        inner = re.sub(r"\\(?:left|right)?\s*\Z", "", text[found.end() : end])
        pieces += [text[place : found.start()], rewrite(inner, found)]
        place = end + 1
    return "".join(pieces) + text[place:]


def _closing(text: str, start: int) -> int | None:
    """Where the bracket closes that was opened just before `start`."""
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] in "({[") - (text[place] in ")}]")
        if depth == 0:
            return place
    return None
