"""Word problems with half-believed rules, read from a YAML file and generated from a seed.

A story is a start and a list of events; every event applies a rule, which is one equation `x op k = y`. Some rules are
half-believed: the student's training text states and uses a wrong version in a share of cases.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from spot.errors import UserError
from spot.files.settings import read_yaml
from spot.schema import Problem

# The largest share of draws that may fail before the world's parameters are called impossible.
MAX_DRAWS = 10_000


@dataclass(frozen=True)
class Rule:
    """One kind of step. `right` and `wrong` are `(operator, operand)`, operand `None` for the text's own number k."""

    name: str
    right: tuple[str, int | None]
    wrong: tuple[str, int | None] | None
    believed_wrong: float
    says: str
    says_wrong: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """A rule at work in a story, with the number that the text names (0 where it names none)."""

    rule: str
    amount: int


@dataclass(frozen=True)
class Step:
    """One worked step `x op k = y`; `says` states the rule that was followed."""

    x: int
    op: str
    k: int
    y: int
    says: str


@dataclass(frozen=True)
class Story:
    """A word problem before it is put into words."""

    start: int
    item: str
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Style:
    """A way of writing an answer; see the world file."""

    name: str
    open: tuple[str, ...]
    link: tuple[str, ...]
    step: str
    close: tuple[str, ...]


