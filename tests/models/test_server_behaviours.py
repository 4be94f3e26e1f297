"""Every row of `tests.server_behaviours`, through the endpoint and the ledger, as a run asks."""

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from tests.batch_server import BatchServer, Row, complete, output_line, replaced
from tests.batch_user import User
from tests.fake_server import FakeServer
from tests.server_behaviours import TABLE, TEXT, Behaviour, Serving

from spot.errors import RunFailed, StoppedEarly, UserError
from spot.models.base import Reply, Request
from spot.models.endpoint.model import EndpointModel, RetryPolicy
from spot.models.paid.ledger import Ledger
from spot.models.paid.recorded import RecordedModel
from spot.schema import Message, Sampling

QUICK = RetryPolicy(tries=3, first_wait=0.01, longest_wait=0.02, longest_retry_after=2)


def ask(*names: str) -> list[Request]:
    return [Request(name, (Message(role="user", content=name),), 1) for name in names]


def run(url: str, path: Path, *names: str, **options: Any) -> dict[str, Reply]:
    async def collect() -> dict[str, Reply]:
        with Ledger(path) as ledger:
            model = RecordedModel(EndpointModel("m", url, retry=QUICK, **options), ledger, "rectify")
            groups = model.generate(ask(*names), Sampling(max_new_tokens=9))
            return {reply.id: reply async for group in groups for reply in group}

    return asyncio.run(collect())


def bodies(path: Path) -> list[bytes]:
    with sqlite3.connect(path) as database:
        return [content for (content,) in database.execute("SELECT content FROM bodies ORDER BY rowid")]


def check(behaviour: Behaviour, reply: Reply) -> None:
    if behaviour.error:
        assert (reply.finish_reason, reply.text) == ("error", "")
        assert behaviour.error in reply.error
    else:
        assert (reply.error, reply.finish_reason, reply.text) == ("", behaviour.finish, behaviour.text)
    assert (reply.reasoning, reply.refusal) == (behaviour.reasoning, behaviour.refusal)
    assert behaviour.remark in reply.remark and bool(behaviour.remark) == bool(reply.remark)
    usage = reply.usage
    assert behaviour.usage == (
        None
        if usage is None
        else (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.reasoning_tokens)
    )


@pytest.mark.parametrize("name", TABLE)
def test_what_becomes_of_it(name: str, tmp_path: Path) -> None:
    behaviour, path = TABLE[name], tmp_path / "ledger.sqlite"
    serving = Serving(behaviour)
    with FakeServer(serving) as server:
        if behaviour.ends:
            with pytest.raises((UserError, RunFailed, StoppedEarly), match=behaviour.ends):
                run(server.url, path, "a")
            assert serving.tries["a"] <= 2
            return
        replies = run(server.url, path, "a", "b")
        for reply in replies.values():
            check(behaviour, reply)
        assert len(replies) == 2
        tries = 2 if behaviour.then else 1
        assert serving.tries == {"a": tries, "b": tries}
        if behaviour.answer.status == 200 and "gzip" not in name:
            assert bodies(path).count(behaviour.answer.body) == 2
        # What came is on record: it is not asked for, or paid for, again.
        again = run(server.url, path, "a", "b")
        assert again == replies
        assert serving.tries == {"a": tries, "b": tries}


@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith(("end: ", "content: ", "usage: "))])
def test_a_batch_reads_the_same(name: str, tmp_path: Path) -> None:
    behaviour = TABLE[name]

    def line(row: Row, _: str) -> str:
        return output_line(row, None).replace('"body": null', '"body": ' + behaviour.answer.body.decode())

    with BatchServer(replaced(line, [0, 1]), complete) as server:
        replies = User(tmp_path, server.url).run(ask("a", "b"))
    assert len(replies) == 2
    for reply in replies.values():
        check(behaviour, reply)
    assert len(server.batches) == 1


def test_a_run_that_is_killed_between_a_body_and_its_reading_pays_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.sqlite"
    serving = Serving(TABLE["usage: plain"])

    def killed(*_: object) -> Reply:
        raise KeyboardInterrupt

    with FakeServer(serving) as server:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("spot.models.endpoint.completion.read_completion", killed)
            run(server.url, path, "a")
        assert run(server.url, path, "a")["a"].text == TEXT
    assert serving.tries == {"a": 1}
    with Ledger(path) as ledger:
        [line] = ledger.lines()
    assert (line.outcome, line.requests, line.prompt_tokens, line.completion_tokens) == ("stop", 1, 7, 5)


