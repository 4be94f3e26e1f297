import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion, failure
from tests.fault_server import FaultServer

from spot.errors import RunFailed, StoppedEarly, UserError
from spot.models.base import Reply, Request
from spot.models.endpoint import pace
from spot.models.endpoint.model import EndpointModel, RetryPolicy
from spot.schema import Message, Sampling

QUICK = RetryPolicy(tries=3, first_wait=0.01, longest_wait=0.02, longest_retry_after=2)


def ask(*questions: str) -> list[Request]:
    return [Request(id=text, messages=(Message(role="user", content=text),), seed=1) for text in questions]


def endpoint(url: str | Sequence[str], **arguments: Any) -> EndpointModel:
    arguments.setdefault("retry", QUICK)
    return EndpointModel("m", url, **arguments)


def collect(model: EndpointModel, requests: Sequence[Request], into: dict[str, Reply]) -> None:
    async def run() -> None:
        async for group in model.generate(requests, Sampling()):
            for reply in group:
                assert reply.id not in into
                into[reply.id] = reply

    asyncio.run(run())


def answers(model: EndpointModel, count: int) -> dict[str, Reply]:
    replies: dict[str, Reply] = {}
    collect(model, ask(*map(str, range(count))), replies)
    return replies


def echo(seen: Seen) -> Answer:
    return completion(seen.question.upper())


def after(seconds: float) -> Any:
    return lambda seen: (time.sleep(seconds), echo(seen))[1]


@pytest.fixture
def nowhere() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


# Several URLs


def test_requests_go_where_the_fewest_are_in_flight() -> None:
    def waits(seen: Seen) -> Answer:
        # As slow as the other is quick, on any machine: it answers when the other has been asked three times as often.
        while len(quick.seen) < 3 * (seen.number + 1) and len(quick.seen) + len(slow.seen) < 60:
            time.sleep(0.005)
        return echo(seen)

    with FakeServer(echo) as quick, FakeServer(waits) as slow:
        assert len(answers(endpoint([quick.url, slow.url], concurrency=4), 60)) == 60
        assert len(quick.seen) > 2 * len(slow.seen) > 0


def test_requests_one_at_a_time_take_turns() -> None:
    with FakeServer(echo) as one, FakeServer(echo) as two:
        answers(endpoint([one.url, two.url], concurrency=1), 10)
        assert len(one.seen) == len(two.seen) == 5


def test_what_a_server_that_dies_had_in_flight_goes_to_the_others(caplog: pytest.LogCaptureFixture) -> None:
    replies: dict[str, Reply] = {}

    async def run(model: EndpointModel) -> None:
        async for group in model.generate(ask(*map(str, range(200))), Sampling()):
            replies.update({reply.id: reply for reply in group})
            if len(replies) > 40:
                dies.kill()

    with FaultServer(delay=0.02) as stays, FaultServer(delay=0.02) as dies:
        asyncio.run(run(endpoint([stays.url, dies.url])))
        assert stays.stats()["tries"]["none"] > 100
    assert {reply.text for reply in replies.values()} == {str(number) for number in range(200)}
    assert f"{dies.url} is out (cannot connect" in caplog.text


def test_only_when_all_are_out_the_run_stops() -> None:
    replies: dict[str, Reply] = {}
    script = lambda seen: echo(seen) if seen.number < 5 else failure(503, "down")  # noqa: E731
    told = r"/v1, the last of 2 URLs, stopped answering: HTTP 503: down.*resumes"
    with FakeServer(script) as one, FakeServer(script) as two, pytest.raises(StoppedEarly, match=told):
        collect(endpoint([one.url, two.url], concurrency=2), ask(*map(str, range(60))), replies)
    assert len(replies) == 10
    assert all(reply.finish_reason == "stop" for reply in replies.values())


