"""Batches that go wrong: damaged files, unknown outcomes, refusals; each one line, and nothing lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.batch_server import (
    BatchServer,
    Fault,
    Held,
    complete,
    ends,
    error_line,
    fails,
    output_line,
    pending,
    replaced,
)
from tests.batch_user import KEY, User, ask, texts

from spot.errors import StoppedEarly, UserError


def test_the_error_file_tells_what_is_to_blame(tmp_path: Path) -> None:
    def ending(server: BatchServer, batch: Held) -> None:
        ends("completed", [0])(server, batch)
        bad = {"error": {"message": f"the prompt is too long, says {KEY}", "code": "context_length_exceeded"}}
        busy = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
        batch.errors_out = [output_line(batch.rows[1], bad, 400), output_line(batch.rows[2], busy, 429)]

    with BatchServer(ending, complete) as server:
        user = User(tmp_path, server.url)
        replies = user.run(ask("a", "b", "c"))
        assert texts(replies)["id-b"] == "HTTP 400: the prompt is too long, says [SPOT_TEST_KEY]"
        assert replies["id-b"].finish_reason == "error"
        assert server.inputs()[1] == ["c"]
        assert user.spent() == pytest.approx((6.0, 0.0))


DAMAGE: dict[str, Callable[[dict[str, Any], str], str | None]] = {
    "cut off": lambda row, line: line[:40],
    "no JSON": lambda row, line: "<html>502</html>",
    "no object": lambda row, line: "[1, 2]",
    "left out": lambda row, line: None,
    "somebody else's": lambda row, line: line.replace(row["custom_id"], "other"),
    "status 0": lambda row, line: output_line(row, None, 0),
    "no body": lambda row, line: output_line(row, None),
    "a body that is no object": lambda row, line: output_line(row, "\ud800"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_bad_line_loses_no_other(tmp_path: Path, damage: str) -> None:
    with BatchServer(replaced(DAMAGE[damage], [1]), complete) as server:
        user = User(tmp_path, server.url)
        assert texts(user.run(ask("a", "b", "c"))) == {"id-a": "A", "id-b": "B", "id-c": "C"}
        assert server.inputs() == [["a", "b", "c"], ["b"]]
        spent, possible = user.spent()
        assert spent == pytest.approx(9.0)
        assert possible > 0  # it was run, and what it cost nobody knows


def test_lines_end_where_json_says_so(tmp_path: Path) -> None:
    def raw(row: dict[str, Any], line: str) -> str:
        return json.dumps(json.loads(line), ensure_ascii=False) + "\n\n  "

    with BatchServer(replaced(raw, [0]), text=lambda question: "a\u2028b\u0085c") as server:
        assert texts(User(tmp_path, server.url).run(ask("a", "b")))["id-a"] == "a\u2028b\u0085c"
        assert len(server.batches) == 1


def test_a_reply_in_both_files_counts(tmp_path: Path) -> None:
    def ending(server: BatchServer, batch: Held) -> None:
        complete(server, batch)
        batch.errors_out = [error_line(batch.rows[0], "server_error")] * 2

    with BatchServer(ending) as server:
        assert texts(User(tmp_path, server.url).run(ask("a"))) == {"id-a": "A"}


def test_replies_whose_file_is_not_there_yet_are_not_asked_again(tmp_path: Path) -> None:
    def ending(server: BatchServer, batch: Held) -> None:
        complete(server, batch)
        late.append(batch.output)
        batch.output, batch.completed = None, 1

    late: list[list[str] | None] = []
    with BatchServer(ending) as server:
        user = User(tmp_path, server.url)
        assert user.run(ask("a")) == {}
        assert "names no file of results" in str(user.stopped)
        server.batches["batch_0"].output = late[0]
        assert len(user.run(ask("a"))) == 1
        assert set(server.ran.values()) == {1}
        assert user.spent() == pytest.approx((3.0, 0.0))


@pytest.mark.parametrize("fault", [Fault(500, after=True), Fault(hang_up=True, after=True), Fault(500)])
def test_a_submission_of_unknown_outcome_is_looked_up(tmp_path: Path, fault: Fault) -> None:
    once = [fault]
    with BatchServer(
        fault=lambda method, path: once.pop() if once and (method, path) == ("POST", "/batches") else None
    ) as server:
        user = User(tmp_path, server.url)
        assert len(user.run(ask("a", "b"))) == 2
        assert server.seen[1:3] == ["POST /batches", "GET /batches"]
        assert len(server.batches) == 1
        assert user.spent() == pytest.approx((6.0, 0.0))


def test_a_submission_is_found_by_a_later_process_among_many(tmp_path: Path) -> None:
    down = True

    def fault(method: str, path: str) -> Fault | None:
        if method == "POST" and path == "/batches":
            return Fault(hang_up=True, after=True)
        return Fault(503) if down and path.startswith("/batches") else None

    with BatchServer(fault=fault) as server:
        user = User(tmp_path, server.url)
        assert user.run(ask("a", "b")) == {}
        assert "it is not known whether a batch was created" in str(user.stopped)
        down = False
        server.batches |= {f"batch_other{n}": Held(f"batch_other{n}", "file-x", {}, []) for n in range(3)}
        assert len(user.run(ask("a", "b"))) == 2
        assert len(server.batches) == 4
        assert user.spent() == pytest.approx((6.0, 0.0))


def test_a_provider_that_lists_nothing_is_not_paid_on_a_guess(tmp_path: Path) -> None:
    lists = False

    def fault(method: str, path: str) -> Fault | None:
        if method == "POST" and path == "/batches" and not server.batches:
            return Fault(hang_up=True, after=True)
        return Fault(404) if path.startswith("/batches?") and not lists else None

    with BatchServer(fault=fault) as server:
        user = User(tmp_path, server.url)
        user.run(ask("a"))
        assert "give up file-in0" in str(user.stopped)
        with pytest.raises(UserError, match="lists no batches .*give up file-in0"):
            user.run(ask("a"))
        assert len(user.run(ask("a"), give_up=["file-in0"])) == 1
        spent, possible = user.spent()
        assert spent == pytest.approx(3.0) and possible > 0


def test_a_batch_that_is_gone_is_asked_again_only_when_told(tmp_path: Path) -> None:
    with BatchServer(pending, complete) as server:
        user = User(tmp_path, server.url, wait=False)
        user.run(ask("a"))
        gone = server.batches.pop("batch_0")
        with pytest.raises(UserError, match="does not know batch batch_0 any more .*give up batch_0"):
            user.run(ask("a"))
        server.batches["batch_9"] = gone
        assert len(user.run(ask("a"), give_up=["batch_0"], wait=True)) == 1
        assert user.spent()[1] > 0


MESSAGES: dict[str, tuple[Fault, str, type[Exception]]] = {
    "no interface": (Fault(404), "has no batch interface (/files: HTTP 404: no); is the URL right?", UserError),
    "not allowed": (Fault(405), "has no batch interface", UserError),
    "another page": (Fault(200, b"<html>", {"Content-Type": "text/html"}), "has no batch interface", UserError),
    "key": (Fault(401), "refuses the key in the environment variable SPOT_TEST_KEY (HTTP 401)", UserError),
    "refused": (Fault(400), "/files refuses what it was sent (HTTP 400: no)", UserError),
    "quota": (
        Fault(429, b'{"error": {"message": "exceeded", "code": "insufficient_quota"}}'),
        "is out of credit (HTTP 429: exceeded); top it up",
        StoppedEarly,
    ),
    "echo": (Fault(400, json.dumps({"error": {"message": f"bad {KEY}"}}).encode()), "bad [SPOT_TEST_KEY]", UserError),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_errors_are_one_clear_line_and_cost_nothing(tmp_path: Path, case: str) -> None:
    fault, message, kind = MESSAGES[case]
    with BatchServer(fault=lambda method, path: fault) as server:
        user = User(tmp_path, server.url)
        try:
            user.run(ask("a", "b"))
            error: Exception | None = user.stopped
        except UserError as raised:
            error = raised
        assert type(error) is kind
        assert message in str(error) and "\n" not in str(error)
        assert user.spent() == (0.0, 0.0)
        server.fault = lambda method, path: None
        assert len(user.run(ask("a", "b"))) == 2
        assert user.spent() == pytest.approx((6.0, 0.0))


def test_a_batch_that_is_turned_down_says_why(tmp_path: Path) -> None:
    with BatchServer(fails("model_not_found", f"no model m for {KEY}"), complete) as server:
        user = User(tmp_path, server.url)
        with pytest.raises(UserError, match=r"batch batch_0 failed: no model m for \[SPOT_TEST_KEY\]"):
            user.run(ask("a"))
        assert user.spent() == (0.0, 0.0)
        assert len(user.run(ask("a"))) == 1


def test_no_money_in_a_batch_stops_resumably(tmp_path: Path) -> None:
    with BatchServer(fails("billing_hard_limit_reached", "Billing hard limit"), complete) as server:
        user = User(tmp_path, server.url)
        assert user.run(ask("a")) == {}
        assert "out of credit" in str(user.stopped)
        assert user.spent() == (0.0, 0.0)


def test_the_key_is_in_no_file(tmp_path: Path) -> None:
    with BatchServer(ends("expired", [0], "batch_expired"), complete) as server:
        user = User(tmp_path, server.url)
        user.run(ask("a", "b"))
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
        assert KEY not in "".join(user.said) and KEY.encode() not in b"".join(server.files.values())
