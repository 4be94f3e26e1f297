"""What ends a stage and what only stops it, by the commands: refusals are recorded, what may pass is asked again."""

import json
import re
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion, failure

from spot import cli
from spot.files.store import write_rows
from spot.models.endpoint import model as endpoint
from spot.models.endpoint.pace import RetryPolicy
from spot.models.paid.ledger import Ledger
from spot.schema import Attempt, Problem, Verdict

COUNT, BAD = 20, (3, 7, 19)
REFUSALS = {
    "content filter": failure(400, "The response was filtered", code="content_filter"),
    "too large": failure(413, "Request Entity Too Large"),
    "context length": failure(
        400, "This model's maximum context length is 8192 tokens", code="context_length_exceeded"
    ),
    "unprocessable": failure(422, "no"),
}
PASSING = {
    "crash": failure(500, "crashed"),
    "overloaded": failure(529, "Overloaded"),
    "cut off": Answer(body=completion("a" * 100).body, cut=60),
    "not json": Answer(body=b"<html>busy</html>"),
}
Spot = Callable[..., tuple[int, str]]


class Oracle:
    """Corrects, but for the questions in `bad`; counts what it is asked. Nothing else is answered with `broken`."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bad: tuple[int, ...] = BAD
        self.asked: Counter[int] = Counter()
        self.broken: Answer | None = None
        self.after: int | None = None

    def __call__(self, seen: Seen) -> Answer:
        number = int(re.findall(r"What is (\d+) plus", seen.question)[-1])
        self.asked[number] += 1
        if number in self.bad:
            return self.answer
        if self.broken is not None and (self.after is None or self.asked.total() > self.after):
            return self.broken
        lines = seen.question.rstrip().splitlines()
        text = right(number) if seen.body["model"] == "student" else f"{lines[-3]}\n{right(number)}\n{lines[-1]}"
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return Answer(body=json.dumps(json.loads(completion(text).body) | {"usage": usage}).encode())


def right(number: int) -> str:
    return f"{number} plus {number} makes \\boxed{{{2 * number}}}."


@pytest.fixture
def spot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Spot:
    """`spot` in `tmp_path`, with short waits; its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    # One at a time, so that the order of what is asked says something.
    monkeypatch.setattr(endpoint, "RetryPolicy", lambda: RetryPolicy(tries=3, first_wait=0.001, longest_wait=0.002))
    problems = [Problem(id=f"p{n}", prompt=f"What is {n} plus {n}?", answer=str(2 * n)) for n in range(COUNT)]
    write_rows(tmp_path / "p.jsonl", problems)
    write_rows(
        tmp_path / "a.jsonl",
        [
            Attempt(
                id=f"p{n}#0", problem_id=f"p{n}", sample=0, response=f"It is \\boxed{{{2 * n + 1}}}.",
                finish_reason="stop", verdict=Verdict(correct=False), model="m",
            )
            for n in range(COUNT)
        ],
    )  # fmt: skip

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["spot", *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        said = " ".join("".join(capfd.readouterr()).split())
        assert "Traceback" not in said
        return code, said

    return run


def rectify(spot: Spot, url: str, *more: str) -> tuple[int, str]:
    files = ("--problems", "p.jsonl", "--attempts", "a.jsonl", "--output", "r.jsonl")
    settings = ("rectify.model=oracle", f"rectify.base_url={url}", "problems.verifier=exact", "rectify.concurrency=4")
    return spot("rectify", *files, *settings, *more)


def elicit(spot: Spot, url: str) -> tuple[int, str]:
    """Attempts of a student whose answers are all right."""
    files = ("--model", "student", "--problems", "p.jsonl", "--output", "r.jsonl")
    return spot("elicit", *files, f"student.base_url={url}", "problems.verifier=exact", "student.concurrency=4")


def reasons(path: Path) -> dict[int, str]:
    """Why each question has no answer that counts; empty where it has."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    said = {int(row["problem_id"][1:]): row for row in rows}
    assert len(said) == len(rows), "a row twice"
    return {
        number: row["verdict"]["reason"] if row.get("reason", row.get("finish_reason")) in ("no_reply", "error") else ""
        for number, row in said.items()
    }


def forget(path: Path, numbers: tuple[int, ...], *, ledger: bool = True) -> None:
    """As a kill before these were asked leaves it."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row for row in rows if int(row["problem_id"][1:]) not in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    if ledger:
        with closing(sqlite3.connect(path.with_suffix(".ledger.sqlite"))) as database, database:
            for number in numbers:
                database.execute("DELETE FROM requests WHERE request_id LIKE ?", (f"p{number}#%",))
                database.execute("DELETE FROM bodies WHERE key NOT IN (SELECT key FROM requests)")


@pytest.mark.parametrize("command", [rectify, elicit])
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refusals_end_the_stage_and_are_not_asked_again(
    spot: Spot, tmp_path: Path, command: Callable[[Spot, str], tuple[int, str]], refusal: Answer
) -> None:
    output, oracle = tmp_path / "r.jsonl", Oracle(refusal)
    with FakeServer(oracle) as server:
        for _ in range(2):
            code, said = command(spot, server.url)
            assert code == 0, said
            assert f"HTTP {refusal.status}" in said
            refused = {number for number, why in reasons(output).items() if f"HTTP {refusal.status}" in why}
            assert refused == set(BAD) and len(reasons(output)) == COUNT
        assert set(oracle.asked.values()) == {1}
        # After a kill, and after the ledger's loss: what is on record says that the endpoint works.
        forget(output, BAD)
        assert command(spot, server.url)[0] == 0
        assert {number for number, why in reasons(output).items() if why} == set(BAD)
        assert oracle.asked.total() == COUNT + len(BAD)
        forget(output, BAD, ledger=False)
        output.with_suffix(".ledger.sqlite").unlink()
        assert command(spot, server.url)[0] == 0
        assert {number for number, why in reasons(output).items() if why} == set(BAD)
        assert oracle.asked.total() == COUNT + 2 * len(BAD)


@pytest.mark.parametrize("command", [rectify, elicit])
@pytest.mark.parametrize("bad", [BAD, tuple(range(4, 18))], ids=["three", "fourteen"])
@pytest.mark.parametrize("failing", PASSING.values(), ids=PASSING)
def test_what_may_pass_stops_the_stage_until_it_has_passed(
    spot: Spot, tmp_path: Path, command: Callable[[Spot, str], tuple[int, str]], failing: Answer, bad: tuple[int, ...]
) -> None:
    output, oracle = tmp_path / "r.jsonl", Oracle(failing)
    oracle.bad = bad
    with FakeServer(oracle) as server:
        code, said = command(spot, server.url)
        assert code == 3, said
        # With so many that fail one after the other it is not known whether anything works: the rest is not tried.
        done = set(reasons(output))
        assert done <= set(range(COUNT)) - set(bad)
        if bad == BAD and failing.status != 529:
            assert len(done) == COUNT - len(bad)
        oracle.asked.clear()
        oracle.bad = ()
        code, said = command(spot, server.url)
        assert code == 0, said
        assert dict(oracle.asked) == dict.fromkeys(set(range(COUNT)) - done, 1)
        assert reasons(output) == dict.fromkeys(range(COUNT), "")


@pytest.mark.parametrize("command", [rectify, elicit])
@pytest.mark.parametrize("bad", [BAD, tuple(range(4, 18))], ids=["three", "fourteen"])
def test_what_never_passes_is_refused_in_the_end(
    spot: Spot, tmp_path: Path, command: Callable[[Spot, str], tuple[int, str]], bad: tuple[int, ...]
) -> None:
    output, oracle = tmp_path / "r.jsonl", Oracle(PASSING["crash"])
    oracle.bad = bad
    codes: list[int] = []
    with FakeServer(oracle) as server:
        while 0 not in codes:
            codes.append(command(spot, server.url)[0])
            assert len(codes) < 9
        assert set(codes[:-1]) == {3}
        if bad == BAD:
            assert codes == [3, 0]
        assert {number for number, why in reasons(output).items() if "HTTP 500" in why} == set(bad)
        asked = oracle.asked.total()
        assert command(spot, server.url)[0] == 0
        assert oracle.asked.total() == asked


@pytest.mark.parametrize("command", [rectify, elicit])
def test_a_server_that_is_down_for_days_costs_no_question(
    spot: Spot, tmp_path: Path, command: Callable[[Spot, str], tuple[int, str]]
) -> None:
    output, oracle = tmp_path / "r.jsonl", Oracle(failure(500, "down"))
    oracle.bad, oracle.broken, oracle.after = (), failure(500, "down"), 4
    with FakeServer(oracle) as server:
        for _ in range(3):
            code, said = command(spot, server.url)
            assert code == 3 and "stopped answering" in said
        oracle.broken = None
        assert command(spot, server.url)[0] == 0
        assert reasons(output) == dict.fromkeys(range(COUNT), "")


@pytest.mark.parametrize("first", [True, False])
def test_a_limit_a_day_says_when_to_come_back_and_does_not_wait(spot: Spot, tmp_path: Path, first: bool) -> None:
    oracle = Oracle(failure(400))
    oracle.bad, oracle.broken = (), failure(429, "daily limit", headers={"Retry-After": "86400"})
    oracle.after = 0 if first else 6
    with FakeServer(oracle) as server:
        for _ in range(3):
            code, said = rectify(spot, server.url)
            assert code == 3, said
            assert re.search(
                r"takes no more requests until \d{4}-\d\d-\d\d \d\d:\d\d .*daily limit.*same command", said
            )
        oracle.broken = None
        assert rectify(spot, server.url)[0] == 0
        assert reasons(tmp_path / "r.jsonl") == dict.fromkeys(range(COUNT), "")


@pytest.mark.parametrize("status", [401, 404])
def test_a_url_that_refuses_all_in_the_middle_leaves_the_work_to_the_other(
    spot: Spot, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    steady, breaks = Oracle(failure(400)), Oracle(failure(400))
    steady.bad = breaks.bad = ()
    breaks.broken, breaks.after = failure(status, "no"), 3
    with FakeServer(steady) as one, FakeServer(breaks) as two:
        urls = json.dumps([one.url, two.url])
        code, said = rectify(spot, one.url, f"rectify.base_url={urls}")
        assert code == 0, said
        assert reasons(tmp_path / "r.jsonl") == dict.fromkeys(range(COUNT), "")
        assert f"{two.url} is out" in caplog.text


def test_an_empty_account_in_the_middle_of_a_run(spot: Spot, tmp_path: Path) -> None:
    oracle = Oracle(failure(400))
    oracle.bad, oracle.broken, oracle.after = (), failure(402, "pay"), 10
    with FakeServer(oracle) as server:
        assert rectify(spot, server.url)[0] == 3
        assert rectify(spot, server.url)[0] == 3
        oracle.broken = None
        oracle.asked.clear()
        done = len(reasons(tmp_path / "r.jsonl"))
        assert rectify(spot, server.url)[0] == 0
        assert oracle.asked.total() == COUNT - done


COSTS = ("rectify.input_price=10", "rectify.output_price=10", "rectify.max_new_tokens=1000")
"""A request costs about $0.02 at the worst, and $0.00015 in fact."""


@pytest.mark.parametrize("status", [429, 500, 503, 521, 529])
def test_what_a_server_turns_down_leaves_no_possible_spend(spot: Spot, tmp_path: Path, status: int) -> None:
    oracle = Oracle(failure(400))
    oracle.bad = ()
    script = lambda seen: failure(status) if seen.number % 5 < 2 else oracle(seen)  # noqa: E731
    with FakeServer(script) as server:
        code, said = rectify(spot, server.url, *COSTS, "--max_cost", "0.1", "rectify.concurrency=2")
    assert code == 0, said
    with Ledger(tmp_path / "r.ledger.sqlite") as ledger:
        assert ledger.spent() == (pytest.approx(COUNT * 0.00015), 0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"])
def test_what_never_left_the_house_leaves_no_possible_spend(spot: Spot, tmp_path: Path, url: str) -> None:
    code, said = rectify(spot, url, *COSTS)
    assert code == 2 and "cannot connect" in said
    with Ledger(tmp_path / "r.ledger.sqlite") as ledger:
        assert list(ledger.rows()) and ledger.spent() == (0, 0)


def test_a_try_of_unknown_outcome_is_priced_like_the_reply_that_follows(spot: Spot, tmp_path: Path) -> None:
    """A third of the tries fail, and seven at their worst are all the money there is: room for trying again stays."""
    oracle = Oracle(failure(400))
    oracle.bad = ()

    def script(seen: Seen) -> Answer:
        answer = oracle(seen)
        number = int(re.findall(r"What is (\d+) plus", seen.question)[-1])
        return failure(502) if seen.number % 3 == 0 and oracle.asked[number] <= 2 else answer

    with FakeServer(script) as server:
        code, said = rectify(spot, server.url, *COSTS, "--max_cost", "0.2", "rectify.concurrency=2")
    assert code == 0, said
    with Ledger(tmp_path / "r.ledger.sqlite") as ledger:
        tries = sum(row["sends"] - row["replied"] for row in ledger.rows())
        assert tries and ledger.spent()[1] == pytest.approx(tries * 0.00015)


def settings(url: str, **more: Any) -> str:
    return json.dumps({
        "run": {"dir": "run", "stages": ["elicit", "rectify"]},
        "student": {"model": "lab"},
        "problems": {"source": "p.jsonl", "verifier": "exact"},
        "elicit": {"attempts": "given.jsonl"},
        "rectify": {"model": "oracle", "base_url": url, "concurrency": 4} | more,
    })  # fmt: skip


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("target", [None, 15])
def test_a_stage_of_a_run_is_complete_when_all_is_answered_or_refused(
    spot: Spot, tmp_path: Path, target: int | None, candidates: int
) -> None:
    given = [{"problem_id": f"p{n}", "response": f"It is \\boxed{{{2 * n + 1}}}."} for n in range(COUNT)]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    oracle = Oracle(PASSING["crash"])
    oracle.bad = tuple(range(17, 20)) if target is None else tuple(range(10, 20))
    with FakeServer(oracle) as server:
        more = {"target_pairs": target} if target else {}
        (tmp_path / "c.yaml").write_text(settings(server.url, candidates=candidates, **more))
        code, said = spot("run", "c.yaml")
        # With ten that fail in a row it is not known whether the endpoint works.
        assert code == 3 and ("no reply, for a reason that may pass" in said or target is not None), said
        assert "rectify" not in json.loads((tmp_path / "run/manifest.json").read_text())["stages"]
        before = Counter(oracle.asked)
        oracle.bad = (18, 19)
        code, said = spot("run", "c.yaml")
        assert code == (0 if target is None or candidates * 18 >= target else 3), said
        assert not any(oracle.asked[n] - before[n] for n in range(10))
        rows = [json.loads(line) for line in (tmp_path / "run/rectifications.jsonl").read_text().splitlines()]
        assert sum(row["accepted"] for row in rows) >= (target or 18)
        if target is None:
            assert {row["problem_id"] for row in rows if row["reason"] == "no_reply"} == {"p18", "p19"}
            assert "no_reply" in said
    shutil.rmtree(tmp_path / "run")
