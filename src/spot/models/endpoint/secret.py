"""Taking a key out of what a server sent, however it is spelled there, before that is kept."""

import re
from dataclasses import replace

from spot.models.base import Body, Reply
from spot.models.endpoint.completion import read
from spot.models.endpoint.document import UnreadableError

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
