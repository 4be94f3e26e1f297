"""Questions of the evaluation among the pairs: the same words, or nearly."""

import random

import pytest

from spot.evaluate import overlap
from spot.evaluate.overlap import overlaps
from spot.lab.world import World
from spot.schema import Message, Pair, Problem

LONG = (
    "A train leaves the station at 9 and travels 80 miles in the first hour, then it slows down and needs 3 more hours "
    "for the remaining 150 miles. What was its mean speed?"
)


def pair(name: str, prompt: str) -> Pair:
    message = [Message(role="user", content=prompt)]
    return Pair(id=name, problem_id=name, prompt=message, chosen="b", rejected="c", change_ratio=0.1, oracle="o")


def question(prompt: str) -> Problem:
    return Problem(id="q", prompt=prompt, answer="1")


def share(asked: str, trained: str) -> float:
    return max((row.share for row in overlaps({"t": [question(asked)]}, [pair("p", trained)])), default=0)


def test_the_same_words_in_another_dress_are_the_same_question() -> None:
    assert share(LONG, LONG.upper().replace(", ", "\n")) == 1
    assert share("What is 2 + 3?", "what is 2+3") == 1


@pytest.mark.parametrize(
    "trained", [f"Solve this and put the answer in a box. {LONG} Explain.", LONG.replace("its mean", "the average")]
)
def test_nearly_the_same_is_found(trained: str) -> None:
    assert 1 - overlap.EDITED <= share(LONG, trained) <= 1


@pytest.mark.parametrize(
    "trained",
    [
        LONG.replace("80", "85"),
        "The remaining 150 miles. " + LONG[:60],
        "A wholly different question about 9 trains, 80 miles, 3 hours and 150 miles, in which nothing is the same.",
        "What is 2 - 3?",
        "What is 2 + 4?",
    ],
)
def test_another_question_is_not(trained: str) -> None:
    assert share(LONG, trained) == 0
    assert share("What is 2 + 3?", trained) == 0


def test_numbers_are_words_of_their_own_and_text_without_spaces_has_words() -> None:
    chinese = "小明有3个苹果,他又买了5个苹果,请问小明现在一共有多少个苹果?"
    assert share(chinese, "请回答。" + chinese) == 1
    assert share(chinese, chinese.replace("5", "6")) == 0


def test_how_a_benchmark_asks_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "BOILERPLATE", 3)
    asks = "Read the following question with great care, think step by step, and give your final answer in a box. "
    rows = [Problem(id=f"q{n}", prompt=f"{asks}{LONG if n == 2 else f'How many apples are {n} pears?'}", answer="1")
            for n in range(6)]  # fmt: skip
    assert overlaps({"t": rows}, [pair("p", f"{asks}How many cherries are 9 plums?")]) == []
    (found,) = overlaps({"t": rows}, [pair("p", f"Please. {asks}{LONG}")])
    assert (found.pair_id, found.task, found.problem_id) == ("p", "t", "q2")
    # The same altogether is found however much of it is boilerplate.
    assert [row.problem_id for row in overlaps({"t": rows}, [pair("p", str(rows[4].prompt))])] == ["q4"]


def test_rows_come_in_the_order_of_pairs_and_tasks() -> None:
    tasks = {"one": [question(LONG)], "two": [question("Short?"), Problem(id="r", prompt=LONG, answer="1")]}
    found = overlaps(tasks, [pair("a", "short"), pair("b", "none"), pair("c", LONG)])
    assert [(row.pair_id, row.task, row.problem_id) for row in found] == [
        ("a", "two", "q"), ("c", "one", "q"), ("c", "two", "r"),
    ]  # fmt: skip
    assert overlaps({}, [pair("a", LONG)]) == []


def test_the_labs_splits_do_not_overlap_though_they_share_their_templates() -> None:
    world = World.load()
    trained = [pair(problem.id, str(problem.prompt)) for problem in world.problems("in_domain", "train", 600, 0)]
    asked = world.problems("in_domain", "test", 400, 1)
    assert overlaps({"in_domain": asked}, trained) == []
    leaked = random.Random(0).sample(asked, 5)
    found = overlaps({"in_domain": asked}, [*trained, *(pair(row.id, str(row.prompt)) for row in leaked)])
    assert {row.problem_id for row in found} == {row.id for row in leaked}
