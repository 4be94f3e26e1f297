"""A model is one thing: requests in, an asynchronous stream of replies as they complete."""

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from spot.errors import StoppedEarly
from spot.schema import FinishReason, Message, Sampling, as_dicts

Item = TypeVar("Item")


@dataclass(frozen=True)
class Request:
    """One question to a model. `id` is unique in a run; `seed` is this request's own.

    `candidate` and `attempt` tell apart requests with the same messages; `about` is what it is about (an
    attempt's id), for whoever decides what is still worth sending. `prefix` is the beginning of the answer: the
    model continues from there, and the reply's text is only what it adds.
    """

    id: str
    messages: tuple[Message, ...]
    seed: int
    candidate: int = 0
    attempt: int = 0
    about: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens that a reply was charged for; `total_tokens` and `reasoning_tokens` where the server gives them.

    Some providers count reasoning in `completion_tokens`, some only in `total_tokens`.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | None = None
    reasoning_tokens: int | None = None

    @property
    def output_tokens(self) -> int:
        """What was generated, reasoning included: never less than the total without the prompt."""
        thought = self.reasoning_tokens or 0
        outside = thought if thought > self.completion_tokens else 0  # more than the whole is no part of it
        return max(self.completion_tokens + outside, (self.total_tokens or 0) - self.prompt_tokens)


@dataclass(frozen=True)
class Body:
    """What a server sent for a request, byte for byte (decompressed), or a line of a batch's output.

    `redacted` says that it held the key, which was taken out.
    """

    content: bytes
    content_type: str = ""
    redacted: bool = False


@dataclass(frozen=True)
class Reply:
    """What came back for the request of the same id.

    `text` is without special tokens and without the end-of-turn token; `token_ids` are the sampled ids of the answer
    (end-of-turn included where it was sampled), `None` where the model does not give them. With
    `finish_reason == "error"`, `text` is empty and `error` says why in one line; `passing` is an error that may not
    happen to the next command, so that nothing is stored of it. `reasoning` is what a server keeps beside the answer,
    `refusal` what it calls a refusal, `model` the model that the reply names; `usage` is `None` where it does not say.
    `remark` is what a user should be told about it. `body` is what this was read from: an error reply with a body was
    answered, and paid for.
    """

    id: str
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] | None = None
    error: str = ""
    reasoning: str = ""
    usage: Usage | None = None
    refusal: str = ""
    model: str = ""
    remark: str = ""
    body: Body | None = field(default=None, compare=False, repr=False)
    passing: bool = False


class Unanswered:
    """Requests of one stage that got no reply for a reason that may pass: the same command sends them again."""

    def __init__(self) -> None:
        self.why: dict[str, str] = {}

    def sift(self, replies: Sequence[Reply]) -> list[Reply]:
        """Keep those aside; the others are returned."""
        self.why.update((reply.id, reply.error) for reply in replies if reply.passing)
        return [reply for reply in replies if not reply.passing]

    def check(self, of: int) -> None:
        """Raise `StoppedEarly` where there are any, `of` being how many requests there were."""
        if self.why:
            first, why = next(iter(self.why.items()))
            raise StoppedEarly(
                f"{len(self.why):,} of {of:,} requests got no reply, for a reason that may pass (the first, {first}: "
                f"{why}); run the same command again: it sends only these, and records as refused what fails again"
            )


class NoMore(Exception):
    """A gate wants nothing more sent: what is on its way is waited for and yielded, the rest is left unasked."""


class Gate(Protocol):
    """Decides, before money is spent, what is sent; a model that sends requests over a network has one as `gate`.

    `proven` says that the endpoint has answered before, in another process perhaps; `doubtful` are the ids of requests
    that failed in an earlier command.
    """

    proven: bool
    doubtful: frozenset[str]

    async def admit(self, request: Request, sampling: Sampling) -> Reply | None:
        """Called right before every try of a request is sent, and waited for. A reply that it gives is yielded in place
        of sending.

        Raises `NoMore` or `StoppedEarly` to end the run: the model then sends nothing more, waits for what is on its
        way, yields those replies, and ends (`NoMore`) or raises the `StoppedEarly`.
        """
        ...

    async def received(self, request: Request, body: Body) -> None:
        """Called with what came for a try, before anything reads it, and waited for."""
        ...

    def refused(self, request: Request, charged: bool | None) -> None:
        """A try ended without a reply. `charged` is false where the server turned it down, `None` where it is not
        known (a time-out, a connection that broke after sending)."""
        ...


class Model(Protocol):
    """Who writes text. `name` is what rows and reports call it."""

    name: str

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        """Answer `requests` and yield replies in groups, each group ready to be committed at once.

        Requests whose id is in `done` are already answered and are not yielded again. They are passed all the same:
        a model whose numbers depend on how requests are batched forms its batches over the whole list, so that a
        resumed run gives the same replies as an uninterrupted one.
        """
        ...


@asynccontextmanager
async def closed(groups: AsyncIterator[Item]) -> AsyncGenerator[AsyncIterator[Item]]:
    """`groups`, closed at the end of the `with` block whatever ends it: a generator that is left is closed by the event
    loop some time, and what it had under way runs on until then."""
    try:
        yield groups
    finally:
        close = getattr(groups, "aclose", None)
        if close is not None:
            await close()


def request_key(endpoint: str, request: Request, sampling: Sampling) -> str:
    """Hash over all that decides a reply; nothing stale is ever reused, and k candidates are k requests."""
    parts: list[Any] = [
        *(endpoint, as_dicts(list(request.messages)), sampling.model_dump(), request.seed),
        *(request.candidate, request.attempt, request.prefix),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
