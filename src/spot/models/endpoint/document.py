"""From a body's bytes to the one completion in it: plain JSON, JSON behind a proxy's comment lines, or a stream of
chunks that nobody asked for, in UTF-8 or the charset that the server names. No text is changed on the way."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from email.message import Message as Headers
from typing import Any, Literal, cast

from spot.models.base import Body
from spot.models.endpoint.wire import one_line

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


def completion_in(body: Body) -> dict[str, Any]:
    """The completion, or whatever object there is in its place; raises `UnreadableError` where there is none."""
    return _completion(_decoded(body))


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


def _completion(text: str) -> dict[str, Any]:
    """The one completion that a body holds, put together from chunks where it is a stream."""
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
    whole = [one for one in objects if any(texts_of(message_of(choice_of(one))))]
    if len(objects) == 1 and "delta" not in choice_of(objects[0]):
        return objects[0]
    streamed = _put_together(objects)
    if [one for one in whole if "message" in choice_of(one)]:
        return [one for one in whole if "message" in choice_of(one)][-1]
    if not done and not streamed["choices"][0]["finish_reason"] and not streamed["error"]:
        raise UnreadableError("the reply is a stream that is cut off", "cut")
    return streamed


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
    for chunk in chunks:
        choice = choice_of(chunk)
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
    choices: object = completion.get("choices")
    found = [
        cast(dict[str, Any], one)
        for one in (cast(list[object], choices) if isinstance(choices, list) else [])
        if isinstance(one, dict)
    ]
    found = [one for one in found if isinstance(one.get("text"), str) or message_of(one) or one.get("error")] or found
    return next((one for one in found if texts_of(message_of(one))[0].strip()), found[0] if found else {})


def message_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice's message, or a chunk's part of one."""
    for name in ("message", "delta"):
        if isinstance(choice.get(name), dict):
            return cast(dict[str, Any], choice[name])
    return {"content": choice["text"]} if isinstance(choice.get("text"), str) else {}


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
