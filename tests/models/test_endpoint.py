import asyncio
import socket
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion, failure

from spot.errors import RunFailed, StoppedEarly, UserError
from spot.models.base import Reply, Request
from spot.models.endpoint.model import PATIENCE, EndpointModel, RetryPolicy, checked_base_url, read_key
from spot.schema import Message, Sampling

KEY = "sk-planted-0123456789abcdef"
QUICK = RetryPolicy(tries=3, first_wait=0.01, longest_wait=0.02, longest_retry_after=2)


@pytest.fixture(autouse=True)
def no_ambient_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOT_TEST_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ambient-key")


def ask(*questions: str) -> list[Request]:
    return [Request(id=text, messages=(Message(role="user", content=text),), seed=7 + 2**40) for text in questions]


def endpoint(url: str, **arguments: Any) -> EndpointModel:
    arguments.setdefault("retry", QUICK)
    return EndpointModel("m", url, **arguments)


def collect(
    model: EndpointModel, requests: Sequence[Request], into: dict[str, Reply], done: frozenset[str] = frozenset()
) -> None:
    async def run() -> None:
        async for group in model.generate(requests, Sampling(temperature=0.5, top_p=0.9, max_new_tokens=33), done):
            for reply in group:
                assert reply.id not in into
                into[reply.id] = reply

    asyncio.run(run())


def answers(model: EndpointModel, *questions: str) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    collect(model, ask(*questions), replies)
    return replies


def echo(seen: Seen) -> Answer:
    return completion(seen.question.upper())


def test_every_request_is_answered_once_and_what_is_done_is_not_asked() -> None:
    questions = [f"q{number}" for number in range(40)]
    replies: dict[str, Reply] = {}
    with FakeServer(echo) as server:
        collect(endpoint(server.url), ask(*questions), replies, frozenset(questions[:10]))
    assert {id: reply.text for id, reply in replies.items()} == {text: text.upper() for text in questions[10:]}
    assert Counter(seen.question for seen in server.seen) == Counter(questions[10:])


def test_request_carries_sampling_and_seed_and_only_the_named_key() -> None:
    with FakeServer(echo) as server:
        answers(endpoint(server.url, api_key_env="SPOT_TEST_KEY", extra_body={"top_k": 5}), "a")
        answers(endpoint(server.url, omit=("seed", "top_p"), tokens_field="max_completion_tokens"), "a")
    first, second = server.seen
    assert first.path == "/v1/chat/completions"
    assert {key: first.body[key] for key in ("model", "temperature", "top_p", "max_tokens", "top_k")} == {
        "model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 33, "top_k": 5,
    }  # fmt: skip
    assert first.body["seed"] == 7
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert not {"seed", "top_p", "max_tokens", "top_k"} & set(second.body)
    assert second.body["max_completion_tokens"] == 33
    assert "sk-" not in second.headers["authorization"]


def test_no_more_requests_in_flight_than_the_concurrency() -> None:
    in_flight, most = 0, 0

    def slow(seen: Seen) -> Answer:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        time.sleep(0.03)
        in_flight -= 1
        return echo(seen)

    with FakeServer(slow) as server:
        assert len(answers(endpoint(server.url, concurrency=3), *map(str, range(12)))) == 12
    assert 1 < most <= 3


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_passing_faults_are_retried(status: int) -> None:
    with FakeServer(lambda seen: failure(status) if seen.number < 2 else echo(seen)) as server:
        assert answers(endpoint(server.url), "a")["a"].text == "A"
    assert len(server.seen) == 3


def test_retry_after_is_obeyed() -> None:
    times: list[float] = []

    def script(seen: Seen) -> Answer:
        times.append(time.monotonic())
        return failure(429, headers={"Retry-After": "0.4"}) if seen.number == 0 else echo(seen)

    with FakeServer(script) as server:
        assert answers(endpoint(server.url), "a")["a"].text == "A"
    assert 0.4 <= times[1] - times[0] < 2


