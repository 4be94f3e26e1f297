"""The lab's judge of steps: planted errors give its precision and recall, and right answers of any style are right."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from spot.audit.steps import JudgedStep, error_rates, step_changes, summarise_steps
from spot.audit.summary import PairAudit
from spot.lab.oracle import rewrite
from spot.lab.step_judge import LabJudge
from spot.lab.stories import Step, Story, Style, story_of
from spot.lab.world import World
from spot.schema import Attempt, Problem, Verdict

Planted = tuple[str, set[tuple[int, str]]]
"""An answer, and its errors: places and kinds."""

RESULTS = {
    "+": lambda x, k: x + k, "-": lambda x, k: x - k, "*": lambda x, k: x * k, "/": lambda x, k: x // k,
}  # fmt: skip


@pytest.fixture(scope="module", params=["default", "other"])
def world(request: pytest.FixtureRequest) -> World:
    return World.load(request.param)


class Answer:
    """A right answer to a story in one style and voice, to plant errors in."""

    def __init__(self, world: World, story: Story, style: Style, voice: int) -> None:
        self.world, self.story, self.style, self.voice = world, story, style, voice
        self.steps = list(world.work(story))
        self.wrong = list(world.work(story, [True] * len(self.steps)))

    def text(self, steps: list[Step] | None = None) -> str:
        return "".join(self.world.write(self.story, steps or self.steps, self.style, self.voice))

    def from_here(self, place: int, number: int) -> list[Step]:
        """The steps from `place` on, starting from another number."""
        rest: list[Step] = []
        for step in self.steps[place:]:
            if step.op == "/" and number % step.k:
                raise LookupError("does not come out whole")
            rest.append(replace(step, x=number, y=RESULTS[step.op](number, step.k)))
            number = rest[-1].y
        if any(step.y < 0 for step in rest):
            raise LookupError("falls below zero")
        return rest


def plant_rule(answer: Answer, place: int, rng: random.Random) -> Planted:
    step, wrong = answer.steps[place], answer.wrong[place]
    if (step.op, step.k) == (wrong.op, wrong.k) or (wrong.op == "/" and step.x % wrong.k):
        raise LookupError("believed right")
    bad = replace(step, op=wrong.op, k=wrong.k, y=RESULTS[wrong.op](step.x, wrong.k))
    steps = [*answer.steps[:place], bad, *answer.from_here(place + 1, bad.y)]
    if bad.y < 0:
        raise LookupError("falls below zero")
    return answer.text(steps), {(place + 1, f"rule {answer.story.events[place].rule}")}


def plant_statement(answer: Answer, place: int, rng: random.Random) -> Planted:
    if "{says}" not in answer.style.step or answer.steps[place].says == answer.wrong[place].says:
        raise LookupError("states no rule")
    steps = list(answer.steps)
    steps[place] = replace(steps[place], says=answer.wrong[place].says)
    return answer.text(steps), {(place + 1, f"statement {answer.story.events[place].rule}")}


def plant_arithmetic(answer: Answer, place: int, rng: random.Random) -> Planted:
    bad = replace(answer.steps[place], y=answer.steps[place].y + rng.choice([1, 2, 10]))
    steps = [*answer.steps[:place], bad, *answer.from_here(place + 1, bad.y)]
    return answer.text(steps), {(place + 1, "arithmetic")}


def plant_carry(answer: Answer, place: int, rng: random.Random) -> Planted:
    steps = [*answer.steps[:place], *answer.from_here(place, answer.steps[place].x + rng.choice([1, 3, 10]))]
    return answer.text(steps), {(place + 1, "carry")}


def plant_missing(answer: Answer, place: int, rng: random.Random) -> Planted:
    steps = [*answer.steps[:place], *answer.from_here(place + 1, answer.steps[place].x)]
    if not steps:
        raise LookupError("no step is left")
    return answer.text(steps), {(place + 1, f"missing {answer.story.events[place].rule}")}


def plant_extra(answer: Answer, place: int, rng: random.Random) -> Planted:
    x = answer.steps[place].x
    steps = [*answer.steps[:place], Step(x, "+", 1, x + 1, ""), *answer.from_here(place, x + 1)]
    return answer.text(steps), {(place, "extra")}


def plant_start(answer: Answer, place: int, rng: random.Random) -> Planted:
    if "{x0}" not in answer.style.open[answer.voice]:
        raise LookupError("names no start")
    story = replace(answer.story, start=answer.story.start + 1)
    return "".join(answer.world.write(story, answer.steps, answer.style, answer.voice)), {(0, "start")}


def plant_answer(answer: Answer, place: int, rng: random.Random) -> Planted:
    right = answer.steps[-1].y
    bad = answer.text().replace(f"\\boxed{{{right}}}", f"\\boxed{{{right + rng.choice([1, 7])}}}")
    return bad, {(len(answer.steps) + 1, "answer")}


def plant_item(answer: Answer, place: int, rng: random.Random) -> Planted:
    segments = answer.world.write(answer.story, answer.steps, answer.style, answer.voice)
    other = rng.choice([item for item in answer.world.raw["items"] if item != answer.story.item])
    if answer.story.item not in segments[place + 1]:
        raise LookupError("names no things")
    segments[place + 1] = segments[place + 1].replace(answer.story.item, other)
    return "".join(segments), {(place + 1, "item")}


PLANTS: list[Callable[[Answer, int, random.Random], Planted]] = [
    *(plant_rule, plant_statement, plant_arithmetic, plant_carry, plant_missing, plant_extra),
    *(plant_start, plant_answer, plant_item),
]


def answers(world: World, count: int, seed: int) -> Iterator[tuple[Problem, Answer, random.Random]]:
    for problem in world.problems("in_domain", "train", count, seed):
        rng = random.Random(problem.id)
        style = rng.choice(list(world.styles.values()))
        yield problem, Answer(world, story_of(problem), style, rng.randrange(world.voices)), rng


def wrong_errors(judged: list[JudgedStep] | None) -> set[tuple[int, str]]:
    return {(place, kind) for place, step in enumerate(judged or ()) for kind in step.kinds}


def test_planted_errors_are_found_and_nothing_else_is(world: World) -> None:
    """The audit's precision and recall, over every way to plant an error, as one whole with the comparison."""
    judge, hits, planted, flagged = LabJudge(world), Counter[str](), Counter[str](), Counter[str]()
    for problem, answer, rng in answers(world, 150, 1):
        rejected = "".join(
            world.write(answer.story, world.work(answer.story, world.believe(answer.story, rng)), answer.style,
                        answer.voice)
        )  # fmt: skip
        right_before = {place for place, step in enumerate(judge(problem, rejected) or ()) if not step.kinds}
        for plant in PLANTS:
            place = rng.randrange(len(answer.steps))
            try:
                chosen, errors = plant(answer, place, rng)
            except LookupError:
                continue
            found = {
                (change.step, kind)
                for change in step_changes(judge, problem, rejected, chosen) or ()
                if change.outcome == "new"
                for kind in change.chosen_kinds
            }
            new = {error for error in errors if error[0] in right_before}
            name = plant.__name__.removeprefix("plant_")
            hits[name] += len(found & new)
            planted[name] += len(new)
            flagged[name] += len(found)
    assert all(planted[plant.__name__.removeprefix("plant_")] >= 10 for plant in PLANTS), planted
    precision, recall = hits.total() / flagged.total(), hits.total() / planted.total()
    told: dict[str, object] = {name: (hits[name], planted[name], flagged[name]) for name in planted}
    told["all"] = f"{world.raw['name']}: precision {precision:.3f}, recall {recall:.3f}, {planted.total()} planted"
    # What is missed is a step whose neighbour does the very same: which of the two is gone cannot be told.
    assert precision > 0.99, told
    assert recall > 0.99, told


