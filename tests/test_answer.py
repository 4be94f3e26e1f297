import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_model import save_tiny_model

from spot.errors import RunFailed, UserError
from spot.files.store import read_rows, write_rows
from spot.models.base import Model, Reply, Request
from spot.models.local.model import LocalModel
from spot.schema import Attempt, Counts, Dropped, Problem, Sampling, Verdict, derived_seed
from spot.stages.asking import answer, import_answers

SAMPLING = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=20, seed=4)
PROBLEMS = [Problem(id=f"p{number}", prompt=f"w{number} w{number * 3}", answer=str(number % 3)) for number in range(11)]


class Killed(Exception):
    """Stands for the end of the process."""


class Scripted:
    """Replies with the request's number modulo 4, in fixed groups, in reverse; keeps what it was asked."""

    def __init__(self, name: str = "scripted", failing: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        self.name = name
        self.failing = failing
        self.silent = silent
        self.asked: list[str] = []
        self.requests: list[Request] = []

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        self.requests = list(requests)
        backwards = requests[::-1]
        for start in range(0, len(requests), 4):
            group = [one for one in backwards[start : start + 4] if one.id not in done and one.id not in self.silent]
            self.asked += [one.id for one in group]
            await asyncio.sleep(0)
            if group:
                yield [self.reply(one) for one in group]

    def reply(self, asked: Request) -> Reply:
        if asked.id in self.failing:
            return Reply(asked.id, "", "error", error="the endpoint says no")
        number = int(asked.id.removeprefix("p").split("#")[0])
        return Reply(asked.id, str(number % 4), "length" if number == 9 else "stop", (number, 0))


def verify(response: str, problem: Problem) -> Verdict:
    """Right where the text is the answer; cannot judge what is "3"."""
    if response == "3":
        return Verdict(correct=None, reason="no idea")
    return Verdict(correct=response == problem.answer, answer=response)


def ask(model: Model, path: Path, problems: Sequence[Problem] = PROBLEMS, samples: int = 2) -> list[Attempt]:
    return asyncio.run(answer(problems, model, verify, samples=samples, sampling=SAMPLING, path=path))


def test_attempts_come_back_in_order_and_are_all_in_the_file(tmp_path: Path) -> None:
    model = Scripted()
    attempts = ask(model, tmp_path / "a.jsonl")
    assert [attempt.id for attempt in attempts] == [f"p{number}#{sample}" for number in range(11) for sample in (0, 1)]
    assert sorted(read_rows(tmp_path / "a.jsonl", Attempt), key=lambda row: row.id) == sorted(
        attempts, key=lambda row: row.id
    )
    outcomes = [attempt.outcome for attempt in attempts[::2]]
    assert outcomes[:4] == ["correct", "correct", "correct", "unscored"]
    assert outcomes[4:7] == ["wrong", "wrong", "wrong"] and outcomes[9] == "truncated"
    first = attempts[8]
    assert (first.problem_id, first.sample, first.response, first.token_ids) == ("p4", 0, "0", [4, 0])
    assert (first.model, first.sampling, first.finish_reason) == ("scripted", SAMPLING, "stop")
    assert [one.seed for one in model.requests[:2]] == [derived_seed(4, "p0", 0), derived_seed(4, "p0", 1)]
    assert model.requests[0].messages[0].content == "w0 w0"


def test_a_complete_file_asks_nothing(tmp_path: Path) -> None:
    first = ask(Scripted(), tmp_path / "a.jsonl")
    before = (tmp_path / "a.jsonl").read_bytes()
    model = Scripted()
    assert ask(model, tmp_path / "a.jsonl") == first
    assert model.requests == [] and (tmp_path / "a.jsonl").read_bytes() == before


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1))
def test_cut_anywhere_the_file_is_completed_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, cut: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    whole_attempts = ask(Scripted(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: round(cut * len(whole))])
    num_kept = path.read_bytes().count(b"\n")
    model = Scripted()
    assert ask(model, path) == whole_attempts
    assert path.read_bytes() == whole
    assert len(model.asked) == len(whole_attempts) - num_kept


@pytest.mark.parametrize("num_groups", [0, 1, 3])
def test_a_local_model_killed_and_resumed_writes_the_same_bytes(tmp_path: Path, num_groups: int) -> None:
    directory = save_tiny_model(tmp_path / "model")
    ask(LocalModel(str(directory), batch_size=5), tmp_path / "whole.jsonl")
    path = tmp_path / "a.jsonl"
    seen: list[int] = []

    def kill(done: int, total: int, counts: Counts) -> None:
        seen.append(done)
        if len(seen) > num_groups:
            raise Killed

    model = LocalModel(str(directory), batch_size=5)
    with pytest.raises(Killed):
        asyncio.run(answer(PROBLEMS, model, verify, samples=2, sampling=SAMPLING, path=path, on_progress=kill))
    assert seen == list(range(0, 5 * num_groups + 1, 5))
    if num_groups:
        path.write_bytes(path.read_bytes()[:-30])
    ask(LocalModel(str(directory), batch_size=5), path)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_errors_are_rows_without_a_verdict_and_are_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    attempts = ask(Scripted(failing=["p2#1", "p5#0"]), path)
    failed = {attempt.id: attempt for attempt in attempts if attempt.finish_reason == "error"}
    assert set(failed) == {"p2#1", "p5#0"}
    assert failed["p2#1"].verdict == Verdict(correct=None, reason="the endpoint says no")
    assert (failed["p2#1"].response, failed["p2#1"].token_ids, failed["p2#1"].outcome) == ("", None, "unscored")
    assert len(read_rows(path, Attempt)) == len(attempts)

    still_failing = Scripted(failing=["p5#0"])
    ask(still_failing, path)
    assert sorted(still_failing.asked) == ["p2#1", "p5#0"]
    assert sorted(row.id for row in read_rows(path, Attempt)) == sorted(attempt.id for attempt in attempts)

    model = Scripted()
    assert ask(model, path) == ask(Scripted(), tmp_path / "untroubled.jsonl")
    assert model.asked == ["p5#0"]


