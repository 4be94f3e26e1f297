"""The second family: reasoning that is not an arithmetic story. Each kind draws a question and its one right answer."""

import random
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

Drawn = tuple[str, str]
CLOSINGS = ("The answer is {box}.", "It is {box}.", "{box}", "Answer: {box}")


def draw(raw: Mapping[str, Any], rng: random.Random) -> tuple[str, str, dict[str, Any], str]:
    """A question by the world file `raw`: the text, its answer, its `meta` and the student's training answer."""
    kind = rng.choice(list(KINDS))
    prompt, answer = KINDS[kind](raw, rng)
    return prompt, answer, {"kind": kind}, rng.choice(CLOSINGS).format(box=f"\\boxed{{{answer}}}")


def _numbers(raw: Mapping[str, Any], rng: random.Random) -> list[int]:
    low, high = raw["ood"]["numbers"]
    return rng.sample(range(low, high + 1), k=rng.randint(*raw["ood"]["list_length"]))


def _words(raw: Mapping[str, Any], rng: random.Random) -> list[str]:
    pool = [word for words in raw["ood"]["categories"].values() for word in words]
    return rng.sample(pool, k=rng.randint(*raw["ood"]["word_list_length"]))


def _listed(things: list[Any]) -> str:
    return ", ".join(str(thing) for thing in things)


def _sort(raw: Mapping[str, Any], rng: random.Random) -> Drawn:
    numbers = _numbers(raw, rng)
    if rng.random() < 0.5:
        return f"Sort from small to large: {_listed(numbers)}.", _listed(sorted(numbers))
    return f"Sort from large to small: {_listed(numbers)}.", _listed(sorted(numbers, reverse=True))


def _extreme(raw: Mapping[str, Any], rng: random.Random) -> Drawn:
    numbers = _numbers(raw, rng)
    if rng.random() < 0.5:
        return f"Which number is the largest: {_listed(numbers)}?", str(max(numbers))
    return f"Which number is the smallest: {_listed(numbers)}?", str(min(numbers))


def _sequence(raw: Mapping[str, Any], rng: random.Random) -> Drawn:
    low, high = raw["ood"]["numbers"]
    gap = rng.randint(*raw["ood"]["gaps"])
    start = rng.randint(low, high - 4 * gap)
    numbers = [start + gap * i for i in range(5)]
    if rng.random() < 0.5:
        numbers.reverse()
    return f"What comes next: {_listed(numbers[:4])}?", str(numbers[4])


def _order(raw: Mapping[str, Any], rng: random.Random) -> Drawn:
    subjects = raw["ood"]["categories"][raw["instructions"]["subjects"]]
    chosen = rng.sample(subjects, k=rng.randint(*raw["ood"]["order_length"]))
    more, most, least = rng.choice([("taller", "tallest", "shortest"), ("older", "oldest", "youngest")])
    facts = [f"The {a} is {more} than the {b}." for a, b in pairwise(chosen)]
    rng.shuffle(facts)
    if rng.random() < 0.5:
        return f"{' '.join(facts)} Which is the {most}?", chosen[0]
    return f"{' '.join(facts)} Which is the {least}?", chosen[-1]


def _reverse(raw: Mapping[str, Any], rng: random.Random) -> Drawn:
    words = _words(raw, rng)
    return f"Write in reverse: {_listed(words)}.", _listed(words[::-1])


def _odd_one_out(raw: Mapping[str, Any], rng: random.Random) -> Drawn:
    categories = raw["ood"]["categories"]
    home, away = rng.sample(list(categories), k=2)
    words = [*rng.sample(categories[home], k=rng.randint(3, 4)), rng.choice(categories[away])]
    odd = words[-1]
    rng.shuffle(words)
    return f"Which word does not belong: {_listed(words)}?", odd


KINDS: dict[str, Callable[[Mapping[str, Any], random.Random], Drawn]] = {
    "sort": _sort,
    "extreme": _extreme,
    "sequence": _sequence,
    "order": _order,
    "reverse": _reverse,
    "odd_one_out": _odd_one_out,
}