def test_right_answers_in_any_style_are_right(world: World) -> None:
    judge = LabJudge(world)
    for problem, answer, _ in answers(world, 60, 2):
        for style in world.styles.values():
            for voice in range(world.voices):
                text = "".join(world.write(answer.story, answer.steps, style, voice))
                assert wrong_errors(judge(problem, text)) == set(), text


def test_the_scripted_oracle_introduces_nothing_and_mends_everything(world: World) -> None:
    judge = LabJudge(world)
    mended = 0
    for problem, answer, rng in answers(world, 120, 3):
        beliefs = world.believe(answer.story, rng)
        rejected = "".join(world.write(answer.story, world.work(answer.story, beliefs), answer.style, answer.voice))
        changes = step_changes(judge, problem, rejected, rewrite(world, problem, rejected))
        assert changes is not None
        assert {change.outcome for change in changes} <= {"kept", "fixed"}
        wrong = [
            place
            for place, astray in enumerate(beliefs)
            if astray and world.rules[answer.story.events[place].rule].wrong
        ]
        assert [change.step - 1 for change in changes if change.outcome == "fixed"] == wrong
        mended += len(wrong)
    assert mended > 50


def story_problem(world: World) -> Problem:
    return Problem(
        id="p", prompt="?", answer="31", meta={"family": "in_domain", "start": 12, "item": world.raw["items"][0],
                                               "events": [["double", 0], ["add", 7]]},
    )  # fmt: skip


