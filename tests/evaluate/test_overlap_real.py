"""The overlap check on real benchmarks: copies in any dress are found, other numbers and unrelated sets are not."""

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from spot.evaluate.overlap import overlaps, read_questions, without_overlap
from spot.evaluate.registry import benchmark
from spot.schema import Message, Pair, Problem, Prompt, text_of

DATA = Path(os.environ.get("SPOT_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not on this machine")

MATHS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench")
SETS = (*MATHS, "ifeval")
DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

WRAPPERS: dict[str, Callable[[str], Prompt]] = {
    "bare": lambda text: text,
    "dapo": lambda text: DAPO.replace("{}", text),
    "one line": lambda text: f"Question: {' '.join(text.split())} Answer:",
    "system": lambda text: [Message(role="system", content=BOXED), Message(role="user", content=text)],
    "few-shot": lambda text: f"Q: What is 2 + 2?\nA: 4\n\nQ: {text}\nA:",
    "after": lambda text: f"{text} {BOXED}",
    "upper case": str.upper,
    "spaces": lambda text: text.replace(" ", "  \n"),
    "latex spaces": lambda text: re.sub(r"([=+<])", r"\\,\1\\!", text),
    "parentheses": lambda text: re.sub(r"(?<!\\)\(", r"\\left(", text).replace("\\dfrac", "\\frac"),
    "dollars": lambda text: re.sub(r"\$([^$]+)\$", r"\\(\1\\)", text).replace("\\frac", "\\dfrac"),
}


def pair(name: str, prompt: Prompt) -> Pair:
    return Pair(id=name, problem_id=name, prompt=prompt, chosen="b", rejected="c", change_ratio=0.1, oracle="o")


def sample(name: str, count: int = 12) -> tuple[list[Problem], list[Problem]]:
    """Some questions as the benchmark asks them, among all, and bare."""
    task = benchmark(name)
    bare = task.problems(DATA, "{question}")
    return task.problems(DATA), random.Random(0).sample(bare, min(count, len(bare)))


@pytest.mark.parametrize("name", SETS)
def test_verbatim_copies_are_found_whatever_wraps_them(name: str) -> None:
    asked, bare = sample(name)
    pairs = [pair(f"{row.id} {how}", wrap(text_of(row.prompt))) for row in bare for how, wrap in WRAPPERS.items()]
    found = {row.pair_id for row in overlaps({name: asked}, pairs) if row.kind == "exact"}
    assert [one.id for one in pairs if one.id not in found] == []


def edited(text: str, rng: random.Random) -> str:
    """`text` with a tenth of its words replaced, removed or followed by another; words with digits stay."""
    parts = re.split(r"(\s+)", text)
    words = [place for place in range(0, len(parts), 2) if parts[place]]
    free = [place for place in words if not re.search(r"\d", parts[place])]
    for place in rng.sample(free, min(len(words) // 10, len(free))):
        other = rng.choice(["river", "garden", "quickly", "therefore", "with", "about", "under", "given"])
        parts[place] = rng.choice([other, other, "", f"{parts[place]} {other}"])
    return "".join(parts)


def test_nearly_the_same_is_found_and_other_numbers_are_not() -> None:
    rng, missed, all_of = random.Random(1), 0, 0
    for name in SETS:
        asked, bare = sample(name, 20)
        texts = {row.id: f"Solve this.\n\n{edited(text_of(row.prompt), rng)}\n\n{BOXED}" for row in bare}
        found = {row.pair_id for row in overlaps({name: asked}, [pair(*one) for one in texts.items()])}
        missed, all_of = missed + len(texts.keys() - found), all_of + len(texts)
        others = {
            row.id: re.sub(r"\d+", lambda number: str(int(number[0]) + rng.randint(1, 9)), text_of(row.prompt))
            for row in bare
            if re.search(r"\d", text_of(row.prompt))
        }
        hits = overlaps({name: asked}, [pair(*one) for one in others.items()])
        assert [row for row in hits if row.pair_id == row.problem_id] == []
    assert missed <= 0.01 * all_of


def test_unrelated_sets_have_nothing_in_common() -> None:
    tasks = {name: benchmark(name).problems(DATA) for name in SETS}
    rows = [json.loads(line) for line in (DATA / "deepmath_rlvr/math_deepmath_deal.jsonl").open()][:300]
    rows += [{"prompt": json.loads(line)["question"]} for line in (DATA / "gsm8k/test.jsonl").open()][:300]
    pairs = [pair(str(number), row["prompt"]) for number, row in enumerate(rows)]
    assert len(overlaps(tasks, pairs)) <= 0.001 * len(pairs)


def test_pairs_are_left_out_by_one_flag_and_what_is_missing_is_named() -> None:
    questions, missing = read_questions(["aime24", "gpqa"], DATA)
    assert len(questions["aime24"]) == 30 and "gpqa_diamond.csv" in missing["gpqa"]
    leaked = [pair(row.id, row.prompt) for row in benchmark("aime24").problems(DATA, "{question}")[:3]]
    pairs = [pair("own", "How many apples are 7 pears?"), *leaked]
    kept, dropped, notes = without_overlap(questions, pairs, drop=False)
    assert (kept, dropped) == (pairs, []) and "3 of 30 questions of aime24" in notes[0]
    kept, dropped, notes = without_overlap(questions, pairs, drop=True)
    assert [one.id for one in kept] == ["own"]
    assert [(row.id, row.reason) for row in dropped] == [(one.id, "overlap") for one in leaked]
    assert dropped[0].detail == "exact: aime24, question aime24-1" and notes == [
        "3 of 4 pairs dropped, which hold 3 of 30 questions of aime24"
    ]