def test_an_improved_reader_finds_what_an_earlier_one_did_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    serving = Serving(TABLE["content: parts, thinking and text"])

    def blind(message: object) -> tuple[str, str, str]:
        return "", "", ""

    with FakeServer(serving) as server:
        with monkeypatch.context() as patched:
            patched.setattr("spot.models.endpoint.completion.texts_of", blind)
            assert run(server.url, path, "a")["a"].error == "empty content"
        assert run(server.url, path, "a")["a"].text == TEXT
    assert serving.tries == {"a": 1}
    with Ledger(path, read_only=True) as ledger:
        assert [row["text"] for row in ledger.rows()] == [TEXT]


SECRET = "sk-planted/0123456789abcdef"


@pytest.mark.parametrize("key", ["none", "x", "1", "answer", "is"])
def test_a_short_key_never_changes_a_reply(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOT_TEST_KEY", key)
    with FakeServer(Serving(TABLE["usage: plain"])) as server:
        replies = run(server.url, tmp_path / "ledger.sqlite", "a", api_key_env="SPOT_TEST_KEY")
    assert replies["a"].text == TEXT
    assert bodies(tmp_path / "ledger.sqlite") == [TABLE["usage: plain"].answer.body]


@pytest.mark.parametrize(
    "spelled",
    [
        b'{"choices": [{"message": {"content": "it is %s"}}]}' % SECRET.encode(),
        b'{"choices": [{"message": {"content": "%s"}}]}' % SECRET.replace("/", "\\/").encode(),
        b'{"choices": [{"message": {"content": "\\u0073\\u006B%s"}}]}' % SECRET[2:].encode(),
        b'{"id": "%s", "choices": [{"message": {"content": "fine"}}]}' % SECRET.encode(),
        ('{"choices": [{"message": {"content": "%s"}}]}' % SECRET).encode("utf-16"),  # noqa: UP031 (braces)
        b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\ndata: {"choices": [{"delta": {"content": "%s"}, '
        b'"finish_reason": "stop"}]}\n\n' % (SECRET[:9].encode(), SECRET[9:].encode()),
    ],
    ids=["plain", "slash", "code points", "beside the text", "UTF-16", "in pieces"],
)
def test_a_body_that_holds_a_secret_key_is_kept_without_it_and_not_used(
    spelled: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOT_TEST_KEY", SECRET)
    path, behaviour = tmp_path / "ledger.sqlite", TABLE["usage: plain"]
    answer = type(behaviour.answer)(body=spelled)
    with FakeServer(lambda _: answer) as server:
        for _ in range(2):
            reply = run(server.url, path, "a", api_key_env="SPOT_TEST_KEY")["a"]
            assert (reply.text, reply.finish_reason) == ("", "error")
            assert "held the endpoint's key" in reply.error
        assert len(server.seen) == 1
    [kept] = bodies(path)
    assert SECRET[9:].encode() not in kept.replace(b"\0", b"") and b"[SPOT_TEST_KEY]" in kept
    assert SECRET.encode() not in path.read_bytes()


def test_a_model_that_changes_behind_a_url_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = TABLE["usage: plain"].answer
    other = type(good)(body=good.body.replace(b"m-1", b"m-2"))
    path = tmp_path / "ledger.sqlite"
    with FakeServer(lambda seen: good if seen.number < 2 else other) as server:
        run(server.url, path, "a", "b")
        assert not caplog.messages
        assert run(server.url, path, "a", "b", "c", "d")["d"].model == "m-2"
    [said] = caplog.messages
    assert "'m-1'" in said and "'m-2'" in said


def test_a_server_that_is_none_is_told_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the waits of a real run, which would come to minutes."""

    async def fail() -> None:
        groups = EndpointModel("m", server.url).generate(ask(*map(str, range(20))), Sampling(max_new_tokens=9))
        assert [group async for group in groups] == []

    start = time.monotonic()
    with (
        FakeServer(Serving(TABLE["body: a web page"])) as server,
        pytest.raises(RunFailed, match="answered no request; .* web page"),
    ):
        asyncio.run(fail())
    assert time.monotonic() - start < 20
    assert len(server.seen) <= 40
    assert "web page" in caplog.messages[0] and len(caplog.messages) == 1