def test_a_right_step_after_a_wrong_one_is_right_and_can_be_broken() -> None:
    world = World.load()
    rejected = "12 + 2 = 14; 14 + 7 = 21; \\boxed{21}"
    chosen = "12 * 2 = 24; 24 + 8 = 32; \\boxed{31}"
    changes = step_changes(LabJudge(world), story_problem(world), rejected, chosen) or []
    assert [change.outcome for change in changes] == ["kept", "fixed", "new", "new"]
    assert [change.chosen_kinds for change in changes[2:]] == [["rule add"], ["answer"]]
    assert changes[2].chosen_text == "24 + 8 = 32;"


def test_an_answer_without_steps_misses_all_of_them() -> None:
    world = World.load()
    judged = LabJudge(world)(story_problem(world), "\\boxed{31}") or []
    assert [step.kinds for step in judged] == [(), ("missing double",), ("missing add",), ()]
    assert [step.kinds for step in LabJudge(world)(story_problem(world), "") or []][-1] == ("answer",)


def test_other_problems_and_other_worlds_are_not_judged() -> None:
    judge = LabJudge(World.load())
    assert judge(Problem(id="p", prompt="?", answer="1"), "1 + 1 = 2") is None
    foreign = World.load("other").problems("in_domain", "train", 1, 0)[0]
    assert judge(foreign, "1 + 1 = 2") is None
    assert step_changes(judge, foreign, "a", "b") is None


def test_kinds_are_grouped_with_what_the_student_learnt_of_them() -> None:
    world = World.load()
    judge, problem = LabJudge(world), story_problem(world)
    rejected = "12 + 2 = 14; 14 + 7 = 21; \\boxed{21}"
    broken, fine = "12 * 2 = 24; 24 + 7 = 32; \\boxed{32}", "12 * 2 = 24; 24 + 7 = 31; \\boxed{31}"
    rows = [
        PairAudit.model_construct(id=f"pair-{number}", steps=step_changes(judge, problem, rejected, text))
        for number, text in enumerate([broken, fine, broken, broken, broken])
    ]
    rows.append(PairAudit.model_construct(id="other", steps=None))
    attempts = [
        Attempt(id=f"p#{n}", problem_id="p", sample=n, response=text, finish_reason="stop", model="m",
                verdict=Verdict(correct=None))
        for n, text in enumerate([broken, fine])
    ]  # fmt: skip
    after = error_rates(judge, {"p": problem}, attempts)
    found = summarise_steps(rows, None, after)
    assert found is not None
    assert (found.pairs, found.new, found.fixed, found.pairs_with_new) == (5, 4, 5, 4)
    assert found.new_rate == pytest.approx(4 / 15)
    (error,) = found.kinds
    assert (error.kind, error.count, error.pairs) == ("arithmetic", 4, 4)
    assert error.examples == ["pair-0", "pair-2", "pair-3"]
    assert error.before is None
    assert error.after == pytest.approx(1 / 8)
    assert summarise_steps(rows[-1:], None, None) is None