def test_too_long_a_retry_after_stops_at_once_and_resumably() -> None:
    replies: dict[str, Reply] = {}
    script = lambda seen: echo(seen) if seen.number == 0 else failure(429, headers={"Retry-After": "3600"})  # noqa: E731
    with FakeServer(script) as server, pytest.raises(StoppedEarly, match="3600 s"):
        collect(endpoint(server.url, concurrency=1), ask("a", "b", "c"), replies)
    assert list(replies) == ["a"]
    assert len(server.seen) == 2


def test_endless_429_stops_and_commits_nothing_about_the_unanswered() -> None:
    replies: dict[str, Reply] = {}
    script = lambda seen: echo(seen) if seen.question == "a" else failure(429)  # noqa: E731
    with FakeServer(script) as server, pytest.raises(StoppedEarly, match=r"429.*resumes"):
        collect(endpoint(server.url, concurrency=1), ask("a", "b"), replies)
    assert list(replies) == ["a"]
    assert len(server.seen) == 1 + QUICK.tries


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_an_error_reply_and_not_retried(status: int) -> None:
    def script(seen: Seen) -> Answer:
        return failure(status, "context too long") if seen.question == "b" else echo(seen)

    with FakeServer(script) as server:
        replies = answers(endpoint(server.url), "a", "b", "c")
    assert replies["b"] == Reply("b", "", "error", error=f"HTTP {status}: context too long")
    assert len(server.seen) == 3


def test_if_every_request_is_refused_the_run_fails_early_and_says_why() -> None:
    replies: dict[str, Reply] = {}
    with FakeServer(lambda _: failure(400, "seed is not supported")) as server:
        with pytest.raises(RunFailed, match="seed is not supported"):
            collect(endpoint(server.url, concurrency=1), ask(*map(str, range(100))), replies)
        assert not replies
        assert len(server.seen) <= PATIENCE + 1


def test_a_request_that_crashes_the_server_is_recorded_only_beside_others_that_do_not() -> None:
    def poison(seen: Seen) -> Answer:
        return failure(500, "crashed") if seen.question == "bad" else echo(seen)

    with FakeServer(poison) as server:
        replies = answers(endpoint(server.url, concurrency=1), "bad", "a")
        assert replies["bad"].finish_reason == "error"
        assert "HTTP 500: crashed (3 tries)" in replies["bad"].error
        with pytest.raises(RunFailed, match=r"answered no request.*crashed"):
            answers(endpoint(server.url), "bad")
        resumed: dict[str, Reply] = {}
        collect(endpoint(server.url), ask("a", "bad"), resumed, frozenset({"a"}))
        assert list(resumed) == ["bad"]


def test_a_server_that_dies_stops_the_run_with_nothing_recorded_against_the_rest() -> None:
    replies: dict[str, Reply] = {}
    script = lambda seen: echo(seen) if seen.number < 5 else failure(503, "down")  # noqa: E731
    with FakeServer(script) as server, pytest.raises(StoppedEarly, match="503"):
        collect(endpoint(server.url, concurrency=2), ask(*map(str, range(50))), replies)
    assert len(replies) == 5
    assert all(reply.finish_reason == "stop" for reply in replies.values())


def test_a_server_that_goes_away_after_the_first_replies_stops_the_run() -> None:
    replies: dict[str, Reply] = {}

    async def run(model: EndpointModel) -> None:
        async for group in model.generate(ask(*map(str, range(30))), Sampling()):
            replies.update({reply.id: reply for reply in group})
            await asyncio.to_thread(server.stop)

    with FakeServer(echo) as server, pytest.raises(StoppedEarly, match="stopped answering"):
        asyncio.run(run(endpoint(server.url, concurrency=1)))
    assert 0 < len(replies) < 30
    assert all(reply.finish_reason == "stop" for reply in replies.values())


def test_a_hang_is_a_timeout_and_retried() -> None:
    def script(seen: Seen) -> Answer:
        return Answer(delay=0.6) if seen.number == 0 else echo(seen)

    with FakeServer(script) as server:
        start = time.monotonic()
        assert answers(endpoint(server.url, timeout=0.3), "a")["a"].text == "A"
        assert time.monotonic() - start < 5


