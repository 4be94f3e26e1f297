import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion, failure
from tests.rectify.conftest import MakeFailure

from spot.errors import StoppedEarly, UserError
from spot.models.base import Reply, Request
from spot.models.endpoint.model import EndpointModel, RetryPolicy
from spot.models.paid.ledger import Ledger
from spot.models.paid.recorded import RecordedModel
from spot.rectify.base import Correction, Failure
from spot.rectify.model_oracle import Continuation, ModelOracle
from spot.rectify.parse import Markers
from spot.rectify.patch import Edit
from spot.rectify.target import Target
from spot.schema import Problem, Sampling, Verdict

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
    failures = [make_failure(number) for number in range(10)]
    whole = correct(ModelOracle(ScriptedModel(right), with_answer=True, sampling=SAMPLING), failures)

    def again(stop_after: int | None = None) -> tuple[dict[str, Correction], list[str]]:
        model = ScriptedModel(right, stop_after)
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            recorded = RecordedModel(model, ledger, "rectify")
            try:
                return correct(ModelOracle(recorded, with_answer=True, sampling=SAMPLING), failures), model.asked
            except StoppedEarly:
                return {}, model.asked

    _, killed = again(stop_after=4)
    second, resumed = again()
    assert second == whole
    assert len(killed) == 4 and sorted(killed + resumed) == sorted({*killed, *resumed})
    assert again() == (whole, [])


