"""The IFEval task: prompts unchanged, instructions without what the hub fills up, all four numbers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from spot.errors import UserError
from spot.evaluate.benchmarks.ifeval import IFEVAL, measures
from spot.evaluate.registry import benchmark
from spot.evaluate.results import task_score
from spot.evaluate.source import Data
from spot.schema import Attempt, FinishReason, Problem, Verdict
from spot.verify.ifeval import missing, verify

SHARED_DATA = Path(os.environ.get("SPOT_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
ROW = {
    "key": 7,
    "prompt": " Write it with {braces} and no comma,\nplease. ",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "at least", "num_words": 300}],
}


def build(row: dict[str, Any]) -> Problem:
    (problem,) = IFEVAL.build(Data("rows.jsonl", [row]), IFEVAL.prompt)
    return problem


def attempt(verdict: Verdict, problem: Problem, sample: int = 0, finish: FinishReason = "stop") -> Attempt:
    return Attempt(
        id=f"{problem.id}#{sample}",
        problem_id=problem.id,
        sample=sample,
        response=f"text {sample}",
        finish_reason=finish,
        verdict=verdict,
        model="m",
    )


def judged(strict: list[int | None], loose: list[int | None]) -> Verdict:
    correct = None if None in strict else all(strict)
    return Verdict(correct=correct, answer=json.dumps({"strict": strict, "loose": loose}))


def test_a_row_becomes_a_problem_with_its_own_text() -> None:
    assert build(ROW) == Problem(
        id="ifeval-7",
        prompt=" Write it with {braces} and no comma,\nplease. ",
        answer="punctuation:no_comma, length_constraints:number_words",
        source="ifeval",
        meta={"instruction_id_list": ROW["instruction_id_list"], "kwargs": ROW["kwargs"]},
    )


def test_a_template_of_the_users_is_filled() -> None:
    (problem,) = IFEVAL.build(Data("rows.jsonl", [ROW]), "Be exact.\n{question}")
    assert problem.prompt == f"Be exact.\n{ROW['prompt']}"


def test_the_hubs_empty_kwargs_are_dropped() -> None:
    names = ("relation", "num_words", "keywords", "letter")
    filled = [{name: some.get(name) for name in names} for some in ROW["kwargs"]]  # type: ignore[union-attr]
    assert build({**ROW, "kwargs": filled}) == build(ROW)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prompt", None, "column 'prompt' is missing"),
        ("prompt", " ", "column 'prompt' is empty"),
        ("key", None, "column 'key' is missing"),
        ("kwargs", None, "column 'kwargs' is missing"),
        ("kwargs", "[{}]", "column 'kwargs' is no list of objects"),
        ("kwargs", [{}], "2 instructions, but kwargs for 1"),
        ("instruction_id_list", [], "column 'instruction_id_list' is no list of texts"),
    ],
)
def test_a_row_that_is_not_right_is_named(column: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl, row 1: {message}"):
        build({**ROW, column: value})


ZEROS = {"prompt_loose": (0.0, 1.0), "instruction_strict": (0.0, 2.0), "instruction_loose": (0.0, 2.0)}


@pytest.mark.parametrize(
    ("verdict", "finish", "parts"),
    [
        pytest.param(
            judged([1, 0], [1, 1]),
            "stop",
            {"prompt_loose": (1.0, 1.0), "instruction_strict": (1.0, 2.0), "instruction_loose": (2.0, 2.0)},
            id="judged",
        ),
        pytest.param(judged([1, 1], [1, 1]), "length", ZEROS, id="truncated"),
        pytest.param(Verdict(correct=False, reason="no answer"), "stop", ZEROS, id="empty"),
        pytest.param(
            judged([1, None], [1, None]),
            "stop",
            {"instruction_strict": (1.0, 1.0), "instruction_loose": (1.0, 1.0)},
            id="one not judged",
        ),
        pytest.param(Verdict(correct=None, reason="timeout"), "error", {}, id="an error"),
        pytest.param(Verdict(correct=None, reason="IFEval's checkers need nltk"), "stop", {}, id="no checkers"),
    ],
)
def test_measures_of_an_attempt(verdict: Verdict, finish: FinishReason, parts: dict[str, Any]) -> None:
    problem = build(ROW)
    assert measures(attempt(verdict, problem, finish=finish), problem) == parts


def test_the_four_numbers_of_a_set() -> None:
    """Instruction level is over instructions: three of one prompt and one of the other, each asked twice."""
    one = build({**ROW, "key": 1, "instruction_id_list": ["a", "b", "c"], "kwargs": [{}, {}, {}]})
    two = build({**ROW, "key": 2, "instruction_id_list": ["a"], "kwargs": [{}]})
    attempts = [
        attempt(judged([1, 1, 0], [1, 1, 1]), one, 0),
        attempt(judged([1, 0, 0], [1, 0, 0]), one, 1),
        attempt(judged([1], [1]), two, 0),
        attempt(judged([0], [0]), two, 1),
    ]
    found = task_score(IFEVAL, [one, two], attempts)
    assert found.mean == pytest.approx(1 / 4)
    means = {name: measure.mean for name, measure in found.measures.items()}
    assert means == pytest.approx({"prompt_loose": 2 / 4, "instruction_strict": 4 / 8, "instruction_loose": 5 / 8})


def test_registered_as_the_general_benchmark_of_the_paper() -> None:
    assert benchmark("ifeval") is IFEVAL
    assert (IFEVAL.group, IFEVAL.repeats, IFEVAL.verifier) == ("general", 5, "ifeval")


@pytest.mark.skipif(not (SHARED_DATA / "ifeval").is_dir(), reason=f"{SHARED_DATA}/ifeval is not here")
def test_the_data_set_is_read_whole() -> None:
    problems = IFEVAL.problems(SHARED_DATA)
    names = [name for problem in problems for name in problem.meta["instruction_id_list"]]
    assert (len(problems), len(names), len(set(names))) == (541, 834, 25)
    rows = [json.loads(line) for line in (SHARED_DATA / "ifeval" / "input_data.jsonl").read_text("utf-8").splitlines()]
    assert [problem.prompt for problem in problems] == [row["prompt"] for row in rows]
    assert [problem.meta["kwargs"] for problem in problems] == [row["kwargs"] for row in rows]


@pytest.mark.skipif(bool(missing()), reason=missing() or "installed")
@pytest.mark.skipif(not (SHARED_DATA / "ifeval").is_dir(), reason=f"{SHARED_DATA}/ifeval is not here")
def test_every_instruction_of_the_data_set_is_judged() -> None:
    problems = IFEVAL.problems(SHARED_DATA)
    attempts = [attempt(verify(str(problem.prompt), problem), problem) for problem in problems]
    found = task_score(IFEVAL, problems, attempts)
    assert (found.unscored, found.unanswered) == (0, 0)
    assert found.mean <= found.measures["prompt_loose"].mean
    assert 0.3 < found.measures["instruction_strict"].mean <= found.measures["instruction_loose"].mean