def test_a_server_that_always_hangs_fails_the_run() -> None:
    told = r"no answer within 0\.1 s \(3 tries\)"
    with FakeServer(lambda _: Answer(delay=0.4)) as server, pytest.raises(RunFailed, match=told):
        answers(endpoint(server.url, timeout=0.1), "a")


WHOLE = completion("a" * 400).body


@pytest.mark.parametrize(
    "broken",
    [
        Answer(body=WHOLE, cut=100),
        Answer(body=WHOLE[:100]),
        Answer(body=b"<html>busy</html>", headers={"Content-Type": "text/html"}),
        Answer(body=b'{"choices": [{"message": {"content": "\xff"}}]}'),
    ],
    ids=["cut", "cut json", "html", "not utf-8"],
)
def test_a_damaged_reply_is_asked_again(broken: Answer) -> None:
    with FakeServer(lambda seen: broken if seen.number == 0 else echo(seen)) as server:
        assert answers(endpoint(server.url), "a")["a"].text == "A"
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("sent", "text", "finish_reason", "error"),
    [
        (completion("so far", "length"), "so far", "length", ""),
        (completion(None, "length"), "", "length", ""),
        (completion(None), "", "error", "empty content"),
        (completion(" \n"), "", "error", "empty content"),
        (completion("", reasoning_content="hm"), "", "error", "empty content beside reasoning text"),
        (completion("yes", reasoning_content="hm"), "yes", "stop", ""),
        (completion("no", "content_filter"), "", "error", "finish_reason 'content_filter'"),
        (
            completion("half a pair: \ud800"),
            "",
            "error",
            "the reply holds half a surrogate pair, which no file can hold",
        ),
    ],
)
def test_finish_reason_and_reasoning(sent: Answer, text: str, finish_reason: str, error: str) -> None:
    with FakeServer(lambda _: sent) as server:
        reply = answers(endpoint(server.url), "a")["a"]
    assert (reply.text, reply.finish_reason, reply.error) == (text, finish_reason, error)
    assert len(server.seen) == 1


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"choices": []}', b'{"choices": [3]}', b'{"choices": [{}]}', b"1"])
def test_json_that_is_no_completion_is_not_paid_for_again(body: bytes) -> None:
    def script(seen: Seen) -> Answer:
        return Answer(body=body) if seen.question == "b" else echo(seen)

    with FakeServer(script) as server:
        assert answers(endpoint(server.url), "a", "b")["b"].finish_reason == "error"
    assert len(server.seen) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_names_the_variable_and_never_the_key(status: int) -> None:
    with FakeServer(lambda _: failure(status, f"bad key {KEY}")) as server:
        with pytest.raises(UserError, match="SPOT_TEST_KEY") as caught:
            answers(endpoint(server.url, api_key_env="SPOT_TEST_KEY", concurrency=1), *map(str, range(9)))
        assert len(server.seen) <= 2
        assert KEY not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(UserError, match=r"requires a key.*api_key_env"):
            answers(endpoint(server.url), "a")


def test_key_repeated_by_the_server_is_not_in_any_reply_or_error(caplog: pytest.LogCaptureFixture) -> None:
    padding = "x" * 290  # the message is shortened right through the key
    caplog.set_level("DEBUG")

    def script(seen: Seen) -> Answer:
        return echo(seen) if seen.question == "a" else failure(400, f"{padding} {KEY}")

    with FakeServer(script) as server:
        replies = answers(endpoint(server.url, api_key_env="SPOT_TEST_KEY"), "a", "b")
        with pytest.raises(RunFailed) as caught:
            answers(endpoint(server.url, api_key_env="SPOT_TEST_KEY"), "b")
    everything = repr(replies) + "".join(traceback.format_exception(caught.value)) + caplog.text
    assert KEY[:8] not in everything
    assert "SPOT" in replies["b"].error or len(replies["b"].error) == 300


