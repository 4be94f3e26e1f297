import heapq
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.models.endpoint import pace
from spot.models.endpoint.pace import Caps, Pace, RetryPolicy

POLICY = RetryPolicy(tries=8, first_wait=0.5, longest_wait=30)


def fill(pace: Pace, now: float = 0.0) -> list[int]:
    """Send as many tries as are let out."""
    numbers: list[int] = []
    while pace.wait(now) == 0:
        numbers.append(pace.send(now))
    return numbers


def answer(pace: Pace, numbers: list[int]) -> None:
    for number in numbers:
        pace.answered(number)


@pytest.mark.parametrize(("most", "first"), [(1, 1), (5, 5), (8, 8), (512, 8)])
def test_starts_small(most: int, first: int) -> None:
    assert len(fill(Pace(most, POLICY))) == first


def test_doubles_in_a_round_trip_up_to_the_most() -> None:
    server, rounds = Pace(100, POLICY), list[int]()
    for _ in range(6):
        numbers = fill(server)
        rounds.append(len(numbers))
        answer(server, numbers)
    assert rounds == [8, 16, 32, 64, 100, 100]


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    server = Pace(100, POLICY)
    for _ in range(50):
        answer(server, [server.send(0), server.send(0)])
    assert len(fill(server)) == 8


def grown(most: int, in_flight: int) -> tuple[Pace, list[int]]:
    server = Pace(most, POLICY)
    while len(numbers := fill(server)) < in_flight:
        answer(server, numbers)
    return server, numbers


def test_is_halved_once_in_a_round_trip_and_then_grows_by_a_fixed_step() -> None:
    server, numbers = grown(64, 64)
    for number in numbers:
        server.failed(number, 0.0, refused=True)
    rounds: list[int] = []
    for _ in range(4):
        numbers = fill(server)
        rounds.append(len(numbers))
        answer(server, numbers)
    assert rounds[0] == 32
    assert rounds[1:] == pytest.approx([48, 60, 64], abs=4)  # the step is shared out over replies


def test_every_round_trip_that_is_refused_halves_but_never_below_one() -> None:
    server, now = Pace(8, RetryPolicy(tries=99, first_wait=1)), 0.0
    limits: list[float] = []
    for _ in range(6):
        now += server.wait(now)
        server.failed(server.send(now), now, refused=True)
        limits.append(server.limit)
    assert limits == [4, 2, 1, 1, 1, 1]


def test_one_refusal_in_hundreds_is_chance_and_an_eighth_is_not() -> None:
    server, numbers = grown(256, 256)
    for number in numbers[:31]:
        server.failed(number, 0.0, refused=True)
    assert server.limit == 256
    server.failed(numbers[31], 0.0, refused=True)
    assert server.limit == 128


def test_failures_that_are_no_refusals_do_not_halve() -> None:
    server = Pace(8, POLICY)
    server.failed(fill(server)[0], 0.0)
    assert server.limit == 8


def test_retry_after_pauses_the_whole_server() -> None:
    server = Pace(8, POLICY)
    server.failed(server.send(0.0), 0.0, refused=True, retry_after=20)
    assert 20 <= server.wait(0.0) <= 21
    assert server.wait(19.9) > 0
    assert server.wait(21.1) == 0


def test_after_two_failed_round_trips_it_is_left_alone_and_probed_until_it_replies() -> None:
    server = Pace(16, POLICY)
    first, second = server.send(0.0), server.send(0.0)
    server.failed(first, 1.0)
    server.failed(second, 1.0)  # the same round trip
    assert server.strikes == 1
    assert server.wait(1.0) == 0
    server.failed(server.send(1.0), 1.0)
    assert server.strikes == 2
    assert 0.3 < server.wait(1.0) <= 0.5
    probe = fill(server, 2.0)
    assert len(probe) == 1
    server.failed(probe[0], 2.0)
    assert 1.5 <= server.wait(2.0) <= 2  # four times as long
    probe = fill(server, 5.0)
    answer(server, probe)
    assert len(fill(server, 5.0)) == 8


def test_default_pauses_outlast_limits_of_a_minute_and_waits_have_jitter() -> None:
    policy = RetryPolicy()
    assert sum(policy.pause(strikes) for strikes in range(1, policy.tries)) > 60
    assert len({policy.wait(3) for _ in range(10)}) > 1
    assert all(policy.first_wait * 2 <= policy.wait(3) <= policy.first_wait * 4 for _ in range(100))
    assert all(policy.wait(tries) <= policy.longest_wait for tries in range(1, 2000, 100))


