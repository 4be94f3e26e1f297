"""A reply's body, from its bytes to a `Reply`, read without trust: whatever can be read is read, no text is changed.

A body is plain JSON, JSON behind a proxy's comment lines, or a stream of chunks that nobody asked for, in UTF-8 or the
charset that the server names. One reader serves endpoints, batches and the ledger.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message as Headers
from typing import Any, Literal, cast

from spot.models.base import Body, Reply, Usage
from spot.models.endpoint import error_body
from spot.models.endpoint.error_body import one_line

MAX_TEXT_BYTES = 4 * 2**20
"""The most that the text of a reply may take as JSON, so that the rows that hold it, twice at most, can be read back
(`store.MAX_LINE_BYTES`); about a million tokens."""
MAX_TOKENS = 10**9
"""More than any reply was charged for: such a count is an error of the server's, and would overflow sums."""

HELD_KEY = "the reply held the endpoint's key; it is kept with the key taken out, and not used"

_End = Literal["stop", "length", "filtered", "failed"]
# What servers call the end of a text, in their many spellings; any other name is taken for a natural end.
_LENGTH = re.compile(
    r"length|max.*(token|len|output)|(token|output).*(max|limit)|^limit$|context.*(window|exceed)|truncat|cut_?off"
    r"|incomplete|pause"
)
_FILTERED = re.compile(
    r"filter|safety|recitation|blocklist|prohibited|spii|guardrail|sensitive|moderat|refus|toxic|flagg"
)
_FAILED = re.compile(r"error|abort|cancel|fail|time_?out|insufficient|interrupt|unload|overload")

_COMMENT = re.compile(r"(?:[\s\0\ufeff]|:[^\r\n]*(?:[\r\n]|$))+")
_FIELD = re.compile(r"(data|event|id|retry):? ?")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_PARTIAL = re.compile(r"[\w.+-]*\s*$", re.ASCII)

_THINKING = frozenset({"thinking", "reasoning", "redacted_thinking", "reasoning_content", "thought"})


