"""A model behind OpenAI-compatible endpoints: many requests in flight, retried with care, replies as they come.

Three kinds of failure are told apart, because they ask for different things of the user:

- the *request* was refused (HTTP 400, content filter, an empty reply): it gets an error reply, the rest continues;
- the *set-up* is wrong (key, model, URL): the first reply says so and nothing more is sent;
- the *endpoint* is down or will take no more, or the account is empty: stop, commit nothing about requests that were
  never really answered.

Where and when requests are sent is in `dispatch`, how fast in `pace`, what a failure means in `failures`, and what a
reply says in `completion`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import openai

from spot.errors import UserError
from spot.models.base import Gate, Reply, Request
from spot.models.endpoint import completion
from spot.models.endpoint.completion import UnreadableError
from spot.models.endpoint.connection import Clients, OversizedError, checked_base_url, checked_base_urls, read_key
from spot.models.endpoint.dispatch import Dispatch
from spot.models.endpoint.error_body import retry_after
from spot.models.endpoint.failures import PATIENCE, Diagnosis, Outcome, Triage, dead
from spot.models.endpoint.pace import Caps, RetryPolicy, Server, Servers
from spot.schema import Sampling

__all__ = ["PATIENCE", "EndpointModel", "RetryPolicy", "checked_base_url", "checked_base_urls", "read_key"]

OMITTABLE = frozenset({"temperature", "top_p", "seed"})
RESERVED = frozenset({"model", "messages", "stream", "n", "max_tokens", "max_completion_tokens"})
"""What `extra_body` may not set: what is read of a reply, and how much it can cost, hang on these."""

SECRET_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "cookie", "proxy-authorization"})


class EndpointModel:
    """A model served by OpenAI-compatible endpoints; implements `spot.models.base.Model`.

    `base_url` is one URL or several that serve the same model; requests go where the fewest are in flight.
    `api_key_env` names the environment variable that holds the key; `None` means that the servers require none.
    `concurrency` is the most requests in flight, those included that came back and are not yet taken from `generate`;
    how many are is found out (see `pace`). `connect_timeout` and `timeout` are the most seconds that connecting and
    the whole of one try may take. `extra_body` is merged into every request, `extra_headers` are sent with it; `omit`
    drops fields that a server refuses (of `temperature`, `top_p`, `seed`), and `tokens_field` is what it calls the
    most tokens of a reply. `requests_per_minute` and `tokens_per_minute` are caps over all URLs together. `gate` is
    consulted before every try. A model may serve several `generate` at once, in one event loop.

    Raises `UserError` for a malformed URL, a missing key or wrong arguments, before anything is sent.
    """

    def __init__(
        self,
        model: str,
        base_url: str | Sequence[str],
        api_key_env: str | None = None,
        concurrency: int = 16,
        *,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        omit: Sequence[str] = (),
        tokens_field: str = "max_tokens",
        retry: RetryPolicy | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        gate: Gate | None = None,
    ) -> None:
        for name, value in {
            "concurrency": concurrency, "timeout": timeout, "connect_timeout": connect_timeout,
            "requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute,
        }.items():  # fmt: skip
            if value is not None and value <= 0:
                raise UserError(f"endpoint: {name} ({value}) must be above 0")
        if unknown := set(omit) - OMITTABLE:
            raise UserError(f"endpoint: cannot omit {sorted(unknown)[0]!r}; only {', '.join(sorted(OMITTABLE))}")
        if taken := RESERVED & set(extra_body or {}):
            raise UserError(
                f"extra_body: {sorted(taken)[0]!r} cannot be set there; max_new_tokens is the limit of a reply, and "
                "tokens_field what the server calls it"
            )
        if taken := {name.lower() for name in extra_headers or {}} & SECRET_HEADERS:
            raise UserError(
                f"extra_headers: {sorted(taken)[0]!r} cannot be set there; put the key into an environment variable "
                "and name that as api_key_env"
            )
        self.name = model
        self.headers = dict(extra_headers or {})
        self.base_urls = checked_base_urls(base_url)
        self.api_key_env = api_key_env
        self._omit = frozenset(omit)
        self._extra = dict(extra_body or {})
        self._tokens_field = tokens_field
        self.gate = gate
        self._key = read_key(api_key_env)
        self._connect_timeout = min(connect_timeout, timeout)
        self._diagnosis = Diagnosis(model, api_key_env, self._key, timeout)
        caps = Caps(requests_per_minute, tokens_per_minute)
        self._pool = Servers(self.base_urls, concurrency, retry or RetryPolicy(), caps)

    @property
    def fingerprint(self) -> str:
        """What, beside messages and sampling, decides the replies; part of the key under which a reply is kept."""
        where = self.base_urls[0] if len(self.base_urls) == 1 else sorted(self.base_urls)
        decides: list[Any] = [where, self.name, self._extra, sorted(self._omit)]
        tokens_field = [] if self._tokens_field == "max_tokens" else [self._tokens_field]
        return json.dumps([*decides, *tokens_field], sort_keys=True)

    def body(self, request: Request, sampling: Sampling) -> bytes:
        """A chat completion's request as it is sent; a prefix in the way of vLLM and SGLang."""
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        fields: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._tokens_field: sampling.max_new_tokens,
            # 31 bits: servers keep seeds in signed integers of 32 or 64.
            "seed": request.seed & 0x7FFFFFFF,
        }
        sent: dict[str, Any] = {"model": self.name, "messages": messages}
        sent |= {name: value for name, value in fields.items() if name not in self._omit} | self._extra
        if request.prefix:
            messages.append({"role": "assistant", "content": request.prefix})
            sent |= {"continue_final_message": True, "add_generation_prompt": False}
        return json.dumps(sent, ensure_ascii=False, separators=(",", ":")).encode()

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        """Answer what is not in `done`, in order of completion.

        Raises `UserError` where the key, the model or the URL is refused, `RunFailed` where nothing could be had, and
        `StoppedEarly` where all endpoints die after they have given replies, or the account is empty; what was in
        flight then is waited for, and all replies are yielded before. A `gate` ends it as its protocol says.
        """
        gate = self.gate
        doubtful = frozenset[str]() if gate is None else gate.doubtful
        proven = bool(done) or (gate is not None and gate.proven)
        answered = proven or any(server.answered for server in self._pool.servers)
        triage = Triage(answered, doubtful)
        async with Clients(self._key, self._connect_timeout, self.headers) as lines:

            async def send(server: Server, request: Request) -> Outcome:
                return await self._try(lines, server, request, sampling, gate)

            todo = [request for request in requests if request.id not in done]
            run = Dispatch(self._pool, todo, sampling, send, gate, answered, doubtful)
            try:
                while (outcomes := await run.next()) != []:
                    if outcomes is None:
                        # The gate may be waiting for the very requests that are held back.
                        if triage.held and not triage.answered:
                            run.end(self._hopeless(triage), drain=False)
                        elif triage.held:
                            yield triage.release()
                        continue
                    if replies := triage.sort(outcomes):
                        yield replies
                    if triage.hopeless:
                        run.end(self._hopeless(triage), drain=triage.answered)
                if not run.ended and triage.held:
                    if not triage.answered:
                        raise self._hopeless(triage)
                    yield triage.release()
            finally:
                await run.close()
        if run.error is not None:
            if self.gate is not None and triage.answered:
                yield triage.in_vain(run.in_vain)
            raise run.error

    def _hopeless(self, triage: Triage) -> Exception:
        return dead(" and ".join(self.base_urls), triage.held[-1].why, triage.answered)

    async def _try(
        self, lines: Clients, server: Server, request: Request, sampling: Sampling, gate: Gate | None
    ) -> Outcome:
        diagnosis = self._diagnosis
        try:
            async with asyncio.timeout(diagnosis.timeout):
                with lines.to(server.base_url) as client:
                    # Our own bytes out and the raw body in: what a server sends is not always what the SDK's types
                    # promise, and building those types takes longer than all the rest.
                    response = await client.post(
                        "/chat/completions",
                        cast_to=httpx2.Response,
                        content=self.body(request, sampling),
                    )
            body = diagnosis.body(response.content, response.headers.get("content-type", ""))
            if gate is not None:
                await gate.received(request, body)
            reply = completion.read(request.id, body)
        except openai.APIStatusError as error:
            return diagnosis.of_status(server.base_url, request.id, error, server.answered)
        except openai.APIConnectionError as error:
            return diagnosis.of_connection(server.base_url, request.id, error, server.reached)
        except TimeoutError:
            return diagnosis.of_timeout(request.id)
        except (UnreadableError, OversizedError) as error:
            return diagnosis.of_unreadable(request.id, error)
        if isinstance(reply, completion.Rejected):
            failure = diagnosis.of_rejected(server.base_url, request.id, reply, server.answered)
            return replace(failure, retry_after=retry_after(response.headers))
        return reply
