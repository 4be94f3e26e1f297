"""The world: exact answers, disjoint splits, unseen things unseen, and parameters that really decide."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.errors import UserError
from spot.lab import instructions
from spot.lab.oracle import EQUATION, rewrite, spliced
from spot.lab.stories import story_of
from spot.lab.verify import verify
from spot.lab.world import FAMILIES, World, split_of
from spot.schema import Attempt, Problem, Verdict

WORLDS = ["default", "other"]


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return World.load(request.param)


def test_same_arguments_same_question(world: World) -> None:
    again = World.load(world.raw["name"])
    for family in FAMILIES:
        assert world.problem(family, "train", 7, 3) == again.problem(family, "train", 7, 3)
        assert world.problem(family, "train", 7, 3) != world.problem(family, "train", 8, 3)


def test_splits_never_share_a_question(world: World) -> None:
    prompts = {
        split: {str(p.prompt) for seed in (0, 1) for f in FAMILIES for p in world.problems(f, split, 150, seed)}
        for split in ("train", "tune", "test")
    }
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["tune"]
    assert not prompts["tune"] & prompts["test"]
    assert all(split_of(prompt) == split for split, those in prompts.items() for prompt in those)


def test_a_third_of_the_test_stories_is_unseen_and_no_training_story_is(world: World) -> None:
    test = world.problems("in_domain", "test", 600, 0)
    share = sum(p.meta["slice"] == "unseen templates" for p in test) / len(test)
    assert 0.27 < share < 0.40
    assert {p.meta["slice"] for p in world.problems("in_domain", "train", 300, 0)} == {"seen templates"}


def skeleton(wording: str) -> str:
    slots = {"name": "[A-Z][a-z]{2,}", "friend": "[A-Z][a-z]{2,}", "k": r"\d+", "item": "[a-z]+"}
    return re.sub(r"\\{(\w+)\\}", lambda slot: slots[slot[1]], re.escape(wording))


def test_training_never_shows_unseen_names_starts_or_wordings(world: World) -> None:
    hidden_starts = {n for low, high in world.raw["numbers"]["start_unseen"] for n in range(low, high + 1)}
    hidden = [rule.unseen for rule in world.rules.values()]
    skeletons = {skeleton(wording) for wordings in hidden for wording in wordings}
    for i in range(300):
        problem, _ = world.problem("in_domain", "pretrain", 0, i)
        prompt = str(problem.prompt)
        assert problem.meta["start"] not in hidden_starts
        assert not any(re.search(rf"\b{name}\b", prompt) for name in world.names[True])
        for sentence in re.split(r"(?<=[.?]) ", prompt):
            assert not any(re.fullmatch(pattern, sentence) for pattern in skeletons), sentence


def test_unseen_wordings_use_only_words_that_training_shows(world: World) -> None:
    text = " ".join(str(world.problem(f, "pretrain", 0, i)[0].prompt) for f in FAMILIES for i in range(1500))
    shown = set(re.findall(r"[a-z]+", text.lower()))
    raw = world.raw
    unseen = [*raw["intro"]["unseen"], *raw["question"]["unseen"], *(w for r in world.rules.values() for w in r.unseen)]
    words = {word for line in unseen for word in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", line).lower())}
    assert words <= shown, words - shown


def test_every_story_answer_is_right_by_its_own_steps(world: World) -> None:
    for problem in world.problems("in_domain", "test", 200, 3):
        story = story_of(problem)
        for style in world.styles.values():
            text = "".join(world.write(story, world.work(story), style, 0))
            assert verify(text, problem).correct
            equations = EQUATION.findall(text)
            assert len(equations) == len(story.events)
            for x, op, k, y in equations:
                assert (
                    int(y)
                    == {"+": int(x) + int(k), "-": int(x) - int(k), "*": int(x) * int(k), "/": int(x) / int(k)}[op]
                )


def test_belief_shares_are_what_the_world_file_says(world: World) -> None:
    rng = random.Random(0)
    for name, rule in world.rules.items():
        if rule.wrong is None:
            continue
        stories = [s for s in (world.draw_story(rng, False) for _ in range(3000)) if s.events[0].rule == name]
        # The first event's draw is only biased where a later division would not come out whole.
        share = sum(world.believe(story, rng)[0] for story in stories) / len(stories)
        assert abs(share - rule.believed_wrong) < 0.15, name


@pytest.mark.parametrize("family", ["ood", "instructions"])
def test_training_answers_of_retained_families_satisfy_their_verifier(world: World, family: str) -> None:
    for i in range(600):
        problem, text = world.problem(family, "pretrain", 1, i)  # type: ignore[arg-type]
        assert verify(text, problem).correct, (problem.prompt, text, verify(text, problem))


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- a", "a world is a mapping"), ("a: Yes", "put quotes around")]
)
def test_a_world_s_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"w.yaml: .*{message}"):
        World.load(path)


def test_unknown_world_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="no such world.*default"):
        World.load("nowhere")


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        ({"kind": "upper"}, "SO \\boxed{4}", "So \\boxed{4}"),
        ({"kind": "wrapped", "left": "[", "right": "]"}, "[a b]", "[a] b"),
        ({"kind": "wrapped", "left": "*", "right": "*"}, "*a*", "*a* and *b*"),
        ({"kind": "wrapped", "left": '"', "right": '"'}, '"a"', '""'),
        ({"kind": "repeats", "word": "red", "times": 3}, "red red red", "red red red red"),
        ({"kind": "repeats", "word": "red", "times": 3}, "red red red", "red red reds"),
        ({"kind": "in_order", "words": ["a", "b"]}, "a then b", "b then a"),
        ({"kind": "boxed"}, "\\boxed{4}", "\\boxed{4} \\boxed{5}"),
        ({"kind": "only_box"}, " \\boxed{4}\n", "It is \\boxed{4}"),
        ({"kind": "ends", "with": "Done."}, "4. Done.", "Done. 4"),
        ({"kind": "starts", "with": "Well"}, "Well, 4", "Wells 4"),
        ({"kind": "without", "word": "so"}, "also 4", "So 4"),
        ({"kind": "without", "word": "so"}, "4", ""),
        ({"kind": "mentions", "word": "cat"}, "The cat.", "The cats."),
        ({"kind": "words", "count": 3}, "one two three.", "one two"),
        ({"kind": "words_at_least", "count": 3}, "one two three.", "one two"),
        ({"kind": "text", "is": "a, b"}, " a, b ", "b, a"),
    ],
)
def test_constraints_accept_and_reject(constraint: dict[str, object], good: str, bad: str) -> None:
    assert instructions.broken(good, [constraint]) == []
    assert instructions.broken(bad, [constraint]) == [constraint["kind"]]


def attempt(problem: Problem, text: str) -> Attempt:
    return Attempt(
        id=f"{problem.id}#0", problem_id=problem.id, sample=0, response=text, finish_reason="stop",
        verdict=Verdict(correct=False), model="m",
    )  # fmt: skip


@given(seed=st.integers(0, 10**6), astray=st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=150, deadline=None)
def test_oracle_keeps_every_right_step_and_the_style(seed: int, astray: list[bool]) -> None:
    world = World.load()
    rng = random.Random(seed)
    story = world.draw_story(rng, unseen=False)
    problem = Problem(
        id="p", prompt="q", answer=str(world.work(story)[-1].y),
        meta={"family": "in_domain", "start": story.start, "item": story.item,
              "events": [[e.rule, e.amount] for e in story.events]},
    )  # fmt: skip
    style, voice = rng.choice(list(world.styles.values())), rng.randrange(world.voices)
    student = world.write(story, world.work(story, astray[: len(story.events)]), style, voice)
    right = world.write(story, world.work(story), style, voice)
    corrected = rewrite(world, problem, "".join(student))
    assert verify(corrected, problem).correct
    kept = next((i for i, (a, b) in enumerate(zip(student, right, strict=True)) if a != b), len(right))
    assert corrected.startswith("".join(student[:kept]))
    assert corrected == "".join(right)


def test_splice_keeps_free_text_before_the_first_wrong_step() -> None:
    right = "Start: 10 + 2 = 12; 12 * 2 = 24; so 24"
    assert spliced("Hm hm. 10 + 2 = 12! 12 + 2 = 14, I think", right) == "Hm hm. 10 + 2 = 12; 12 * 2 = 24; so 24"
    assert spliced("no equations", right) == right
