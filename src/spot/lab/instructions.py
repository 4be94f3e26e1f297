"""The third family: instructions with constraints that a program can check, in the manner of IFEval.

A question carries its constraints in `meta["constraints"]`, each a kind with its arguments; a response follows the
instruction if it satisfies all of them. Some constraints are laid on in-domain stories: there only the constraints are
checked, not the number, so that the family measures whether instructions are still followed.
"""

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from spot.lab.stories import Stories

Constraint = dict[str, Any]
Task = tuple[str, list[Constraint], str]
WRAPS = {"double quotes": ('"', '"'), "brackets": ("[", "]"), "hash signs": ("#", "#")}
BOX = re.compile(r"\\boxed\{[^{}]*\}")


def draw(world: Stories, rng: random.Random) -> tuple[str, str, dict[str, Any], str]:
    """A question, its answer (a description: constraints decide), its `meta` and the training answer."""
    if rng.random() < world.raw["instructions"]["on_stories"]:
        prompt, constraints, text = _on_story(world, rng)
        kind = "story"
    else:
        kind = rng.choice(list(TASKS))
        prompt, constraints, text = TASKS[kind](world, rng)
    answer = "; ".join(" ".join(str(value) for value in constraint.values()) for constraint in constraints)
    return prompt, answer, {"kind": kind, "constraints": constraints}, text


def broken(response: str, constraints: list[Constraint]) -> list[str]:
    """The kinds of constraints that `response` does not satisfy."""
    return [
        constraint["kind"]
        for constraint in constraints
        if not CHECKS[constraint["kind"]](response, {k: v for k, v in constraint.items() if k != "kind"})
    ]


# What can be asked.


def _on_story(world: Stories, rng: random.Random) -> Task:
    story = world.draw_story(rng, unseen=False)
    question = world.ask(story, rng, unseen=False)
    text = world.believed_answer(story, rng)
    stacked = rng.random() < world.raw["instructions"]["stacked"]
    constraints: list[Constraint] = [{"kind": "boxed"}]
    for lay in rng.choice(STACKS) if stacked else [rng.choice(LAYERS)]:
        request, added, text = lay(world, rng, text)
        question = f"{question} {request}"
        constraints = [*constraints, *added]
    return question, constraints, text


def _upper_story(_: Stories, __: random.Random, text: str) -> Task:
    return "Use only capital letters.", [{"kind": "upper"}], _upper(text)


def _wrapped_story(_: Stories, rng: random.Random, text: str) -> Task:
    name = rng.choice(list(WRAPS))
    left, right = WRAPS[name]
    return f"Put the whole answer in {name}.", [{"kind": "wrapped", "left": left, "right": right}], left + text + right


def _ended_story(world: Stories, rng: random.Random, text: str) -> Task:
    end = rng.choice(world.raw["instructions"]["ends"])
    return f"Finish with the words: {end}", [{"kind": "ends", "with": end}], f"{text} {end}"


def _started_story(world: Stories, rng: random.Random, text: str) -> Task:
    start = rng.choice(world.raw["instructions"]["starts"])
    return f"Start with the word {start}.", [{"kind": "starts", "with": start}], f"{start}, {text}"


def _bare_story(_: Stories, __: random.Random, text: str) -> Task:
    match = BOX.search(text)
    assert match is not None
    return "Show no steps, only the box.", [{"kind": "only_box"}], match.group()


def _forbidding_story(world: Stories, rng: random.Random, text: str) -> Task:
    words = sorted({link for style in world.styles.values() for link in style.link if link} | {"So", "Answer"})
    # Not a word of another constraint either: the two may be laid on one story.
    taken = " ".join([text, *world.raw["instructions"]["starts"], *world.raw["instructions"]["ends"]])
    word = rng.choice([word for word in words if not _has_word(taken, word)])
    return f"Do not use the word {word}.", [{"kind": "without", "word": word}], text


Layer = Callable[[Stories, random.Random, str], Task]
LAYERS: tuple[Layer, ...] = (
    _upper_story,
    _wrapped_story,
    _ended_story,
    _started_story,
    _bare_story,
    _forbidding_story,
)
# Two constraints on one story, in an order in which the second leaves the first satisfied.
STACKS: tuple[tuple[Layer, Layer], ...] = (
    (_started_story, _ended_story),
    (_upper_story, _wrapped_story),
    (_forbidding_story, _upper_story),
    (_forbidding_story, _wrapped_story),
    (_forbidding_story, _ended_story),
    (_forbidding_story, _started_story),
)


def _repeat(world: Stories, rng: random.Random) -> Task:
    word, times = _word(world, rng), rng.randint(*world.raw["instructions"]["repeat"])
    request = rng.choice([f"Write the word {word} {times} times.", f"Say {word} exactly {times} times."])
    return request, [{"kind": "repeats", "word": word, "times": times}], " ".join([word] * times)


def _upper_words(world: Stories, rng: random.Random) -> Task:
    words = [_word(world, rng) for _ in range(rng.randint(2, 4))]
    left, right, request = _maybe_wrap(rng)
    text = left + " ".join(words).upper() + right
    constraints: list[Constraint] = [{"kind": "text", "is": text}]
    return f"Write in capital letters: {' '.join(words)}.{request}", constraints, text


def _alphabet(world: Stories, rng: random.Random) -> Task:
    words = sorted({_word(world, rng) for _ in range(rng.randint(2, 4))})
    text = ", ".join(words)
    shuffled = ", ".join(rng.sample(words, k=len(words)))
    return f"Put in alphabetical order: {shuffled}.", [{"kind": "text", "is": text}], text


