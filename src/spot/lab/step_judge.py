"""The lab's judge of steps: the world knows what each step must be, so what it says is exact.

A step is judged by itself: it must apply its event's rule, to what came out of the step before it in the same answer,
and calculate right. So a right step after a wrong one is right, as a reader would see it, and can be broken by a
correction. What is wrong with a step is one or more of these kinds:

- `rule R`: it does something else than the rule R says; `statement R`: it states a wrong rule;
- `arithmetic`: the result is not that of its own operation;
- `carry`: it does not start from the number before it;
- `missing R`, `extra`: the step of rule R is not there; there is one that no event asks for;
- `item`: it counts other things than the question does;
- `start`: the opening names another number than the question; `answer`: the box does not hold the last result.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from spot.audit.steps import JudgedStep
from spot.lab.oracle import EQUATION
from spot.lab.stories import Step, Story, story_of
from spot.lab.world import World
from spot.schema import Problem

_BOX = re.compile(r"\\boxed\{\s*(-?\d+)\s*\}")
_END = re.compile(r"[.;\n]|$")
_FITS, _BELIEVED, _OTHER = 3, 2, 1  # how well an equation fits an event: its rule, its wrong version, neither


@dataclass(frozen=True)
class _Line:
    """One equation of an answer, `x op k = y`, where it starts, and the text that belongs to it."""

    x: int
    op: str
    k: int
    y: int
    start: int
    text: str

    @property
    def result(self) -> float:
        """What its operation gives."""
        if self.op == "/":
            return self.x / self.k if self.k else float("nan")
        return {"+": self.x + self.k, "-": self.x - self.k, "*": self.x * self.k}[self.op]


def step_judge(problems: Iterable[Problem], *, world: str = "default") -> "LabJudge | None":
    """The judge of the stories of `world`, `None` where none of `problems` is a story."""
    return LabJudge(World.load(world)) if any(map(_is_story, problems)) else None


def _is_story(problem: Problem) -> bool:
    return problem.meta.get("family") == "in_domain" and "events" in problem.meta


class LabJudge:
    """Judges in-domain answers of one world: their opening, a step an event, their close."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, problem: Problem, response: str) -> list[JudgedStep] | None:
        """The opening, the events' steps and the close of `response`; `None` for a problem that is no story."""
        if not _is_story(problem):
            return None
        story = story_of(problem)
        if story.item not in self.world.raw["items"] or any(
            event.rule not in self.world.rules for event in story.events
        ):
            return None  # of another world
        head, lines, tail = _cut(response)
        right = self.world.work(story)
        wrong = self.world.work(story, [True] * len(right))
        places = _aligned(lines, right, wrong)
        judged = [self._opening(head, story)]
        number = story.start  # the last one that the answer has come to
        for event in range(len(right)):
            rule = story.events[event].rule
            if event not in places:
                judged.append(JudgedStep("", (f"missing {rule}",)))
                continue
            place = places.index(event)
            line = lines[place]
            if place:
                number = lines[place - 1].y
            kinds = tuple(self._wrong(line, right[event], rule, number, story))
            judged.append(JudgedStep(line.text.strip(), kinds, line.start))
        for place, line in enumerate(lines):
            if places[place] is None:  # it counts against the step after which it stands
                owner = max((event + 1 for event in places[:place] if event is not None), default=0)
                step = judged[owner]
                judged[owner] = JudgedStep(f"{step.text} {line.text.strip()}".strip(), (*step.kinds, "extra"))
        return [*judged, self._close(tail, lines, story, len(response) - len(tail))]

    def _wrong(self, line: _Line, right: Step, rule: str, number: int, story: Story) -> list[str]:
        """What is wrong with a line that stands for an event whose step is `right`."""
        stated = [found.group() for pattern in self._statements for found in pattern.finditer(line.text)]
        kinds = {
            f"rule {rule}": (line.op, line.k) != (right.op, right.k),
            f"statement {rule}": any(text != right.says for text in stated),
            "arithmetic": line.result != line.y,
            "carry": line.x != number,
            "item": self._other_item(line.text, story),
        }
        return [kind for kind, holds in kinds.items() if holds]

    def _opening(self, text: str, story: Story) -> JudgedStep:
        named = next((found for pattern in self._openings if (found := pattern.match(text))), None)
        kinds = ["start"] if named is not None and int(named[1]) != story.start else []
        kinds += ["item"] if named is not None and self._other_item(named.group(), story) else []
        return JudgedStep(text.strip(), tuple(kinds), 0)

    def _close(self, text: str, lines: Sequence[_Line], story: Story, begin: int) -> JudgedStep:
        boxes = list(_BOX.finditer(text))
        kinds = [] if boxes and (not lines or int(boxes[-1][1]) == lines[-1].y) else ["answer"]
        kinds += ["item"] if self._other_item(text, story) else []
        return JudgedStep(text.strip(), tuple(kinds), begin + boxes[-1].start() if boxes else None)

    def _other_item(self, text: str, story: Story) -> bool:
        return any(item != story.item for item in self._items.findall(text))

    @cached_property
    def _items(self) -> re.Pattern[str]:
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, self.world.raw['items']))})\b")

    @cached_property
    def _statements(self) -> list[re.Pattern[str]]:
        """Every statement of a rule, right or wrong, with any number in it."""
        says = {text for rule in self.world.rules.values() for text in (rule.says, rule.says_wrong)}
        return [re.compile(re.escape(text).replace(r"\{k\}", r"\d+")) for text in sorted(says)]

    @cached_property
    def _openings(self) -> list[re.Pattern[str]]:
        """The openings that name the number at the start."""
        slots = {r"\{x0\}": r"(\d+)", r"\{item\}": r"\w+"}
        found: list[re.Pattern[str]] = []
        for text in (text for style in self.world.styles.values() for text in style.open if "{x0}" in text):
            pattern = re.escape(text)
            for slot, matched in slots.items():
                pattern = pattern.replace(slot, matched)
            found.append(re.compile(rf"\s*{pattern}"))
        return found


