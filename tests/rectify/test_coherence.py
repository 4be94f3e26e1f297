"""A continuation goes on from its beginning: servers that ignore `continue_final_message` are found out."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion, failure

from spot.files.store import read_rows, write_rows
from spot.rectify.coherence import probe_of, restarted, restarts
from spot.rectify.steps import split_steps
from spot.schema import Attempt, Problem, Rectification, Verdict

DATA = Path(__file__).parents[3] / "shared" / "data"

BEGINNING = "We have 2 boxes of 3 pens.\nSo there are 2 * 3 = 6 pens.\n"
RESPONSE = "We have 2 boxes of 3 pens.\nSo there are 2 * 3 = 5 pens.\nThe answer is \\boxed{5}."


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("The answer is \\boxed{6}.", False),
        ("Six pens cost 6 * 2 = 12 dollars.\nThe answer is \\boxed{12}.", False),
        ("", False),
        ("We have 2 boxes of 3 pens.\nSo there are 2 * 3 = 6 pens.\nThe answer is \\boxed{6}.", True),
        ("we have  2 boxes of 3 pens. So there are 6 pens: \\boxed{6}", True),  # the beginning in other spacing
        ("So there are 2 * 3 = 6 pens.\nThe answer is \\boxed{6}.", True),  # the corrected step again
        ("So there are 2 * 3 = 5 pens.\nThe answer is \\boxed{5}.", True),  # the wrong step after all
    ],
)
def test_a_beginning_that_is_told_again(text: str, again: bool) -> None:
    assert restarts(BEGINNING, RESPONSE, text) is again


def test_what_does_not_join_on_to_its_line_is_a_new_answer() -> None:
    assert restarts("So 2 * 3 = 6.", RESPONSE, "To find out, multiply: \\boxed{6}")
    assert not restarts("So 2 * 3 = 6.", RESPONSE, " To find out, multiply: \\boxed{6}")
    assert not restarts("So 2 * 3 = 6", RESPONSE, ".\nThe answer is \\boxed{6}")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
def test_real_solutions_go_on_and_the_same_told_again_does_not() -> None:
    lines = (DATA / "gsm8k" / "example_model_solutions.jsonl").read_text("utf-8").splitlines()
    draw = random.Random(0)
    honest = again = probed = mistaken = found = count = others = 0
    for row in map(json.loads, lines):
        texts = [re.sub(r"<<.*?>>", "", row[name]["solution"]) for name in row if name.startswith(("6b", "175b"))]
        for text, other in zip(texts, [*texts[1:], texts[0]], strict=True):
            steps = split_steps(text)
            if len(steps) < 2:
                continue
            cut = draw.randint(1, len(steps) - 1)
            beginning, rest = "".join(steps[:cut]), "".join(steps[cut:])
            count += 1
            honest += restarts(beginning, beginning, rest)
            again += restarts(beginning, beginning, text)
            if (probe := probe_of(text)) is not None:
                probed += 1
                mistaken += restarted(text, probe, text[len(probe) :])
                if other != text:
                    others += 1
                    found += restarted(text, probe, other)
    assert count > 5000 and honest <= 0.003 * count and again >= 0.999 * count
    # Another model's solution stands for one that is told in other words; two probes have to fail for a refusal.
    assert mistaken <= 0.01 * probed and found >= 0.8 * others


RIGHT = "First we add 2 and {n}, so 2 + {n} = {s}.\nThat makes the answer \\boxed{{{s}}}"
WRONG = "First we add 2 and {n}, so 2 + {n} = {w}.\nThat makes the answer \\boxed{{{w}}}"


def problem_number(text: str) -> int:
    found = re.search(r"What is 2 \+ (\d+)\?", text)
    assert found is not None
    return int(found[1])


def oracle(seen: Seen) -> Answer:
    n, nonce = problem_number(seen.question), re.search(r"<result-(\w+)>", seen.question)
    assert nonce is not None
    old, new = (f"so 2 + {n} = {value}." for value in (n + 3, n + 2))
    edit = f"<<<<<<< SEARCH\nFirst we add 2 and {n}, {old}\n=======\nFirst we add 2 and {n}, {new}\n>>>>>>> REPLACE"
    return completion(f"<result-{nonce[1]}>\n{edit}\n</result-{nonce[1]}>")


def ignoring(seen: Seen) -> Answer:
    n = problem_number(seen.body["messages"][0]["content"])
    return completion(RIGHT.format(n=n, s=n + 2))


def ignoring_in_other_words(seen: Seen) -> Answer:
    n = problem_number(seen.body["messages"][0]["content"])
    return completion(f"We add 2 and {n}: 2 + {n} = {n + 2}, which makes \\boxed{{{n + 2}}} the answer.")


def refusing(seen: Seen) -> Answer:
    return failure(400, "Unrecognized request argument supplied: continue_final_message")


def obeying(seen: Seen) -> Answer:
    first, last = seen.body["messages"]
    assert seen.body["continue_final_message"] and not seen.body["add_generation_prompt"]
    n = problem_number(first["content"])
    right, wrong = RIGHT.format(n=n, s=n + 2), WRONG.format(n=n, w=n + 3)
    whole = next(text for text in (right, wrong) if text.startswith(last["content"]))
    return completion(whole[len(last["content"]) :])


def rectified(place: Path, student: Any, count: int = 20) -> tuple[subprocess.CompletedProcess[str], int, int]:
    """The command's end, and how often Oracle and student were asked."""
    problems = [Problem(id=f"p{n}", prompt=f"What is 2 + {n}?", answer=str(n + 2)) for n in range(10, 10 + count)]
    write_rows(place / "p.jsonl", problems)
    attempts = [
        Attempt(
            id=f"{problem.id}#0", problem_id=problem.id, sample=0, finish_reason="stop", model="m",
            response=WRONG.format(n=int(problem.answer) - 2, w=int(problem.answer) + 1), verdict=Verdict(correct=False),
        )
        for problem in problems
    ]  # fmt: skip
    write_rows(place / "a.jsonl", attempts)
    program = shutil.which("spot", path=str(Path(sys.executable).parent))
    assert program is not None
    with FakeServer(oracle) as teacher, FakeServer(student) as own:
        arguments = [
            *("rectify", "--problems", "p.jsonl", "--attempts", "a.jsonl", "--output", "r.jsonl", "--mode", "continue"),
            *("rectify.model=o", f"rectify.base_url={teacher.url}", f"student.base_url={own.url}", "student.model=s"),
        ]
        done = subprocess.run([program, *arguments], cwd=place, capture_output=True, text=True, check=False)
        return done, len(teacher.seen), len(own.seen)


