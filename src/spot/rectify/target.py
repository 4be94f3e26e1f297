"""Exactly so many pairs: a correction is requested only while it may still be needed."""

import asyncio
from collections import defaultdict

from spot.models.base import NoMore, Request


class Target:
    """Lets requests through while fewer failures are on their way than pairs are missing.

    A failure gives at most one pair, so no more pairs come than are wanted, and nothing is paid for in vain at the end.
    Implements `spot.models.paid.recorded.Turnstile`.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._accepted: set[str] = set()
        self._on_their_way: defaultdict[str, set[int]] = defaultdict(set)
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def missing(self) -> int:
        """Pairs that are still wanted."""
        return max(0, self.wanted - len(self._accepted))

    async def enter(self, request: Request) -> None:
        """Wait until the failure that `request` is about is wanted; raises `NoMore` when none is."""
        while True:
            if request.about in self._on_their_way:
                self._on_their_way[request.about].add(request.candidate)
                return
            if not self.missing:
                raise NoMore
            if len(self._on_their_way) < self.missing:
                self._on_their_way[request.about].add(request.candidate)
                return
            # A future of this very loop: a target outlives the loop of one round of attempts.
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]

    def leave(self, about: str, candidate: int, *, accepted: bool = False) -> None:
        """A candidate's correction was judged, or has to be requested again later."""
        if accepted:
            self._accepted.add(about)
        waiting = self._on_their_way.get(about)
        if waiting is not None:
            waiting.discard(candidate)
            if not waiting:
                del self._on_their_way[about]
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