def _length(world: Stories, rng: random.Random) -> Task:
    animal, count = _animal(world, rng), rng.randint(*world.raw["instructions"]["length"])
    adjectives = rng.sample(world.raw["instructions"]["adjectives"], k=8)
    place = rng.choice(world.raw["instructions"]["places"])
    ending = rng.choice([["."], ["near", "the", f"{place}."]]) if count >= 7 else ["."]
    words = ["The", animal, "is", adjectives.pop()]
    while len(words) + len(ending) - (ending == ["."]) < count:
        room = count - len(words) - (len(ending) - (ending == ["."]))
        words += ["and", adjectives.pop()] if room >= 2 else ["too"]
    text = " ".join(words) + (" " + " ".join(ending) if ending != ["."] else ".")
    request = f"Write a sentence of {count} words about the {animal}."
    return request, [{"kind": "words", "count": count}, {"kind": "mentions", "word": animal}], text


def _forbid(world: Stories, rng: random.Random) -> Task:
    animal = _animal(world, rng)
    one, two, banned = rng.sample(world.raw["instructions"]["adjectives"], k=3)
    constraints: list[Constraint] = [{"kind": "mentions", "word": animal}, {"kind": "without", "word": banned}]
    request = f"Describe the {animal} in one sentence without the word {banned}."
    return request, [*constraints, {"kind": "words_at_least", "count": 4}], f"The {animal} is {one} and {two}."


def _in_order(world: Stories, rng: random.Random) -> Task:
    animal = _animal(world, rng)
    one, two = rng.sample(world.raw["instructions"]["adjectives"], k=2)
    request = f"Write a sentence about the {animal} with the words {one} and {two} in this order."
    constraints: list[Constraint] = [{"kind": "mentions", "word": animal}, {"kind": "in_order", "words": [one, two]}]
    return request, constraints, f"The {animal} is {one} and {two}."


def _ends(world: Stories, rng: random.Random) -> Task:
    animal = _animal(world, rng)
    adjective = rng.choice(world.raw["instructions"]["adjectives"])
    end = rng.choice(world.raw["instructions"]["ends"])
    start = rng.choice(world.raw["instructions"]["starts"])
    request = f"Write a sentence about the {animal}. Start with the word {start} and finish with the words: {end}"
    constraints: list[Constraint] = [{"kind": "starts", "with": start}, {"kind": "ends", "with": end}]
    text = f"{start}, the {animal} is {adjective}. {end}"
    return request, [*constraints, {"kind": "mentions", "word": animal}], text


TASKS: dict[str, Callable[[Stories, random.Random], Task]] = {
    "repeat": _repeat,
    "upper": _upper_words,
    "alphabet": _alphabet,
    "length": _length,
    "forbid": _forbid,
    "in_order": _in_order,
    "ends": _ends,
}


def _word(world: Stories, rng: random.Random) -> str:
    return rng.choice([word for words in world.raw["ood"]["categories"].values() for word in words])


def _animal(world: Stories, rng: random.Random) -> str:
    return rng.choice(world.raw["ood"]["categories"][world.raw["instructions"]["subjects"]])


def _maybe_wrap(rng: random.Random) -> tuple[str, str, str]:
    name = rng.choice([None, *WRAPS])
    return ("", "", "") if name is None else (*WRAPS[name], f" Put all of it in {name}.")


def _upper(text: str) -> str:
    """Capital letters everywhere but in the box's command, which is no word."""
    return text.upper().replace("\\BOXED", "\\boxed")


# How it is checked.


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _check_upper(response: str, _: Mapping[str, Any]) -> bool:
    rest = response.replace("\\boxed", "")
    return rest == rest.upper() and any(letter.isdigit() or letter.isalpha() for letter in rest)


def _check_wrapped(response: str, arguments: Mapping[str, Any]) -> bool:
    text, left, right = response.strip(), arguments["left"], arguments["right"]
    inside = text[len(left) : len(text) - len(right)]
    return text.startswith(left) and text.endswith(right) and bool(inside) and left not in inside


def _check_repeats(response: str, arguments: Mapping[str, Any]) -> bool:
    return _words_of(response) == [arguments["word"]] * arguments["times"]


def _check_in_order(response: str, arguments: Mapping[str, Any]) -> bool:
    one, two = arguments["words"]
    found = _words_of(response)
    return one in found and two in found and found.index(one) < found.index(two)


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "upper": _check_upper,
    "wrapped": _check_wrapped,
    "repeats": _check_repeats,
    "in_order": _check_in_order,
    "text": lambda response, arguments: response.strip() == arguments["is"],
    "boxed": lambda response, _: len(BOX.findall(response)) == 1,
    "only_box": lambda response, _: BOX.fullmatch(response.strip()) is not None,
    "ends": lambda response, arguments: response.strip().endswith(arguments["with"]),
    "starts": lambda response, arguments: re.match(rf"\s*{re.escape(arguments['with'])}\b", response) is not None,
    "without": lambda response, arguments: bool(response.strip()) and not _has_word(response, arguments["word"]),
    "mentions": lambda response, arguments: _has_word(response, arguments["word"]),
    "words": lambda response, arguments: len(_words_of(response)) == arguments["count"],
    "words_at_least": lambda response, arguments: len(_words_of(response)) >= arguments["count"],
}
