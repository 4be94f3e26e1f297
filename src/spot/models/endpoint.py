"""A model behind any OpenAI-compatible endpoint: many requests in flight, retried with care, replies as they come.

Three kinds of failure are told apart, because they ask for different things of the user:

- the *request* was turned down (HTTP 400, content filter, an empty reply): it gets an error reply, the rest goes on;
- the *set-up* is wrong (key, model, URL): the first answer says so and nothing more is sent;
- the *endpoint* is down or will take no more: stop, commit nothing about requests that were never really answered.
"""

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import openai

from spot.errors import RunFailed, StoppedEarly, UserError
from spot.models import wire
from spot.models.base import Reply, Request
from spot.schema import Sampling, as_dicts

RETRIED_STATUS = frozenset({408, 409, 429})
OMITTABLE = frozenset({"temperature", "top_p", "max_tokens", "seed"})

# That many requests given up in a row, with no answer in between, say that the endpoint is to blame and not they.
PATIENCE = 8


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is tried and how long to wait in between, in seconds.

    Waits double from `first_wait` up to `longest_wait`, with jitter. A server's own Retry-After is obeyed instead, up
    to `longest_retry_after`; one that asks for more is taken at its word: the run stops and can be resumed.
    """

    tries: int = 6
    first_wait: float = 0.5
    longest_wait: float = 30.0
    longest_retry_after: float = 300.0

    def wait(self, tries_made: int, retry_after: float | None) -> float:
        """Seconds until the next try."""
        if retry_after is not None:
            # A little more than asked, spread out: all waiting requests were told the same moment.
            return retry_after + random.uniform(0, 0.1) * min(retry_after, 10)
        return random.uniform(0.5, 1) * min(self.first_wait * 2.0 ** (tries_made - 1), self.longest_wait)


@dataclass(frozen=True)
class _Failure:
    """A request without a reply: what failed (`unclear`: the request or the endpoint), and whether to try again."""

    id: str
    about: Literal["request", "unclear", "endpoint", "setup"]
    why: str
    retry: bool = True


_Outcome = Reply | _Failure | Exception


class EndpointModel:
    """A model served by an OpenAI-compatible endpoint; implements `spot.models.base.Model`.

    `api_key_env` names the environment variable that holds the key; `None` means that the server wants none.
    `timeout` is the most seconds one try may take, connection and reading included. `extra_body` is merged into every
    request; `omit` leaves out fields that a server refuses (of `temperature`, `top_p`, `max_tokens`, `seed`).

    Raises `UserError` for a malformed URL, a missing key or wrong arguments, before anything is sent.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str | None = None,
        concurrency: int = 16,
        *,
        timeout: float = 600.0,
        extra_body: Mapping[str, Any] | None = None,
        omit: Sequence[str] = (),
        retry: RetryPolicy | None = None,
    ) -> None:
        if concurrency < 1 or timeout <= 0:
            raise UserError(f"endpoint: concurrency ({concurrency}) and timeout ({timeout}) must be above 0")
        if unknown := set(omit) - OMITTABLE:
            raise UserError(f"endpoint: cannot omit {sorted(unknown)[0]!r}; only {', '.join(sorted(OMITTABLE))}")
        self.name = model
        self.base_url = checked_base_url(base_url)
        self.api_key_env = api_key_env
        self.extra_body = dict(extra_body or {})
        self.omit = frozenset(omit)
        self._key = read_key(api_key_env)
        self._concurrency = concurrency
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._reached = False
        self._answered = False

    @property
    def fingerprint(self) -> str:
        """What, beside messages and sampling, decides the replies; part of the key under which a reply is kept."""
        return json.dumps([self.base_url, self.name, self.extra_body, sorted(self.omit)], sort_keys=True)

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        """Answer what is not in `done`, in order of completion.

        Raises `UserError` where the key, the model or the URL is refused, `RunFailed` where nothing could be had, and
        `StoppedEarly` where the endpoint dies after it has given replies; those were yielded before.
        """
        todo = [request for request in requests if request.id not in done]
        outcomes: asyncio.Queue[_Outcome] = asyncio.Queue()
        triage = _Triage(self.base_url, answered=self._answered or bool(done))
        # One client a call: its connections belong to the running event loop, and callers may use several.
        async with self._client() as client:
            waiting = iter(todo)
            workers = [
                asyncio.create_task(self._work(client, waiting, sampling, outcomes))
                for _ in range(min(self._concurrency, len(todo)))
            ]
            try:
                missing = len(todo)
                while missing:
                    ready = [await outcomes.get()]
                    while not outcomes.empty():
                        ready.append(outcomes.get_nowait())
                    missing -= len(ready)
                    if replies := triage.sort(ready):
                        yield replies
                    triage.raise_if_over()
                if last := triage.settle():
                    yield last
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            # Never `None`: the SDK would then send OPENAI_API_KEY to whatever server this is.
            api_key=self._key or "none",
            base_url=self.base_url,
            max_retries=0,
            timeout=openai.Timeout(self._timeout, connect=min(10.0, self._timeout)),
        )

    async def _work(
        self,
        client: openai.AsyncOpenAI,
        waiting: Iterator[Request],
        sampling: Sampling,
        outcomes: asyncio.Queue[_Outcome],
    ) -> None:
        for request in waiting:
            try:
                outcome: _Outcome = await self._ask(client, request, sampling)
            except Exception as error:
                outcome = error
            outcomes.put_nowait(outcome)
            if isinstance(outcome, Exception) or _ends_the_run(outcome):
                return

    async def _ask(self, client: openai.AsyncOpenAI, request: Request, sampling: Sampling) -> Reply | _Failure:
        """One request with its retries."""
        tries_made = 0
        while True:
            tries_made += 1
            retry_after: float | None = None
            try:
                reply = await self._try(client, request, sampling)
                self._answered = self._answered or isinstance(reply, Reply)
                return reply
            except openai.APIStatusError as error:
                failure = self._status_failure(request, error)
                retry_after = wire.retry_after(error.response.headers)
            except openai.APIConnectionError as error:
                failure = self._connection_failure(request, error)
            except (TimeoutError, wire.UnreadableError) as error:
                why = str(error) or f"no answer within {self._timeout:g} s"
                failure = _Failure(request.id, "unclear", why)
            if not failure.retry:
                return failure
            if retry_after is not None and retry_after > self._retry.longest_retry_after:
                return _Failure(request.id, "endpoint", f"{failure.why}; it asks to wait {retry_after:.0f} s")
            if tries_made >= self._retry.tries:
                return _Failure(request.id, failure.about, f"{failure.why} ({tries_made} tries)")
            await asyncio.sleep(self._retry.wait(tries_made, retry_after))

    async def _try(self, client: openai.AsyncOpenAI, request: Request, sampling: Sampling) -> Reply | _Failure:
        async with asyncio.timeout(self._timeout):
            # The raw body, because what a server sends is not always what the SDK's types promise.
            response = await client.chat.completions.with_raw_response.create(
                model=self.name,
                messages=as_dicts(list(request.messages)),  # pyright: ignore[reportArgumentType]
                extra_body=self._fields(request, sampling),
            )
        self._reached = True
        reply = wire.read_completion(request.id, response.http_response.content)
        return reply if isinstance(reply, Reply) else _Failure(request.id, "request", self._clean(reply.why))

    def _fields(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            # 31 bits: servers keep seeds in signed integers of 32 or 64.
            "seed": request.seed & 0x7FFFFFFF,
        }
        return {key: value for key, value in fields.items() if key not in self.omit} | self.extra_body

    def _status_failure(self, request: Request, error: openai.APIStatusError) -> _Failure:
        self._reached = True
        status, says = error.status_code, self._clean(wire.server_says(error.body, error.response.text))
        if status == 401 or (status == 403 and not self._answered):
            return _Failure(request.id, "setup", self._key_refused(status), retry=False)
        if status == 404:
            return _Failure(request.id, "setup", self._not_found(says), retry=False)
        why = f"HTTP {status}: {says}" if says else f"HTTP {status}"
        if status == 402 or error.code == "insufficient_quota":
            return _Failure(request.id, "endpoint", f"the account is out of credit ({why})", retry=False)
        if status == 429:
            return _Failure(request.id, "endpoint", why)
        if status in RETRIED_STATUS or status >= 500:
            return _Failure(request.id, "unclear", why)
        return _Failure(request.id, "request", why, retry=False)

    def _connection_failure(self, request: Request, error: openai.APIConnectionError) -> _Failure:
        cause = error.__cause__
        # By name: the SDK's transport library is its own affair and has changed before.
        kind = type(cause).__name__
        detail = self._clean(str(cause)) or kind
        if kind not in ("ConnectError", "ConnectTimeout"):
            timed_out = isinstance(error, openai.APITimeoutError)
            why = f"no answer within {self._timeout:g} s" if timed_out else f"connection broken ({detail})"
            return _Failure(request.id, "unclear", why)
        if kind == "ConnectError" and not self._reached:
            why = f"{self.base_url}: cannot connect ({detail}); is the server running, and is the URL right?"
            return _Failure(request.id, "setup", why, retry=False)
        return _Failure(request.id, "endpoint", f"cannot connect ({detail})")

    def _key_refused(self, status: int) -> str:
        if self.api_key_env is None:
            return (
                f"{self.base_url} wants a key (HTTP {status}); put it into an environment variable and name that "
                "variable as api_key_env"
            )
        return (
            f"{self.base_url} refuses the key in the environment variable {self.api_key_env} (HTTP {status}) for "
            f"model {self.name!r}; set it to a key that is valid there"
        )

    def _not_found(self, says: str) -> str:
        if self.name not in says and not re.search(r"/v\d", urlsplit(self.base_url).path):
            return (
                f"{self.base_url}/chat/completions does not exist (HTTP 404); the path of such a URL mostly ends in "
                f"/v1: try {self.base_url}/v1"
            )
        detail = f": {says}" if says else ""
        return f"{self.base_url} has no model {self.name!r} (HTTP 404{detail})"

    def _clean(self, text: str) -> str:
        """One short line, without the key even where a server repeats it."""
        if self._key:
            text = text.replace(self._key, f"[{self.api_key_env}]")
        return wire.one_line(text)


