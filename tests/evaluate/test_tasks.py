"""Benchmarks: their rows, how they are asked, and what is said where they cannot be had."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from spot.connect4 import build_dataset
from spot.errors import UserError
from spot.evaluate.benchmarks import choices, connect4
from spot.evaluate.prompting import fill, read_prompts
from spot.evaluate.registry import BENCHMARKS, PAPER, benchmark, find_tasks
from spot.evaluate.run import remarks
from spot.evaluate.source import Data, Source, read_file
from spot.evaluate.task import Task
from spot.schema import Attempt, Problem, Verdict, text_of
from spot.verify.resolve import resolve

SHARED_DATA = Path(os.environ.get("SPOT_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"the benchmarks' files are not in {SHARED_DATA}")
COUNTS = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 675, "ifeval": 541}
QUESTION = {
    "Question": "Which is it?", "Correct Answer": "the right one", "Incorrect Answer 1": "one", "Incorrect Answer 2":
    "two", "Incorrect Answer 3": "three",
}  # fmt: skip


@needs_data
@pytest.mark.parametrize("name", COUNTS)
def test_every_row_of_the_real_files_is_a_question_whose_answer_verifies(name: str) -> None:
    task = benchmark(name)
    problems = task.problems(SHARED_DATA)
    assert len(problems) == len({problem.id for problem in problems}) == COUNTS[name]
    if task.verifier == "math":
        verify = resolve("math")
        for problem in problems[:: max(1, len(problems) // 25)]:
            assert "\\boxed{}" in text_of(problem.prompt)
            assert verify(f"So it is \\boxed{{{problem.answer}}}.", problem).correct, problem.id


@needs_data
def test_minerva_and_olympiadbench_read_what_their_rows_call_the_answer() -> None:
    minerva = benchmark("minerva").problems(SHARED_DATA)
    assert minerva[0].answer == "1.6"
    drawn = benchmark("minerva").problems(SHARED_DATA, limit=30)
    assert drawn == benchmark("minerva").problems(SHARED_DATA, limit=30) != minerva[:30]
    assert [minerva.index(one) for one in drawn] == sorted(minerva.index(one) for one in drawn)
    several = [problem for problem in benchmark("olympiadbench").problems(SHARED_DATA) if ", " in problem.answer]
    assert len(several) > 20


def test_the_paper_s_nine_and_names_that_are_none() -> None:
    assert [task.name for task in find_tasks(["paper"])] == list(PAPER) and len(PAPER) == 9
    assert {benchmark(name).name for name in BENCHMARKS} == set(BENCHMARKS)
    repeats = {name: benchmark(name).repeats for name in PAPER}
    assert {name for name, count in repeats.items() if count == 16} == {"aime24", "aime25", "amc23"}
    assert set(repeats.values()) == {16, 5}
    for wrong, near in [("aime-24", "aime24"), ("IFEval", "ifeval"), ("conect4", "connect4")]:
        with pytest.raises(UserError, match=f"unknown task '{wrong}': did you mean '{near}'"):
            find_tasks([wrong])
    with pytest.raises(UserError, match="two tasks are called 'aime24'"):
        find_tasks(["paper", "aime24"])


OWN = """
from spot.evaluate.source import Data
from spot.evaluate.task import Task
from spot.schema import Problem

def build(data, prompt):
    return [Problem(id="a", prompt=prompt.replace("{question}", "1 + 1?"), answer="2")]

def task():
    return Task("sums", "Sums", "other", None, build, "What is {question}", repeats=2)

def other():
    return 7

def broken():
    raise KeyError("x")
