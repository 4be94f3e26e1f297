r"""How answers are written: the integers, words, units and scales that are settled on the text itself.

math-verify reads most notations, but credits some wrong answers: it takes a bare word for a product of letters, drops
units whatever they are (5 cm for 5 m, and `5t` for `5`), a scale word with them (5 million for 5), and the base of a
numeral. These are settled here. Nothing in this module imports more than the standard library: the worker loads it.
"""

import re
import unicodedata
from typing import NamedTuple

_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = "".join(map(chr, [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF, 0x61C]))
_MINUS_SIGNS = "\u2212\ufe63\uff0d"
_PLAIN = {**dict.fromkeys(map(ord, _INVISIBLE)), **dict.fromkeys(map(ord, _MINUS_SIGNS), "-")}

_TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|normal)?|mbox|math(?:rm|bf|it|sf))\s*"
_UNWRAP = re.compile(_TEXT_COMMAND + r"\{([^{}]*)\}")
_DOLLARS = re.compile(r"\\?\$")
_DELIMITERS = re.compile(r"\\[()\[\]]|\\?\$|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]|~")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,;: ]\s*)(?=[0-9]{3}(?![0-9]))")
_INTEGER = re.compile(r"([+-]?) ?(?:([1-9][0-9]{0,2}(?:,[0-9]{3})+)|([0-9]+))")
_CURRENCY = re.compile(r"\A\s*(?:\\?\$|€|£|¥|₹)\s*(?=[+-]?[0-9])")
_WORDS = re.compile(r"[^\W\d_]+(?:[ '’-]+[^\W\d_]+)*")
_NUMERAL = re.compile(r"(?=[A-Za-z]*[0-9])([0-9A-Za-z]+)_\{?([0-9]{1,2})\}?")

# Words that mean a value or an operation: never a unit, never plain text.
_MATHEMATICAL = re.compile(
    r"\b(?:and|or|inf(?:inity)?|percent|percentage|pct|mod|sin|cos|tan|cot|sec|csc|log|exp|sqrt|max|min|gcd|lcm|det|"
    r"alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|tau|phi|rho|omega|"
    r"times|plus|minus|over|divided|to|not|if|dozen|squared|cubed|factorial|half|halves|thirds?|quarters?|fourths?|fifths?)\b",
    re.IGNORECASE,
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(
    rf"(?<=[0-9])\s*(?:(?P<open>\\(?:text|mbox|mathrm)\s*\{{)\s*)?(?P<scale>{'|'.join(_SCALES)})\b", re.IGNORECASE
)
_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9\\])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]+)(?![A-Za-z0-9])")
_BARE_POINT = re.compile(r"(?<=[0-9])\.(?=\s*[-+*/)])")  # 1./3, as numpy writes it
_UNIT_COMMAND = r"(?:\\(?:text(?:rm|normal)?|mbox)\s*\{[^{}]*\}|(?<=[0-9}\s,;])\\mathrm\s*\{[^{}]*\})"
_SPACE = r"(?:\s|\\[,;: ]|~)*"
_UNIT_TAIL = re.compile(rf"(?P<value>.*?[0-9A-Za-z}})!]){_SPACE}(?P<unit>{_UNIT_COMMAND}.*)", re.DOTALL)
_UNIT_ONLY = re.compile(rf"(?:{_UNIT_COMMAND}|\^\s*\{{?\s*-?[0-9]\s*\}}?|\\[,;: ]|\\cdot|[\s/~.])+")
_BARE_UNIT = re.compile(
    r"(?P<value>[+-]?\s*[0-9][0-9.,/]*(?: \\times 10\^\{[0-9]+\})?)\s+(?P<unit>[A-Za-z][A-Za-z -]*)", re.DOTALL
)

# Unit, as it reads without a plural s: what it measures and how many of the smallest one listed it holds.
_UNITS: dict[str, tuple[str, int]] = {
    name: (dimension, size)
    for dimension, sizes in {
        "length": {"mm millimeter millimetre": 1, "cm centimeter centimetre": 10, "m meter metre": 1000}
        | {"km kilometer kilometre": 10**6},
        "customary length": {"inch inche": 1, "ft foot feet": 12, "yard yd": 36, "mile": 63360},
        "mass": {"mg milligram": 1, "g gram": 1000, "kg kilogram": 10**6},
        "time": {"s sec second": 1, "min minute": 60, "h hr hour": 3600, "day": 86400, "week": 604800},
        "money": {"cent": 1, "dollar": 100},
    }.items()
    for names, size in sizes.items()
    for name in names.split()
}


