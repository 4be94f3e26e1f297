"""Sampling through a template that prints the date: one day for a whole run, kept beside the answers."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_model import TEMPLATE, save_tiny_model, save_tokenizer
from typer.testing import CliRunner

from spot.cli import app
from spot.config import parse_config
from spot.errors import UserError
from spot.evaluate.run import keep_identity, kept_day
from spot.files.disk import write_atomic
from spot.files.store import RunDirectory
from spot.models.base import Request
from spot.models.local.model import LocalModel
from spot.schema import Message
from spot.stages.pipeline import run
from spot.terminal import new_console


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_tiny_model(tmp_path_factory.mktemp("dated"))
    save_tokenizer(directory, "w{{ strftime_now('%d') | int }} " + TEMPLATE)
    return directory


def asked(*turns: tuple[Any, str]) -> Request:
    return Request("a", tuple(Message(role=role, content=text) for role, text in turns), 0)


def test_a_local_model_prints_the_day_it_is_given(dated: Path) -> None:
    model = LocalModel(str(dated), day=date(2024, 2, 29))
    assert model.render(asked(("user", "w1")).messages) == "w29 <start> user w1 <end> <start> assistant w0"


def test_the_day_is_kept_beside_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    keep_identity(path, "a model")
    assert kept_day(path) == date.today()
    write_atomic(path, json.dumps(json.loads(path.read_text()) | {"day": "2024-02-29"}))
    keep_identity(path, "a model")
    assert kept_day(path) == date(2024, 2, 29)
    with pytest.raises(UserError, match="are of a model, not of another"):
        keep_identity(path, "another")


@pytest.mark.parametrize("content", ["[]", "{", '{"made_with": "a model", "day": "soon"}'])
def test_a_damaged_identity_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match="damaged; delete it"):
        kept_day(tmp_path / "model.json")


def test_spot_elicit_keeps_its_day(dated: Path, tmp_path: Path) -> None:
    problems, output = tmp_path / "problems.jsonl", tmp_path / "attempts.jsonl"
    problems.write_text(json.dumps({"id": "a", "prompt": "w1", "answer": "3"}) + "\n")
    command = ["elicit", "--model", str(dated), "--problems", str(problems), "--output", str(output)]
    done = CliRunner().invoke(app, [*command, "elicit.max_new_tokens=2"])
    assert done.exit_code == 0, done.output
    assert json.loads(output.with_suffix(".model.json").read_text())["day"] == date.today().isoformat()


def test_a_run_keeps_its_day_in_the_manifest(tmp_path: Path) -> None:
    config = parse_config({"run": {"dir": str(tmp_path / "run"), "stages": []}}, "test")
    directory = RunDirectory(run(config, new_console(quiet=True)))
    assert directory.manifest["day"] == date.today().isoformat()
    directory.update_manifest(day="2024-02-29")
    run(config, new_console(quiet=True))
    assert directory.day() == date(2024, 2, 29) and directory.manifest["day"] == "2024-02-29"


def test_messages_that_end_with_an_answer_are_an_error_of_that_request(dated: Path) -> None:
    refused = LocalModel(str(dated)).render(asked(("user", "w1"), ("assistant", "w2")).messages)
    assert "end with an assistant turn" in str(refused)


def test_a_template_that_leaves_text_out_is_refused(dated: Path, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "parts")
    save_tokenizer(
        directory, "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(UserError, match="leaves the question out where its content is text"):
        LocalModel(str(directory))