class UnreadableError(Exception):
    """There is no completion to be read. The body was `cut` off and may come whole another time, is `garbled` (no
    JSON in any charset that is named), or is `foreign`: whole JSON that is something else."""

    def __init__(self, why: str, kind: Literal["cut", "garbled", "foreign"]) -> None:
        super().__init__(why)
        self.kind = kind


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
        try:
            usage = read_usage(completion_in(body).get("usage"))[0]
        except UnreadableError:
            usage = None
        return Reply(request_id, "", "error", error=HELD_KEY, usage=usage, body=body)
    found = read_completion(request_id, completion_in(body))
    return found if isinstance(found, Rejected) else replace(found, body=body)


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
        if error_body.is_error(completion):
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
    prompt = _count(fields, "prompt_tokens", "input_tokens")
    completion = _count(fields, "completion_tokens", "output_tokens")
    total, reasoning = _count(fields, "total_tokens"), _count(fields, "reasoning_tokens")
    for name in ("completion_tokens_details", "output_tokens_details"):
        if reasoning is None and isinstance(fields.get(name), dict):
            reasoning = _count(fields[name], "reasoning_tokens")
    if completion is None and prompt is not None and total is not None:
        completion = total - prompt
    if prompt is None or completion is None or completion < 0:
        said = {name: fields[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens") if name in fields}
        if all(value is None for value in said.values()):
            return None, ""
        odd = one_line(json.dumps(said, default=str), 120)
        return None, f"usage is no count of tokens ({odd}): booked as the most that it can have cost"
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
        return f"the model refused: {one_line(reply.refusal, 200)}"
    if name and name.lower() != "stop":
        return f"finish_reason {name!r}, and no text"
    return "empty content beside reasoning text" if reply.reasoning else "empty content"


def _size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def _unusable(reply: Reply, why: str) -> Reply:
    return replace(reply, text="", finish_reason="error", error=why)


def _rejected(error: object, why: str, worked: bool = False) -> Rejected:
    says = error_body.server_says(error, error if isinstance(error, str) else "") or why
    return Rejected(error_body.status_of(error, says), error, says, worked)


def _storable(text: str) -> str:
    """Half a surrogate pair beside the answer is no reason to lose it; the body keeps it."""
    return text.encode(errors="replace").decode()


def completion_in(body: Body) -> dict[str, Any]:
    """The completion, or whatever object there is in its place, put together from chunks where it is a stream.

    Raises `UnreadableError` where there is none.
    """
    text = _decoded(body)
    start = _COMMENT.match(text)
    rest = text[start.end() :] if start else text
    if not rest:
        raise UnreadableError("the reply is empty", "cut")
    if _FIELD.match(rest):
        documents, done = _events(rest)
    elif rest[0] in "{[":
        documents, done = list(_documents(rest)), False
    elif rest[0] == "<":
        raise UnreadableError("the reply is a web page, not JSON; does the URL end in /v1?", "garbled")
    elif _is_json(rest):
        raise UnreadableError("the reply is JSON but no chat completion", "foreign")
    else:
        raise UnreadableError(f"the reply is text, not JSON: {one_line(rest, 80)}", "garbled")
    objects = [cast(dict[str, Any], one) for one in _flat(documents) if isinstance(one, dict)]
    if not objects:
        raise UnreadableError("the reply is JSON but no chat completion", "foreign")
    if len(objects) == 1 and isinstance(objects[0].get("response"), dict) and "custom_id" in objects[0]:
        line = cast(dict[str, Any], objects[0]["response"])  # of a batch's output
        return cast(dict[str, Any], line["body"]) if isinstance(line.get("body"), dict) else {}
    if len(objects) == 1 and "delta" not in choice_of(objects[0]):
        return objects[0]
    choices = [(one, choice_of(one)) for one in objects]
    if whole := [one for one, choice in choices if "message" in choice and any(texts_of(message_of(choice)))]:
        return whole[-1]
    streamed = _put_together(objects)
    if not done and not streamed["choices"][0]["finish_reason"] and not streamed["error"]:
        raise UnreadableError("the reply is a stream that is cut off", "cut")
    return streamed


def _decoded(body: Body) -> str:
    content = body.content
    try:
        # JSON is Unicode (RFC 8259, 8.1): what decodes as such is, whatever the header says.
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        headers = Headers()
        headers["content-type"] = body.content_type
        charset = headers.get_content_charset("utf-8")
        try:
            return content.decode(charset)
        except (LookupError, ValueError):
            if error.end == len(content) and "end of data" in error.reason:
                raise UnreadableError("the reply is cut off", "cut") from None
            raise UnreadableError(
                f"the reply is not in UTF-8 (byte {error.start + 1} of {len(content)}), nor in what its Content-Type "
                f"names ({body.content_type or 'nothing'})",
                "garbled",
            ) from None


def _documents(text: str) -> Iterator[object]:
    """The JSON values that a text begins with, one after the other."""
    decoder = json.JSONDecoder(strict=False, parse_int=_integer)
    position, found = 0, False
    while position < len(text) and text[position] in "{[":
        try:
            value, position = decoder.raw_decode(text, position)
        except RecursionError:
            raise UnreadableError("the reply is JSON that is nested too deeply", "foreign") from None
        except ValueError as error:
            if found:
                return
            at = getattr(error, "pos", 0)
            cut = "Unterminated string" in str(error) or bool(_PARTIAL.match(text, at))
            why = "is cut off" if cut else f"is not JSON ({one_line(str(error), 80)})"
            raise UnreadableError(f"the reply {why}", "cut" if cut else "garbled") from None
        found = True
        yield value
        between = _COMMENT.match(text, position)
        position = between.end() if between else position


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _integer(digits: str) -> int | float:
    """Python refuses to read very long integers, for which a whole reply need not be lost."""
    return int(digits) if len(digits) <= 20 else float(digits)


def _events(text: str) -> tuple[list[object], bool]:
    """What a stream of server-sent events holds, and whether it ends as streams of chunks end."""
    documents: list[object] = []
    data: list[str] = []
    done = False
    for line in [*_NEWLINE.split(text), ""]:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith("{"):
            data.append(line)
        elif not line and data:
            event, data = "\n".join(data), []
            if event.strip() == "[DONE]":
                done = True
            elif event.lstrip()[:1] in ("{", "["):
                documents += _documents(event.lstrip())
    return documents, done


def _flat(documents: Sequence[object]) -> Iterator[object]:
    """Some servers send their one object in a list."""
    for one in documents:
        yield from cast(list[object], one) if isinstance(one, list) else [one]


def _put_together(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A completion from a stream's chunks."""
    pieces: list[tuple[str, str, str]] = []
    told: dict[str, Any] = {"model": None, "usage": None, "error": None}
    finish_reason: object = None
    by_index = [{_index(one): one for one in reversed(_choices(chunk))} for chunk in chunks]
    # Chunks of several choices come interleaved: the text is that of one of them, the first that has any.
    spoken = [at for one in by_index for at, choice in one.items() if texts_of(message_of(choice))[0].strip()]
    index = min(spoken, default=0)
    for chunk, choices in zip(chunks, by_index, strict=True):
        choice = choices.get(index, {})
        pieces.append(texts_of(message_of(choice)))
        finish_reason = choice.get("finish_reason") or finish_reason
        told["error"] = told["error"] or choice.get("error")
        told |= {name: chunk[name] for name in told if chunk.get(name)}
    text, reasoning, refusal = (_joined(column) for column in zip(*pieces, strict=True))
    message = {"content": text, "reasoning": reasoning, "refusal": refusal}
    return {**told, "choices": [{"message": message, "finish_reason": finish_reason}]}


def _joined(pieces: Sequence[str]) -> str:
    """Text from pieces; a character outside the basic plane may be halved between two."""
    text = "".join(pieces)
    return text if is_unicode(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def choice_of(completion: Mapping[str, Any]) -> dict[str, Any]:
    """The first choice that holds text, or the first; empty where there is none."""
    found = _choices(completion)
    found = [one for one in found if isinstance(one.get("text"), str) or message_of(one) or one.get("error")] or found
    return next((one for one in found if texts_of(message_of(one))[0].strip()), found[0] if found else {})


def _choices(completion: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices: object = completion.get("choices")
    listed = cast(list[object], choices) if isinstance(choices, list) else []
    return [cast(dict[str, Any], one) for one in listed if isinstance(one, dict)]


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def message_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice's message, or a chunk's part of one."""
    for name in ("message", "delta"):
        if isinstance(choice.get(name), dict):
            return cast(dict[str, Any], choice[name])
    text = next((choice[name] for name in ("message", "text") if isinstance(choice.get(name), str)), None)
    return {} if text is None else {"content": text}


def texts_of(message: Mapping[str, Any]) -> tuple[str, str, str]:
    """A message's text, reasoning and refusal; content may be text or a list of parts of several kinds."""
    content: object = message.get("content")
    text, thought, declined = [""], [""], [""]
    for part in cast(list[object], content) if isinstance(content, list) else [content]:
        if not isinstance(part, dict):
            text.append(_string(part))
            continue
        fields = cast(dict[str, Any], part)
        kind = str(fields.get("type") or "text").lower()
        if kind in _THINKING or fields.get("thought") is True:
            thought.append(
                next(filter(None, (_string(fields.get(name)) for name in ("thinking", "reasoning", "text"))), "")
            )
        elif kind == "refusal":
            declined.append(_string(fields.get("refusal")))
        else:
            text.append(_string(fields.get("text")))
    reasoning = next(
        filter(None, (_string(message.get(name)) for name in ("reasoning_content", "reasoning", "thinking"))), ""
    )
    return "".join(text), reasoning or "".join(thought), _string(message.get("refusal")) or "".join(declined)


def _string(value: object) -> str:
    """Text, as it is or inside a list or an object of texts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_string, cast(list[object], value)))
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        return _string(fields.get("text") or fields.get("value"))
    return ""


def is_unicode(text: str) -> bool:
    """JSON can spell half a surrogate pair; such a string cannot be written to any file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
