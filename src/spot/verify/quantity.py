r"""An answer as a value and a unit, in the LaTeX that the parser reads rightly.

The parser would drop units whatever they are (5 cm for 5 m, and `5t` for `5`), and a scale word with them (5 million
for 5); repeating decimals, `3 1/2` and `4.5e33` it cannot read. A unit is what it measures and how large it is, so that
5 cm is not 5 m and 12 cm^2 not 12 cm^3. Nothing in this module imports more than the standard library.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from spot.verify.notation import MATHEMATICAL, TEXT_COMMAND, bare, items, numeral, plain, spaced, words

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(
    rf"(?<=[0-9])\s*(?:(?P<open>\\(?:text|mbox|mathrm)\s*\{{)\s*)?(?P<scale>{'|'.join(_SCALES)})\b", re.IGNORECASE
)
_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9\\])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]+)(?![A-Za-z0-9])")
_BARE_POINT = re.compile(r"(?<=[0-9])\.(?=\s*[-+*/)])")  # 1./3, as numpy writes it
_NUMPY = re.compile(r"\bnp\.(?=[a-z])(?:((?:arc)?(?:sin|cos|tan)|exp|log|pi)\b)?")
_SPACE = r"(?:\s|\\[,;: ]|~)*"
_MIXED = re.compile(r"(?<![\w.}^/])([0-9]{1,9})(?:\s|\\[,;: ]|~)+([0-9]{1,9})/([0-9]{1,9})(?![\w/.])")
_REPEATING = re.compile(r"([0-9]{0,30})\.([0-9]{0,30})\\(?:overline|bar|dot)\s*(?:\{\s*([0-9]{1,30})\s*\}|([0-9]))")
_PERCENT = re.compile(
    rf"(?<=[0-9}})]){_SPACE}(?:\\?%|(?:{TEXT_COMMAND}\{{\s*)?(?:per ?cent|pct|percentage points?)\b\.?\s*\}}?)",
    re.IGNORECASE,
)
_INFINITY = re.compile(rf"{TEXT_COMMAND}\{{\s*infinity\s*\}}", re.IGNORECASE)
_COMMON_NAME = re.compile(r"\s*\$?\s*([A-Za-z])\s*=[^=]*\Z")  # x = 1, 2
_UNIT_COMMAND = r"\\(?:text(?:bf|it|rm|sf|normal)?|mbox|mathrm)\s*\{(?:[^{}]|\{[^{}]*\})*\}"
_UNIT_TAIL = re.compile(rf"(?P<value>.*?[0-9A-Za-z}})!])(?P<space>{_SPACE})(?P<unit>{_UNIT_COMMAND}.*)", re.DOTALL)
_UNIT_ONLY = re.compile(rf"(?:{_UNIT_COMMAND}|\^\s*\{{?\s*-?[0-9]\s*\}}?|\\[,;: ]|\\cdot|[\s/~.])+")
_BARE_UNIT = re.compile(
    r"(?P<value>[+-]?\s*[0-9][0-9.,/]*(?: \\times 10\^\{[0-9]+\})?)(?P<space>\s*)(?P<unit>[A-Za-z][A-Za-z0-9 /^{}-]*)",
    re.DOTALL,
)
_GLUED = re.compile(r"(?:mm|cm|km|kg|ft|mph|min|sec|hrs?)\b")
_CIRCLE = r"\^\s*\{?\s*\\circ\s*\}?"
_DEGREES = re.compile(rf"(?P<value>.*[0-9A-Za-z}})]){_SPACE}{_CIRCLE}{_SPACE}(?P<scale>[CF]?)", re.DOTALL)
_TEMPERATURE = re.compile(rf"{TEXT_COMMAND}\{{\s*~?([CF])\s*\}}\Z")
_ANGLE_FUNCTION = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
_DEGREE_SIGN = re.compile(rf"([0-9.]+)\s*{_CIRCLE}")
_ALTERNATIVE = re.compile(r"\\(?:text|mbox)\s*\{\s*,?\s*or\s*\}|\bor\b")
_RELATION = re.compile(r"[<>]|\\(?:[lg]eq?|[lg]t|[lg]eqslant)(?![A-Za-z])")
_APPROXIMATION = re.compile(r"\\(?:approx|simeq)(?![A-Za-z])")


# What each simple unit measures and how many of the kind's smallest unit listed here it holds.
_SIMPLE: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(size))
    for kind, sizes in {
        "length": {"mm millimeter millimetre": "1", "cm centimeter centimetre": "10", "m meter metre": "1000"}
        | {"km kilometer kilometre": "1000000", "in inch": "25.4", "ft foot feet": "304.8", "yd yard": "914.4"}
        | {"mi mile": "1609344"},
        "mass": {"mg milligram": "1", "g gram": "1000", "kg kilogram": "1000000"}
        | {"oz ounce": "28349.523125", "lb pound": "453592.37"},
        "time": {"s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400", "week": "604800"},
        "calendar": {"month": "1", "yr year": "12"},
        "volume": {"ml milliliter millilitre": "1", "l liter litre": "1000"},
        "money": {"cent": "1", "dollar usd": "100"},
        "angle": {"degree deg": "1"},
        "radian": {"rad radian": "1"},
        "Celsius": {"celsius": "1"},
        "Fahrenheit": {"fahrenheit": "1"},
    }.items()
    for names, size in sizes.items()
    for name in names.split()
}
_COMPOUND = {"mph": "mile / hour", "kph": "km / hour", "kmph": "km / hour"}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_WORD = re.compile(r"([a-z]+)(?: ?\^ ?(-?[1-9]))?")


class Unit(NamedTuple):
    """A unit whose size is known: the powers of what it measures, and its size in the smallest units of those."""

    kinds: frozenset[tuple[str, int]]
    size: Fraction


class Quantity(NamedTuple):
    """An answer split in two: `value` in LaTeX, and the unit written after it, ``""`` without one."""

    value: str
    unit: str

    @property
    def known(self) -> Unit | None:
        """The unit, if it is one whose size is known; `None` for other units or none."""
        return read_unit(self.unit) if self.unit else None


def quantity(text: str, single_letters: bool = False) -> Quantity:
    r"""`text` as a value that the parser reads rightly, and its unit.

    Scale words become powers of ten (also inside `\text{}`), `4.5e33` becomes a product, `0.\overline{3}` and `3 1/2`
    fractions, a lone word is marked as text. A unit is what follows the value in `\text{}` or its kin, bare words after
    a number and a space, a per cent sign or a degree sign.

    Args:
        text: the answer.
        single_letters: whether the m of `5 m` is a unit. It is a variable where the known answer has letters.
    """
    text = bare(text)
    if (number := numeral(text)) is not None:
        return Quantity(str(number[1]), "")
    if (lone := words(text)) is not None:
        return Quantity(rf"\text{{{lone}}}", "")
    text = spaced(text)
    text = _NUMPY.sub(lambda found: rf"\{found[1]}" if found[1] else "", _BARE_POINT.sub("", text))
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", _expand_scales(text))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _REPEATING.sub(_as_fraction, text))
    text = _INFINITY.sub(r"\\infty ", _PERCENT.sub(r"\\%", text))
    if common_name(text):
        text = text.partition("=")[2]
    if text.endswith(r"\%") and text.count(r"\%") == 1:
        return Quantity(text.removesuffix(r"\%").rstrip(), "%")
    return _degrees(text) or _unit_in_text(text) or _unit_in_words(text, single_letters) or Quantity(text, "")


def common_name(text: str) -> str:
    """The name before a list of its values (`x = 1, 2`), ``""`` without one."""
    match = _COMMON_NAME.match(text)
    return match[1].lower() if match and len(items(text)) > 1 else ""


def _degrees(text: str) -> Quantity | None:
    """A temperature or an angle; degrees inside a function become radians."""
    if r"\circ" not in text:
        return None
    if _ANGLE_FUNCTION.search(text):
        return Quantity(_DEGREE_SIGN.sub(r"(\\frac{\1 \\pi}{180})", text), "")
    match = _DEGREES.fullmatch(_TEMPERATURE.sub(r"\1", text))
    if match is None or r"\circ" in match["value"]:
        return None
    return Quantity(match["value"], {"C": "celsius", "F": "fahrenheit"}.get(match["scale"], "degree"))


def _unit_in_text(text: str) -> Quantity | None:
    match = _UNIT_TAIL.fullmatch(text)
    if match is None or _UNIT_ONLY.fullmatch(match["unit"]) is None:
        return None
    if match["unit"].startswith(r"\mathrm") and not (match["space"] or re.search(r"[0-9}]\Z", match["value"])):
        return None
    return _checked_unit(match["value"], plain(match["unit"]))


def _unit_in_words(text: str, single_letters: bool) -> Quantity | None:
    match = _BARE_UNIT.fullmatch(text)
    if match is None:
        return None
    unit = match["unit"]
    if not match["space"]:
        is_unit = _GLUED.match(unit) is not None and read_unit(unit) is not None
    elif not re.fullmatch(r"[A-Za-z -]+", unit):
        is_unit = read_unit(unit) is not None
    else:
        # One or two letters are variables, unless they are a unit that everyone knows.
        is_unit = max(map(len, unit.split())) > 2 or (
            read_unit(unit) is not None and (single_letters or _GLUED.fullmatch(unit) is not None)
        )
    return _checked_unit(match["value"], unit) if is_unit else None


def _checked_unit(value: str, unit: str) -> Quantity | None:
    known = read_unit(unit)
    if MATHEMATICAL.search(unit) and known is None:
        return None
    # Radians are what a bare number is, and degrees have one name.
    angles = {frozenset({("radian", 1)}): "", frozenset({("angle", 1)}): "degree"}
    return Quantity(value, angles.get(known.kinds, unit) if known is not None else unit)


def _as_fraction(match: re.Match[str]) -> str:
    whole, fixed, repeating = match[1] or "0", match[2], match[3] or match[4]
    numerator = int(whole + fixed + repeating) - int(whole + fixed)
    return rf"\frac{{{numerator}}}{{{'9' * len(repeating)}{'0' * len(fixed)}}}"


def _expand_scales(text: str) -> str:
    match = _SCALE.search(text)
    if match is None:
        return text
    rest = text[match.end() :]
    if match["open"]:
        inside, _, after = rest.partition("}")
        rest = (rf" \text{{{inside}}}" if inside.strip() else "") + after
    return rf"{text[: match.start()]} \times 10^{{{_SCALES[match['scale'].lower()]}}}{rest}"


def alternatives(value: str) -> list[str]:
    """The inequalities of which one must hold (`x < 2 or x > 3`); `value` alone if there are no two."""
    parts = _ALTERNATIVE.split(value)
    return parts if all(map(_RELATION.search, parts)) else [value]


def approximation(value: str) -> str | None:
    r"""What `value` is said to be about (`1.41` of `\sqrt{2} \approx 1.41`), `None` if nothing is said."""
    parts = _APPROXIMATION.split(value)
    return parts[-1] if len(parts) > 1 else None


# --- Units ------------------------------------------------------------------------------------------------------------


def read_unit(text: str) -> Unit | None:
    """The unit that `text` names (`km/h`, `square inches`, `m / s ^2`), `None` if a word of it is no known unit."""
    text = re.sub(r"[{}()]|\\cdot|\.", " ", text.lower()).replace("**", "^")
    text = re.sub(r"\bper\b", "/", " ".join(_COMPOUND.get(word, word) for word in text.split()))
    powers: dict[str, int] = {}
    size = Fraction(1)
    for place, part in enumerate(text.split("/")):
        factors = _factors(part)
        if not factors:
            return None
        for kind, one, power in factors:
            signed = -power if place else power
            powers[kind] = powers.get(kind, 0) + signed
            size *= one**signed
    return Unit(frozenset((kind, power) for kind, power in powers.items() if power), size)


def _factors(text: str) -> list[tuple[str, Fraction, int]]:
    """Kind, size and power of each word in a product of units; empty if one is unknown."""
    factors: list[tuple[str, Fraction, int]] = []
    awaited = 1  # the power that "square" gives to the word after it
    words = _WORD.findall(text)
    if " ".join(text.split()).replace(" ^", "^").replace("^ ", "^") != " ".join(
        f"{word}^{power}" if power else word for word, power in words
    ):
        return []
    for word, power in words:
        if word in _POWERS:
            if word.endswith("ed") and factors:
                kind, size, _ = factors.pop()
                factors.append((kind, size, _POWERS[word]))
            else:
                awaited = _POWERS[word]
            continue
        simple = _SIMPLE.get(word) or _SIMPLE.get(word.removesuffix("s")) or _SIMPLE.get(word.removesuffix("es"))
        if simple is None:
            return []
        factors.append((*simple, int(power) if power else awaited))
        awaited = 1
    return factors if awaited == 1 else []
