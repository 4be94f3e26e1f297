"""Where an endpoint is and what opens it: URLs, keys, and the SDK's clients.

Clients take nothing from the environment that the user did not name, and never read more than a body may hold. A key is
taken out of what a server sent, however it is spelled there, before that is kept.
"""

import os
import re
import ssl
from collections.abc import Generator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from spot.errors import UserError
from spot.models.base import Body, Reply
from spot.models.endpoint.completion import UnreadableError, read


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


def checked_base_urls(base_url: str | Sequence[str]) -> tuple[str, ...]:
    """One URL or several, checked; raises `UserError` where there is none, or one twice."""
    urls = tuple(map(checked_base_url, [base_url] if isinstance(base_url, str) else base_url))
    if not urls:
        raise UserError("base_url: the list is empty; name at least one URL")
    if len(set(urls)) < len(urls):
        twice = next(url for url in urls if urls.count(url) > 1)
        raise UserError(f"base_url: {twice} is listed twice; requests are balanced over different servers")
    return urls


SECRET = 16
"""Characters from which on a key is taken for a secret; what
local servers are given, "none" or "x", is in many texts."""


def without_key(body: Body, key: str, shown: str) -> Body:
    """`body` as it came, or with `shown` in place of `key` and flagged as redacted."""
    pattern = re.compile(b"".join(map(_spelled, key)))
    if pattern.search(body.content):
        return replace(body, content=pattern.sub(shown.encode(), body.content), redacted=True)
    # In an encoding of two or four bytes a character, which no server of today uses.
    wide = re.compile(rb"\0*".join(map(_spelled, key)))
    if b"\0" in body.content[:4] and wide.search(body.content):
        return replace(body, content=wide.sub(shown.encode(), body.content), redacted=True)
    return body if key not in _streamed(body) else Body(f"a stream with {shown} in pieces".encode(), "", redacted=True)


def _streamed(body: Body) -> str:
    """The texts that a stream's chunks make up, where it is one."""
    if b"data:" not in body.content[:4096]:
        return ""
    try:
        reply = read("", body)
    except UnreadableError:
        return ""
    return f"{reply.text} {reply.reasoning} {reply.refusal}" if isinstance(reply, Reply) else reply.says


def _spelled(character: str) -> bytes:
    """The spellings of a character in a JSON string."""
    plain = re.escape(character.encode())
    escaped = b"\\\\" + plain if character in '"\\/' else plain
    code = f"{ord(character):04x}".encode()
    return rb"(?:%s|%s|\\u(?i:%s))" % (plain, escaped, code)


LANE = 8
"""Tries that share one connection pool: every request walks its whole pool, which is slow where that is hundreds."""

MAX_BODY_BYTES = 64 * 2**20
"""The most that a body may hold, decompressed. A reply of a million tokens with their log-probabilities fits."""


class OversizedError(openai.OpenAIError):
    """A body holds more than `MAX_BODY_BYTES`; what is beyond was not read."""

    def __init__(self) -> None:
        super().__init__(f"the reply is over {MAX_BODY_BYTES >> 20} MiB long, decompressed; it was not read to its end")


class _Bounded(openai.DefaultAsyncHttpxClient):
    """Reads bodies a piece at a time, decompressing, and hangs up on one that is too long."""

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        response = await super().send(request, stream=True, **options)
        if stream:
            return response
        try:
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MAX_BODY_BYTES:
                    raise OversizedError
        finally:
            await response.aclose()
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _OF_THE_WIRE]
        return httpx2.Response(
            response.status_code, headers=headers, content=bytes(content), request=response.request,
            extensions={name: value for name, value in response.extensions.items() if name != "network_stream"},
        )  # fmt: skip


_OF_THE_WIRE = (b"content-encoding", b"content-length", b"transfer-encoding")


@cache
def _tls(_: str | None, __: str | None) -> ssl.SSLContext:
    """Made once: loading certificates takes longer than sending a hundred requests."""
    return httpx2.create_ssl_context()


def tls() -> ssl.SSLContext:
    """The certificates that servers are checked with. Raises `UserError` where the environment names none that are."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    named = [name for name in names if os.environ.get(name)]
    try:
        for name in named:
            if not os.path.exists(os.environ[name]):  # noqa: PTH110 (a directory or a file, and nothing else is done)
                raise FileNotFoundError("it does not exist")
        return _tls(*(os.environ.get(name) for name in names))
    except (OSError, ValueError) as error:
        where = f"{named[0]}={os.environ[named[0]]}" if named else "the certificates"
        raise UserError(f"{where} cannot be read ({error}); correct that environment variable, or unset it") from None


def client(
    base_url: str, key: str | None, timeout: openai.Timeout, headers: dict[str, str] | None = None
) -> openai.AsyncOpenAI:
    """A client of the SDK for one URL that tries once; raises `UserError` where a proxy's settings are wrong."""
    try:
        transport = _Bounded(verify=tls(), timeout=timeout)
    except (ValueError, TypeError, httpx2.InvalidURL, ImportError) as error:
        raise UserError(_proxy_is_wrong(error)) from None
    made = openai.AsyncOpenAI(
        # Never `None`: the SDK would then send OPENAI_API_KEY to whatever server this is.
        api_key=key or "none",
        admin_api_key="none",
        base_url=base_url,
        max_retries=0,
        timeout=timeout,
        http_client=transport,
    )
    # The SDK takes these from OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, which are another server's.
    made.organization = made.project = None
    made._custom_headers = dict(headers or {})  # pyright: ignore[reportPrivateUsage]
    return made


def _proxy_is_wrong(error: Exception) -> str:
    names = [name for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY") for name in (name, name.lower())]
    told = {name: _without_login(os.environ[name]) for name in names if os.environ.get(name)}
    settings = ", ".join(f"{name}={value}" for name, value in told.items()) or "the system's settings"
    fix = "install socksio" if isinstance(error, ImportError) else "expected something like http://127.0.0.1:3128"
    why = "a SOCKS proxy needs the package socksio" if isinstance(error, ImportError) else str(error)
    return f"the proxy in {settings} cannot be used ({why}); {fix}, or unset it (NO_PROXY names hosts without one)"


def _without_login(url: str) -> str:
    return url.rpartition("@")[2] if "@" in url else url


class Clients:
    """Clients for one event loop, made as they are needed, `LANE` tries to a client."""

    def __init__(self, key: str | None, connect_timeout: float, headers: dict[str, str]) -> None:
        self._key = key
        # Only connecting: how long the rest may take is counted over the whole try, not between two packets.
        self._timeout = openai.Timeout(None, connect=connect_timeout)
        self._headers = headers
        self._free: dict[str, list[openai.AsyncOpenAI]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Clients":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    @contextmanager
    def to(self, base_url: str) -> Generator[openai.AsyncOpenAI]:
        """A client with room for one more try."""
        free = self._free.setdefault(base_url, [])
        if not free:
            made = client(base_url, self._key, self._timeout, self._headers)
            self._stack.push_async_callback(made.close)
            free += [made] * LANE
        this = free.pop()
        try:
            yield this
        finally:
            free.append(this)