def test_a_server_that_is_slow_and_refuses_nothing_gets_more_before_it_replies() -> None:
    server = Pace(64, POLICY)
    first = fill(server)
    assert server.wait(100.0) == math.inf  # it never replied
    server.answered(first[0])
    fill(server, 100.0)
    assert 0 < server.wait(101.0) < pace.LONGEST_ROUND
    assert len(fill(server, 101.0 + pace.LONGEST_ROUND)) >= 8


def simulated(
    most: int, refused: Callable[[int], bool], seconds: float, reply_after: float = 1.0
) -> tuple[float, float]:
    """Replies a second and the share of refused tries in the second half, of a server with a fake clock."""
    server, now, ends = Pace(most, POLICY), 0.0, list[tuple[float, int, bool]]()
    replies = refusals = 0
    while now < seconds:
        while server.wait(now) == 0:
            turned_down = refused(server.in_flight)
            number = server.send(now)
            heapq.heappush(ends, (now + (0.01 if turned_down else reply_after), number, turned_down))
        now, number, turned_down = heapq.heappop(ends)
        if turned_down:
            server.failed(number, now, refused=True)
        else:
            server.answered(number)
        if now > seconds / 2:
            replies, refusals = replies + (not turned_down), refusals + turned_down
    return replies / (seconds / 2), refusals / (replies + refusals)


@pytest.mark.parametrize("capacity", [1, 3, 8, 50, 200])
def test_a_server_with_a_limit_is_used_well_and_seldom_refuses(capacity: int) -> None:
    rate, refusals = simulated(512, lambda in_flight: in_flight >= capacity, 400)
    assert rate > 0.6 * capacity
    assert refusals < 0.36


def test_refusals_by_chance_do_not_keep_it_small() -> None:
    luck = random.Random(0)
    rate, _ = simulated(512, lambda _: luck.random() < 0.02, 100)
    assert rate > 400


def test_a_storm_is_soon_forgotten() -> None:
    server, numbers = grown(512, 512)
    now = 0.0
    for _ in range(6):
        for number in numbers:
            server.failed(number, now, refused=True)
        now += 100
        numbers = fill(server, now)
    assert server.limit == 128  # a refused probe says no more than that the storm lasts
    rounds = 0
    while len(numbers) < 500:
        answer(server, numbers)
        numbers, rounds = fill(server, now), rounds + 1
    assert rounds <= 6


def test_caps_let_everything_out_where_there_are_none() -> None:
    caps = Caps()
    assert not caps.counts_tokens
    for _ in range(100):
        assert caps.wait(10**9, 0.0) == 0
        caps.send(10**9, 0.0)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(20, 200),
    st.lists(st.tuples(st.floats(0, 40), st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=60),
)
def test_no_minute_holds_more_than_the_caps(requests: int, tokens: int, tries: list[tuple[float, int, int]]) -> None:
    caps, now, sent = Caps(requests, tokens), 0.0, list[tuple[float, int]]()
    for idle, estimate, used in tries:
        now += idle
        while (wait := caps.wait(estimate, now)) > 0:
            now += wait
        spent = caps.send(estimate, now)
        caps.correct(spent, min(used, estimate))
        sent.append((now, min(used, estimate)))
    for start, _ in sent:
        # A hair less than a minute: sums of floats.
        inside = [count for at, count in sent if start <= at < start + pace.MINUTE - 1e-6]
        assert len(inside) <= requests
        assert sum(inside) <= tokens


def test_what_usage_shows_to_be_unused_is_given_back() -> None:
    caps = Caps(tokens_per_minute=100)
    spent = caps.send(90, 0.0)
    assert caps.wait(50, 1.0) == 59
    caps.correct(spent, 10)
    assert caps.wait(50, 1.0) == 0


def test_a_request_beyond_a_whole_minute_goes_alone() -> None:
    caps = Caps(tokens_per_minute=100)
    assert caps.wait(500, 0.0) == 0
    caps.send(500, 0.0)
    assert caps.wait(1, 10.0) == 50
    assert caps.wait(500, 60.0) == 0
