"""The benchmarks in inspect_ai, and our evaluations as its logs: the same questions, seeds, verdicts and numbers."""

import asyncio
import csv
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="needs pip install 'spot-posttraining[inspect]'")

from inspect_ai import eval as inspect_eval
from inspect_ai import score as inspect_score
from inspect_ai._util.error import PrerequisiteError
from inspect_ai._util.registry import registry_lookup
from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelOutput, ModelUsage, get_model

from spot.evaluate.inspect_log import write_logs
from spot.evaluate.inspect_tasks import BENCHMARKS, verdict
from spot.evaluate.registry import LAB, find_tasks
from spot.evaluate.results import TaskScore, task_score
from spot.evaluate.task import Task
from spot.models.base import Reply, Request
from spot.schema import Attempt, Problem, Sampling, Verdict, derived_seed, text_of
from spot.stages.asking import answer
from spot.verify.resolve import resolve

Script = Callable[[str, int], tuple[str, str]]
"""A question and a seed of 31 bits give an answer and inspect's stop reason."""

AIME = [{"problem": f"What is {number} + {number}?", "answer": str(2 * number)} for number in (3, 25, 40, 101, 7, 300)]
GPQA_COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
REPEATS = 3


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    (directory / "aime24").mkdir(parents=True)
    (directory / "aime24" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in AIME))
    with (directory / "gpqa_diamond.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(GPQA_COLUMNS)
        rows.writerows([f"Question {number}?", *(f"{kind}{number}" for kind in "abcd")] for number in range(6))
    return directory


def sometimes_right(known: dict[str, str]) -> Script:
    """All kinds of endings, drawn by question and seed alone."""

    def script(question: str, seed: int) -> tuple[str, str]:
        draw = random.Random(f"{question}{seed}").random()
        if draw < 0.4:
            return known[question], "stop"
        if draw < 0.6:
            return "\\boxed{1} Answer: B\nMy winning moves: (0, 0)\nOpponent's winning moves: none", "stop"
        return ("I do not know.", "stop") if draw < 0.8 else ("Let me see", "max_tokens")

    return script


def mock(script: Script, seen: list[tuple[str, GenerateConfig]]) -> Model:
    """inspect's mock model; usage is given, since it would count tokens with a file from the network."""

    def reply(messages: list[ChatMessage], tools: Any, choice: Any, config: GenerateConfig) -> ModelOutput:
        question = messages[-1].text
        assert config.seed is not None
        seen.append((question, config))
        text, ended = script(question, config.seed)
        output = ModelOutput.from_content("mockllm/model", text, ended)  # pyright: ignore[reportArgumentType]
        output.usage = ModelUsage()
        return output

    return get_model("mockllm/model", custom_outputs=reply, memoize=False)


class OurMock:
    """The same answers by our protocol."""

    name = "mockllm/model"

    def __init__(self, script: Script) -> None:
        self.script = script

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        for request in requests:
            text, ended = self.script(request.messages[-1].content, request.seed & 0x7FFFFFFF)
            yield [Reply(request.id, text, "length" if ended == "max_tokens" else "stop")]


def run(name: str, model: Model, tmp_path: Path, **options: Any) -> EvalLog:
    options = {"log_dir": str(tmp_path / "logs"), "display": "none", "log_realtime": False, **options}
    [log] = inspect_eval(name, model=model, **options)
    assert log.status == "success", log.error
    return log


def run_ours(
    task: Task, problems: Sequence[Problem], script: Script, tmp_path: Path, repeats: int = REPEATS
) -> list[Attempt]:
    return asyncio.run(
        answer(
            problems,
            OurMock(script),
            resolve(task.verifier),
            samples=repeats,
            sampling=Sampling(seed=1),
            path=tmp_path / f"{task.name}.jsonl",
            variant=task.variant,
        )
    )


def known_answers(task: Task, problems: Sequence[Problem]) -> dict[str, str]:
    """What is right in each repetition, in the form that each verifier reads."""
    known: dict[str, str] = {}
    for problem in problems:
        for sample in range(REPEATS):
            asked = task.variant(problem, sample) if task.variant else problem
            form = {"math": "\\boxed{%s}", "choice": "Answer: %s"}.get(task.verifier, "%s")
            known[text_of(asked.prompt)] = form % asked.answer
    return known


def metrics(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    return {name: metric.value for score in log.results.scores for name, metric in score.metrics.items()}


def expected_metrics(score: TaskScore) -> dict[str, float]:
    found = {"accuracy": score.mean, "stderr": score.stderr or 0.0}
    found |= {name: getattr(score, name) / score.samples for name in ("truncated", "unanswered", "unscored")}
    if score.repeats > 1:
        found[f"pass@{score.repeats}"] = score.pass_at[score.repeats]
        if score.majority is not None:
            found[f"maj@{score.repeats}"] = score.majority
    for name, measure in score.measures.items():
        assert measure.stderr is not None
        found |= {name: measure.mean, f"{name} stderr": measure.stderr}
    return found


def samples(log: EvalLog) -> dict[tuple[str, int], EvalSample]:
    return {(str(sample.id), sample.epoch): sample for sample in log.samples or []}


@pytest.mark.parametrize("name", [*BENCHMARKS, *LAB])
def test_every_benchmark_is_registered_by_its_name(name: str) -> None:
    assert registry_lookup("task", f"spot/{name}") is not None


def test_inspect_finds_them_by_entry_point() -> None:
    found = {(one.name, one.value) for one in entry_points(group="inspect_ai")}
    assert ("spot", "spot.evaluate.inspect_tasks") in found


@pytest.mark.parametrize("name", ["aime24", "gpqa", "connect4"])
def test_inspect_and_we_come_to_the_same(name: str, data_dir: Path, tmp_path: Path) -> None:
    [task] = find_tasks([name])
    problems = task.problems(data_dir)[:6]
    script = sometimes_right(known_answers(task, problems))
    seen: list[tuple[str, GenerateConfig]] = []
    log = run(
        f"spot/{name}",
        mock(script, seen),
        tmp_path,
        task_args={"data_dir": str(data_dir)},
        limit=6,
        epochs=REPEATS,
    )
    attempts = run_ours(task, problems, script, tmp_path)
    score = task_score(task, problems, attempts)
    assert metrics(log) == pytest.approx(expected_metrics(score))
    assert 0 < score.mean < 1 and score.truncated and score.unanswered

    of_inspect = samples(log)
    assert len(of_inspect) == len(attempts)
    for attempt in attempts:
        sample = of_inspect[attempt.problem_id, attempt.sample + 1]
        assert sample.output.completion == attempt.response
        assert sample.scores is not None
        assert sample.scores["verdict"].answer == attempt.verdict.answer
        assert (sample.scores["verdict"].value == "C") == (attempt.outcome == "correct")
    asked = {(question, config.seed) for question, config in seen}
    wanted = {
        (
            text_of((task.variant(problem, sample) if task.variant else problem).prompt),
            derived_seed(1, problem.id, sample) & 0x7FFFFFFF,
        )
        for problem in problems
        for sample in range(REPEATS)
    }
    assert asked == wanted
    assert len({config.seed for _, config in seen}) == len(attempts)


@pytest.mark.parametrize("name", ["aime24", "gpqa", "connect4"])
def test_a_log_read_back_has_our_numbers(name: str, data_dir: Path, tmp_path: Path) -> None:
    [task] = find_tasks([name])
    problems = task.problems(data_dir)[:6]
    attempts = run_ours(task, problems, sometimes_right(known_answers(task, problems)), tmp_path)
    path = write_logs(task, problems, attempts, "mockllm/model", tmp_path / "logs")
    assert path == tmp_path / "logs" / f"{name}.eval"
    log = read_eval_log(str(path))
    score = task_score(task, problems, attempts)
    assert (log.status, log.eval.task, log.eval.model, log.eval.config.epochs) == (
        "success",
        f"spot/{name}",
        "mockllm/model",
        REPEATS,
    )
    assert (log.plan.config.temperature, log.plan.config.top_p, log.plan.config.max_tokens) == (0.7, 0.8, 32768)
    assert metrics(log) == pytest.approx(expected_metrics(score))
    assert log.results is not None and log.results.metadata is not None
    assert log.results.metadata == score.model_dump(mode="json")
    for attempt, problem in (
        (attempt, one) for one in problems for attempt in attempts if attempt.problem_id == one.id
    ):
        asked = task.variant(problem, attempt.sample) if task.variant else problem
        sample = samples(log)[problem.id, attempt.sample + 1]
        assert [message.text for message in sample.messages] == [text_of(asked.prompt), attempt.response]
        assert sample.target == asked.answer
        assert sample.output.stop_reason == ("max_tokens" if attempt.finish_reason == "length" else "stop")
        assert sample.scores is not None and sample.scores["verdict"].metadata is not None
        outcome = sample.scores["verdict"].metadata["outcome"]
        assert outcome == attempt.outcome or (outcome, attempt.verdict.answer) == ("unanswered", None)
    # `inspect score` on what was written comes to the same once more. (It wants a model of a name that it knows.)
    again = inspect_score(log, verdict(name), epochs_reducer="mean", action="overwrite", display="none")
    assert metrics(again) == pytest.approx(expected_metrics(score))


def test_scored_choices_and_errors_can_be_logged_too(tmp_path: Path) -> None:
    [task] = find_tasks(["truthfulqa"])
    flags = {"true": [True, False], "mc1": [True, True], "mc2": [True, True]}
    problems = [
        Problem(id=f"q{number}", prompt="Is it?", answer="no", meta={"choices": ["no", "yes"], **flags})
        for number in range(3)
    ]
    replies = [("[-1.0, -2.0]", "stop"), ("[-2.0, -1.0]", "stop"), ("", "error")]
    verifier = resolve(task.verifier)
    attempts = [
        Attempt(
            id=f"{problem.id}#0",
            problem_id=problem.id,
            sample=0,
            response=text,
            finish_reason=ended,  # pyright: ignore[reportArgumentType]
            verdict=verifier(text, problem) if text else Verdict(correct=None, reason="HTTP 500"),
            model="m",
        )
        for problem, (text, ended) in zip(problems, replies, strict=True)
    ]
    log = read_eval_log(str(write_logs(task, problems, attempts, "m", tmp_path)))
    assert metrics(log) == pytest.approx(expected_metrics(task_score(task, problems, attempts)))
    assert metrics(log)["unscored"] == pytest.approx(1 / 3)
    assert [(sample.output.stop_reason, sample.output.error) for sample in log.samples or []] == [
        ("stop", None),
        ("stop", None),
        ("unknown", "HTTP 500"),
    ]


def test_an_evaluation_written_again_replaces_its_log(data_dir: Path, tmp_path: Path) -> None:
    [task] = find_tasks(["aime24"])
    problems = task.problems(data_dir)
    for right in ("\\boxed{6}", "none"):
        attempts = run_ours(task, problems, lambda question, seed, right=right: (right, "stop"), tmp_path, repeats=1)
        write_logs(task, problems, attempts, "m", tmp_path / "logs")
        (tmp_path / "aime24.jsonl").unlink()
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["aime24.eval"]
    assert metrics(read_eval_log(str(tmp_path / "logs" / "aime24.eval")))["accuracy"] == 0


def test_flags_override_the_paper_and_the_seed_is_the_runs(data_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, GenerateConfig]] = []
    model = mock(lambda question, seed: ("\\boxed{6}", "stop"), seen)
    log = run(
        "spot/aime24",
        model,
        tmp_path,
        task_args={"data_dir": str(data_dir)},
        limit=1,
        epochs=2,
        temperature=0.0,
        max_tokens=100,
        seed=7,
    )
    assert {(config.temperature, config.top_p, config.max_tokens) for _, config in seen} == {(0.0, 0.8, 100)}
    expected = {derived_seed(7, "aime24-1", sample) & 0x7FFFFFFF for sample in range(2)}
    assert {config.seed for _, config in seen} == expected
    assert log.eval.config.epochs == 2


def test_without_flags_it_is_asked_as_in_the_paper(data_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, GenerateConfig]] = []
    model = mock(lambda question, seed: ("\\boxed{6}", "stop"), seen)
    log = run("spot/aime24", model, tmp_path, task_args={"data_dir": str(data_dir)})
    assert {(config.temperature, config.top_p, config.max_tokens) for _, config in seen} == {(0.7, 0.8, 32768)}
    assert (log.eval.config.epochs, log.eval.config.epochs_reducer) == (16, ["mean"])
    assert metrics(log)["accuracy"] == pytest.approx(1 / 6)


