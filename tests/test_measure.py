"""`spot eval`: answers kept and gone on with, scores, comparisons, and what is said where something does not fit."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.fake_server import Answer, FakeServer, Seen, completion, failure
from tests.tiny_student import make_model, make_tokenizer

from spot import cli
from spot.evaluate.results import read_results
from spot.files.store import read_rows
from spot.models.base import Request
from spot.models.endpoint import model as endpoint
from spot.models.endpoint.pace import RetryPolicy
from spot.models.local.likelihood import LikelihoodModel
from spot.models.local.model import LocalModel
from spot.schema import Attempt, Message, Problem, Sampling

pytestmark = pytest.mark.slow

Spot = Callable[..., tuple[int, str, str]]
LAB = "eval --model lab --tasks in_domain,ood evaluate.questions=20 evaluate.max_new_tokens=120"
SEEDS = {"question": "Is it?", "mc1_targets": {"choices": ["yes", "no"], "labels": [1, 0]}}
SEEDS["mc2_targets"] = SEEDS["mc1_targets"]


@pytest.fixture
def spot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Spot:
    """`spot` in this process and in `tmp_path`: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spot", *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as end:
            cli.main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        out, errors = capfd.readouterr()
        return int(end.value.code or 0), " ".join(out.split()), errors

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    directory = tmp_path / "tiny"
    make_model().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def test_a_model_is_measured_and_two_are_compared(spot: Spot, tmp_path: Path) -> None:
    code, out, _ = spot(*LAB.split(), "--output", "a", "--samples", "2")
    assert code == 0 and "averages: in-domain" in out and "pass@k" in out
    found = read_results(tmp_path / "a")
    assert {name: (one.n, one.repeats) for name, one in found.tasks.items()} == {"in_domain": (20, 2), "ood": (20, 2)}
    rows = read_rows(tmp_path / "a/ood.jsonl", Attempt)
    assert len(rows) == 40 and found.tasks["ood"].mean == sum(row.outcome == "correct" for row in rows) / 40
    assert len({row.id for row in rows}) == 40
    assert len(read_rows(tmp_path / "a/problems/ood.jsonl", Problem)) == 20
    assert spot(*LAB.split(), "--output", "b")[0] == 0
    code, out, _ = spot("eval", "--compare", "a", "b", "--output", "c", "--margin", "0.05")
    assert code == 0 and "within 5 " in out
    content = json.loads((tmp_path / "c/comparison.json").read_text())
    assert content["tasks"].keys() == {"in_domain", "ood"} and content["margin"] == 0.05
    assert (tmp_path / "c/comparison.md").exists() and (tmp_path / "c/comparison.tex").exists()


def test_a_killed_evaluation_goes_on_from_its_answers(tmp_path: Path, spot: Spot) -> None:
    command = [sys.executable, "-m", "spot", *LAB.replace("questions=20", "questions=300").split(), "--output", "a"]
    process = subprocess.Popen(
        [*command, "student.batch_size=16"], cwd=tmp_path, env=os.environ, stdout=subprocess.DEVNULL
    )
    path = tmp_path / "a/in_domain.jsonl"
    while not (path.exists() and path.stat().st_size):
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = path.read_text().splitlines()[:-1]
    assert 0 < len(kept) < 300 and not (tmp_path / "a/results.json").exists()
    done = [*LAB.replace("questions=20", "questions=300").split(), "student.batch_size=16"]
    assert spot(*done, "--output", "a")[0] == 0
    assert path.read_text().splitlines()[: len(kept)] == kept
    assert spot(*done, "--output", "b")[0] == 0
    assert sorted(path.read_text().splitlines()) == sorted((tmp_path / "b/in_domain.jsonl").read_text().splitlines())


