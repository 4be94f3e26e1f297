r"""How answers are written: what is settled on the text itself, before anything is read as mathematics.

Decoration is taken off, Unicode's digits and signs become ASCII and LaTeX, and integers, choices, words, numerals with
a base, times of day and lists are told apart. The parser would take a bare word for a product of letters, drop a base
and read the parts of a time as a ratio. Nothing in this module imports more than the standard library.
"""

import re
import unicodedata
from fractions import Fraction

MAX_CHARACTERS = 2000
"""Longer answers that are not plain integers are not compared: no known answer is of that length."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xAD, 0x61C, 0xFEFF]
_KEYCAP = [0xFE0F, 0x20E3]
_SIGNS = {
    "-": "\u2212\ufe63\u2010\u2011\u2012\u2013",
    "/": "\u2044\u2215",
    ".": "٫",
    ",": "٬、",
    "%": "٪",
    "(": "⟨",
    ")": "⟩",
    r"\cdot ": "·⋅∙",
    r"^{\circ}": "°º",
    r"\infty ": "∞",
    r"\pm ": "±",
    r"\approx ": "≈",
    r"\emptyset ": "∅",
    r"\cup ": "∪",
    r"\cap ": "∩",
    r"\in ": "∈",
    r"\mathbb{R}": "ℝ",
}
_UNICODE = {
    **dict.fromkeys(_INVISIBLE + _KEYCAP),
    **{ord(sign): text for text, signs in _SIGNS.items() for sign in signs},
}
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_ROOT_SIGN = re.compile(r"√\s*(?:([0-9]+|[A-Za-z])|(?:\(([^()]*)\)|\{([^{}]*)\}))")
_MONEY_SIGN = re.compile(r"\A([+-]?\s*)[€£¥₹](?=\s*[+-]?[0-9.])|(?<=[0-9])\s*[€£¥₹]\Z")

TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|normal)?|mbox|math(?:rm|bf|it|sf))\s*"
_UNWRAP = re.compile(TEXT_COMMAND + r"\{([^{}]*)\}")
_DOLLARS = re.compile(r"\\?\$")
_DELIMITERS = re.compile(r"\\[()\[\]]|\\?\$|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]|~")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,;: ]\s*)(?=[0-9]{3}(?![0-9]))")
_INTEGER = re.compile(r"([+-]?) ?(?:([1-9][0-9]{0,2}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+))|([0-9]+))")
_CURRENCY = re.compile(r"\A\s*\\?\$\s*(?=[+-]?[0-9])")
_RATIONAL = re.compile(
    r"(?P<sign>[+-]?) ?(?:(?P<whole>[0-9]{1,40})(?:(?P<point>\.)(?P<places>[0-9]{1,40}))?"
    r"|(?P<top>[0-9]{1,40}) ?/ ?(?P<bottom>[0-9]{1,40})"
    r"|\\[dt]?frac ?\{ ?(?P<above>-?[0-9]{1,40}) ?\} ?\{ ?(?P<below>[0-9]{1,40}) ?\})"
)
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’-]+[^\W\d_]+)*")
_CHOICE = re.compile(r"\( ?([A-Za-z]) ?\)|([A-Za-z]) ?[).:]?")
_CHOICE_AND_TEXT = re.compile(
    r"(?P<name>(?i:option|choice|answer)[ :]*)?(?:\( ?([A-Z]) ?\)|([A-Z]) ?[).:]|(?(name)([A-Z])\b|(?!)))(?P<rest>.*)",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(r"\( ?[A-Z] ?\)|\b(?:or|and|not)\b", re.IGNORECASE)
_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-5][0-9]))?(?: ?([ap])\.? ?m\b\.?)?", re.IGNORECASE)
_NUMERAL = re.compile(r"(?=[A-Za-z]*[0-9])([0-9A-Za-z]+) ?_ ?(?:\{ ?([0-9]{1,2}|[a-z]+) ?\}|([0-9]{1,2}))")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}

# What changes how an answer looks and not what it says.
_DECORATIONS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in {
        r"\\(?:text)?color(?:box)?\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}": "",
        r"\\(?:underline|ensuremath|boldsymbol|bm|pmb|emph)\s*(?=\{)": "",
        r"\\(?:[hv]?phantom|hspace\*?|label|tag)\s*\{[^{}]*\}": " ",
        r"\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|bfseries|bf|textstyle|displaystyle)(?![A-Za-z])": "",
        r"\\[bB]igg?[lrm]?(?![A-Za-z])": "",
        r"\\(?:degree|textdegree)(?![A-Za-z])": r"^{\\circ}",
        r"\\q?quad(?![A-Za-z])|~": " ",
        r"\\varnothing(?![A-Za-z])": r"\\emptyset ",
        r"\\langle(?![A-Za-z])": "(",
        r"\\rangle(?![A-Za-z])": ")",
    }.items()
]
_TRAILING = " \t\r\n,;"
_LEADING = re.compile(r"\A(?:\s|=|\\approx(?![A-Za-z])|\\sim(?:eq)?(?![A-Za-z]))+")

# Words that mean a value or an operation: never a unit, never plain text.
MATHEMATICAL = re.compile(
    r"\b(?:and|or|inf(?:inity)?|percent|percentage|pct|mod|sin|cos|tan|cot|sec|csc|log|exp|sqrt|max|min|gcd|lcm|det|"
    r"alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|tau|phi|rho|omega|"
    r"times|plus|minus|over|divided|to|not|if|dozen|squared|cubed|factorial|half|halves|thirds?|quarters?|fourths?|fifths?)\b",
    re.IGNORECASE,
)
_COMMAS = re.compile(r"(?<![0-9.,])[0-9]+(?:,[0-9]+)+")
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+")
_SEPARATOR = re.compile(
    r"\\[{}]|[\[\](){}]|,(?![0-9]{3}(?![0-9]))|;|\\(?:text|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b"
)


def clean(text: str) -> str:
    """`text` stripped, encodable as UTF-8, without decoration, and Unicode's digits and signs in ASCII and LaTeX."""
    if not text.isascii():
        text = _unicode_to_latex(encodable(text).strip())
    text = text.strip().strip("`")
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        text = text[2:-2]
    if "\\" in text and len(text) <= MAX_CHARACTERS:
        for pattern, replacement in _DECORATIONS:
            text = pattern.sub(replacement, text)
    text = _LEADING.sub("", text).rstrip(_TRAILING)
    return text.rstrip("\\").rstrip(_TRAILING)  # what is left of a line break or of a space command