def test_the_labs_families_are_asked_with_their_parameters(tmp_path: Path) -> None:
    [task] = find_tasks(["ood"], lab_seed=3, lab_questions=5)
    known = {text_of(problem.prompt): f"\\boxed{{{problem.answer}}}" for problem in task.problems(None)}
    model = mock(lambda question, seed: (known[question], "stop"), [])
    log = run("spot/ood", model, tmp_path, task_args={"lab_seed": 3, "lab_questions": 5})
    assert (len(log.samples or []), metrics(log)["accuracy"]) == (5, 1.0)


def test_unscored_is_kept_apart_and_scores_nothing(data_dir: Path, tmp_path: Path) -> None:
    model = mock(lambda question, seed: ("\\boxed{6}", "content_filter"), [])
    log = run("spot/aime24", model, tmp_path, task_args={"data_dir": str(data_dir)}, limit=1, epochs=1)
    assert (metrics(log)["accuracy"], metrics(log)["unscored"]) == (0.0, 1.0)
    [sample] = log.samples or []
    assert sample.scores is not None
    assert sample.scores["verdict"].explanation == "unscored; the known answer is 6; finish_reason 'content_filter'"


def test_prompts_come_from_a_file(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text("aime24: 'Short: {question}'\n")
    seen: list[tuple[str, GenerateConfig]] = []
    model = mock(lambda question, seed: ("\\boxed{6}", "stop"), seen)
    options = {"data_dir": str(data_dir), "prompts": str(tmp_path / "prompts.yaml")}
    run("spot/aime24", model, tmp_path, task_args=options, limit=1, epochs=1)
    assert [question for question, _ in seen] == ["Short: What is 3 + 3?"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("truthfulqa", {}, "truthfulqa compares the log-probabilities of known choices, for which inspect has no re"),
        ("aime24", {"data_dir": "/none"}, "/none/aime24/test.jsonl: no such file"),
        ("ood", {"world": "/none"}, "/none"),
    ],
)
def test_what_cannot_be_asked_is_one_line(name: str, arguments: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError) as raised:
        run(f"spot/{name}", mock(lambda question, seed: ("", "stop"), []), tmp_path, task_args=arguments)
    assert message in str(raised.value.message)
    assert "\n" not in str(raised.value.message)