def test_a_server_that_was_never_there_is_left_out(nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
    with FakeServer(echo) as server:
        assert len(answers(endpoint([nowhere, server.url]), 20)) == 20
    assert f"{nowhere} is out ({nowhere}: cannot connect" in caplog.text
    with pytest.raises(UserError, match=r"none of 2 URLs can be reached.*is the server running"):
        answers(endpoint([nowhere, nowhere.replace("127.0.0.1", "localhost")]), 5)


def test_a_server_that_hangs_loses_its_requests_to_the_others() -> None:
    release = threading.Event()

    def hangs(seen: Seen) -> Answer:
        release.wait(20)
        return echo(seen)

    with FakeServer(echo) as server, FakeServer(hangs) as stuck:
        assert len(answers(endpoint([server.url, stuck.url], concurrency=8, timeout=2), 60)) == 60
        release.set()
        assert len(stuck.seen) < 20


def test_a_server_that_comes_back_is_used_again() -> None:
    # Down from its sixth to its twentieth request; whoever is out is probed now and then.
    script = lambda seen: failure(503) if 5 <= seen.number < 20 else echo(seen)  # noqa: E731
    with FakeServer(after(0.02)) as steady, FakeServer(script) as comes_back:
        policy = RetryPolicy(tries=3, first_wait=0.001, longest_wait=0.005)
        assert len(answers(endpoint([steady.url, comes_back.url], concurrency=4, retry=policy), 200)) == 200
        assert len(comes_back.seen) > 30


def test_a_server_that_asks_for_too_much_patience_is_left_and_the_rest_goes_on() -> None:
    with FakeServer(echo) as server, FakeServer(lambda _: failure(429, headers={"Retry-After": "3600"})) as busy:
        assert len(answers(endpoint([server.url, busy.url]), 50)) == 50
        assert len(busy.seen) <= 8


def test_a_server_that_turns_everything_down_is_not_believed_where_another_answers() -> None:
    with FakeServer(echo) as server, FakeServer(lambda _: failure(400, "no seeds here")) as odd:
        replies = answers(endpoint([server.url, odd.url], concurrency=8), 60)
        assert {reply.finish_reason for reply in replies.values()} == {"stop"}
        assert len(odd.seen) < 40


def test_a_set_up_that_is_wrong_at_one_url_is_told() -> None:
    no_model = FakeServer(lambda _: failure(404, "no model `m`"))
    told = f"{no_model.url} has no model 'm'"
    with FakeServer(echo) as server, no_model as other, pytest.raises(UserError, match=told):
        answers(endpoint([server.url, other.url]), 20)


def test_lists_of_urls_are_checked_and_their_order_does_not_matter() -> None:
    with pytest.raises(UserError, match="empty"):
        endpoint([])
    with pytest.raises(UserError, match="http://h/v1 is listed twice"):
        endpoint(["http://h/v1", "http://h/v1/"])
    one, two = endpoint(["http://h/v1", "http://g/v1"]), endpoint(["http://g/v1", "http://h/v1"])
    assert one.fingerprint == two.fingerprint != endpoint("http://h/v1").fingerprint


# Pace


def test_starts_with_few_and_never_exceeds_the_concurrency() -> None:
    with FaultServer(delay=0.6) as server:
        model = endpoint(server.url, concurrency=12)
        assert len(answers(model, 8)) == 8
        assert server.stats()["most_in_flight"] == 8
        assert len(answers(model, 60)) == 60
        assert server.stats()["most_in_flight"] == 12


def test_a_server_that_takes_few_at_once_is_not_overrun() -> None:
    with FaultServer(capacity=10, delay=0.05) as server:
        replies = answers(endpoint(server.url, concurrency=128, retry=RetryPolicy(first_wait=0.05)), 300)
        tries = server.stats()["tries"]
    assert {reply.finish_reason for reply in replies.values()} == {"stop"}
    assert len(replies) == 300
    assert tries["busy"] < tries["none"]


def test_retry_after_pauses_all_requests() -> None:
    times: list[float] = []

    def script(seen: Seen) -> Answer:
        times.append(time.monotonic())
        return failure(429, headers={"Retry-After": "1"}) if seen.number == 3 else echo(seen)

    with FakeServer(script) as server:
        answers(endpoint(server.url, concurrency=1), 10)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[3] == max(gaps) >= 1


def test_a_cap_on_requests_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MINUTE", 2.0)
    times: list[float] = []
    with FakeServer(lambda seen: (times.append(time.monotonic()), echo(seen))[1]) as server:
        assert len(answers(endpoint(server.url, requests_per_minute=4), 10)) == 10
    assert all(times[index + 4] - times[index] > 1.6 for index in range(6))


def test_a_cap_on_tokens_a_minute_counts_what_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MINUTE", 4.0)
    # 32,768 tokens are reserved a request, and few are used.
    with FaultServer() as server:
        start = time.monotonic()
        assert len(answers(endpoint(server.url, tokens_per_minute=70_000), 20)) == 20
        assert server.stats()["most_in_flight"] <= 2
        assert time.monotonic() - start < 20  # 36 where what is reserved counts
    monkeypatch.setattr(pace, "MINUTE", 1.0)
    with FakeServer(echo) as server:  # says nothing of usage
        start = time.monotonic()
        assert len(answers(endpoint(server.url, tokens_per_minute=70_000), 5)) == 5
        assert time.monotonic() - start > 1.9


def test_no_more_is_asked_than_can_be_lost() -> None:
    committed = 0
    ahead: list[int] = []

    async def run(model: EndpointModel) -> None:
        nonlocal committed
        async for group in model.generate(ask(*map(str, range(60))), Sampling()):
            await asyncio.sleep(0.02)  # a slow disk
            committed += len(group)

    def script(seen: Seen) -> Answer:
        ahead.append(seen.number + 1 - committed)
        return echo(seen)

    with FakeServer(script) as server:
        asyncio.run(run(endpoint(server.url, concurrency=6)))
    assert committed == 60
    assert max(ahead) <= 6


def test_calls_at_the_same_time_share_the_concurrency() -> None:
    async def one(model: EndpointModel, name: str) -> int:
        questions = [f"{name}{number}" for number in range(20)]
        return sum([len(group) async for group in model.generate(ask(*questions), Sampling())])

    async def run(model: EndpointModel) -> list[int]:
        return await asyncio.gather(*(one(model, name) for name in "abc"))

    with FaultServer(delay=0.01) as server:
        assert asyncio.run(run(endpoint(server.url, concurrency=4))) == [20, 20, 20]
        assert server.stats()["most_in_flight"] <= 4


def test_a_call_in_the_midst_of_another_is_not_starved() -> None:
    async def run(model: EndpointModel) -> int:
        inner = 0
        async for group in model.generate(ask(*map(str, range(12))), Sampling()):
            await asyncio.sleep(0.05)  # all else comes back and is not taken
            again = ask(*(f"{reply.id} again" for reply in group))
            inner += sum([len(replies) async for replies in model.generate(again, Sampling())])
        return inner

    with FakeServer(echo) as server:
        assert asyncio.run(asyncio.wait_for(run(endpoint(server.url, concurrency=2)), 30)) == 12


# What ends a run, and what does not


@pytest.mark.parametrize(
    "broke",
    [
        failure(402, "Insufficient Balance"),
        failure(429, "You exceeded your current quota", code="insufficient_quota"),
        Answer(429, json.dumps({"error": {"message": "x", "type": "insufficient_quota"}}).encode()),
        Answer(429, json.dumps({"error": {"message": "x", "type": "exceeded_current_quota_error"}}).encode()),
        failure(403, "Your team doesn't have any credits yet"),
        failure(400, "Your credit balance is too low to access the API"),
    ],
)
@pytest.mark.parametrize("answered", [False, True])
def test_an_empty_account_stops_the_run_resumably(broke: Answer, answered: bool) -> None:
    replies: dict[str, Reply] = {}
    script = lambda seen: echo(seen) if answered and seen.number < 2 else broke  # noqa: E731
    with FakeServer(script) as server, pytest.raises(StoppedEarly, match=r"out of credit \(HTTP 4.*top it up.*resumes"):
        collect(endpoint(server.url, concurrency=1), ask(*map(str, range(20))), replies)
    assert len(replies) == (2 if answered else 0)
    assert len(server.seen) == len(replies) + 1


def test_a_users_own_text_about_money_stops_nothing() -> None:
    says = "refused: 'Ann is out of credit and has insufficient funds'"
    script = lambda seen: failure(400, says) if seen.question == "1" else echo(seen)  # noqa: E731
    with FakeServer(script) as server:
        assert answers(endpoint(server.url), 5)["1"].error == f"HTTP 400: {says}"


def test_replies_in_flight_are_not_lost_when_the_account_is_empty() -> None:
    together = threading.Barrier(4, timeout=20)

    def script(seen: Seen) -> Answer:
        together.wait()
        if seen.question == "2":
            return failure(402)
        time.sleep(0.2)
        return echo(seen)

    replies: dict[str, Reply] = {}
    with FakeServer(script) as server, pytest.raises(StoppedEarly, match="out of credit"):
        collect(endpoint(server.url, concurrency=4), ask(*map(str, range(4))), replies)
    assert set(replies) == {"0", "1", "3"}


def test_a_request_that_is_too_large_for_a_minute_is_its_own_fault() -> None:
    says = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 41000."
    script = lambda seen: failure(429, says) if seen.question == "1" else echo(seen)  # noqa: E731
    with FakeServer(script) as server:
        assert answers(endpoint(server.url), 5)["1"].error == f"HTTP 429: {says}"
        assert len(server.seen) == 5


def test_one_request_that_is_always_refused_is_given_up_beside_others() -> None:
    script = lambda seen: failure(429, "not this") if seen.question == "1" else echo(seen)  # noqa: E731
    replies: dict[str, Reply] = {}
    with FakeServer(script) as server:
        model = endpoint(server.url, concurrency=2, retry=RetryPolicy(tries=2, first_wait=0.001, longest_wait=0.001))
        collect(model, ask(*map(str, range(200))), replies)
    assert replies["1"].error == "HTTP 429: not this (10 tries)"
    assert Counter(reply.finish_reason for reply in replies.values()) == {"stop": 199, "error": 1}


def test_connecting_has_a_time_out_of_its_own() -> None:
    # A listener whose queue is full: the kernel answers no further SYN.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        start = time.monotonic()
        policy = RetryPolicy(tries=2, first_wait=0.01)
        with pytest.raises(RunFailed, match="cannot connect"):
            answers(endpoint(f"http://127.0.0.1:{port}/v1", timeout=60, connect_timeout=0.2, retry=policy), 1)
        assert time.monotonic() - start < 10
        for one in waiting:
            one.close()


@pytest.mark.parametrize(
    "name", ["concurrency", "timeout", "connect_timeout", "requests_per_minute", "tokens_per_minute"]
)
def test_numbers_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} .0. must be above 0"):
        endpoint("http://h/v1", **{name: 0})