def test_answers_to_other_questions_are_never_taken_for_these(spot: Spot) -> None:
    assert spot(*LAB.split(), "--output", "a")[0] == 0
    code, _, errors = spot(*LAB.replace("questions=20", "questions=21").split(), "--output", "a")
    assert code == 2 and "a/problems/in_domain.jsonl: the answers beside it are to other questions" in errors
    assert errors.count("\n") == 1
    code, _, errors = spot(*LAB.split(), "--output", "a", "evaluate.temperature=0.1")
    assert code == 2 and "was sampled with" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model lab --tasks in_domain", "spot eval needs --model, --tasks and --output, or --compare A B"),
        ("--model lab --tasks math50 --output a", "unknown task 'math50': did you mean 'math500'?"),
        ("--model lab --tasks aime24 --data_dir . --output a", "aime24/test.jsonl: no such file; put the rows of"),
        ("--model lab --tasks ood --prompts none.yaml --output a", "none.yaml: cannot be read"),
        ("--model nowhere --tasks ood --output a", "nowhere: no such model directory"),
        ("--compare a b --model lab", "--compare takes two directories"),
        ("--compare a b evaluate.questions=3", "no --model, --tasks or settings"),
        ("--compare a b --output file", "file: a file; --output names a directory"),
        ("--compare a b", "a/results.json: no such file; spot eval --output a writes it"),
        ("--model lab --tasks ood --output file", "file: a file; --output names a directory"),
        ("--model lab --tasks ood --output a --samples 0", "evaluate.samples"),
        (
            "--model lab --tasks truthfulqa --data_dir . --output a student.base_url=http://127.0.0.1:9/v1",
            "truthfulqa: compares log-probabilities, which the model behind an endpoint does not give",
        ),
    ],
)
def test_wrong_use_is_one_line(spot: Spot, tmp_path: Path, arguments: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa/validation.jsonl").write_text(json.dumps(SEEDS))
    code, _, errors = spot("eval", *arguments.split())
    assert code == 2 and message in errors and errors.count("\n") == 1, errors


def test_choices_are_scored_by_their_log_probabilities(spot: Spot, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa/validation.jsonl").write_text(json.dumps(SEEDS))
    code, out, errors = spot("eval", *f"--model {tiny} --tasks truthfulqa --data_dir . --output a".split())
    assert code == 0, errors
    assert "TruthfulQA: mc2" in out
    [row] = read_rows(tmp_path / "a/truthfulqa.jsonl", Attempt)
    scores = json.loads(row.response)
    model = LocalModel(str(tiny))
    prompt = model.render((Message(role="user", content="Is it?"),))
    assert isinstance(prompt, str)
    with model.borrowed() as (weights, tokenizer, _), torch.no_grad():
        for choice, found in zip(["yes", "no"], scores, strict=True):
            start, ids = (
                len(tokenizer(prompt)["input_ids"]),
                tokenizer(prompt + choice, return_tensors="pt")["input_ids"],
            )
            logps = weights(ids).logits[0].log_softmax(-1)
            expected = sum(float(logps[place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))
            assert found == pytest.approx(expected, abs=1e-4)
    assert row.verdict.correct == (scores[0] > scores[1])


def test_likelihoods_of_what_is_done_are_not_asked_again(tiny: Path) -> None:
    model = LikelihoodModel(LocalModel(str(tiny)), {"a": ["x", "yy"], "b": ["z"]})
    requests = [Request(f"{id}#0", (Message(role="user", content="?"),), seed=1) for id in "ab"]

    async def ask(done: frozenset[str]) -> list[str]:
        return [reply.id async for group in model.generate(requests, Sampling(), done) for reply in group]

    assert asyncio.run(ask(frozenset())) == ["a#0", "b#0"]
    assert asyncio.run(ask(frozenset({"a#0"}))) == ["b#0"]


def test_a_repetition_is_asked_and_judged_as_its_variant(spot: Spot, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "gpqa_diamond.csv").write_text(
        "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\nWhich?,right,x,y,z\n"
    )
    call = f"eval --model {tiny} --tasks gpqa --data_dir . --output a evaluate.max_new_tokens=4"
    code, out, errors = spot(*call.split())
    assert code == 0 and "GPQA-D" in out, errors
    rows = read_rows(tmp_path / "a/gpqa.jsonl", Attempt)
    assert sorted(row.sample for row in rows) == [0, 1, 2, 3, 4]


def test_a_repetition_s_options_reach_the_model_and_the_verifier(spot: Spot, tmp_path: Path) -> None:
    header = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
    (tmp_path / "gpqa_diamond.csv").write_text(f"{header}Which?,right,x,y,z\n")

    def right(seen: Seen) -> Answer:
        letter = next(line[0] for line in seen.question.splitlines() if line.endswith(". right"))
        return completion(f"Answer: {letter}")

    with FakeServer(right) as server:
        call = f"eval --model m --tasks gpqa --data_dir . --output a student.base_url={server.url} --samples 12"
        assert spot(*call.split())[0] == 0
        assert len({seen.question for seen in server.seen}) > 3
    assert read_results(tmp_path / "a").tasks["gpqa"].mean == 1


def test_one_output_is_one_model_and_tasks_add_up(spot: Spot, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"id": "a", "prompt": "3 + 4?", "answer": "7"}\n')
    (tmp_path / "two.jsonl").write_text('{"id": "b", "prompt": "3 + 5?", "answer": "8"}\n')
    with FakeServer(lambda seen: completion("\\boxed{7}")) as one, FakeServer(lambda seen: completion("no")) as other:
        call = "eval --model m --tasks own.jsonl --output a student.base_url="
        assert spot(*f"{call}{one.url}".split())[0] == 0
        code, _, errors = spot(*f"{call}{other.url}".split())
        assert code == 2 and "a/model.json: the answers beside it are of" in errors and not other.seen
        assert spot(*f"{call}{one.url}".replace("own.jsonl", "two.jsonl").split())[0] == 0
    found = read_results(tmp_path / "a")
    assert {name: score.mean for name, score in found.tasks.items()} == {"own": 1, "two": 0}
    assert found.averages["all"] == 0.5


def test_what_was_measured_otherwise_is_not_compared(spot: Spot, tmp_path: Path) -> None:
    for name, more in [("a", []), ("b", ["evaluate.temperature=0"]), ("c", [])]:
        assert spot(*LAB.split(), "--output", name, *more)[0] == 0
    code, _, errors = spot("eval", "--compare", "a", "b")
    assert code == 2 and "a was sampled with temperature 0.7" in errors
    path = tmp_path / "c/ood.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    code, _, errors = spot("eval", "--compare", "a", "c")
    assert code == 2 and "19 answers where c/results.json has 20; run spot eval there again" in errors


def test_sampling_settings_are_tried_and_the_best_is_told(spot: Spot, tmp_path: Path) -> None:
    call = [*LAB.split(), "--output", "s", "--search", "temperature=0,1.5", "--search", "top_p=0.9"]
    code, out, _ = spot(*call)
    assert code == 0
    found = {path.name: read_results(path).averages["all"] for path in (tmp_path / "s").iterdir() if path.is_dir()}
    assert found.keys() == {"temperature=0,top_p=0.9", "temperature=1.5,top_p=0.9"}
    best = max(found, key=lambda label: found[label])
    assert f"highest: evaluate.{best.replace(',', ' evaluate.')}" in out
    code, _, errors = spot(*call, "--search", "top_k=3")
    assert code == 2 and "--search top_k=3: write temperature=0.6" in errors


def test_an_endpoint_is_asked_through_a_ledger_and_never_twice(spot: Spot, tmp_path: Path) -> None:
    with FakeServer(lambda seen: completion("It is \\boxed{7}.")) as server:
        call = (
            f"eval --model m --tasks own.jsonl --output a student.base_url={server.url} student.served_as=m --samples 3"
        )
        (tmp_path / "own.jsonl").write_text('{"id": "a", "prompt": "3 + 4?", "answer": "7"}\n')
        code, out, errors = spot(*call.split())
        assert code == 0 and "all repetitions of 100.0% of the questions are one text" in out, errors
        assert len({seen.body["seed"] for seen in server.seen}) == 3
        (tmp_path / "a/own.jsonl").unlink()
        assert spot(*call.split())[0] == 0 and len(server.seen) == 3
    code, out, _ = spot("ledger", "a")
    assert code == 0 and "eval m stop 3" in out


@pytest.mark.parametrize("status", [400, 500])
def test_requests_that_are_refused_count_as_0_and_what_may_pass_is_asked_again(
    spot: Spot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(endpoint, "RetryPolicy", lambda: RetryPolicy(tries=2, first_wait=0.001, longest_wait=0.002))
    healthy = False

    def some(seen: Seen) -> Answer:
        if healthy or "3" not in seen.question:
            return completion("\\boxed{7}")
        return failure(status, "content filter")

    rows = [f'{{"id": "q{n}", "prompt": "{n} + 4?", "answer": "7"}}\n' for n in range(6)]
    (tmp_path / "own.jsonl").write_text("".join(rows))
    with FakeServer(some) as server:
        call = f"eval --model m --tasks own.jsonl --output a student.base_url={server.url} --samples 2"
        code, out, errors = spot(*call.split())
        if status == 500:
            assert code == 3 and "2 of 12 requests got no reply, for a reason that may pass" in errors
            healthy = True
            code, out, _ = spot(*call.split())
            assert code == 0 and "unscored" not in out and read_results(tmp_path / "a").tasks["own"].mean == 1
            return
        for _ in range(2):
            assert code == 0 and "own: 16.7% unscored" in out and "one text" not in out, errors
            assert "2 of 12 requests were refused and count as 0 (the first: HTTP 400: content filter)" in out
            assert len(server.seen) == 12
            code, out, errors = spot(*call.split())


def test_logs_for_inspect_are_written_where_they_are_asked_for(spot: Spot, tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log")
    code, _, errors = spot(*LAB.split(), "--output", "a", "--inspect_logs", "logs")
    assert code == 0, errors
    found = {path.stem: log.read_eval_log(str(path)) for path in (tmp_path / "logs").glob("*.eval")}
    assert found.keys() == {"in_domain", "ood"} and len(found["ood"].samples) == 20
