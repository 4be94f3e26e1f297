"""A kill at any moment, then the same command: the same final rows and weights, and nothing paid for twice."""

import json
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion
from tests.patience import finish
from tests.tiny_student import make_model, make_tokenizer

from spot.config import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.kill, pytest.mark.timeout(0)]

# The rows of these come as an endpoint gives them, in any order; all other files are the same to the byte.
ROWS = ("attempts", "rectifications")
WHOLE = (
    *("problems.jsonl", "pairs.jsonl", "dropped.jsonl", "change_ratios.json", "model/model.safetensors"),
    *(f"eval/{part}/held.jsonl" for part in ("problems", "before", "after")),
)
SETTINGS = """
student: {model: student, dtype: float32, batch_size: 3, base_url: URL, concurrency: 3}
problems: {source: p.jsonl, verifier: exact}
rectify: {model: oracle, base_url: URL, concurrency: 3}
train: {pairs_per_step: 2, num_train_epochs: 2, save_steps: 2, precision: fp32, learning_rate: 1.0e-3, beta: 1}
evaluate: {tasks: [held.jsonl], max_new_tokens: 3}
"""
MUST_DIE_AT = (
    *("torn append 1 /attempts.jsonl", "torn append 1 /rectifications.jsonl"),
    *("open /pairs.jsonl.tmp", "open /checkpoints/checkpoint-*/trainer_state.json", "rmdir /checkpoints/checkpoint-*"),
    *("open /model.tmp/config.json", "rename (0 lines) /model.tmp", "torn append 1 /eval/after/held.jsonl"),
    *("open /summary.json.tmp", "open /report.html.tmp"),
)


class Endpoint:
    """Student and Oracle; notes every question whose answer `run` holds already."""

    def __init__(self) -> None:
        self.run = Path()
        self.asked_twice: list[str] = []

    def __call__(self, seen: Seen) -> Answer:
        number = int(re.findall(r"What is (\d+) plus", seen.question)[-1])
        student = seen.body["model"] == "student"
        asked = f"p{number}#0{'' if student else '~model:oracle.0'}"
        if asked in on_record(self.run):
            self.asked_twice.append(asked)
        return student_answer(number) if student else oracle_answer(number, seen.question)


def on_record(run: Path) -> set[str]:
    """The requests whose reply the ledger holds."""
    with closing(sqlite3.connect(run / "ledger.sqlite", timeout=60)) as database:
        return {id for (id,) in database.execute("SELECT request_id FROM requests WHERE replied > 0")}


def sum_of(number: int, total: int) -> str:
    return f"{number} plus {number} makes \\boxed{{{total}}}."


def student_answer(number: int) -> Answer:
    return completion(sum_of(number, 2 * number + (number % 4 > 0)), "length" if number == 5 else "stop")


def oracle_answer(number: int, prompt: str) -> Answer:
    start, _, end = prompt.rstrip().splitlines()[-3:]
    said = {1: "no box", 2: 20 * "Quite another way. " + sum_of(2, 4)}.get(number, sum_of(number, 2 * number))
    return completion(f"{start}\n{said}\n{end}")


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    """The whole lines of a file of rows, in the order of their text."""
    path = run / f"{name}.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in sorted(lines)]


def prepare(place: Path, url: str) -> None:
    make_model().save_pretrained(place / "student")
    make_tokenizer().save_pretrained(place / "student")
    for name, numbers in {"p": range(12), "held": range(100, 106)}.items():
        problems = [{"id": f"p{n}", "prompt": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in numbers]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    (place / "c.yaml").write_text(SETTINGS.replace("URL", url))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="killed.py reads /proc")
def test_killed_before_every_file_operation_it_ends_like_an_uninterrupted_run(tmp_path: Path) -> None:
    endpoint, moments = Endpoint(), tmp_path / "moments"
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def run(path: Path, *command: str) -> None:
        endpoint.run = path
        call = [sys.executable, *command, "run", "c.yaml", f"run.dir={path.name}"]
        done = finish(call, tmp_path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    with FakeServer(endpoint) as server:
        prepare(tmp_path, server.url)
        run(whole, "-m", "spot")
        run(killed, str(Path(__file__).with_name("killed.py")), killed.name, str(moments))
    assert endpoint.asked_twice == []
    for name in ROWS:
        assert rows(killed, name) == rows(whole, name), name
    for name in WHOLE:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert curve(killed) == curve(whole)
    assert shown(killed) == shown(whole)
    assert set(json.loads((killed / "manifest.json").read_text())["stages"]) == set(STAGES)
    # The moments are found, not listed; these must be among them.
    for moment in MUST_DIE_AT:
        assert moment in moments.read_text().splitlines()


def curve(run: Path) -> list[dict[str, float]]:
    """The metrics of every step but its speed."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "tokens_per_second"} for line in lines]


def shown(run: Path) -> dict[str, Any]:
    """The summary but for what is measured anew."""
    summary = json.loads((run / "summary.json").read_text())
    return {key: summary[key] for key in ("counts", "evaluation", "change_ratio", "versions")}
