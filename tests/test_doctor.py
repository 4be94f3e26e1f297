import builtins
import importlib.metadata
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.fake_server import Answer, FakeServer, completion, failure

from spot.stages import doctor
from spot.stages.doctor import Check, checks, print_checks

KEY = "sk-planted-00112233445566"


def shown(found: list[Check]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_checks(console, found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def by_name(found: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}


def test_this_machine_is_described_and_every_fault_has_a_mend() -> None:
    found = checks()
    assert {"Python", "torch", "device", "transformers", "memory", "disk", "pyarrow"} <= set(by_name(found))
    assert all(check.fix for check in found if check.status != "ok")
    text = shown(found)
    assert all(check.name in text for check in found)


def test_it_works_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import, real_version = builtins.__import__, importlib.metadata.version

    def no_torch_import(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real_import(name, *arguments, **keywords)

    def no_torch_version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return real_version(name)

    monkeypatch.setattr(builtins, "__import__", no_torch_import)
    monkeypatch.setattr(importlib.metadata, "version", no_torch_version)
    found = by_name(checks())
    assert found["torch"] == Check("torch", "fail", "not installed", "pip install 'torch>=2.11'")
    assert found["device"].status == "fail"


@pytest.mark.parametrize(
    ("version", "status"), [("2.9.1", "fail"), ("2.11.0", "ok"), ("2.13.0+cpu", "ok"), ("3.0", "ok")]
)
def test_versions_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: version)
    assert by_name(checks())["torch"].status == status


@pytest.mark.parametrize(
    ("answer", "status", "found"),
    [
        (Answer(body=b'{"object": "list", "data": []}'), "ok", "answers, key from SPOT_TEST_KEY"),
        (failure(500), "ok", "HTTP 500"),
        (failure(401, f"wrong key {KEY}"), "fail", "HTTP 401"),
        (completion("x" * 10), "ok", "answers"),
    ],
)
def test_endpoint_states(monkeypatch: pytest.MonkeyPatch, answer: Answer, status: str, found: str) -> None:
    monkeypatch.setenv("SPOT_TEST_KEY", KEY)
    with FakeServer(lambda _: answer) as server:
        section = {"base_url": server.url, "api_key_env": "SPOT_TEST_KEY"}
        results = checks({"rectify": section, "student": section, "run": "x", "train": {"beta": 1}})
        assert [seen.path for seen in server.seen] == ["/v1/models"]
    check = by_name(results)["rectify endpoint"]
    assert check.status == status
    assert found in check.found
    assert "student endpoint" not in by_name(results)
    assert KEY not in shown(results)


def test_unreachable_endpoint_and_missing_key_are_told() -> None:
    with FakeServer(lambda _: Answer()) as server:
        url = server.url
    found = by_name(
        doctor.checks({"student": {"base_url": url}, "rectify": {"base_url": url, "api_key_env": "SPOT_NO_SUCH_KEY"}})
    )
    assert (found["student endpoint"].status, found["rectify endpoint"].status) == ("fail", "fail")
    assert "does not answer" in found["student endpoint"].found
    assert "SPOT_NO_SUCH_KEY is not set" in found["rectify endpoint"].found


def test_files_tasks_and_student_of_a_config_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("")
    config = {
        "student": {"model": str(tmp_path)},
        "problems": {"source": str(tmp_path / "p.jsonl")},
        "elicit": {"attempts": None},
        "rectify": {"path": str(tmp_path / "gone.jsonl")},
        "evaluate": {"tasks": []},
    }
    found = {check.name: check.status for check in checks(config)}
    assert found["student"] == found["problems.source"] == "ok"
    assert found["rectify.path"] == "fail"
    assert found["evaluate.tasks"] == "warn"
    assert "elicit.attempts" not in found
