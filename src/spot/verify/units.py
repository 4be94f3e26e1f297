"""Units of measure: what one measures and how large it is, so that 5 cm is not 5 m and 12 cm^2 not 12 cm^3."""

import re
from fractions import Fraction
from typing import NamedTuple

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