@pytest.mark.parametrize("student", [ignoring, ignoring_in_other_words, refusing])
def test_a_server_that_does_not_go_on_is_refused_before_the_oracle_is_paid(tmp_path: Path, student: Any) -> None:
    done, oracle_asked, student_asked = rectified(tmp_path, student)
    assert done.returncode == 2 and oracle_asked == 0 and student_asked <= 3
    assert done.stderr.startswith("error: rectify.mode=continue: the server of s starts an answer over")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "r.jsonl").exists()


def test_a_server_that_goes_on_is_probed_once(tmp_path: Path) -> None:
    done, oracle_asked, student_asked = rectified(tmp_path, obeying)
    rows = read_rows(tmp_path / "r.jsonl", Rectification)
    assert done.returncode == 0, done.stderr
    assert oracle_asked == 20 and student_asked == 21 and len(rows) == 20 and all(row.accepted for row in rows)
    assert {row.response for row in rows} == {RIGHT.format(n=n, s=n + 2) for n in range(10, 30)}


def test_texts_that_begin_again_are_refused_one_by_one(tmp_path: Path) -> None:
    def changing(seen: Seen) -> Answer:
        return obeying(seen) if seen.number == 0 else ignoring(seen)

    done, _, _ = rectified(tmp_path, changing, 4)
    rows = read_rows(tmp_path / "r.jsonl", Rectification)
    assert done.returncode == 2 and len(rows) == 4
    assert {(row.accepted, row.reason) for row in rows} == {(False, "restarts")}
