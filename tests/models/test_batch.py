"""The batch interface: nothing is paid twice, and every request ends with a reply or a reason."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests import fake_server
from tests.batch_server import (
    BatchServer,
    Fault,
    Held,
    complete,
    ends,
    fails,
)
from tests.batch_user import KEY, SAMPLING, WAITS, User, ask, texts

from spot.errors import UserError
from spot.models.base import NoMore, Reply, Request
from spot.models.endpoint.model import EndpointModel
from spot.models.paid import batch_run, lease
from spot.models.paid.batch import BatchModel, Limits
from spot.models.paid.ledger import Ledger
from spot.schema import Message


def test_every_request_is_answered_once_and_booked(tmp_path: Path) -> None:
    with BatchServer(polls=2) as server:
        user = User(tmp_path, server.url)
        assert texts(user.run(ask("a", "b", "c"))) == {"id-a": "A", "id-b": "B", "id-c": "C"}
        assert user.spent() == pytest.approx((9.0, 0.0))
        assert user.said[0] == "batch batch_0: 3 requests submitted"
        assert user.said[-1] == "batch batch_0: completed, 3 of 3 answered"
        before = len(server.seen)
        assert len(user.run(ask("a", "b", "c"))) == 3  # from the ledger
        assert len(server.seen) == before
        assert set(server.ran.values()) == {1}
        assert server.keys == {f"Bearer {KEY}"}


def test_a_line_asks_what_the_endpoint_would_ask(tmp_path: Path) -> None:
    request = Request("id", (Message(role="user", content="two\u2028lines\u0085née"),), seed=2**40 + 7, prefix="So")
    with BatchServer() as server, fake_server.FakeServer(lambda seen: fake_server.completion("ok")) as direct:
        extra: dict[str, Any] = {"extra_body": {"top_k": 5}, "omit": ["top_p"]}
        model = EndpointModel("m", direct.url, **extra)

        async def both() -> None:
            async for _ in model.generate([request], SAMPLING):
                pass
            with Ledger(tmp_path / "l.sqlite") as ledger:
                batch = BatchModel(EndpointModel("m", server.url, **extra), ledger, waits=WAITS)
                assert [reply.text async for group in batch.generate([request], SAMPLING) for reply in group]
                same = BatchModel(model, ledger)
                assert same.fingerprint == model.fingerprint  # one key: neither asks what the other has

        asyncio.run(both())
        [row] = server.batches["batch_0"].rows
        assert row["body"] == direct.seen[0].body
        assert len(server.files["file-in0"].decode().splitlines()) == 1


def test_without_waiting_it_submits_leaves_and_collects_later(tmp_path: Path) -> None:
    with BatchServer(polls=2) as server:
        user = User(tmp_path, server.url, wait=False, limits=Limits(requests=2))
        for _ in range(2):
            assert user.run(ask("a", "b", "c")) == {}
            assert str(user.stopped) == (
                "batch batch_0: 0 of 2 done (validating), batch batch_1: 0 of 1 done (validating); "
                "run the same command again to collect"
            )
        assert user.spent()[1] > 0
        assert len(user.run(ask("a", "b", "c"))) == 3
        assert user.stopped is None
        assert user.spent() == pytest.approx((9.0, 0.0))
        assert set(server.ran.values()) == {1}


def test_batches_stay_within_the_limits(tmp_path: Path) -> None:
    requests = ask(*"abcde", "x" * 3000)
    with BatchServer() as server:
        user = User(tmp_path, server.url, limits=Limits(requests=2))
        assert len(user.run(requests[:5])) == 5
        assert [len(batch.rows) for batch in server.batches.values()] == [2, 2, 1]
    with BatchServer() as server:
        user = User(tmp_path / "bytes", server.url, limits=Limits(bytes=700))
        replies = user.run(requests)
        assert "bytes are more than a batch may hold" in replies["id-" + "x" * 3000].error
        assert sum(reply.finish_reason == "stop" for reply in replies.values()) == 5
        sizes = [len(server.files[batch.input_file_id]) for batch in server.batches.values()]
        assert len(sizes) > 1 and max(sizes) <= 700
        assert user.spent() == pytest.approx((15.0, 0.0))


@pytest.mark.parametrize("code", ["batch_expired", None])
@pytest.mark.parametrize("status", ["expired", "cancelled", "failed"])
def test_what_a_batch_did_finish_is_kept_and_the_rest_asked_again(
    tmp_path: Path, status: str, code: str | None
) -> None:
    with BatchServer(ends(status, [1], code), complete) as server:
        user = User(tmp_path, server.url)
        assert len(user.run(ask("a", "b", "c"))) == 3
        assert server.inputs() == [["a", "b", "c"], ["a", "c"]]
        assert set(server.ran.values()) == {1}
        assert user.spent() == pytest.approx((9.0, 0.0))
        assert f"batch batch_0: {status}, 1 of 3 answered, 2 are sent again" in user.said


def test_a_few_rounds_and_then_a_reason(tmp_path: Path) -> None:
    with BatchServer(ends("expired", [], "batch_expired")) as server:
        user = User(tmp_path, server.url)
        for asked in (1, 2):  # an error reply is no reply: who comes back asks again, from the first round on
            assert texts(user.run(ask("a"))) == {"id-a": "it was not run (3 batches)"}
            assert len(server.batches) == 3 * asked
        assert user.spent() == pytest.approx((0.0, 0.0))


def test_rounds_are_counted_over_processes(tmp_path: Path) -> None:
    with BatchServer(ends("expired", [], "batch_expired"), polls=1) as server:
        user = User(tmp_path, server.url, wait=False)
        for batches in (1, 2, 3):
            assert user.run(ask("a")) == {}
            assert len(server.batches) == batches
            assert user.stopped is not None
        assert texts(user.run(ask("a"))) == {"id-a": "it was not run (3 batches)"}


def test_where_a_provider_takes_less_at_once_it_gets_less(tmp_path: Path) -> None:
    def ending(server: BatchServer, batch: Held) -> None:
        on_their_way = [other for other in server.batches.values() if other.status == "validating"]
        if sum(len(other.rows) for other in on_their_way) > 2:
            fails("token_limit_exceeded", "Enqueued token limit reached for m")(server, batch)
        else:
            complete(server, batch)

    with BatchServer(ending) as server:
        user = User(tmp_path, server.url)
        assert len(user.run(ask(*"abcdef"))) == 6
        assert set(server.ran.values()) == {1}
        assert user.spent() == pytest.approx((18.0, 0.0))


def test_busy_while_others_are_on_their_way_is_no_end(tmp_path: Path) -> None:
    def fault(method: str, path: str) -> Fault | None:
        waiting = [batch for batch in server.batches.values() if batch.status == "validating"]
        return Fault(429) if method == "POST" and path == "/batches" and waiting else None

    with BatchServer(fault=fault, polls=1) as server:
        user = User(tmp_path, server.url, limits=Limits(requests=2))
        assert len(user.run(ask(*"abcde"))) == 5
        assert [len(batch.rows) for batch in server.batches.values()] == [2, 2, 1]
        assert user.spent() == pytest.approx((15.0, 0.0))


class AtMost:
    """A turnstile: so many on their way, until so many are there."""

    def __init__(self, wanted: int) -> None:
        self.missing = wanted
        self.on_their_way = 0
        self.changed = asyncio.Event()

    async def enter(self, request: Request) -> None:
        while self.missing and self.on_their_way >= self.missing:
            self.changed.clear()
            await self.changed.wait()
        if not self.missing:
            raise NoMore
        self.on_their_way += 1

    def judge(self, reply: Reply) -> None:
        self.on_their_way = max(0, self.on_their_way - 1)
        self.missing -= reply.text not in ("A", "C")
        self.changed.set()


@pytest.mark.parametrize("wait", [True, False])
def test_no_more_is_asked_than_is_wanted(tmp_path: Path, wait: bool) -> None:
    with BatchServer() as server:
        user = User(tmp_path, server.url, wait=wait)
        user.turnstile = turnstile = AtMost(3)
        user.run(ask(*"abcdefgh"), turnstile.judge)
        assert server.inputs() == [["a", "b", "c"], ["d", "e"]]
        assert user.spent() == pytest.approx((15.0, 0.0))


def test_what_was_on_its_way_is_judged_before_more_is_asked(tmp_path: Path) -> None:
    with BatchServer(polls=1) as server:
        user = User(tmp_path, server.url, wait=False)
        user.turnstile = AtMost(3)
        user.run(ask(*"abcdefgh"))
        assert server.inputs() == [["a", "b", "c"]]
        user.turnstile = turnstile = AtMost(3)
        user.run(ask(*"abcdefgh"), turnstile.judge)
        assert server.inputs() == [["a", "b", "c"], ["d", "e"]]


def test_the_limit_holds_for_what_is_on_its_way(tmp_path: Path) -> None:
    with BatchServer() as server:
        user = User(tmp_path, server.url)
        user.max_cost = 40.0  # the worst case of one request is above $16
        assert len(user.run(ask(*"abcdefghijklmnop"))) >= 3
        assert "max_cost" in str(user.stopped)
        spent, possible = user.spent()
        assert spent == pytest.approx(3.0 * sum(server.ran.values())) and possible == pytest.approx(0.0)
        assert spent <= 40.0


def test_the_limit_holds_over_processes(tmp_path: Path) -> None:
    """Replies that another process let out are no room that this one's gate may wait for."""
    with BatchServer(polls=1) as server:
        user = User(tmp_path, server.url, wait=False)
        user.max_cost = 20.0  # one request at a time, and after two replies none
        for replies in (0, 1):
            assert len(user.run(ask("a", "b", "c"))) == replies
            assert "batch_" in str(user.stopped)
        assert len(user.run(ask("a", "b", "c"))) == 2
        assert "max_cost: $6.00 are spent, up to $0.00 may be" in str(user.stopped)


