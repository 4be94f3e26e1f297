"""Exactly so many pairs: who may be asked, and who waits."""

import asyncio

import pytest

from spot.models.base import NoMore, Request
from spot.rectify.target import Target


def about(name: str, candidate: int = 0) -> Request:
    return Request(f"{name}.{candidate}", (), 0, candidate=candidate, about=name)


def test_no_more_failures_are_on_their_way_than_pairs_are_missing() -> None:
    async def go() -> None:
        target = Target(2)
        await target.enter(about("a"))
        await target.enter(about("b"))
        await target.enter(about("a", 1))  # another candidate of one that is on its way
        waiting = asyncio.create_task(target.enter(about("c")))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        target.leave("a", 0)
        await asyncio.sleep(0.01)
        assert not waiting.done()  # its other candidate is still on its way
        target.leave("a", 1)
        await waiting
        target.leave("b", 0, accepted=True)
        assert target.missing == 1
        target.leave("c", 0, accepted=True)
        with pytest.raises(NoMore):
            await target.enter(about("d"))

    asyncio.run(go())


def test_two_good_candidates_are_one_pair() -> None:
    target = Target(2)
    target.leave("a", 0, accepted=True)
    target.leave("a", 1, accepted=True)
    assert target.missing == 1


def test_those_who_wait_are_told_when_nothing_is_wanted_any_more() -> None:
    async def go() -> None:
        target = Target(1)
        await target.enter(about("a"))
        waiting = [asyncio.create_task(target.enter(about(name))) for name in "bc"]
        await asyncio.sleep(0.01)
        target.leave("a", 0, accepted=True)
        assert [type(found) for found in await asyncio.gather(*waiting, return_exceptions=True)] == [NoMore, NoMore]

    asyncio.run(go())


def test_a_target_outlives_the_loop_of_one_round() -> None:
    target = Target(1)

    async def go(first: str, second: str, accepted: bool) -> None:
        await target.enter(about(first))
        waiting = asyncio.create_task(target.enter(about(second)))
        await asyncio.sleep(0.01)
        target.leave(first, 0)
        await waiting
        target.leave(second, 0, accepted=accepted)

    asyncio.run(go("a", "b", accepted=False))
    asyncio.run(go("c", "d", accepted=True))
    assert not target.missing
