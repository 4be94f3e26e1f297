"""Somebody who runs the same command again and again, each time as a process of its own in the ledger's eyes."""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spot.errors import StoppedEarly
from spot.models.base import Reply, Request
from spot.models.endpoint.model import EndpointModel, RetryPolicy
from spot.models.paid.batch import BatchModel, Waits
from spot.models.paid.ledger import Ledger, Prices
from spot.models.paid.recorded import RecordedModel, Turnstile
from spot.schema import Message, Sampling

KEY = os.environ["SPOT_TEST_KEY"] = "sk-planted-5c1e0b"
WAITS = Waits(first=0.01, longest=0.02, listed=0.0, grace=0.2)
RETRY = RetryPolicy(tries=3, first_wait=0.001, longest_wait=0.002)
SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_new_tokens=100)
PRICE = Prices(input=1e5, output=1e5)  # a reply of the fake server costs $3


def ask(*names: str) -> list[Request]:
    return [Request(f"id-{name}", (Message(role="user", content=name),), seed=n) for n, name in enumerate(names)]


class User:
    """A run directory and the commands on it."""

    def __init__(self, folder: Path, url: str, **options: Any) -> None:
        self.path = folder / "ledger.sqlite"
        self.url = url
        self.options: dict[str, Any] = {"waits": WAITS, "retry": RETRY} | options
        self.said: list[str] = []
        self.stopped: StoppedEarly | None = None
        self.turnstile: Turnstile | None = None
        self.max_cost: float | None = None

    def model(self, ledger: Ledger, **options: Any) -> RecordedModel:
        endpoint = EndpointModel("m", self.url, "SPOT_TEST_KEY")
        batch = BatchModel(endpoint, ledger, say=self.said.append, **self.options | options)
        return RecordedModel(batch, ledger, "rectify", PRICE, self.max_cost, self.turnstile)

    def run(
        self, requests: Sequence[Request], on_reply: Callable[[Reply], None] | None = None, **options: Any
    ) -> dict[str, Reply]:
        """Replies by id, also those that came before the run was stopped, which is then in `stopped`."""
        self.stopped = None
        replies: dict[str, Reply] = {}

        async def go() -> None:
            with Ledger(self.path) as ledger:
                async for group in self.model(ledger, **options).generate(requests, SAMPLING):
                    for reply in group:
                        assert reply.id not in replies
                        replies[reply.id] = reply
                        if on_reply:
                            on_reply(reply)

        try:
            asyncio.run(go())
        except StoppedEarly as error:
            self.stopped = error
        return replies

    def spent(self) -> tuple[float, float]:
        with Ledger(self.path) as ledger:
            return ledger.spent()


def texts(replies: dict[str, Reply]) -> dict[str, str]:
    return {id: reply.text or reply.error for id, reply in replies.items()}
