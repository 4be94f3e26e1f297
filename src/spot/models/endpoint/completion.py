"""A chat completion's body, read without trust: whatever of it can be read is read, and its text is never changed.

One reader serves endpoints, batches and the record.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from spot.models.base import Body, Reply, Usage
from spot.models.endpoint import wire
from spot.models.endpoint.document import UnreadableError, choice_of, completion_in, is_unicode, message_of, texts_of

MAX_TEXT_BYTES = 4 * 2**20
"""The most that the text of a reply may take as JSON, so that the rows that hold it, twice at most, can be read back
(`store.MAX_LINE_BYTES`); about a million tokens."""
MAX_TOKENS = 10**9
"""More than any reply was charged for: such a count is an error of the server's, and would overflow sums."""

HELD_KEY = "the reply held the endpoint's key; it is kept with the key taken out, and not used"

_End = Literal["stop", "length", "filtered", "failed"]
# What servers call the end of a text, in their many spellings; any other name is taken for a natural end.
_LENGTH = re.compile(r"length|max.*token|token.*(max|limit)|context.*(window|exceed)|truncat")
_FILTERED = re.compile(
    r"filter|safety|recitation|blocklist|prohibited|spii|guardrail|sensitive|moderat|refus|toxic|flagg"
)
_FAILED = re.compile(r"error|abort|cancel|fail|time_?out|insufficient|interrupt|unload|overload")


@dataclass(frozen=True)
class Rejected:
    """An error where a completion should be. `status` is the HTTP status that it stands for; `worked` says that there
    was a part of an answer."""

    status: int
    error: object
    says: str
    worked: bool = False


def read(request_id: str, body: Body) -> Reply | Rejected:
    """The reply in a body, reasoning text apart from the answer where the server keeps it apart.

    Raises `UnreadableError` where there is no completion and no error in it.
    """
    if body.redacted:
        return Reply(request_id, "", "error", error=HELD_KEY, usage=_usage_of(body), body=body)
    found = read_completion(request_id, completion_in(body))
    return found if isinstance(found, Rejected) else replace(found, body=body)


def _usage_of(body: Body) -> Usage | None:
    try:
        return read_usage(completion_in(body).get("usage"))[0]
    except UnreadableError:
        return None


def reread(request_id: str, bodies: Sequence[Body]) -> Reply | None:
    """The first answer that today's reader finds in what came for a request, else the last reply without one."""
    found: Reply | None = None
    for body in bodies:
        try:
            reply = read(request_id, body)
        except UnreadableError:
            continue
        if isinstance(reply, Reply):
            found = reply
            if reply.finish_reason != "error":
                break
    return found


def read_completion(request_id: str, completion: Mapping[str, Any]) -> Reply | Rejected:
    """`read`, from a body that is parsed already."""
    choice = choice_of(completion)
    text, reasoning, refusal = texts_of(message_of(choice))
    ended, name = _end(choice)
    usage, remark = read_usage(completion.get("usage"))
    error = choice.get("error") or completion.get("error")
    if ended == "failed" or (error and not (text.strip() and name and ended in ("stop", "length"))):
        worked = bool(text or reasoning or (usage and usage.output_tokens))
        return _rejected(error or {}, f"finish_reason {name!r}", worked)
    if not choice:
        if wire.is_error(completion):
            return _rejected(completion, "")
        raise UnreadableError("the reply is JSON but holds no choices of a chat completion", "foreign")
    model = completion.get("model")
    reply = Reply(
        request_id,
        text,
        "length" if ended == "length" else "stop",
        reasoning=_storable(reasoning),
        usage=usage,
        refusal=_storable(refusal),
        model=_storable(model)[:200] if isinstance(model, str) else "",
        remark=remark,
    )
    why = _no_answer(reply, ended, name)
    return _unusable(reply, why) if why else reply


def read_usage(usage: object) -> tuple[Usage | None, str]:
    """The tokens that a reply was charged for, `None` where the server does not say; and what is odd about them."""
    if not isinstance(usage, dict):
        return None, ""
    fields = cast(dict[str, Any], usage)
    prompt, completion, total, reasoning = (
        _count(fields, *names)
        for names in (
            ("prompt_tokens", "input_tokens"),
            ("completion_tokens", "output_tokens"),
            ("total_tokens",),
            ("reasoning_tokens",),
        )
    )
    for name in ("completion_tokens_details", "output_tokens_details"):
        if reasoning is None and isinstance(fields.get(name), dict):
            reasoning = _count(fields[name], "reasoning_tokens")
    if completion is None and prompt is not None and total is not None:
        completion = total - prompt
    if prompt is None or completion is None or completion < 0:
        said = {name: fields[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens") if name in fields}
        odd = (
            wire.one_line(json.dumps(said, default=str), 120)
            if any(value is not None for value in said.values())
            else ""
        )
        return None, f"usage is no count of tokens ({odd}): booked as the most that it can have cost" if odd else ""
    return Usage(prompt, completion, total, reasoning), ""


def _count(fields: Mapping[str, Any], *names: str) -> int | None:
    """The first of `names` that counts tokens, be it as a float or a string."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value, re.ASCII):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS:
            return value
    return None


def _end(choice: Mapping[str, Any]) -> tuple[_End, str]:
    """How a text ended, and what the server calls it; without a name it ended as texts do."""
    value: object = choice.get("finish_reason")
    if isinstance(value, dict):
        value = cast(dict[str, Any], value).get("type")
    name = str(value)[:60] if value is not None else ""
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(" ", "_")
    ends: dict[_End, re.Pattern[str]] = {"length": _LENGTH, "filtered": _FILTERED, "failed": _FAILED}
    for ended, pattern in ends.items():
        if pattern.search(word):
            return ended, name
    return "stop", name


def _no_answer(reply: Reply, ended: str, name: str) -> str:
    """Why a reply is no answer; empty where it is one, be it cut off."""
    if ended == "filtered":
        return f"finish_reason {name!r}"
    if not is_unicode(reply.text):
        return "the reply holds half a surrogate pair, which no file can hold"
    if len(reply.text) > MAX_TEXT_BYTES // 6 and _size(reply.text) > MAX_TEXT_BYTES:
        return f"the reply's text is {_size(reply.text) / 2**20:.0f} MiB long, more than {MAX_TEXT_BYTES >> 20} MiB"
    return "" if ended == "length" or reply.text.strip() else _why_empty(reply, name)


def _why_empty(reply: Reply, name: str) -> str:
    if reply.refusal.strip():
        return f"the model refused: {wire.one_line(reply.refusal, 200)}"
    if name and name.lower() != "stop":
        return f"finish_reason {name!r}, and no text"
    return "empty content beside reasoning text" if reply.reasoning else "empty content"


def _size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def _unusable(reply: Reply, why: str) -> Reply:
    return replace(reply, text="", finish_reason="error", error=why)


def _rejected(error: object, why: str, worked: bool = False) -> Rejected:
    says = wire.server_says(error, error if isinstance(error, str) else "") or why
    return Rejected(wire.status_of(error, says), error, says, worked)


def _storable(text: str) -> str:
    """Half a surrogate pair beside the answer is no reason to lose it; the body keeps it."""
    return text.encode(errors="replace").decode()
