"""What an error that a server sent says, and what it means: by its status, its codes, its words and its headers."""

import email.utils
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any, cast

# What providers call an account that has to be topped up; they send it with 402, 403 or 429, some with 400.
_BROKE_CODES = frozenset(
    {
        *("insufficient_quota", "insufficient_balance", "insufficient_credits", "insufficient_funds", "arrearage"),
        *("billing_hard_limit_reached", "billing_not_active", "payment_required", "credit_balance_too_low"),
        *("exceeded_current_quota_error", "budget_exceeded", "key_limit_exceeded"),
    }
)
_BROKE_WORDS = re.compile(
    r"insufficient[ _](quota|balance|credits?|funds)|balance is too low|out of credits?|(not|n't) have any credits?"
    r"|billing hard limit|payment required|used all (of )?(the |your )?(available )?credits|budget has been exceeded"
    r"|\b(key|credit|spend(ing)?|monthly|budget) limit[\w ]{0,20} (exceeded|reached)|(exceeded|reached) (its|your|the) "
    r"(\w+ )?(key|credit|spend(ing)?|monthly|budget) limit",
    re.IGNORECASE,
)
# With 429, yet waiting does not help: this one request is over a minute's limit all by itself.
_NEVER_FITS = re.compile(r"request too large|reduce the length|must be reduced", re.IGNORECASE)

_SAYS = ("message", "detail", "error", "msg", "error_msg", "status_msg", "base_resp", "errors", "title")
_CODES = ("code", "status", "status_code", "http_status", "error_code", "type")
_MEANS = (
    (429, re.compile(r"rate.?limit|too.?many.?requests|resource_?exhausted|throttl", re.IGNORECASE)),
    (503, re.compile(r"overload|unavailable|insufficient_system|capacity|server is busy|try again", re.IGNORECASE)),
    (401, re.compile(r"unauthori|authentication|invalid_?(api)?_?key|(invalid|incorrect) api key", re.IGNORECASE)),
    (403, re.compile(r"permission|forbidden", re.IGNORECASE)),
    (404, re.compile(r"not_?found|unexpected endpoint|no such|does not exist", re.IGNORECASE)),
    (400, re.compile(r"invalid_?request|bad_?request|context_?length|content_?filter|moderation|invalid_arg", re.I)),
)
"""What errors without a status are called, and which status others send with the like."""


def server_says(body: object, text: str) -> str:
    """The message in an error's body (already parsed where it was JSON), or its text; neither shortened nor cleaned."""
    fields = _fields(body)
    for name in _SAYS:
        if value := fields.get(name):
            return value if isinstance(value, str) else server_says(value, "") or str(value)
    return text


def is_error(body: Mapping[str, Any]) -> bool:
    """Whether an object that is no completion is an error, in whatever form."""
    message = body.get("message")
    if isinstance(message, dict) and "content" in message:  # an answer of another API
        return False
    return body.get("object") == "error" or any(body.get(name) for name in _SAYS)


def status_of(error: object, says: str) -> int:
    """The HTTP status that an error stands for that came with HTTP 200; 500 where it does not tell."""
    told: list[str] = []
    fields = _fields(error)
    while fields:
        for value in (fields.get(name) for name in _CODES):
            if re.fullmatch(r"[45]\d\d", str(value)):
                return int(str(value))
            told += [value] if isinstance(value, str) else []
        fields = next((inner for name in ("error", "base_resp") if (inner := _fields(fields.get(name)))), {})
    if any(name.lower() in _BROKE_CODES for name in told) or _BROKE_WORDS.search(says):
        return 402
    for text in (" ".join(told), says[:300]):
        for status, words in _MEANS:
            if words.search(text):
                return status
    return 500


def _fields(body: object) -> dict[str, Any]:
    """An object; the first of a list of them, which some servers send errors in."""
    if isinstance(body, list) and body:
        body = cast(list[object], body)[0]
    return cast(dict[str, Any], body) if isinstance(body, dict) else {}


def out_of_money(status: int, body: object, says: str) -> bool:
    """Whether an error means that the account has to be topped up."""
    if status == 402:
        return True
    if not 400 <= status < 500:
        return False
    fields = _fields(body)
    if any(str(fields.get(name)).lower() in _BROKE_CODES for name in ("code", "type")):
        return True
    # Other statuses may repeat the user's own text, in which somebody may well be out of funds.
    return (status in {403, 429} and bool(_BROKE_WORDS.search(says))) or "credit balance is too low" in says.lower()


def never_fits(status: int, says: str) -> bool:
    """Whether a 429 is about the size of this one request, so that waiting does not help."""
    return status == 429 and bool(_NEVER_FITS.search(says))


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
        until = email.utils.parsedate_to_datetime(headers["retry-after"])
        # HTTP's dates are in UTC, those in C's old form too, which names no zone.
        return max(0.0, (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None
