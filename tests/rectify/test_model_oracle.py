import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion, failure
from tests.rectify.conftest import MakeFailure

from spot.errors import StoppedEarly, UserError
from spot.models.base import Reply, Request
from spot.models.endpoint import EndpointModel, RetryPolicy
from spot.rectify.base import Correction, Failure
from spot.rectify.model_oracle import ModelOracle, RawReply
from spot.schema import Sampling
from spot.store import read_rows

KEY = "sk-planted-fedcba9876543210"
SAMPLING = Sampling(max_new_tokens=50)


class ScriptedModel:
    """Answers each request by `script`, one at a time, and counts what it was asked."""

    def __init__(self, script: Callable[[Request], Reply], stop_after: int | None = None) -> None:
        self.name = "scripted"
        self.asked: list[str] = []
        self._script = script
        self._stop_after = stop_after

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        for request in requests:
            if request.id in done:
                continue
            if len(self.asked) == self._stop_after:
                raise StoppedEarly("killed")
            self.asked.append(request.id)
            yield [self._script(request)]


def markers_of(prompt: str) -> tuple[str, str]:
    lines = prompt.rstrip().splitlines()
    return lines[-3], lines[-1]


def marked(request: Request, text: str, finish_reason: Any = "stop") -> Reply:
    start, end = markers_of(request.messages[-1].content)
    return Reply(request.id, f"Sure.\n{start}\n{text}\n{end}", finish_reason)


def right(request: Request) -> Reply:
    return marked(request, "2 + 2 = 4, so \\boxed{4}")


def correct(oracle: ModelOracle, failures: Sequence[Failure]) -> dict[str, Correction]:
    corrections: dict[str, Correction] = {}

    async def run() -> None:
        async for group in oracle.correct(failures):
            corrections.update({correction.attempt_id: correction for correction in group})

    asyncio.run(run())
    return corrections


def test_correction_is_what_stood_between_the_markers(make_failure: MakeFailure) -> None:
    oracle = ModelOracle(ScriptedModel(right), with_answer=True, sampling=SAMPLING)
    correction = correct(oracle, [make_failure(3)])["p3#0"]
    assert correction.text == "2 + 2 = 4, so \\boxed{4}"
    assert correction.reason == ""
    assert correction.prompt_version is not None
    assert correction.prompt_version.startswith("rewrite_with_answer.v1@")


@pytest.mark.parametrize(
    ("script", "reason", "has_text"),
    [
        (lambda request: Reply(request.id, "2 + 2 = 4", "stop"), "no_block", False),
        (lambda request: Reply(request.id, "", "error", error="HTTP 400"), "no_reply", False),
        (lambda request: marked(request, "4", "length"), "truncated", False),
        (lambda request: marked(request, " "), "empty", False),
        (lambda request: marked(request, "The corrected answer is \\boxed{4}"), "meta_phrase", True),
    ],
)
def test_reasons(script: Callable[[Request], Reply], reason: str, has_text: bool, make_failure: MakeFailure) -> None:
    correction = correct(ModelOracle(ScriptedModel(script), with_answer=False), [make_failure()])["p0#0"]
    assert correction.reason == reason
    assert (correction.text is not None) == has_text


def test_a_rerun_asks_nothing_twice_and_parses_again(make_failure: MakeFailure, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    failures = [make_failure(number) for number in range(10)]
    whole = correct(ModelOracle(ScriptedModel(right), with_answer=True, sampling=SAMPLING), failures)

    killed = ScriptedModel(right, stop_after=4)
    with pytest.raises(StoppedEarly):
        correct(ModelOracle(killed, with_answer=True, sampling=SAMPLING, raw_path=raw), failures)
    with raw.open("ab") as file:
        file.write(b'{"key": "torn')
    resumed = ScriptedModel(right)
    second = correct(ModelOracle(resumed, with_answer=True, sampling=SAMPLING, raw_path=raw), failures)

    assert second == whole
    assert len(killed.asked) == 4
    assert sorted(killed.asked + resumed.asked) == sorted({*killed.asked, *resumed.asked})
    third = ScriptedModel(right)
    assert correct(ModelOracle(third, with_answer=True, sampling=SAMPLING, raw_path=raw), failures) == whole
    assert third.asked == []


def test_a_raw_reply_is_on_the_disk_before_it_is_parsed(
    make_failure: MakeFailure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw.jsonl"

    def explode(*_: object) -> None:
        raise RuntimeError("a bug in the parser")

    monkeypatch.setattr("spot.rectify.model_oracle.extract_block", explode)
    with pytest.raises(RuntimeError):
        correct(ModelOracle(ScriptedModel(right), with_answer=True, raw_path=raw), [make_failure()])
    (row,) = read_rows(raw, RawReply)
    assert "\\boxed{4}" in row.text


def test_any_change_of_what_is_asked_is_asked_anew(make_failure: MakeFailure, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"

    def asked(with_answer: bool = True, sampling: Sampling = SAMPLING, response: str = "5", name: str = "a") -> int:
        model = ScriptedModel(right)
        model.name = name
        oracle = ModelOracle(model, with_answer, sampling=sampling, raw_path=raw)
        correct(oracle, [make_failure(response=response)])
        return len(model.asked)

    assert asked() == 1
    assert asked() == 0
    assert asked(with_answer=False) == 1
    assert asked(sampling=Sampling(max_new_tokens=51)) == 1
    assert asked(sampling=Sampling(max_new_tokens=50, seed=1)) == 1
    assert asked(response="6") == 1
    assert asked(name="b") == 1
    assert asked() == 0


def test_errors_are_on_record_but_asked_again(make_failure: MakeFailure, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    failing = ScriptedModel(lambda request: Reply(request.id, "", "error", error="HTTP 500"))
    correct(ModelOracle(failing, with_answer=True, raw_path=raw), [make_failure()])
    again = ScriptedModel(right)
    assert correct(ModelOracle(again, with_answer=True, raw_path=raw), [make_failure()])["p0#0"].reason == ""
    assert len(again.asked) == 1
    assert [row.error for row in read_rows(raw, RawReply)] == ["HTTP 500", ""]


def test_a_bad_prompt_stops_before_anything_is_asked() -> None:
    with pytest.raises(UserError, match="no such prompt"):
        ModelOracle(ScriptedModel(right), with_answer=True, prompt="nope")


def test_behind_a_server_with_faults_no_key_is_written(
    make_failure: MakeFailure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOT_TEST_KEY", KEY)

    def script(seen: Seen) -> Answer:
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        if seen.number % 4 == 1:
            return failure(500)
        if "p7" in seen.question:
            return failure(400, f"refused {KEY}")
        start, end = markers_of(seen.question)
        return completion(f"{start}\n\\boxed{{4}}\n{end}")

    raw = tmp_path / "raw.jsonl"
    failures = [make_failure(number, prompt=f"p{number}: 2 + 2?") for number in range(12)]
    with FakeServer(script) as server:
        model = EndpointModel("m", server.url, "SPOT_TEST_KEY", retry=RetryPolicy(first_wait=0.01))
        corrections = correct(ModelOracle(model, with_answer=True, raw_path=raw), failures)
    assert {id for id, correction in corrections.items() if correction.text != "\\boxed{4}"} == {"p7#0"}
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"[SPOT_TEST_KEY]" in written
    assert KEY.encode() not in written
