"""What an OpenAI-compatible server sends, read without trust: completions, errors, Retry-After."""

import email.utils
import json
import math
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from spot.models.base import Body, Reply, Request, Usage
from spot.schema import Sampling

# What providers call an account that has to be topped up; they send it with 402, 403 or 429, some with 400.
_BROKE_CODES = frozenset(
    {
        *("insufficient_quota", "insufficient_balance", "insufficient_credits", "insufficient_funds", "arrearage"),
        *("billing_hard_limit_reached", "billing_not_active", "payment_required", "credit_balance_too_low"),
        "exceeded_current_quota_error",
    }
)
_BROKE_WORDS = re.compile(
    r"insufficient[ _](quota|balance|credits?|funds)|balance is too low|out of credits?|(not|n't) have any credits?"
    r"|billing hard limit|payment required",
    re.IGNORECASE,
)
# With 429, yet waiting does not help: this one request is over a minute's limit all by itself.
_NEVER_FITS = re.compile(r"request too large|reduce the length|must be reduced", re.IGNORECASE)


class UnreadableError(Exception):
    """The body is damaged (cut off, not JSON, not Unicode): it says nothing about the request, so it is asked again."""


@dataclass(frozen=True)
class Rejected:
    """A whole, readable body that is no completion."""

    why: str


@dataclass(frozen=True)
class Fields:
    """What requests have beside model and messages, the same by every interface: see `EndpointModel`."""

    omit: Collection[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokens: str = "max_tokens"

    def of(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """Those of one request."""
        sent: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.tokens: sampling.max_new_tokens,
            # 31 bits: servers keep seeds in signed integers of 32 or 64.
            "seed": request.seed & 0x7FFFFFFF,
        }
        return {name: value for name, value in sent.items() if name not in self.omit} | dict(self.extra)


def body(model: str, request: Request, fields: Mapping[str, Any]) -> bytes:
    """A chat completion's request; a prefix in the way of vLLM and SGLang."""
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    sent: dict[str, Any] = {"model": model, "messages": messages, **fields}
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
        sent |= {"continue_final_message": True, "add_generation_prompt": False}
    return json.dumps(sent, ensure_ascii=False, separators=(",", ":")).encode()


def read_completion(request_id: str, body: bytes) -> Reply | Rejected:
    """The reply in a chat completion's body, reasoning text apart from the answer where the server keeps it apart.

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
    finish_reason, reasoning, usage = choice.get("finish_reason"), _reasoning(message), read_usage(fields.get("usage"))
    if error := _no_answer(content, finish_reason, reasoning):
        return Reply(request_id, "", "error", error=error, reasoning=reasoning, usage=usage)
    ended = "length" if finish_reason == "length" else "stop"
    return Reply(request_id, content, ended, reasoning=reasoning, usage=usage)


def reread(request_id: str, bodies: Sequence[Body]) -> Reply | None:
    """The first answer that today's reader finds in what came for a request, else the last reply without one."""
    found: Reply | None = None
    for body in bodies:
        try:
            reply = read_completion(request_id, body.content)
        except UnreadableError:
            continue
        if isinstance(reply, Reply):
            found = replace(reply, body=body)
            if reply.finish_reason != "error":
                break
    return found


def _no_answer(content: str, finish_reason: object, reasoning: str) -> str:
    """Why what came is no answer; empty where it is one, be it cut off."""
    if finish_reason == "length":
        return ""
    if finish_reason != "stop":
        return f"finish_reason {finish_reason!r}"[:80]
    if not content.strip():
        return "empty content beside reasoning text" if reasoning else "empty content"
    return ""


def _reasoning(message: Mapping[str, Any]) -> str:
    """Under either name that servers give it; half a surrogate pair in it is no reason to pay again."""
    text = message.get("reasoning_content") or message.get("reasoning")
    return text.encode(errors="replace").decode() if isinstance(text, str) else ""


def read_usage(usage: object) -> Usage | None:
    """The tokens that a reply was charged for; `None` where the server does not say, or says no two counts."""
    if not isinstance(usage, dict):
        return None
    fields = cast(dict[str, Any], usage)
    counts = [fields.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if any(not isinstance(count, int) or isinstance(count, bool) or count < 0 for count in counts):
        return None
    return Usage(*cast(list[int], counts))


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


def out_of_money(status: int, body: object, says: str) -> bool:
    """Whether an error means that the account has to be topped up."""
    if status == 402:
        return True
    if not 400 <= status < 500:
        return False
    fields = cast(dict[str, Any], body) if isinstance(body, dict) else {}
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
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, OverflowError):
        return None