def test_a_raw_reply_is_on_the_disk_before_it_is_parsed(
    make_failure: MakeFailure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("a bug in the parser")

    monkeypatch.setattr("spot.rectify.model_oracle.extract_block", explode)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        with pytest.raises(RuntimeError):
            oracle = ModelOracle(RecordedModel(ScriptedModel(right), ledger, "rectify"), with_answer=True)
            correct(oracle, [make_failure()])
        [row] = ledger.rows()
    assert "\\boxed{4}" in row["text"]


def test_the_ledger_key_is_that_of_the_request(make_failure: MakeFailure, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        oracle = ModelOracle(RecordedModel(ScriptedModel(right), ledger, "rectify"), with_answer=True)
        assert correct(oracle, [make_failure()])["p0#0"].ledger_key == next(ledger.rows())["key"]


def test_a_cut_off_reply_is_asked_for_once_more_with_twice_the_tokens(make_failure: MakeFailure) -> None:
    asked: list[tuple[int, int]] = []

    class Cut(ScriptedModel):
        async def generate(
            self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
        ) -> AsyncIterator[list[Reply]]:
            asked.extend((request.attempt, sampling.max_new_tokens) for request in requests)
            enough = sampling.max_new_tokens > 50 and "p1" not in requests[0].id
            yield [marked(request, "\\boxed{4}", "stop" if enough else "length") for request in requests]

    oracle = ModelOracle(Cut(right), with_answer=True, sampling=SAMPLING)
    assert correct(oracle, [make_failure(0)])["p0#0"].text == "\\boxed{4}"
    assert correct(oracle, [make_failure(1)])["p1#0"].reason == "truncated"
    assert asked == [(0, 50), (1, 100)] * 2


def test_candidates_are_requests_of_their_own(make_failure: MakeFailure) -> None:
    model = ScriptedModel(right)
    oracle = ModelOracle(model, with_answer=True, sampling=SAMPLING, candidates=3)

    async def run() -> list[Correction]:
        return [one async for group in oracle.correct([make_failure(0), make_failure(1)]) for one in group]

    corrections = asyncio.run(run())
    assert [(one.attempt_id, one.candidate) for one in corrections] == [
        (f"p{number}#0", candidate) for candidate in range(3) for number in range(2)
    ]
    assert len({one.ledger_key for one in corrections}) == 6


def test_a_simplified_reply_needs_no_markers(make_failure: MakeFailure) -> None:
    model = ScriptedModel(lambda request: Reply(request.id, "<think>hm</think> 2 + 2 = 4, so \\boxed{4}", "stop"))
    oracle = ModelOracle(model, with_answer=True, prompt="simplified", sampling=SAMPLING)
    correction = correct(oracle, [make_failure()])["p0#0"]
    assert correction.text == "2 + 2 = 4, so \\boxed{4}"
    assert str(correction.prompt_version).startswith("simplified_with_answer.v1.plain@")


LONG = "First, 2 + 2 = 5.\nThen 5 is the sum.\nSo \\boxed{5}"


def block(request: Request, *edits: tuple[str, str]) -> Reply:
    [nonce] = set(re.findall(r"<result-(\w+)>", request.messages[-1].content))
    markers = Markers(nonce)
    return Reply(request.id, markers.enclose("\n".join(Edit(old, new).written(markers) for old, new in edits)), "stop")


def test_patches_leave_the_rest_as_it_is(make_failure: MakeFailure) -> None:
    edits = (("2 + 2 = 5", "2 + 2 = 4"), ("Then 5", "Then 4"), ("{5}", "{4}"))
    model = ScriptedModel(lambda request: block(request, *edits))
    oracle = ModelOracle(model, with_answer=True, sampling=SAMPLING, mode="patch")
    assert oracle.mode == "patch"
    assert correct(oracle, [make_failure(response=LONG)])["p0#0"].text == LONG.replace("5", "4")


def test_edits_that_do_not_apply_are_told_back_once(make_failure: MakeFailure) -> None:
    told: list[str] = []

    def script(request: Request) -> Reply:
        if request.attempt == 0:
            return block(request, ("5", "4"))
        told.append(request.messages[-1].content)
        assert [message.role for message in request.messages] == ["user", "assistant", "user"]
        return block(request, ("2 + 2 = 5", "2 + 2 = 4")) if "p0" in request.id else block(request, ("6", "4"))

    oracle = ModelOracle(ScriptedModel(script), with_answer=True, sampling=SAMPLING, mode="patch")
    found = correct(oracle, [make_failure(0, response=LONG), make_failure(1, response=LONG)])
    assert found["p0#0"].text == LONG.replace("2 + 2 = 5", "2 + 2 = 4")
    assert (found["p1#0"].text, found["p1#0"].reason) == (None, "does_not_apply")
    assert len(told) == 2 and "3 times" in told[0]


class Student:
    """Goes on from a prefix as it is told, and remembers what it was given."""

    name = "student"

    def __init__(self, *continuations: str) -> None:
        self.prefixes: list[str] = []
        self._continuations = iter(continuations)

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        for request in requests:
            self.prefixes.append(request.prefix)
            assert request.messages[-1].content == "What is 2 + 2?"
            yield [Reply(request.id, next(self._continuations), "stop")]


def continuing(student: Student, max_rounds: int = 4) -> Continuation:
    def verify(response: str, problem: Problem) -> Verdict:
        return Verdict(correct="\\boxed{4}" in response)

    return Continuation(student, SAMPLING, verify, max_rounds)


def test_the_student_goes_on_from_the_first_wrong_step_until_it_is_right(make_failure: MakeFailure) -> None:
    def script(request: Request) -> Reply:
        if request.attempt == 0:
            return block(request, ("First, 2 + 2 = 5.", "First, 2 + 2 = 4."))
        assert "Then 3 is the sum." in request.messages[-1].content
        return block(request, ("Then 3 is the sum.", "Then 4 is the sum."))

    student = Student("Then 3 is the sum.\nSo \\boxed{3}", "So \\boxed{4}")
    oracle = ModelOracle(
        ScriptedModel(script), True, sampling=SAMPLING, mode="continue", continuation=continuing(student)
    )
    correction = correct(oracle, [make_failure(response=LONG)])["p0#0"]
    assert correction.text == "First, 2 + 2 = 4.\nThen 4 is the sum.\nSo \\boxed{4}"
    assert student.prefixes == ["First, 2 + 2 = 4.\n", "First, 2 + 2 = 4.\nThen 4 is the sum.\n"]


def test_rounds_end(make_failure: MakeFailure) -> None:
    model = ScriptedModel(lambda request: block(request, ("First, 2 + 2 = 5.", "First, 2 + 2 = 4.")))
    oracle = ModelOracle(
        model, True, sampling=SAMPLING, mode="continue", continuation=continuing(Student("So \\boxed{7}"), 1)
    )
    assert correct(oracle, [make_failure(response=LONG)])["p0#0"].text == "First, 2 + 2 = 4.\nSo \\boxed{7}"


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

    failures = [make_failure(number, prompt=f"p{number}: 2 + 2?") for number in range(12)]
    with FakeServer(script) as server, Ledger(tmp_path / "ledger.sqlite") as ledger:
        model = EndpointModel("m", server.url, "SPOT_TEST_KEY", retry=RetryPolicy(first_wait=0.01))
        corrections = correct(ModelOracle(RecordedModel(model, ledger, "rectify"), with_answer=True), failures)
    assert {id for id, correction in corrections.items() if correction.text != "\\boxed{4}"} == {"p7#0"}
    assert (tmp_path / "ledger.sqlite").stat().st_size
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_prompt_that_always_fails_does_not_stop_a_target(make_failure: MakeFailure, tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        if "p2:" in seen.question:
            return failure(500)
        start, end = markers_of(seen.question)
        return completion(f"{start}\n\\boxed{{4}}\n{end}")

    failures = [make_failure(number, prompt=f"p{number}: 2 + 2?") for number in range(12)]
    target = Target(5)
    with FakeServer(script) as server, Ledger(tmp_path / "ledger.sqlite") as ledger:
        model = EndpointModel("m", server.url, retry=RetryPolicy(tries=2, first_wait=0.01))
        oracle = ModelOracle(RecordedModel(model, ledger, "rectify", turnstile=target), True, target=target)

        async def run() -> list[str]:
            found: list[str] = []
            async for group in oracle.correct(failures):
                for correction in group:
                    found.append(correction.reason)
                    oracle.judged(correction, correction.text is not None)
            return found

        reasons = asyncio.run(asyncio.wait_for(run(), 60))
    assert reasons.count("") == 5 and not target.missing


def test_going_on_stops_at_the_target_too(make_failure: MakeFailure, tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return block(request, ("First, 2 + 2 = 5.", "First, 2 + 2 = 4."))

    student, target = Student(*["So \\boxed{4}"] * 20), Target(3)
    model = ScriptedModel(script)
    oracle = ModelOracle(
        model, True, sampling=SAMPLING, mode="continue", continuation=continuing(student), target=target
    )

    async def run() -> int:
        count = 0
        async for group in oracle.correct([make_failure(number, response=LONG) for number in range(20)]):
            for correction in group:
                count += 1
                oracle.judged(correction, True)
        return count

    # The scripted model asks no turnstile; the student is not asked once there is enough.
    assert asyncio.run(run()) == 3 and len(student.prefixes) == 3
