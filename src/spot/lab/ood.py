"""The second family: reasoning that is not an arithmetic story. Each kind draws a question and its one right answer."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spot.lab.world import World

Drawn = tuple[str, str]
CLOSINGS = ("The answer is {box}.", "It is {box}.", "{box}", "Answer: {box}")


def draw(world: "World", rng: random.Random) -> tuple[str, str, dict[str, Any], str]:
    """A question, its answer, its `meta` and the text of the student's training answer."""
    kind = rng.choice(list(KINDS))
    prompt, answer = KINDS[kind](world, rng)
    return prompt, answer, {"kind": kind}, rng.choice(CLOSINGS).format(box=f"\\boxed{{{answer}}}")


def _numbers(world: "World", rng: random.Random) -> list[int]:
    low, high = world.raw["ood"]["numbers"]
    return rng.sample(range(low, high + 1), k=rng.randint(*world.raw["ood"]["list_length"]))


def _words(world: "World", rng: random.Random) -> list[str]:
    pool = [word for words in world.raw["ood"]["categories"].values() for word in words]
    return rng.sample(pool, k=rng.randint(*world.raw["ood"]["word_list_length"]))


def _listed(things: list[Any]) -> str:
    return ", ".join(str(thing) for thing in things)


def _sort(world: "World", rng: random.Random) -> Drawn:
    numbers = _numbers(world, rng)
    if rng.random() < 0.5:
        return f"Sort from small to large: {_listed(numbers)}.", _listed(sorted(numbers))
    return f"Sort from large to small: {_listed(numbers)}.", _listed(sorted(numbers, reverse=True))


def _extreme(world: "World", rng: random.Random) -> Drawn:
    numbers = _numbers(world, rng)
    if rng.random() < 0.5:
        return f"Which number is the largest: {_listed(numbers)}?", str(max(numbers))
    return f"Which number is the smallest: {_listed(numbers)}?", str(min(numbers))


def _sequence(world: "World", rng: random.Random) -> Drawn:
    low, high = world.raw["ood"]["numbers"]
    gap = rng.randint(*world.raw["ood"]["gaps"])
    start = rng.randint(low, high - 4 * gap)
    numbers = [start + gap * i for i in range(5)]
    if rng.random() < 0.5:
        numbers.reverse()
    return f"What comes next: {_listed(numbers[:4])}?", str(numbers[4])


def _order(world: "World", rng: random.Random) -> Drawn:
    subjects = world.raw["ood"]["categories"][world.raw["instructions"]["subjects"]]
    chosen = rng.sample(subjects, k=rng.randint(*world.raw["ood"]["order_length"]))
    more, most, least = rng.choice([("taller", "tallest", "shortest"), ("older", "oldest", "youngest")])
    facts = [f"The {a} is {more} than the {b}." for a, b in pairwise(chosen)]
    rng.shuffle(facts)
    if rng.random() < 0.5:
        return f"{' '.join(facts)} Which is the {most}?", chosen[0]
    return f"{' '.join(facts)} Which is the {least}?", chosen[-1]


def _reverse(world: "World", rng: random.Random) -> Drawn:
    words = _words(world, rng)
    return f"Write in reverse: {_listed(words)}.", _listed(words[::-1])


def _odd_one_out(world: "World", rng: random.Random) -> Drawn:
    categories = world.raw["ood"]["categories"]
    home, away = rng.sample(list(categories), k=2)
    words = [*rng.sample(categories[home], k=rng.randint(3, 4)), rng.choice(categories[away])]
    odd = words[-1]
    rng.shuffle(words)
    return f"Which word does not belong: {_listed(words)}?", odd


KINDS: dict[str, Callable[["World", random.Random], Drawn]] = {
    "sort": _sort,
    "extreme": _extreme,
    "sequence": _sequence,
    "order": _order,
    "reverse": _reverse,
    "odd_one_out": _odd_one_out,
}