@dataclass
class _Triage:
    """Decides what failed requests mean, from what came before and after them.

    A request that was tried in vain may be to blame itself (a prompt that crashes the server) or the endpoint may be.
    Such failures are held back until another request is answered; only then are they recorded as error replies. If
    nothing more is answered they are not recorded, and a resumed run asks them again.
    """

    base_url: str
    answered: bool
    _held: list[_Failure] = field(default_factory=list[_Failure])
    _over: Exception | None = None

    def sort(self, outcomes: Sequence[_Outcome]) -> list[Reply]:
        """The replies that can be committed now; what ends the run is kept for `raise_if_over`."""
        replies: list[Reply] = []
        for outcome in outcomes:
            if isinstance(outcome, Reply):
                self.answered = True
                replies += [*self._release(), outcome]
            elif isinstance(outcome, Exception):
                self._over = self._over or outcome
            elif outcome.about == "setup":
                self._over = self._over or UserError(outcome.why)
            elif outcome.about == "endpoint":
                self._over = self._over or self._dead(outcome)
            elif outcome.about == "request" and self.answered:
                replies.append(_error_reply(outcome))
            else:
                self._held.append(outcome)
                if len(self._held) >= PATIENCE:
                    self._over = self._over or self._dead(outcome)
        return replies

    def raise_if_over(self) -> None:
        """Raise what ends the run, if anything does."""
        if self._over is not None:
            raise self._over

    def settle(self) -> list[Reply]:
        """At the end: what is still held is its own fault if the endpoint has answered anything at all."""
        if self._held and not self.answered:
            raise self._dead(self._held[-1])
        return self._release()

    def _release(self) -> list[Reply]:
        held, self._held = self._held, []
        return [_error_reply(failure) for failure in held]

    def _dead(self, failure: _Failure) -> Exception:
        if not self.answered:
            return RunFailed(f"{self.base_url} answered no request; the last failure: {failure.why}")
        return StoppedEarly(
            f"{self.base_url} stopped answering: {failure.why}; all replies so far are kept, the same command goes on"
        )