def _cut(response: str) -> tuple[str, list[_Line], str]:
    """An answer as its opening, its equations, each with the text around it, and what follows the last.

    The text before the first equation is in both the opening and the first line, since a statement may stand there.
    """
    found = list(EQUATION.finditer(response))
    box = _BOX.search(response, found[-1].end() if found else 0)
    close = box.start() if box else len(response)
    if not found:
        return response[:close], [], response[close:]
    lines: list[_Line] = []
    begin = 0
    for number, equation in enumerate(found):
        last = found[number + 1].start() if number + 1 < len(found) else close
        match = _END.search(response, equation.end(), last)
        end = match.end() if match else last
        x, op, k, y = equation.groups()
        lines.append(_Line(int(x), op, int(k), int(y), equation.start(), response[begin:end]))
        begin = end
    return response[: found[0].start()], lines, response[begin:]


def _aligned(lines: Sequence[_Line], right: Sequence[Step], wrong: Sequence[Step]) -> list[int | None]:
    """For each line the event that it stands for, in order; `None` where it stands for none. The best fit overall."""

    def fit(line: int, event: int) -> int:
        done = (lines[line].op, lines[line].k)
        if done == (right[event].op, right[event].k):
            return _FITS
        return _BELIEVED if done == (wrong[event].op, wrong[event].k) else _OTHER

    rows, columns = len(lines), len(right)
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    for row in reversed(range(rows)):
        for column in reversed(range(columns)):
            together = fit(row, column) + best[row + 1][column + 1]
            best[row][column] = max(together, best[row + 1][column], best[row][column + 1])
    places: list[int | None] = [None] * rows
    row = column = 0
    while row < rows and column < columns:
        if best[row][column] == fit(row, column) + best[row + 1][column + 1]:
            places[row] = column
            row, column = row + 1, column + 1
        elif best[row][column] == best[row + 1][column]:
            row += 1
        else:
            column += 1
    return places