def test_unknown_model_is_named() -> None:
    with FakeServer(lambda _: failure(404, "The model `m` does not exist")) as server:
        with pytest.raises(UserError, match="has no model 'm'"):
            answers(endpoint(server.url), "a")
        assert len(server.seen) == 1


def test_url_without_v1_is_told() -> None:
    def script(seen: Seen) -> Answer:
        return echo(seen) if seen.path.startswith("/v1/") else Answer(404, b'{"detail": "Not Found"}')

    with FakeServer(script, path="") as server, pytest.raises(UserError, match=f"try {server.url}/v1"):
        answers(endpoint(server.url), "a")


def test_refused_connection_at_first_contact_names_the_url_without_retries() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match=f"{url}: cannot connect.*is the server running"):
        answers(endpoint(url, retry=RetryPolicy(first_wait=60)), "a")


def test_empty_account_is_told_apart_and_not_retried() -> None:
    script = lambda seen: echo(seen) if seen.number == 0 else failure(429, "pay", code="insufficient_quota")  # noqa: E731
    with FakeServer(script) as server, pytest.raises(StoppedEarly, match="out of credit"):
        answers(endpoint(server.url, concurrency=1), "a", "b")
    assert len(server.seen) == 2


def test_missing_or_impossible_keys_are_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="SPOT_NO_SUCH_KEY is not set"):
        EndpointModel("m", "http://127.0.0.1:1/v1", "SPOT_NO_SUCH_KEY")
    monkeypatch.setenv("SPOT_TEST_KEY", "two words")
    with pytest.raises(UserError, match="SPOT_TEST_KEY") as caught:
        read_key("SPOT_TEST_KEY")
    assert "two words" not in str(caught.value)
    for pasted in (KEY, "abc123def456"):
        with pytest.raises(UserError) as caught:
            read_key(pasted)
        assert pasted not in str(caught.value)
    monkeypatch.setenv("SPOT_TEST_KEY", f"{KEY}\n")
    assert read_key("SPOT_TEST_KEY") == KEY
    assert read_key(None) is None


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://[::1/v1", "http://h:port/v1", "http://h/?key=secret", "http://u:secret@h/v1"])  # fmt: skip # noqa: E501
def test_malformed_urls_are_refused_without_showing_secrets(url: str) -> None:
    with pytest.raises(UserError, match="base_url") as caught:
        checked_base_url(url)
    assert "secret" not in str(caught.value)


def test_the_same_model_serves_several_event_loops() -> None:
    with FakeServer(echo) as server:
        model = endpoint(server.url)
        assert answers(model, "a")["a"].text == "A"
        assert answers(model, "b")["b"].text == "B"


def test_a_consumer_that_stops_leaves_no_request_behind() -> None:
    async def run(model: EndpointModel) -> int:
        stream = model.generate(ask(*map(str, range(50))), Sampling())
        await anext(stream)
        await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        return len(asyncio.all_tasks()) - 1

    with FakeServer(echo) as server:
        assert asyncio.run(run(endpoint(server.url, concurrency=2))) == 0
        assert len(server.seen) < 50


@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens", "stream", "model"])
def test_extra_body_cannot_change_what_the_account_counts_on(name: str) -> None:
    with pytest.raises(UserError, match=f"extra_body: '{name}' cannot be set there; max_new_tokens"):
        EndpointModel("m", "http://h/v1", extra_body={name: 1})


def test_fingerprint_tells_endpoints_apart() -> None:
    models = [
        EndpointModel("m", "http://h/v1"),
        EndpointModel("n", "http://h/v1"),
        EndpointModel("m", "http://g/v1"),
        EndpointModel("m", "http://h/v1", extra_body={"top_k": 1}),
        EndpointModel("m", "http://h/v1", omit=("seed",)),
        EndpointModel("m", "http://h/v1", tokens_field="max_completion_tokens"),
    ]
    assert len({model.fingerprint for model in models}) == len(models)
    assert models[0].fingerprint == EndpointModel("m", "http://h/v1/").fingerprint
