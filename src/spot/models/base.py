"""A model is one thing: requests in, an asynchronous stream of replies as they complete."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from spot.schema import FinishReason, Message, Sampling


@dataclass(frozen=True)
class Request:
    """One question to a model. `id` is unique in a run; `seed` is this request's own."""

    id: str
    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True)
class Reply:
    """What came back for the request of the same id.

    `text` is without special tokens and without the end-of-turn token; `token_ids` are the sampled ids of the answer
    (end-of-turn included where it was sampled), `None` where the model does not give them. With
    `finish_reason == "error"`, `text` is empty and `error` says why in one line.
    """

    id: str
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] | None = None
    error: str = ""


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
