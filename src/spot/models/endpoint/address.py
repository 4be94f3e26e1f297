"""Where an endpoint is and what opens it: URLs and keys, checked before anything is sent."""

import os
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from spot.errors import UserError


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
