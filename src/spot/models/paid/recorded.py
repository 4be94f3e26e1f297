"""A model whose every request goes through the ledger: nothing is paid twice, and nothing beyond a limit."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from spot.errors import StoppedEarly
from spot.models.base import Model, NoMore, Reply, Request, closed, request_key
from spot.models.endpoint import completion
from spot.models.endpoint.failures import PATIENCE
from spot.models.paid.gate import LedgerGate
from spot.models.paid.ledger import (
    Entry,
    Kept,
    Ledger,
    Operation,
    Prices,
    Replied,
    Reread,
)
from spot.schema import Sampling, as_dicts

TEMPLATE_TOKENS = 64
"""What a chat template may add to a prompt, a message."""

MARGIN = 1.5
"""Where a server does not hold what it generates to the limit that it was given (thinking, mostly), so many times the
largest output seen is reserved for a request."""

COMMANDS = 3
"""This many failed commands tell a request that always fails from an endpoint that is often down."""

_log = logging.getLogger(__name__)


class Turnstile(Protocol):
    """Decides, beside the account, what is still worth sending."""

    async def enter(self, request: Request) -> None:
        """Wait until `request` is wanted; raises `NoMore` when nothing is."""
        ...


class RecordedModel:
    """`model` behind `ledger`; implements `spot.models.base.Model`.

    What is on record is yielded at once. With `max_cost`, in dollars and of the whole ledger, a request is sent only if
    its worst case still fits; where it does not and nothing is on its way, `StoppedEarly`. The worst case is
    `max_new_tokens`, and once a reply was longer than that, a multiple of the longest: what is on its way then may pass
    the limit, which is said. `stage` is what the account books it under.
    """

    def __init__(
        self,
        model: Model,
        ledger: Ledger,
        stage: str,
        prices: Prices | None = None,
        max_cost: float | None = None,
        turnstile: Turnstile | None = None,
    ) -> None:
        self.name = model.name
        self.turnstile = turnstile
        self._model = model
        self._ledger = ledger
        self._stage = stage
        self._prices = prices or Prices()
        self._max_cost = max_cost
        self._said: set[str] = set()
        self._reserved = 0  # output tokens; more than a request may have where its server does not hold to that
        if max_cost is not None:
            self._reserve(ledger.longest_beyond_limit(self.fingerprint))

    @property
    def gated(self) -> bool:
        """Whether every request is admitted by itself, so that no more are sent than `turnstile` wants."""
        return hasattr(self._model, "gate")

    @property
    def fingerprint(self) -> str:
        """What, beside messages and sampling, decides the replies."""
        return str(getattr(self._model, "fingerprint", self._model.name))

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        """Answer what is not in `done`: first what is on record, then what has to be sent, as it comes."""
        by_id = {request.id: request for request in requests}
        key_of = {id: request_key(self.fingerprint, request, sampling) for id, request in by_id.items()}
        open_ = {key: id for id, key in key_of.items() if id not in done}
        given_up = self._ledger.given_up(list(open_))
        if self.gated:
            # What may be had comes first; the rest is then known to fail beside it, or is not tried at all.
            by_id = dict(sorted(by_id.items(), key=lambda item: key_of[item[0]] in given_up))
        answered = set(done)
        try:
            async for group in self._on_record(open_, by_id):
                answered.update(reply.id for reply in group)
                yield group
        except NoMore:
            return
        gate = LedgerGate(self, key_of, sampling, doubtful(given_up))
        try:
            # All requests are passed, because a local model forms its batches over the whole list.
            async with closed(self._asked(gate, by_id, sampling, answered)) as groups:
                async for group in groups:
                    yield group
        except NoMore:
            return
        finally:
            await gate.close()

    async def _on_record(self, ids_by_key: dict[str, str], by_id: dict[str, Request]) -> AsyncIterator[list[Reply]]:
        """What was sent before. It is free, and yet no more of it is taken than is wanted."""
        for group in self._ledger.kept(ids_by_key):
            replies = await self._recalled(group, ids_by_key)
            if self.turnstile is None or not self.gated:
                if replies:
                    yield replies
                continue
            for reply in replies:
                await self.turnstile.enter(by_id[reply.id])
                yield [reply]

    async def _recalled(self, group: Sequence[Kept], ids_by_key: dict[str, str]) -> list[Reply]:
        """Replies as today's reader finds them in what came; where that is more than was found then, it is booked."""
        replies: list[Reply] = []
        booked: list[Operation] = []
        for one in group:
            reply = completion.reread(ids_by_key[one.key], one.bodies)
            if one.reply is None and reply is not None:
                booked.append(self.operation(one.key, reply))
            elif one.reply is not None and (reply is None or reply.finish_reason == "error"):
                reply = one.reply
            elif one.reply is not None and reply is not None and one.reply.finish_reason == "error":
                booked.append(Reread(one.key, reply))
            replies += [reply] if reply else []
        if booked:
            await asyncio.to_thread(self._ledger.apply, booked)
        self.tell_of(replies)
        return replies

    def tell_of(self, replies: Sequence[Reply]) -> None:
        """Say once each what is odd about replies, and that another model answers under the same name."""
        for reply in replies:
            if reply.remark and "" not in self._said:
                self._said.add("")
                _log.warning("%s: %s", self.name, reply.remark)
            if reply.model and reply.model not in self._said:
                before = sorted(self._said - {""})
                self._said.add(reply.model)
                if before:
                    names = ", ".join(map(repr, before))
                    _log.warning("%s: replies now name the model %r, before %s", self.name, reply.model, names)

    async def _asked(
        self, gate: LedgerGate, by_id: dict[str, Request], sampling: Sampling, answered: set[str]
    ) -> AsyncIterator[list[Reply]]:
        """The model's replies, committed before they are yielded; other processes' as they settle."""
        key_of, requests = gate.key_of, list(by_id.values())
        while True:
            todo = {key_of[request.id]: request.id for request in requests if request.id not in answered}
            owners = self._ledger.in_flight_elsewhere(list(todo))
            elsewhere = {todo[key] for key in owners}
            if len(todo) > len(elsewhere):
                async with closed(self._sent(gate, requests, sampling, frozenset(answered | elsewhere))) as groups:
                    async for replies in groups:
                        answered.update(reply.id for reply in replies)
                        yield replies
                elsewhere |= gate.skipped
            if not elsewhere or gate.closed_by_turnstile:
                return
            await gate.wait_for(owners.values())
            async for replies in self._on_record({key_of[id]: id for id in elsewhere}, by_id):
                answered.update(reply.id for reply in replies)
                yield replies

    async def _sent(
        self, gate: LedgerGate, requests: Sequence[Request], sampling: Sampling, done: frozenset[str]
    ) -> AsyncIterator[list[Reply]]:
        sends: Any = self._model
        if self.gated:
            sends.gate = gate
        else:
            # A model in process: what it costs is time, but its replies are on record like any other.
            await gate.admit_all([request for request in requests if request.id not in done])
        try:
            async with closed(self._model.generate(requests, sampling, done | gate.skipped)) as groups:
                async for group in groups:
                    replies = [gate.last_word(reply) for reply in group]
                    await gate.replied(replies)
                    self.tell_of(replies)
                    yield replies
        finally:
            if self.gated:
                sends.gate = None

    async def recall(self, key: str, request_id: str) -> Reply:
        """The reply on record under `key`."""
        [group] = self._ledger.kept({key: request_id})
        [reply] = await self._recalled(group, {key: request_id})
        return reply

    def entry(self, request: Request, sampling: Sampling, key: str) -> Entry:
        """What the ledger keeps of a request."""
        body: dict[str, Any] = {
            "messages": as_dicts(list(request.messages)),
            "sampling": sampling.model_dump(),
            "seed": request.seed,
            **({"prefix": request.prefix} if request.prefix else {}),
        }
        return Entry(
            key,
            self._stage,
            self.fingerprint,
            self.name,
            request.id,
            request.candidate,
            request.attempt,
            json.dumps(body, ensure_ascii=False),
            worst_cost(request, sampling, self._prices, self._reserved),
        )

    def _reserve(self, output: int) -> None:
        self._reserved = max(self._reserved, math.ceil(MARGIN * output))

    def learn(self, reply: Reply, sampling: Sampling, on_their_way: int) -> None:
        """Reserve more for the requests to come where a reply was longer than it might have been."""
        output, reserved = reply.usage.output_tokens if reply.usage else 0, self._reserved
        if self._max_cost is None or output <= max(sampling.max_new_tokens, reserved):
            return
        self._reserve(output)
        more = self._prices.output * (self._reserved - (reserved or sampling.max_new_tokens)) / 1e6
        _log.warning(
            "%s: a reply took %s output tokens, and max_new_tokens is %s: thinking is not limited there. From now on "
            "%s output tokens a request are reserved, %g times that; the %d requests on their way may pass max_cost by "
            "%s, and by more if one thinks longer still (limit thinking in extra_body, or lower concurrency)",
            *(self.name, f"{output:,}", f"{sampling.max_new_tokens:,}", f"{self._reserved:,}", MARGIN, on_their_way),
            dollars(on_their_way * more),
        )

    def operation(self, key: str, reply: Reply) -> Replied:
        """What the ledger is told of a reply."""
        return Replied(key, reply, None if reply.usage is None else self._prices.cost(reply.usage))

    def no_room(self, worst: float) -> StoppedEarly:
        """What ends a run whose next request, at `worst` dollars, does not fit any more."""
        spent, open_ = self._ledger.spent()
        return StoppedEarly(
            f"max_cost: {dollars(spent)} are spent, up to {dollars(open_)} may be, and the next request could cost "
            f"{dollars(worst)}, which is more than ${self._max_cost:g} allow; raise it and run the same command "
            "again; it resumes from here"
        )

    @property
    def ledger(self) -> Ledger:
        """Where requests are written."""
        return self._ledger

    @property
    def max_cost(self) -> float | None:
        """Dollars that the ledger may come to."""
        return self._max_cost


def doubtful(given_up: Mapping[str, int]) -> set[str]:
    """The keys whose next failure is taken for the server's last word, by how many commands tried them without success.

    A few that failed in one command may be to blame themselves. As many as a server that was down for a while leaves
    behind have to fail in several.
    """
    enough = 1 if len(given_up) < PATIENCE else COMMANDS
    return {key for key, commands in given_up.items() if commands >= enough}


def dollars(amount: float) -> str:
    """An amount in dollars, cents where it is whole ones and more, else down to a hundredth of a cent."""
    return f"${amount:.2f}" if amount >= 1 or not amount else f"${amount:.4f}"


def worst_cost(request: Request, sampling: Sampling, prices: Prices, output: int = 0) -> float:
    """The most dollars that one try can cost: a token is never shorter than a byte. `output` is how many tokens its
    server may generate whatever `max_new_tokens` is."""
    prompt = sum(len(message.content.encode()) + TEMPLATE_TOKENS for message in request.messages)
    prompt += len(request.prefix.encode())
    return (prices.input * prompt + prices.output * max(sampling.max_new_tokens, output)) / 1e6