def test_a_model_that_leaves_requests_without_reply_fails_and_keeps_the_rest(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"1 of 22 requests, 'p3#1'"):
        ask(Scripted(silent=["p3#1"]), tmp_path / "a.jsonl")
    model = Scripted()
    ask(model, tmp_path / "a.jsonl")
    assert model.asked == ["p3#1"]


def test_progress_counts_what_was_there_and_what_comes(tmp_path: Path) -> None:
    calls: list[tuple[int, int, dict[str, int]]] = []

    def record(done: int, total: int, counts: Counts) -> None:
        calls.append((done, total, dict(counts)))

    path = tmp_path / "a.jsonl"
    ask(Scripted(), path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:8]))
    asyncio.run(answer(PROBLEMS, Scripted(), verify, samples=2, sampling=SAMPLING, path=path, on_progress=record))
    assert [done for done, _, _ in calls] == [8, 12, 16, 20, 22]
    assert {total for _, total, _ in calls} == {22}
    assert all(sum(counts.values()) == done for done, _, counts in calls)
    assert calls[-1][2] == {"correct": 6, "wrong": 10, "truncated": 2, "unscored": 4}


def test_the_verifier_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    ticked = threading.Event()

    def slow(response: str, problem: Problem) -> Verdict:
        return Verdict(correct=ticked.wait(60))

    async def both() -> list[Attempt]:
        async def tick() -> None:
            await asyncio.sleep(0.01)
            ticked.set()

        ticking = asyncio.create_task(tick())
        path = tmp_path / "a.jsonl"
        attempts = await answer(PROBLEMS, Scripted(), slow, samples=1, sampling=SAMPLING, path=path)
        await ticking
        return attempts

    assert all(attempt.verdict.correct for attempt in asyncio.run(both()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "another"}, "was answered by the model 'another', not by 'scripted'"),
        ({"sampling": SAMPLING.model_copy(update={"seed": 5})}, "seed=5"),
        ({"sampling": None}, "was sampled with"),
        ({"id": "p99#0", "problem_id": "p99"}, "'p99#0' belongs to other problems"),
        ({"id": "p0#2", "sample": 2}, "more samples"),
        ({"sample": 1}, "'p0#0' belongs to other"),
    ],
)
def test_rows_of_another_run_are_refused_and_left_alone(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "a.jsonl"
    attempts = ask(Scripted(), path)
    write_rows(path, [attempts[0].model_copy(update=change), *attempts[3:]])
    before = path.read_bytes()
    model = Scripted()
    with pytest.raises(UserError, match=said) as raised:
        ask(model, path)
    assert str(path) in str(raised.value) and "delete this one" in str(raised.value)
    assert model.requests == [] and path.read_bytes() == before


def test_a_broken_row_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ask(Scripted(), path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"id": "p0#0"}\n' + lines[2])
    with pytest.raises(UserError, match=r"a\.jsonl:2: "):
        ask(Scripted(), path)


def test_repeated_problem_ids_and_parquet_are_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'p0' is used twice"):
        ask(Scripted(), tmp_path / "a.jsonl", [PROBLEMS[0], PROBLEMS[0]])
    with pytest.raises(UserError, match=r"\.jsonl"):
        ask(Scripted(), tmp_path / "a.parquet")


def test_answers_given_elsewhere_are_judged_and_repeated_ones_told(tmp_path: Path) -> None:
    file, output = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    answers = [("p1", "1", 0), ("p1", "0", 1), ("p1", "2", 0), ("p2", "2", 0)]
    file.write_text(
        "".join(f'{{"problem_id": "{name}", "response": "{text}", "sample": {n}}}\n' for name, text, n in answers)
    )
    told = r"a\.jsonl:3: id 'problem p1, sample 0' was already used in line 1"
    with pytest.raises(UserError, match=told):
        import_answers(file, PROBLEMS, verify, output, "error", [])
    assert not output.exists()
    dropped: list[Dropped] = []
    attempts = import_answers(file, PROBLEMS, verify, output, "skip", dropped)
    assert [(row.id, row.outcome) for row in attempts] == [("p1#0", "correct"), ("p1#1", "wrong"), ("p2#0", "correct")]
    assert read_rows(output, Attempt) == attempts
    assert [(row.id, row.reason) for row in dropped] == [("line 3", "bad_row")]


def test_no_problems_no_attempts(tmp_path: Path) -> None:
    assert ask(Scripted(), tmp_path / "a.jsonl", []) == []