def encodable(text: str) -> str:
    """`text` with lone surrogates replaced: rows are UTF-8, which has none."""
    return _SURROGATE.sub("\ufffd", text)


def _unicode_to_latex(text: str) -> str:
    text = _MONEY_SIGN.sub(lambda found: found[1] or "", text)
    for pattern, sign in ((_RAISED, "^"), (_LOWERED, "_")):
        text = pattern.sub(lambda found, sign=sign: f"{sign}{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    text = "".join(_one_character(character) for character in text.translate(_UNICODE))
    return _ROOT_SIGN.sub(lambda found: rf"\sqrt{{{found[1] or found[2] or found[3] or ''}}}", text)


def _one_character(character: str) -> str:
    if character.isascii():
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if unicodedata.category(character) == "Zs":
        return " "
    if "\uff01" <= character <= "\uff5e":  # full width
        return chr(ord(character) - 0xFEE0)
    numerator, slash, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
    return rf"\frac{{{numerator}}}{{{denominator}}}" if slash and numerator and denominator else character


def plain(text: str) -> str:
    r"""`text` without LaTeX's wrappings (`\text{}`, `$`, `\left`, spacing), white space collapsed, no final period.

    Two answers that are equal like this are the same answer.
    """
    text = _UNWRAP.sub(r" \1 ", _THOUSANDS.sub("", text))
    return " ".join(_DELIMITERS.sub(" ", text).split()).removesuffix(".").rstrip()


def bare(text: str) -> str:
    """`text` without dollar signs, LaTeX's thousands separators and a final period."""
    return _DOLLARS.sub(" ", _THOUSANDS.sub("", text)).strip().removesuffix(".")


def integer(text: str) -> str | None:
    """The canonical digits of a plain integer (`1,234`, `1 234`, `+5`, `$18`, `007`), `None` for anything else.

    Works on the text alone, so its time is linear however many digits there are.
    """
    match = _INTEGER.fullmatch(plain(_CURRENCY.sub("", text)))
    if match is None:
        return None
    digits = (match[2] or match[3]).replace(",", "").replace(" ", "").lstrip("0") or "0"
    return "-" + digits if match[1] == "-" and digits != "0" else digits


def rational(text: str) -> tuple[Fraction, bool] | None:
    r"""The value of `1.25`, `3/4` or `\frac{3}{4}` and whether it is a decimal, `None` for anything else."""
    match = _RATIONAL.fullmatch(plain(_CURRENCY.sub("", text)))
    if match is None or int(match["bottom"] or match["below"] or 1) == 0:
        return None
    if match["whole"] is not None or match["places"] is not None:
        value = Fraction(f"{match['whole'] or 0}.{match['places'] or 0}")
    else:
        value = Fraction(int(match["top"] or match["above"]), int(match["bottom"] or match["below"]))
    return (-value if match["sign"] == "-" else value), match["point"] is not None


def choice(text: str) -> str | None:
    """The letter of a choice (`C`, `(C)`, `C.`), `None` for anything else.

    A to D have no case; others may be variables, which have.
    """
    match = _CHOICE.fullmatch(plain(text))
    if match is None:
        return None
    letter = match[1] or match[2]
    return letter.lower() if letter.lower() in "abcd" else letter


def choice_with_text(text: str) -> str | None:
    r"""The letter of a choice that is written with what it says (`\textbf{(B) }12`, `Option B`); `None` without one."""
    match = _CHOICE_AND_TEXT.fullmatch(plain(text))
    if match is None or _OTHER_CHOICE.search(match["rest"]):
        return None
    letter = match[2] or match[3] or match[4]
    return letter.lower() if letter in "ABCD" else letter


def words(text: str) -> str | None:
    r"""The answer as lower-case words if it is nothing but words, else `None`.

    Bare letters are words from three letters on (`None`, `east`): shorter ones may be variables. Inside `\text{}`
    every letter is a word.
    """
    content = plain(text)
    match = _WORDS.fullmatch(content)
    if match is None or MATHEMATICAL.fullmatch(content):
        return None
    wrapped = _UNWRAP.fullmatch(_DOLLARS.sub(" ", text).strip())
    if wrapped is None and max(map(len, re.split(r"[ '’-]+", content))) < 3:
        return None
    return content.casefold()


def clock(text: str) -> tuple[int, str] | None:
    """Minutes after twelve and ``a``, ``p`` or ``""`` of a time of day (`4:30 p.m.`), `None` for anything else."""
    match = _CLOCK.fullmatch(plain(text))
    if match is None or not (match[2] or match[3]) or int(match[1]) > (12 if match[3] else 24):
        return None
    minutes = 60 * int(match[1]) + int(match[2] or 0)
    return (minutes % 720 if match[3] else minutes), (match[3] or "").lower()


def numeral(text: str) -> tuple[str, int] | None:
    """Digits and value of a numeral with its base as a subscript (`52_8`), `None` for anything else."""
    match = _NUMERAL.fullmatch(plain(text))
    if match is None:
        return None
    written = match[2] or match[3]
    base = int(written) if written.isdigit() else _BASES.get(written, 0)
    if not 2 <= base <= 36 or len(match[1]) > 200:
        return None
    try:
        return match[1].lower(), int(match[1], base)
    except ValueError:
        return None


def shape(text: str) -> str:
    r"""Which brackets enclose the whole of a list: ``"set"`` for `\{1, 2\}`, ``"tuple"`` for `(1, 2)`, else ``""``."""
    text = plain(text)
    pairs = {r"\{": (r"\}", "set"), "(": (")", "tuple")}
    for opening, (closing, name) in pairs.items():
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            inner = text[len(opening) : -len(closing)]
            return name if len(items(text)) == 1 and len(items(inner)) > 1 else ""
    return ""


def spaced(text: str, lists: bool = False) -> str:
    """`text` with a space after each comma that stands between two numbers, and without thousands commas.

    Args:
        text: the answer. Where a comma has a space and no bracket is about, the others are thousands commas.
        lists: whether commas separate in any case: the known answer is a list and none of the answer's has a space.
    """
    thousands = re.search(r",\s", text) is not None and re.search(r"[(\[]", text) is None

    def separate(match: re.Match[str]) -> str:
        if not lists and _GROUPED.fullmatch(match[0]):
            return match[0].replace(",", "") if thousands else match[0]
        return match[0].replace(",", ", ")

    return _COMMAS.sub(separate, text)


def items(text: str) -> list[str]:
    """The parts of a list: what stands between commas, semicolons, "and" and "or" outside all brackets."""
    text = spaced(text)
    parts: list[str] = []
    depth = start = 0
    for match in _SEPARATOR.finditer(text):
        sign = match[0]
        if sign[-1] in "([{" and len(sign) <= 2:
            depth += 1
        elif sign[-1] in ")]}" and len(sign) <= 2:
            depth -= 1
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part]