@dataclass(frozen=True)
class Stories:
    """A world's stories. `raw` is the content of the world's YAML file; the rest is derived from it."""

    raw: Mapping[str, Any] = field(hash=False)

    @classmethod
    def load(cls, name: str | Path = "default") -> Self:
        """Read a world by the name of a bundled file or by path."""
        path = (
            Path(name) if Path(name).suffix in {".yaml", ".yml"} else Path(__file__).parent / "worlds" / f"{name}.yaml"
        )
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in (Path(__file__).parent / "worlds").glob("*.yaml")))
            raise UserError(f"{name}: no such world; give a YAML file or one of: {known}")
        raw = read_yaml(path)
        if not isinstance(raw, dict):
            raise UserError(f"{path}: a world is a mapping; the bundled ones in spot/lab/worlds show its keys")
        if any(isinstance(value, bool) for value in _leaves(raw)):
            raise UserError(
                f"{path}: YAML reads a bare Yes, No, On or Off as true or false; put quotes around the word"
            )
        return cls(raw)

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """The rules by name."""
        return {name: _rule(name, raw) for name, raw in self.raw["rules"].items()}

    @cached_property
    def styles(self) -> dict[str, Style]:
        """The writing styles by name."""
        return {
            name: Style(name, tuple(raw["open"]), tuple(raw["link"]), raw["step"], tuple(raw["close"]))
            for name, raw in self.raw["styles"].items()
        }

    @property
    def voices(self) -> int:
        """How many voices each style has."""
        return min(len(style.open) for style in self.styles.values())

    @cached_property
    def names(self) -> dict[bool, tuple[str, ...]]:
        """Names by whether they are unseen: training never shows the unseen ones, only their two halves."""
        parts = self.raw["names"]
        parted: dict[bool, list[str]] = {False: [], True: []}
        for first in parts["first"]:
            for last in parts["last"]:
                share = int(hashlib.sha256(f"{first}{last}".encode()).hexdigest()[:8], 16) / 2**32
                parted[share < parts["unseen_share"]].append(first + last)
        return {unseen: tuple(names) for unseen, names in parted.items()}

    def name(self, rng: random.Random, unseen: bool = False) -> str:
        """Draw a person's name."""
        return rng.choice(self.names[unseen])

    def draw_story(self, rng: random.Random, unseen: bool) -> Story:
        """Draw a story whose right answer and steps are whole numbers between 1 and the world's largest."""
        numbers = self.raw["numbers"]
        spans = numbers["start_unseen" if unseen else "start_seen"]
        for _ in range(MAX_DRAWS):
            start = rng.choice([n for low, high in spans for n in range(low, high + 1)])
            names = rng.sample(list(self.rules), k=rng.randint(*self.raw["steps"]))
            events = tuple(
                Event(name, rng.randint(*numbers["amounts"]) if self.rules[name].right[1] is None else 0)
                for name in names
            )
            story = Story(start, rng.choice(self.raw["items"]), events)
            if any(self.rules[event.rule].wrong for event in events) and self._is_sound(story):
                return story
        raise UserError(
            f"world {self.raw['name']}: no story fits its numbers; widen numbers.largest or the start ranges"
        )

    def _is_sound(self, story: Story) -> bool:
        x = story.start
        for event in story.events:
            op, k = self._operation(event, wrong=False)
            if op == "/" and x % k:
                return False
            x = _apply(x, op, k)
            if not 1 <= x <= self.raw["numbers"]["largest"]:
                return False
        return True

    def _operation(self, event: Event, wrong: bool) -> tuple[str, int]:
        rule = self.rules[event.rule]
        op, operand = rule.wrong if wrong and rule.wrong else rule.right
        return op, event.amount if operand is None else operand

    def work(self, story: Story, wrong: Sequence[bool] | None = None) -> tuple[Step, ...]:
        """The worked steps of `story`; `wrong[i]` tells whether step i follows the wrong version of its rule."""
        steps: list[Step] = []
        x = story.start
        for i, event in enumerate(story.events):
            astray = bool(wrong and wrong[i] and self.rules[event.rule].wrong)
            op, k = self._operation(event, astray)
            y = _apply(x, op, k)
            rule = self.rules[event.rule]
            steps.append(Step(x, op, k, y, (rule.says_wrong if astray else rule.says).format(k=event.amount)))
            x = y
        return tuple(steps)

    def believe(self, story: Story, rng: random.Random) -> tuple[bool, ...]:
        """Draw which of the half-believed rules go wrong this time, so that every step stays a whole number >= 0."""
        for _ in range(MAX_DRAWS):
            wrong = tuple(rng.random() < self.rules[event.rule].believed_wrong for event in story.events)
            if all(step.y >= 0 and (step.op != "/" or step.x % step.k == 0) for step in self.work(story, wrong)):
                return wrong
        return (False,) * len(story.events)

    def ask(self, story: Story, rng: random.Random, unseen: bool) -> str:
        """Put `story` into words."""
        key = "unseen" if unseen else "seen"
        name, friend = rng.sample(self.names[unseen], k=2)
        parts = [rng.choice(self.raw["intro"][key]).format(name=name, x=story.start, item=story.item)]
        for event in story.events:
            rule = self.rules[event.rule]
            wording = rng.choice(rule.unseen if unseen else rule.seen)
            parts.append(wording.format(name=name, friend=friend, k=event.amount, item=story.item))
        parts.append(rng.choice(self.raw["question"][key]).format(item=story.item))
        return " ".join(parts)

    def write(self, story: Story, steps: Sequence[Step], style: Style, voice: int) -> list[str]:
        """Write an answer: its opening, one segment a step, its close. The answer is their concatenation."""
        segments = [style.open[voice].format(x0=story.start, item=story.item)]
        for i, step in enumerate(steps):
            later = style.link[1:] or style.link
            link = style.link[0] if i == 0 else later[(voice + i - 1) % len(later)]
            segments.append(
                style.step.format(
                    link=link, i=i + 1, x=step.x, op=step.op, k=step.k, y=step.y, says=step.says, item=story.item
                )
            )
        segments.append(style.close[voice].format(y=steps[-1].y, item=story.item))
        return segments

    def story_problem(self, rng: random.Random, unseen: bool) -> tuple[str, str, dict[str, Any], str]:
        """A question, its answer, its `meta` and the text of the student's training answer."""
        story = self.draw_story(rng, unseen)
        prompt = self.ask(story, rng, unseen)
        answer = str(self.work(story)[-1].y)
        meta = {
            "slice": "unseen templates" if unseen else "seen templates",
            "start": story.start,
            "item": story.item,
            "events": [[event.rule, event.amount] for event in story.events],
        }
        return prompt, answer, meta, self.believed_answer(story, rng)

    def believed_answer(self, story: Story, rng: random.Random) -> str:
        """An answer as the student's training text gives it: any style, half-believed rules and all."""
        style = rng.choice(list(self.styles.values()))
        steps = self.work(story, self.believe(story, rng))
        return "".join(self.write(story, steps, style, rng.randrange(self.voices)))


def story_of(problem: Problem) -> Story:
    """The story behind an in-domain problem, from its `meta`."""
    events = tuple(Event(rule, amount) for rule, amount in problem.meta["events"])
    return Story(problem.meta["start"], problem.meta["item"], events)


def _leaves(raw: Any) -> Iterator[Any]:
    children: Sequence[Any] = list(raw.values()) if isinstance(raw, dict) else raw if isinstance(raw, list) else ()
    if not isinstance(raw, dict | list):
        yield raw
    for child in children:
        yield from _leaves(child)


def _apply(x: int, op: str, k: int) -> int:
    return {"+": x + k, "-": x - k, "*": x * k, "/": x // k}[op]


def _rule(name: str, raw: Mapping[str, Any]) -> Rule:
    return Rule(
        name,
        _operation_of(raw["right"]),
        _operation_of(raw["wrong"]) if "wrong" in raw else None,
        float(raw.get("believed_wrong", 0.0)),
        raw["says"],
        raw.get("says_wrong", raw["says"]),
        tuple(raw["seen"]),
        tuple(raw["unseen"]),
    )


def _operation_of(text: str) -> tuple[str, int | None]:
    op, operand = text.split()
    return op, None if operand == "k" else int(operand)
