"""The lines of a batch's files: requests going out, outcomes coming back, read without trust."""

import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from spot.models.base import Body, Reply
from spot.models.endpoint import completion, error_body
from spot.models.endpoint.completion import UnreadableError
from spot.models.endpoint.failures import RETRIED_STATUS

URL = "/v1/chat/completions"

_SEPARATORS = {text.encode(): json.dumps(text)[1:-1].encode() for text in ("\u0085", "\u2028", "\u2029")}
"""Legal in JSON, yet some servers take them for the end of a line."""

UNRUN_CODES = frozenset({"batch_expired", "batch_cancelled"})


@dataclass(frozen=True)
class Line:
    """An outcome as it stands in a file; `status` is `None` where there is no response, `error` the line's own."""

    key: str
    status: int | None
    body: object
    error: object


@dataclass(frozen=True)
class Failed:
    """A request that a batch gave no reply for. `charged` is `None` where it may have been worked on.

    `about` says what follows: nothing more (`request`), asking again (`batch`), with fewer at once (`room`), or the end
    of the run: for the account (`money`), or for the set-up (`setup`) if nothing was ever answered.
    """

    about: Literal["request", "batch", "room", "money", "setup"]
    why: str
    charged: bool | None = False


def write_line(key: str, body: bytes) -> bytes:
    """A request as a line of a batch's input; `key` is its custom id."""
    for separator, escaped in _SEPARATORS.items():
        body = body.replace(separator, escaped)
    return b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' % (key.encode(), URL.encode(), body)


def read_line(raw: bytes) -> Line | None:
    """A line of an output or error file; `None` where it is damaged, so that nobody knows whose it is."""
    try:
        line: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    said = cast(dict[str, Any], line)
    key, response = said.get("custom_id"), said.get("response")
    if not isinstance(key, str):
        return None
    if not isinstance(response, dict):
        return Line(key, None, None, said.get("error"))
    answered = cast(dict[str, Any], response)
    status = answered.get("status_code")
    return Line(key, status if isinstance(status, int) else None, answered.get("body"), said.get("error"))


def outcome(request_id: str, line: Line, body: Body) -> Reply | Failed:
    """What a line means for its request; `body` is the line as it is kept."""
    if line.status != 200 or line.error:
        return _failure(line)
    if not isinstance(line.body, dict):
        return Failed("batch", "the reply has no body", charged=None)
    try:
        reply = completion.read(request_id, body)
    except UnreadableError as error:
        return Failed("batch", str(error), charged=None)
    if isinstance(reply, Reply):
        return reply
    charged = None if reply.worked else False
    return _of_status(reply.status, reply.error, f"error {reply.status} inside HTTP 200: {reply.says}", charged)


def _failure(line: Line) -> Failed:
    """In the order of what is sure: the account, the set-up, the request; what is left may be had another time."""
    error: object = line.error
    if not error:
        inner = cast(dict[str, Any], line.body).get("error") if isinstance(line.body, dict) else None
        error = inner or line.body
    code = str(cast(dict[str, Any], error).get("code") or "") if isinstance(error, dict) else ""
    says = error_body.server_says(error, error if isinstance(error, str) else "")
    status = line.status or 0
    why = ": ".join(filter(None, (f"HTTP {status}" if status >= 400 else "", says or code))) or "no answer, no reason"
    # Without a status the server may have been at it, unless it says that it never came to it.
    return _of_status(status, error, why, charged=False if status >= 400 or code in UNRUN_CODES else None)


def _of_status(status: int, error: object, why: str, charged: bool | None) -> Failed:
    says = error_body.server_says(error, error if isinstance(error, str) else "")
    if error_body.out_of_money(status or 429, error, says):
        return Failed("money", why)
    if status in (401, 403, 404):
        return Failed("setup", why)
    if 400 <= status < 500 and (status not in RETRIED_STATUS or error_body.never_fits(status, says)):
        return Failed("request", why)
    return Failed("batch", why, charged)
