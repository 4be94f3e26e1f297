"""Answers that changed, as the page shows them: the right ones, few enough, and as text."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spot.connect4 import build_dataset
from spot.evaluate.benchmarks.choices import shuffled
from spot.files.store import write_rows
from spot.report.build import build_report
from spot.report.changed import LONGEST, SHOWN_BETTER, SHOWN_WORSE, changed_answers, drawn
from spot.report.evaluation import evaluated
from spot.report.figures import draw_counts
from spot.report.html import render
from spot.report.summary import Counts, Summary
from spot.schema import Attempt, FinishReason, Problem, Verdict

NewRun = Callable[..., Path]
NOTHING = dict.fromkeys(("problems", "attempts", "correct", "wrong", "unscored", "truncated", "rectified", "pairs"), 0)
PIECES = ["<script>", "</details>", '"', "'", "&lt;", "{{ 1 }}", "<b onclick=x>", "a"]
DRAWING = draw_counts(Counts.model_validate(NOTHING))


def answer(
    problem_id: str, correct: bool | None, text: str = "x", sample: int = 0, end: FinishReason = "stop"
) -> Attempt:
    verdict = Verdict(correct=correct, answer="A", reason="because")
    return Attempt(
        id=f"{problem_id}#{sample}", problem_id=problem_id, sample=sample, response=text, finish_reason=end,
        verdict=verdict, model="m",
    )  # fmt: skip


def sides(run: Path, task: str, before: list[Attempt], after: list[Attempt], *problems: Problem) -> Path:
    for name, rows in (("before", before), ("after", after), ("problems", list(problems))):
        (run / "eval" / name).mkdir(parents=True, exist_ok=True)
        write_rows(run / "eval" / name / f"{task}.jsonl", rows)
    return run


def test_what_is_called_forgotten_was_right_before_and_is_wrong_now(new_run: NewRun) -> None:
    run = new_run(questions=200)
    tasks = evaluated(run).tasks
    found = changed_answers(run, tasks)
    for lists, outcomes, most in (
        (found.worse, ("right", "wrong"), SHOWN_WORSE),
        (found.better, ("wrong", "right"), SHOWN_BETTER),
    ):
        assert lists
        for one in lists:
            change = tasks[one.task].difference
            assert one.number == (change.worse if outcomes[0] == "right" else change.better)
            assert len(one.shown) == min(one.number, most)
            for example in one.shown:
                assert (example.before.outcome, example.after.outcome) == outcomes
                assert example.question and example.known
                assert example.known in "".join(piece.text for piece in example.before.pieces + example.after.pieces)


def test_numbers_lead_to_the_lists(new_run: NewRun) -> None:
    page = build_report(new_run(questions=100), "x").read_text()
    targets = re.findall(r'href="#((?:worse|better)-\d+)"', page)
    assert len(targets) > 3
    assert all(page.count(f'id="{target}"') == 1 for target in targets)
    assert page.index("Right before, wrong after") < page.index("Wrong before, right after")


def test_the_largest_fall_comes_first_then_the_order_of_the_questions(tmp_path: Path) -> None:
    before = [answer(name, True, sample=sample) for name in ("c", "b", "a") for sample in (0, 1)]
    after = [answer(name, name != "a" and sample == 0, sample=sample) for name in ("c", "b", "a") for sample in (0, 1)]
    run = sides(tmp_path, "t", before, after)
    (found,) = changed_answers(run, evaluated(run).tasks).worse
    assert [example.problem_id for example in found.shown] == ["a", "c", "b"]
    assert [example.shares for example in found.shown] == [(1, 0), (1, 0.5), (1, 0.5)]
    assert found.shown[0].question is None
    assert found.shown[0].known is None


def test_both_answers_are_of_one_repetition_where_one_changed(tmp_path: Path) -> None:
    before = [answer("a", sample > 0, f"before {sample}", sample) for sample in range(3)]
    after = [
        answer("a", sample == 1, f"after {sample}", sample, "length" if sample == 2 else "stop") for sample in range(3)
    ]
    run = sides(tmp_path, "t", before, after)
    (example,) = changed_answers(run, evaluated(run).tasks).worse[0].shown
    texts = ["".join(piece.text for piece in side.pieces) for side in (example.before, example.after)]
    assert texts == ["before 2", "after 2"]
    assert (example.after.outcome, example.after.finish, example.after.reason) == ("cut off", "length", "because")


def test_a_question_is_shown_as_its_repetition_was_asked(tmp_path: Path) -> None:
    meta = {"question": "Which?", "template": "{question}\n{options}", "options": ["one", "two", "three", "four"]}
    problem = shuffled(Problem(id="gpqa-0", prompt="?", answer="A", source="gpqa", meta=meta), 0)
    samples = range(4)
    before = [answer("gpqa-0", sample == 3, sample=sample) for sample in samples]
    run = sides(tmp_path, "gpqa", before, [answer("gpqa-0", False, sample=sample) for sample in samples], problem)
    (example,) = changed_answers(run, evaluated(run).tasks).worse[0].shown
    asked = shuffled(problem, 3)
    assert example.question is not None
    assert (example.question[0].text, example.known) == (asked.prompt, asked.answer)


def test_a_question_that_is_only_on_one_side_is_no_change(tmp_path: Path) -> None:
    run = sides(tmp_path, "t", [answer("a", True)], [answer("a", False)])
    tasks = evaluated(run).tasks
    write_rows(run / "eval/after/t.jsonl", [answer("b", False)])  # answered anew since the summary was made
    assert changed_answers(run, tasks).worse == []
    (run / "eval/after/t.jsonl").unlink()
    assert changed_answers(run, tasks).worse == []


def test_boards_are_drawn_with_their_winning_cells() -> None:
    boards = build_dataset(20)
    for problem in boards:
        drawing = drawn(problem)
        assert drawing is not None
        assert drawing.count("stroke-width:3") == len(problem.meta["mine"]) + len(problem.meta["opponent"])
    assert drawn(boards[0].model_copy(update={"source": None})) is None


@pytest.mark.parametrize("cells", [None, "x", [["<b>", 1]], [[0]], [[9, 9]], [[True, 1]], {"a": 1}])
def test_a_strange_row_draws_no_strange_board(cells: object) -> None:
    problem = build_dataset(1)[0]
    strange = problem.model_copy(update={"meta": problem.meta | {"mine": cells, "opponent": []}})
    assert "stroke-width:3" not in (drawn(strange) or "")
    assert drawn(problem.model_copy(update={"meta": {"board": "<script>"}})) is None


def test_a_board_stands_beside_its_question(new_run: NewRun) -> None:
    run, problem = new_run(questions=3), build_dataset(1)[0]
    sides(run, "instructions", [answer(problem.id, True)], [answer(problem.id, False)], problem)
    assert "Connect4 board with" in build_report(run, "x").read_text()


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["<script>", "</details>", '"', "'", "&lt;", "{{ 1 }}", "<b onclick=x>", "a"]), max_size=8)
)
def test_whatever_an_answer_says_stays_text(tmp_path: Path, parts: list[str]) -> None:
    text = "".join(parts)
    hostile = text or "x"
    row = answer(hostile, False, text).model_copy(update={"verdict": Verdict(correct=False, answer=text, reason=text)})
    problem = Problem(id=hostile, prompt=f"q {text}", answer=text)
    run = sides(tmp_path, "t", [answer(hostile, True, f"{text} y")], [row], problem)
    tasks = evaluated(run).tasks
    summary = Summary.model_validate(
        {"name": "n", "student": "s", "oracle": "o", "objective": "sft", "counts": NOTHING, "evaluation": tasks,
         "change_ratio": {"gamma": 0.6}, "training": {"steps": 0}}
    )  # fmt: skip
    drawings = {"counts": DRAWING, "evaluation": DRAWING}
    page = render(summary, drawings, [], changed_answers(run, tasks), reproduce="x")
    (shown,) = re.findall(r'<section class="broad" id="changed">(.*?)</section>\s*<section>', page, re.DOTALL)
    assert not {"script", "b"} & set(re.findall(r"<([a-z0-9]+)", shown))
    assert not re.search(r"<[^>]*onclick", shown)
    assert shown.count("<details") == shown.count("</details>") == 2
    assert unescape(shown).count(text) >= 3


def test_a_large_run_makes_a_page_that_opens(new_run: NewRun) -> None:
    run = new_run(questions=3)
    texts = "".join(f"{number} <&> " for number in range(2_000))  # 18 kB of what takes most room when escaped
    names = [f"q{number}" for number in range(400)]
    problems = [Problem(id=name, prompt=texts, answer="1") for name in names]
    before = [answer(name, number % 2 == 0, texts) for number, name in enumerate(names)]
    after = [answer(name, number % 2 == 1, texts[::-1]) for number, name in enumerate(names)]
    sides(run, "ood", before, after, *problems)
    found = changed_answers(run, {"ood": evaluated(run).tasks["ood"]})
    assert [(one.number, len(one.shown)) for one in found.worse + found.better] == [(200, 20), (200, 10)]
    for example in found.worse[0].shown:
        assert example.question is not None
        for pieces in (example.question, example.before.pieces, example.after.pieces):
            assert sum(len(piece.text) for piece in pieces) < LONGEST + 100
    page = build_report(run, "x")
    assert page.stat().st_size < 3_000_000
    assert "20 shown" in page.read_text()