def test_two_processes_do_not_collect_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE", 0.3)
    monkeypatch.setattr(batch_run, "LEASE", 0.3)
    with BatchServer(polls=1) as server, subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as other:
        user = User(tmp_path, server.url, wait=False)
        user.run(ask("a"))
        with Ledger(user.path) as ledger, ledger.transaction() as database:
            database.execute("UPDATE batches SET owner = ?", (lease.owner_of(other.pid),))
        assert user.run(ask("a")) == {}
        assert f"process {other.pid} is handling batch batch_0; stop it" in str(user.stopped)
        # Of another machine it is not known whether it lives: it is watched for a while, and that is said.
        with Ledger(user.path) as ledger, ledger.transaction() as database:
            database.execute("UPDATE batches SET owner = 'elsewhere:1:1', seen_at = 1e12")
        assert len(user.run(ask("a"))) == 1
        assert any("waiting for a sign of life from process 1 on elsewhere" in line for line in user.said)
        other.kill()


def test_the_same_request_twice_is_refused(tmp_path: Path) -> None:
    with BatchServer() as server:
        twins = [Request(id, (Message(role="user", content="x"),), seed=1) for id in ("one", "two")]

        async def go() -> None:
            with Ledger(tmp_path / "l.sqlite") as ledger:
                async for _ in BatchModel(EndpointModel("m", server.url), ledger).generate(twins, SAMPLING):
                    pass

        with pytest.raises(UserError, match="'one' and 'two' are the same"):
            asyncio.run(go())


def test_one_account_one_url(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger, pytest.raises(UserError, match="batches need one URL"):
        BatchModel(EndpointModel("m", ["http://a/v1", "http://b/v1"]), ledger)