def _ends_the_run(outcome: Reply | _Failure) -> bool:
    return isinstance(outcome, _Failure) and outcome.about in ("setup", "endpoint")


def _error_reply(failure: _Failure) -> Reply:
    return Reply(id=failure.id, text="", finish_reason="error", error=failure.why)


def read_key(api_key_env: str | None) -> str | None:
    """The key in the environment variable `api_key_env`; raises `UserError` where it is unset or cannot be one."""
    if api_key_env is None:
        return None
    if not re.fullmatch(r"[A-Za-z_]\w*", api_key_env, re.ASCII):
        # Not echoed: a key pasted here by mistake is the likely cause.
        raise UserError("api_key_env is the *name* of an environment variable (letters, digits, _), not a key")
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        # The same care: only what looks like such a name is echoed.
        shown = f" {api_key_env}" if re.fullmatch(r"[A-Z][A-Z0-9_]*", api_key_env) else " named by api_key_env"
        raise UserError(f"the environment variable{shown} is not set; put the endpoint's key into it")
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"the environment variable {api_key_env} holds characters that no key has (spaces, non-ASCII)")
    return key


def checked_base_url(base_url: str) -> str:
    """`base_url` without a trailing slash; raises `UserError` where it is no http(s) URL or carries a password."""
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"base_url: not a URL ({error}); expected something like http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.password is not None:
        raise UserError("base_url carries a user name or password; put the key into an environment variable instead")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        shown = base_url.partition("?")[0]  # keys hide in queries
        raise UserError(f"base_url {shown!r}: expected something like http://127.0.0.1:8000/v1")
    return base_url.rstrip("/").removesuffix("/chat/completions")
