"""The account: what was sent, answered, turned down, and what may have been spent."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.errors import UserError
from spot.models.base import Body, Reply, Usage
from spot.models.paid import lease
from spot.models.paid.ledger import Admit, Entry, GivenUp, Ledger, Prices, Received, Refused, Replied


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def entry(key: str, worst: float = 1.0) -> Entry:
    return Entry(key, "rectify", "http://h/v1", "m", f"id-{key}", 0, 0, "{}", worst)


def admit(key: str, worst: float = 1.0, max_cost: float | None = None) -> Admit:
    return Admit(entry(key, worst), max_cost)


def replied(key: str, cost: float | None = 0.25, text: str = "hello", finish_reason: str = "stop") -> Replied:
    return Replied(key, Reply(f"id-{key}", text, finish_reason, usage=Usage(10, 20)), cost)  # pyright: ignore[reportArgumentType]


def test_a_try_is_open_until_it_is_answered_or_turned_down(ledger: Ledger) -> None:
    ledger.apply([admit("a"), admit("b"), admit("c")])
    assert ledger.spent() == (0, 3)
    ledger.apply([replied("a"), Refused("b", charged=False), Refused("c", charged=None)])
    assert ledger.spent() == (0.25, 1)
    outcomes = {line.outcome: (line.requests, line.cost, line.possible) for line in ledger.lines()}
    assert outcomes == {"stop": (1, 0.25, 0), "refused": (1, 0, 0), "unknown": (1, 0, 1)}


def test_replies_come_back_under_the_id_that_is_asked_now(ledger: Ledger) -> None:
    ledger.apply([admit("a"), admit("b"), replied("a", text="né\u2028e"), replied("b", finish_reason="error")])
    [[reply, failed]] = list(ledger.replies({"a": "now", "b": "paid all the same", "c": "never asked"}))
    assert reply == Reply("now", "né\u2028e", "stop", usage=Usage(10, 20))
    assert failed.finish_reason == "error"


def test_a_good_reply_stays_and_what_follows_is_paid_all_the_same(ledger: Ledger) -> None:
    ledger.apply([admit("a"), admit("a"), admit("a")])
    ledger.apply([replied("a", text="", finish_reason="error"), replied("a", text="good"), replied("a", text="again")])
    [[reply]] = list(ledger.replies({"a": "id"}))
    assert reply.text == "good"
    assert ledger.spent() == (0.75, 0)
    [line] = ledger.lines()
    assert (line.prompt_tokens, line.completion_tokens, line.possible) == (30, 60, 0)


def test_without_usage_the_worst_is_assumed(ledger: Ledger) -> None:
    ledger.apply([admit("a", worst=2), replied("a", cost=None)])
    assert ledger.spent() == (2, 0)


def test_the_limit_counts_what_is_open(ledger: Ledger) -> None:
    assert ledger.apply([admit("a", 1, 2.5), admit("b", 1, 2.5), admit("c", 1, 2.5)]) == ["done", "done", "no_room"]
    ledger.apply([replied("a", cost=0.1)])
    assert ledger.apply([admit("c", 1, 2.5)]) == ["done"]
    assert ledger.apply([admit("d", 1, 2.5)]) == ["no_room"]
    assert {row["key"] for row in ledger.rows()} == {"a", "b", "c"}


@settings(deadline=None, max_examples=50)
@given(
    events=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["admit", "reply", "error", "refuse", "lose"])), max_size=25
    )
)
def test_the_account_is_the_sum_of_its_rows(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, str]]
) -> None:
    in_flight: dict[str, int] = dict.fromkeys("abc", 0)
    with Ledger(tmp_path_factory.mktemp("ledger") / "l.sqlite") as ledger:
        for key, event in events:
            if event == "admit":
                in_flight[key] += ledger.apply([admit(key, 1.0, 9.0)]) == ["done"]
            elif in_flight[key]:
                in_flight[key] -= 1
                finish = "error" if event == "error" else "stop"
                operation = {
                    "reply": replied(key, 0.3),
                    "error": replied(key, 0.3, finish_reason=finish),
                    "refuse": Refused(key, charged=False),
                    "lose": Refused(key, charged=None),
                }[event]
                ledger.apply([operation])
        lines = ledger.lines()
        spent, open_ = ledger.spent()
        assert spent == pytest.approx(sum(line.cost for line in lines))
        assert open_ == pytest.approx(sum(line.possible for line in lines))
        assert spent + open_ <= 9.0


def test_what_a_killed_process_had_in_flight_is_known_and_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    code = (
        "import os, signal; from pathlib import Path; from tests.models.test_ledger import admit, replied; "
        "from spot.models.paid.ledger import Ledger; "
        f"ledger = Ledger(Path({str(path)!r})); ledger.apply([admit('a'), admit('b'), replied('a')]); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    with Ledger(path) as ledger:
        assert ledger.spent() == (0.25, 1)
        assert not ledger.in_flight_elsewhere(["a", "b"])
        ledger.apply([admit("b"), replied("b")])
        assert ledger.spent() == (0.5, 0.25)
        [line] = ledger.lines()
        assert (line.outcome, line.requests, line.possible) == ("stop", 2, 0.25)


def test_what_is_answered_or_asked_by_another_is_not_let_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ours, Ledger(path) as theirs:
        theirs._owner = "elsewhere:1:1"  # pyright: ignore[reportPrivateUsage]
        assert theirs.apply([admit("a"), admit("b"), Refused("b", charged=None), admit("c")]) == ["done"] * 4
        assert ours.apply([admit("a", max_cost=0), admit("b"), admit("d")]) == ["elsewhere", "elsewhere", "done"]
        theirs.apply([replied("a"), Refused("c", charged=False)])
        assert ours.apply([admit("a", max_cost=0), admit("c"), admit("d")]) == ["on_record", "done", "done"]
        assert {row["key"]: row["sends"] for row in ours.rows()} == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_two_processes_share_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ours:
        ours.apply([admit("ours")])
        code = (
            "from pathlib import Path; from tests.models.test_ledger import admit; "
            "from spot.models.paid.ledger import Ledger; "
            f"ledger = Ledger(Path({str(path)!r})); print(set(ledger.in_flight_elsewhere(['ours', 'other'])))"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == "{'ours'}"
        assert not ours.in_flight_elsewhere(["ours"])


def test_whether_a_process_of_this_machine_lives_is_known_at_once(ledger: Ledger) -> None:
    machine, pid, started = lease.owner().rsplit(":", 2)
    assert ledger.lease.state(lease.owner_of(os.getppid())) == "lives"
    assert ledger.lease.state(f"{machine}:{pid}:{int(started) - 1}") == "gone"
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert ledger.lease.state(f"{machine}:{child.pid}:1") == "gone"
    # As versions before 0.1 named processes.
    assert ledger.lease.state(f"{machine.partition('/')[0]}:{child.pid}:1") == "gone"


def test_a_process_of_another_machine_lives_while_its_sign_of_life_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "LEASE", 0.6)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # whatever the clock says
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ours:
        with Ledger(path) as theirs:
            theirs._owner = "elsewhere/1:1:1"  # pyright: ignore[reportPrivateUsage]
            theirs.apply([admit("a")])
            assert set(ours.in_flight_elsewhere(["a"])) == {"a"}
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                assert set(ours.in_flight_elsewhere(["a"])) == {"a"}
                time.sleep(0.05)
            assert ours.lease.state("elsewhere/1:1:1") == "lives"
        # Closed here stands for killed: it shows no sign any more, and its try is open.
        began = time.monotonic()
        while ours.in_flight_elsewhere(["a"]):
            assert time.monotonic() - began < 10
            time.sleep(0.02)
        assert time.monotonic() - began > 0.3
        assert ours.apply([admit("a")]) == ["done"]
        # One that never showed a sign, of an earlier version say, is watched as long and no longer.
        assert ours.lease.state("elsewhere:2:1") == "silent"
        time.sleep(0.7)
        assert ours.lease.state("elsewhere:2:1") == "gone"


def test_what_a_retrys_reply_says_of_the_tries_before_it(ledger: Ledger) -> None:
    ledger.apply([admit("a"), Refused("a", charged=None), admit("a"), Refused("a", charged=None), admit("a")])
    assert ledger.spent() == (0, 3)
    # Each of the two may have been charged, as much as the same request was in the end.
    ledger.apply([replied("a", cost=0.25)])
    assert ledger.spent() == (0.25, 0.5)
    ledger.apply([admit("b"), Refused("b", charged=None), admit("b"), replied("b", cost=None)])
    assert ledger.spent() == (1.25, 1.5)


def test_what_is_refused_for_good_is_on_record_and_what_may_pass_is_not(ledger: Ledger) -> None:
    ledger.apply([admit("a"), Refused("a", charged=False), GivenUp("a", "HTTP 400: no", final=True)])
    ledger.apply([admit("b"), Refused("b", charged=False), GivenUp("b", "HTTP 500", final=False)])
    assert list(ledger.replies({"a": "now", "b": "b"})) == [[Reply("now", "", "error", error="HTTP 400: no")]]
    assert ledger.given_up(["a", "b", "c"]) == {"b": 1}
    assert ledger.apply([admit("a"), admit("b")]) == ["on_record", "done"]
    assert not ledger.has_answered("http://h/v1")
    ledger.apply([replied("b")])
    assert ledger.given_up(["a", "b"]) == {} and ledger.has_answered("http://h/v1")


@pytest.mark.parametrize(
    "content", [b"\0" * 4096, b"this is a diary, not a database; " * 100, b"SQLite format 3\0" + b"x" * 2000]
)
def test_what_is_no_ledger_is_said_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    for read_only in (False, True):
        with (
            pytest.raises(UserError, match=r"ledger\.sqlite: not a ledger.*move it away") as caught,
            Ledger(path, read_only=read_only) as one,
        ):
            one.spent()
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError), Ledger(path, read_only=read_only) as one:
            list(one.replies({"a": "b"}))
    assert path.read_bytes() == content


def test_a_ledger_that_is_damaged_in_the_middle_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        for n in range(200):
            ledger.apply([admit(f"{n}"), replied(f"{n}", text="x" * 1000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) // 2) + whole[4096 + len(whole) // 2 :])
    with pytest.raises(UserError, match="move it away"), Ledger(path) as ledger:
        list(ledger.rows())
        ledger.lines()
        list(ledger.replies({f"{n}": "a" for n in range(200)}))


@pytest.mark.parametrize("lacks", [(), ("given_up", "final"), ("replied", "refused"), ("reasoning", "error", "owner")])
@pytest.mark.parametrize("account", [True, False])
def test_an_older_ledger_is_read_and_goes_on(tmp_path: Path, lacks: tuple[str, ...], account: bool) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.apply([admit("a"), replied("a")])
    database = sqlite3.connect(path)
    for column in lacks:
        database.execute(f"ALTER TABLE requests DROP COLUMN {column}")
    if not account:
        database.execute("DROP TABLE account")
    database.execute("PRAGMA journal_mode=DELETE")
    database.close()
    before = path.read_bytes()
    if account:
        with Ledger(path, read_only=True) as ledger:
            [row] = ledger.rows()
            assert row["text"] == "hello" and ledger.spent() == (0.25, 0)
            assert len(ledger.lines()) == 1
    assert path.read_bytes() == before
    with Ledger(path) as ledger:
        [[reply]] = ledger.replies({"a": "now"})
        assert (reply.id, reply.text) == ("now", "hello")
        assert ledger.spent()[0] == 0.25
        assert ledger.apply([admit("a"), admit("b")]) == ["on_record", "done"]


def test_another_programs_table_of_requests_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE requests (url TEXT)")
    database.close()
    with pytest.raises(UserError, match=r"not a ledger \(it has no column 'key'\)"), Ledger(path) as ledger:
        ledger.apply([admit("a")])


def test_no_ledger_at_the_path(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("this is a diary, not a database; " * 100)
    with pytest.raises(UserError, match=r"ledger\.sqlite: not a ledger; name a run directory or its ledger"):
        Ledger(path).lines()


def test_a_full_disk_is_one_line_and_loses_nothing(ledger: Ledger) -> None:
    ledger.apply([admit("a"), replied("a")])
    pages = ledger._database.execute("PRAGMA page_count").fetchone()[0]  # pyright: ignore[reportPrivateUsage]
    ledger._database.execute(f"PRAGMA max_page_count={pages}")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(UserError, match="full; free some space"):
        ledger.apply([Admit(Entry("b", "s", "e", "m", "i", 0, 0, "x" * 100_000, 1.0), None)])
    assert [row["key"] for row in ledger.rows()] == ["a"]
    assert ledger.spent() == (0.25, 0)


def test_every_commit_is_synced(ledger: Ledger) -> None:
    read = ledger._database.execute  # pyright: ignore[reportPrivateUsage]
    assert read("PRAGMA journal_mode").fetchone() == ("wal",)
    assert read("PRAGMA synchronous").fetchone() == (2,)


def test_prices_are_per_million_tokens() -> None:
    assert Prices(input=2.5, output=10).cost(Usage(1000, 100)) == pytest.approx(0.0035)


MADE_AT_DB0CC1E = """
CREATE TABLE requests (
  key TEXT PRIMARY KEY, stage TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL, request_id TEXT NOT NULL,
  candidate INTEGER NOT NULL, attempt INTEGER NOT NULL, body TEXT NOT NULL, sends INTEGER NOT NULL,
  refused INTEGER NOT NULL DEFAULT 0, replied INTEGER NOT NULL DEFAULT 0, worst REAL NOT NULL, owner TEXT NOT NULL,
  sent_at REAL NOT NULL, replied_at REAL, text TEXT, reasoning TEXT, finish_reason TEXT, error TEXT,
  prompt_tokens INTEGER, completion_tokens INTEGER, cost REAL
) WITHOUT ROWID;
CREATE TABLE account (id INTEGER PRIMARY KEY CHECK (id = 0), spent REAL NOT NULL, open REAL NOT NULL);
INSERT INTO account VALUES (0, 0.25, 0);
INSERT INTO requests VALUES ('a', 'rectify', 'e', 'm', 'id-a', 0, 0, '{}', 1, 0, 1, 1.0, '', 1.0, 2.0, 'hello', 'hm',
  'stop', '', 10, 20, 0.25);
"""


@pytest.mark.parametrize("read_only", [True, False])
def test_a_ledger_without_bodies_is_read_and_goes_on(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(MADE_AT_DB0CC1E)
    with Ledger(path, read_only=read_only) as ledger:
        assert [reply for group in ledger.replies({"a": "now"}) for reply in group] == [
            Reply("now", "hello", "stop", reasoning="hm", usage=Usage(10, 20))
        ]
        if not read_only:
            assert [(one.key, one.bodies) for group in ledger.kept({"a": "now"}) for one in group] == [("a", ())]
            body = Body(b"\xff\x00 as it came", "text/plain")
            ledger.apply([admit("b"), Received("b", body), replied("b")])
            assert [one.bodies for group in ledger.kept({"b": "b"}) for one in group] == [(body,)]
