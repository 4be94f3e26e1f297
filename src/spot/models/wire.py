"""What an OpenAI-compatible server sends, read without trust: completions, errors, Retry-After."""

import email.utils
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from spot.models.base import Reply


class UnreadableError(Exception):
    """The body is damaged (cut off, not JSON, not Unicode): it says nothing about the request, so it is asked again."""


@dataclass(frozen=True)
class Rejected:
    """A whole, readable body that is no completion."""

    why: str


def read_completion(request_id: str, body: bytes) -> Reply | Rejected:
    """The reply in a chat completion's body. Reasoning text, kept in a field of its own, is not part of the answer.

    Raises `UnreadableError` for a damaged body.
    """
    try:
        completion: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise UnreadableError("the reply is cut off or not JSON; does the URL end in /v1?") from None
    if not isinstance(completion, dict):
        return Rejected("the reply is JSON but no chat completion")
    fields = cast(dict[str, Any], completion)
    choice = _first_choice(fields)
    if choice is None:
        says = server_says(fields.get("error"), "")
        return Rejected(f"the reply holds no choices{': ' + says if says else ''}")
    message: dict[str, Any] = choice.get("message") or {}
    content = message.get("content") or ""
    if not isinstance(content, str):
        return Rejected("the reply's content is not text")
    if not _is_unicode(content):
        raise UnreadableError("the reply is not valid Unicode")
    return _judged(request_id, content, choice.get("finish_reason"), message)


def _judged(request_id: str, content: str, finish_reason: object, message: Mapping[str, Any]) -> Reply:
    if finish_reason == "length":
        return Reply(id=request_id, text=content, finish_reason="length")
    if finish_reason != "stop":
        return Reply(id=request_id, text="", finish_reason="error", error=f"finish_reason {finish_reason!r}"[:80])
    if not content.strip():
        only_reasoning = bool(message.get("reasoning_content") or message.get("reasoning"))
        error = "empty content beside reasoning text" if only_reasoning else "empty content"
        return Reply(id=request_id, text="", finish_reason="error", error=error)
    return Reply(id=request_id, text=content, finish_reason="stop")


def _first_choice(completion: Mapping[str, Any]) -> dict[str, Any] | None:
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    first: Any = cast(list[Any], choices)[0]
    if not isinstance(first, dict):
        return None
    choice = cast(dict[str, Any], first)
    return choice if isinstance(choice.get("message"), dict) else None


def _is_unicode(text: str) -> bool:
    """JSON can spell half a surrogate pair; such a string cannot be written to any file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def server_says(body: object, text: str) -> str:
    """The message in an error's body (already parsed where it was JSON), or its text; neither shortened nor cleaned."""
    if isinstance(body, dict):
        fields = cast(dict[str, Any], body)
        for name in ("message", "detail", "error"):
            if fields.get(name):
                return str(fields[name])
    return text


def one_line(text: str, limit: int = 300) -> str:
    """`text` as one printable line of at most `limit` characters."""
    printable = "".join(character if character.isprintable() else " " for character in text[: 4 * limit])
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait (RFC 9110, 10.2.3: a number or a date; and `retry-after-ms`)."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None