class Quantity(NamedTuple):
    """An answer split in two: `value` in LaTeX, and the unit written after it, singular and lower case, or ``""``."""

    value: str
    unit: str

    @property
    def known(self) -> tuple[str, int] | None:
        """What the unit measures and its size in the smallest unit of that kind; `None` for other units or none."""
        return _UNITS.get(self.unit)


def clean(text: str) -> str:
    """`text` stripped, without direction marks, with ASCII digits and minus signs, and encodable as UTF-8."""
    if not text.isascii():
        text = encodable(text).translate(_PLAIN)
        text = "".join(_ascii_digit(character) for character in text)
    return text.strip()


def encodable(text: str) -> str:
    """`text` with lone surrogates replaced: rows are UTF-8, which has none."""
    return _SURROGATE.sub("\ufffd", text)


def _ascii_digit(character: str) -> str:
    if character.isascii():
        return character
    digit = unicodedata.decimal(character, None)
    return character if digit is None else str(digit)


def plain(text: str) -> str:
    r"""`text` without LaTeX's wrappings (`\text{}`, `$`, `\left`, spacing), white space collapsed, no final period.

    Two answers that are equal like this are the same answer.
    """
    text = _UNWRAP.sub(r" \1 ", _THOUSANDS.sub("", text))
    return " ".join(_DELIMITERS.sub(" ", text).split()).removesuffix(".").rstrip()


def integer(text: str) -> str | None:
    """The canonical digits of a plain integer (`1,234`, `+5`, `$18`, `007`), `None` for anything else.

    Works on the text alone, so its time is linear however many digits there are.
    """
    match = _INTEGER.fullmatch(plain(_CURRENCY.sub("", text)))
    if match is None:
        return None
    digits = (match[2] or match[3]).replace(",", "").lstrip("0") or "0"
    return "-" + digits if match[1] == "-" and digits != "0" else digits


def words(text: str) -> str | None:
    r"""The answer as lower-case words if it is nothing but words, else `None`.

    Bare letters are words from three letters on (`None`, `east`): shorter ones may be variables. Inside `\text{}`
    every letter is a word.
    """
    content = plain(text)
    match = _WORDS.fullmatch(content)
    if match is None or _MATHEMATICAL.fullmatch(content):
        return None
    wrapped = _UNWRAP.fullmatch(_DOLLARS.sub(" ", text).strip())
    if wrapped is None and max(map(len, re.split(r"[ '’-]+", content))) < 3:
        return None
    return content.casefold()


def numeral(text: str) -> int | None:
    """The value of a numeral with its base as a subscript (`52_8`), `None` for anything else."""
    match = _NUMERAL.fullmatch(text)
    if match is None or not 2 <= int(match[2]) <= 36 or len(match[1]) > 200:
        return None
    try:
        return int(match[1], int(match[2]))
    except ValueError:
        return None


def quantity(text: str) -> Quantity:
    r"""`text` as a value that math-verify reads rightly, and its unit.

    Scale words become powers of ten (also inside `\text{}`), `4.5e33` becomes a product, a lone word is marked as
    text. A unit is what follows the value in `\text{}` or its kin, or bare words after a number and a space.
    """
    text = _DOLLARS.sub(" ", _THOUSANDS.sub("", text)).strip().removesuffix(".")
    if (lone := words(text)) is not None:
        return Quantity(rf"\text{{{lone}}}", "")
    text = _BARE_POINT.sub("", text)
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", _expand_scales(text))
    match = _UNIT_TAIL.fullmatch(text)
    if match is not None:
        is_unit = _UNIT_ONLY.fullmatch(match["unit"]) is not None
    else:
        match = _BARE_UNIT.fullmatch(text)
        # One or two letters are variables, unless they are a unit that everyone knows.
        is_unit = match is not None and (match["unit"] in _UNITS or max(map(len, match["unit"].split())) > 2)
    if match is None or not is_unit:
        return Quantity(text, "")
    unit = plain(match["unit"]).lower()
    if _MATHEMATICAL.search(unit):
        return Quantity(text, "")
    return Quantity(match["value"], unit if unit in _UNITS else unit.removesuffix("s"))


def _expand_scales(text: str) -> str:
    match = _SCALE.search(text)
    if match is None:
        return text
    rest = text[match.end() :]
    if match["open"]:
        inside, _, after = rest.partition("}")
        rest = (rf" \text{{{inside}}}" if inside.strip() else "") + after
    return rf"{text[: match.start()]} \times 10^{{{_SCALES[match['scale'].lower()]}}}{rest}"