"""


def test_a_task_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    [task] = find_tasks(["my_tasks:task"])
    assert [problem.prompt for problem in task.problems(None)] == ["What is 1 + 1?"]
    with pytest.raises(UserError, match=r"task 'my_tasks:other' returned int, not a spot\.evaluate\.task\.Task"):
        find_tasks(["my_tasks:other"])
    with pytest.raises(Exception, match=r"task 'my_tasks:broken': KeyError.*my_tasks\.py:\d+"):
        find_tasks(["my_tasks:broken"])


def test_options_are_shuffled_anew_for_each_repetition_and_the_same_for_every_model() -> None:
    [problem] = choices.GPQA.build(Data("x.csv", [QUESTION]), choices.GPQA.prompt)
    asked = [choices.shuffled(problem, sample) for sample in range(200)]
    assert len({text_of(one.prompt) for one in asked}) == 24  # all orders of four come up
    counts = [sum(one.answer == letter for one in asked) for letter in "ABCD"]
    assert min(counts) > 30
    assert asked == [choices.shuffled(problem, sample) for sample in range(200)]
    for one in asked[:20]:
        assert f"{one.answer}. the right one" in text_of(one.prompt)
        verdict = resolve("choice")(f"Answer: {one.answer}", one)
        assert verdict.correct and verdict.answer == "the right one"
    assert choices.shuffled(asked[3], 3) == asked[3]


def test_rows_that_repeat_a_question_or_offer_the_right_option_twice_are_said() -> None:
    double = QUESTION | {"Question": "another", "Incorrect Answer 2": f" {QUESTION['Correct Answer']}"}
    problems = choices.GPQA.build(Data("x.csv", [QUESTION, double, QUESTION, QUESTION]), choices.GPQA.prompt)
    repeated, ambiguous = remarks("gpqa", problems)
    assert repeated == "gpqa: 2 rows repeat a question and count again (gpqa-1 = gpqa-3 = gpqa-4)"
    assert "1 row offers the right option twice (gpqa-2)" in ambiguous
    assert remarks("gpqa", problems[:1]) == []


def test_solved_examples_come_first_in_mmlu_pro() -> None:
    row = {"question": "2 + 2?", "options": ["3", "4", "N/A"], "answer": "B", "category": "math"}
    shown = [
        row | {"question": f"{n} + 0?", "cot_content": f"A: Let us see. It is {n}. The answer is (B)."}
        for n in range(7)
    ]
    other = row | {"category": "law", "cot_content": "A: none. The answer is (A)."}
    data = Data("t.jsonl", [row], Data("v.jsonl", [other, *shown]))
    [problem] = choices.MMLU_PRO.build(data, choices.MMLU_PRO.prompt)
    messages = problem.prompt
    assert not isinstance(messages, str) and [message.role for message in messages] == ["user", "assistant"] * 5 + [
        "user"
    ]
    assert messages[1].content == "Let us see. It is 0.\nAnswer: B"
    assert "A. 3\nB. 4\n" in messages[-1].content and "N/A" not in messages[-1].content
    assert resolve("choice")("So.\n**Answer: B**", problem).correct
    with pytest.raises(UserError, match=r"its subject 'law' has fewer than 5 examples in v\.jsonl"):
        choices.MMLU_PRO.build(Data("t.jsonl", [row | {"category": "law"}], data.examples), "{question}{options}")
    many = Data("t.jsonl", [row | {"options": [str(n) for n in range(27)]}], data.examples)
    with pytest.raises(UserError, match=r"t\.jsonl, row 1: 27 options, more than there are letters"):
        choices.MMLU_PRO.build(many, "{question}{options}")
    with pytest.raises(UserError, match=r"t\.jsonl, row 1: the answer 'C' is none of its 2 options"):
        choices.MMLU_PRO.build(Data("t.jsonl", [row | {"answer": "C"}], data.examples), "{question}{options}")


def test_truthfulqa_s_two_scores() -> None:
    row = {
        "question": "Seeds?",
        "mc1_targets": {"choices": ["nothing", "they grow"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["nothing", "you pass them", "they grow"], "labels": [1, 1, 0]},
    }
    [problem] = choices.TRUTHFULQA.build(Data("t.jsonl", [row]), "{question}")
    assert problem.meta["choices"] == ["nothing", "they grow", "you pass them"]
    verify = resolve("likelihood")
    response = json.dumps([-2.0, -1.0, -0.5])  # the likeliest of all is true, but does not count in MC1
    verdict = verify(response, problem)
    assert (verdict.correct, verdict.answer) == (False, "they grow")
    attempt = Attempt(
        id="a#0", problem_id="a", sample=0, response=response, finish_reason="stop", verdict=verdict, model="m"
    )
    share, whole = choices.measures(attempt, problem)["mc2"]
    assert whole == 1 and share == pytest.approx((0.1353353 + 0.6065307) / (0.1353353 + 0.6065307 + 0.3678794))
    for broken in ("", "[1]", '["a", 1, 2]', "[NaN, 1, 2]", "[1, -Infinity, NaN]", "{}", "[1, 2, 3, 4]"):
        assert verify(broken, problem).correct is None
        assert choices.measures(attempt.model_copy(update={"response": broken}), problem) == {"mc2": (0, 1)}
    with pytest.raises(UserError, match="row 1: column 'mc1_targets' has no true choice"):
        bad = {"choices": ["a", "b"], "labels": [0, 0]}
        choices.TRUTHFULQA.build(Data("t.jsonl", [row | {"mc1_targets": bad}]), "{question}")


def test_connect4_says_what_always_none_scores_and_reads_each_list() -> None:
    problems = connect4.CONNECT4.problems(None, limit=500)
    found = connect4.baselines(problems)
    assert (
        found["always none"] == pytest.approx(0.2) and 0.4 < found["always none, opponent"] < found["always none, mine"]
    )
    mine, _, opponent = problems[0].answer.partition("\n")

    def measured(response: str, finish: Any = "stop") -> dict[str, float]:
        verdict = Verdict(correct=False)
        attempt = Attempt(
            id="a#0", problem_id="a", sample=0, response=response, finish_reason=finish, verdict=verdict, model="m"
        )
        return {name: got for name, (got, _) in connect4.measures(attempt, problems[0]).items()}

    assert measured(problems[0].answer) == {"mine": 1, "opponent": 1, "unreadable": 0}
    assert measured(mine) == {"mine": 1, "opponent": 0, "unreadable": 1}
    assert measured(problems[0].answer, "length") == {"mine": 0, "opponent": 0, "unreadable": 1}
    assert measured(opponent) == {"mine": 0, "opponent": 1, "unreadable": 1}
    assert not {text_of(one.prompt) for one in problems} & {text_of(one.prompt) for one in build_dataset(500, 0)}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("aime24", {"problem": "x"}, "row 1: column 'answer' or 'expected_answer' is missing; it has problem"),
        ("aime24", {"problem": "x", "answer": "1/2"}, "the answer '1/2' is no integer"),
        ("aime24", {"problem": " ", "answer": "1"}, "column 'problem' is empty"),
        ("math500", {"question": "x", "answer": "1"}, "column 'problem' is missing"),
        ("minerva", {"problem": "x", "solution": "no box"}, "no answer, and no box in the solution"),
        ("olympiadbench", {"question": "x", "final_answer": "[oops"}, "column 'final_answer' is no list of answers"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, name: str, row: dict[str, Any], message: str) -> None:
    task = benchmark(name)
    assert task.source is not None
    path = tmp_path / task.source.file
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"{path}, row 1: |{path}:1: ") as caught:
        task.problems(tmp_path)
    assert message in str(caught.value)


def test_files_of_every_kind_and_what_is_said_of_broken_ones(tmp_path: Path) -> None:
    rows = [{"a": "1"}, {"a": "2"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["a"])
        writer.writeheader()
        writer.writerows(rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for kind in ("jsonl", "json", "csv", "parquet"):
        assert read_file(tmp_path / f"x.{kind}") == rows
    broken = {
        "jsonl": (b'{"a": 1}\n[1]\n', "x.jsonl:2: not a JSON object"), "json": (b"{}", "not a list of JSON objects"),
        "csv": (b"", "no rows"), "parquet": (b"oops", "not a Parquet file"), "txt": (b"\xff\xfe", "not UTF-8"),
    }  # fmt: skip
    for kind, (raw, message) in broken.items():
        (tmp_path / f"x.{kind}").write_bytes(raw)
        with pytest.raises(UserError, match=message):
            read_file(tmp_path / f"x.{kind}")
    with pytest.raises(
        UserError, match=r"no such file; put the rows of a/b \(gated\) there, or choose another --data_dir"
    ):
        Source("none.csv", "a/b", "0" * 40, note="gated").read(tmp_path)


def test_a_hub_that_cannot_be_reached_names_the_file_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        UserError, match="cannot be read from the hub .*set --data_dir to a directory with aime24/test.jsonl"
    ):
        benchmark("aime24").problems(None)


def test_a_user_s_templates(tmp_path: Path) -> None:
    path, tasks = tmp_path / "p.yaml", find_tasks(["aime24", "gpqa"])
    path.write_text('aime24: "Q: {question} in \\\\boxed{}"\namc23: "{nothing}"\n')
    assert fill(read_prompts(path, tasks)["aime24"], question="1 {x} 2") == "Q: 1 {x} 2 in \\boxed{}"
    for text, message in [
        ("aime24: 'no field'", "the template of aime24 lacks the field {question}"),
        ("gpqa: '{question}'", "the template of gpqa lacks the field {options}"),
        ("aime42: '{question}'", "unknown task 'aime42'; did you mean 'aime25'?"),
        ("- a", "must map names of tasks to templates"),
        ("a: [", "not valid YAML"),
        ("a: 2026-13-01", "not valid YAML .month must be in 1..12"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_prompts(path, tasks)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.yaml", tasks)


CHOICES: dict[str, tuple[str, str | None]] = {
    "plain": ("Answer: C", "C"),
    "lower case": ("answer: c", "C"),
    "bold": ("**Answer: C**", "C"),
    "bold letter": ("Answer: **C**", "C"),
    "brackets": ("Answer: (C)", "C"),
    "full stop": ("Answer: C.", "C"),
    "boxed": ("Answer: \\boxed{C}", "C"),
    "with the option's text": ("Answer: C. the third", "C"),
    "with the option in brackets": ("Answer: C (the third)", "C"),
    "with a dash": ("Answer: C \u2014 the third", "C"),
    "on the next line": ("Answer:\nC\n", "C"),
    "two on the next line": ("Answer:\nA or C", None),
    "the final answer is": ("The final answer is: C", "C"),
    "the last line counts": ("Answer: A\nNo.\nAnswer: B", "B"),
    "after a thought": ("<think>Answer: A</think>\nAnswer: B", "B"),
    "full width": ("Ａｎｓｗｅｒ： Ｃ", "C"),
    "in a thought only": ("<think>Answer: A</think>", None),
    "an unclosed thought": ("<think>Answer: A", None),
    "letter in prose": ("I think it is C.", None),
    "article": ("A good question.", None),
    "two letters": ("Answer: A or B", None),
    "two letters with a comma": ("Answer: A, B", None),
    "one letter and another": ("Answer: A. No, B", None),
    "a letter that is no option": ("Answer: E", None),
    "echoed template": ("Answer: <letter>", None),
    "the word": ("Answer: Canada", None),
    "none": ("Answer: none of them", None),
    "empty": ("Answer:", None),
    "no line": ("", None),
    "a later line that cannot be read": ("Answer: A\nAnswer: I am not sure", None),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_letter_is_read_from_the_answer_line_alone(case: str) -> None:
    response, letter = CHOICES[case]
    problem = Problem(id="q", prompt="?", answer="C", meta={"options": ["a", "b", "c", "d"]})
    verdict = resolve("choice")(response, problem)
    assert verdict.answer == letter and verdict.correct is (letter == "C")


def test_without_options_nothing_can_be_said() -> None:
    for response in ("Answer: A", "Answer: A. Paris"):
        assert resolve("choice")(response, Problem(id="q", prompt="?", answer="A")).correct is None


def test_a_million_characters_of_answers_take_no_time() -> None:
    problem = Problem(id="q", prompt="?", answer="C", meta={"options": ["a", "b", "c", "d"]})
    assert resolve("choice")("Answer: A\n" * 100_000 + " " * 1_000_000 + "\nAnswer: C", problem).correct


def test_every_task_of_ours_is_whole() -> None:
    for name in BENCHMARKS:
        task = benchmark(name)
        assert isinstance(task, Task) and all(f"{{{field}}}" in task.prompt for field in task.fields)
        assert task.source is None or len(task.source.revision) == 40
