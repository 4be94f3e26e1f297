"""What real servers send for a chat completion, and what should become of it: one table, served by `FakeServer`.

`python -m tests.server_behaviours NAME` serves one behaviour until killed, to be tried with the real command. Where a
row was seen in the wild, `seen` says of whom.
"""

import gzip
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.fake_server import Answer, FakeServer, Seen, completion, failure

TEXT = 'The answer is \\boxed{42}, none left: é 😀 \u2028 "x" \t\\times 1.'


@dataclass(frozen=True)
class Behaviour:
    """An answer to every request, or to each request's first try where `then` (what the others get) is given.

    It gives a reply of `text` that ended by `finish`, or an error reply that matches `error`, or ends the run with a
    message that matches `ends`. `usage` is what is read (prompt, completion, total, reasoning).
    """

    answer: Answer
    text: str = ""
    finish: str = "stop"
    error: str = ""
    ends: str = ""
    then: Answer | None = None
    usage: tuple[int | None, ...] | None = None
    reasoning: str = ""
    refusal: str = ""
    remark: str = ""
    seen: str = ""

    def __call__(self, seen: Seen) -> Answer:
        return self.answer


def body(choice: Mapping[str, Any], **fields: Any) -> bytes:
    return json.dumps({"id": "c", "model": "m-1", "choices": [{"index": 0, **choice}], **fields}).encode()


def said(content: Any, finish_reason: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}


def sent(content: Any, finish_reason: Any = "stop", **message: Any) -> Answer:
    return Answer(body=body(said(content, finish_reason, **message)))


def events(*chunks: Any, end: str = "data: [DONE]\n\n", newline: str = "\n") -> bytes:
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end
    return lines.replace("\n", newline).encode()


def delta(finish_reason: str | None = None, **part: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": part, "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "model": "m-1", "choices": [choice]}


def stream(raw: bytes) -> Answer:
    return Answer(body=raw, headers={"Content-Type": "text/event-stream"})


def broken(code: Any, message: str = "try later", **more: Any) -> Answer:
    return Answer(body=json.dumps({"error": {"code": code, "message": message, **more}}).encode())


def used(**usage: Any) -> Answer:
    return Answer(body=body(said(TEXT), usage=usage))


GOOD = sent(TEXT)
PIECES = [TEXT[:9], TEXT[9:30], TEXT[30:]]
CHUNKS = [delta(role="assistant", content=""), *(delta(content=piece) for piece in PIECES), delta("stop")]

_NATURAL = (
    *("stop", "STOP", "Stop", "end_turn", "eos", "eos_token", "stop_sequence", "COMPLETE", "FINISH_REASON_STOP"),
    *("tool_calls", "function_call", "tool_use", "eosFound", "unknown", "", None, 7, {"type": "stop", "matched": 2}),
)
_LONG = (
    *("length", "LENGTH", "MAX_TOKENS", "max_tokens", "max_output_tokens", "model_length", "FinishReason.MAX_TOKENS"),
    *("maxPredictedTokensReached", "model_context_window_exceeded", {"type": "length"}),
)

ENDS: dict[str, Behaviour] = {
    **{f"finish_reason {name!r}": Behaviour(sent(TEXT, name), TEXT) for name in _NATURAL},
    **{f"finish_reason {name!r}": Behaviour(sent(TEXT, name), TEXT, "length") for name in _LONG},
    "no finish_reason": Behaviour(Answer(body=body({"message": {"content": TEXT}})), TEXT),
    "tool_calls beside content": Behaviour(
        sent(TEXT, "tool_calls", tool_calls=[{"id": "1", "type": "function"}]), TEXT
    ),
    "tool_calls alone": Behaviour(sent(None, "tool_calls"), error="finish_reason 'tool_calls', and no text"),
    "content_filter": Behaviour(sent("The ans", "content_filter"), error="finish_reason 'content_filter'"),
    "SAFETY": Behaviour(sent("", "SAFETY"), error="finish_reason 'SAFETY'"),
    "refusal": Behaviour(
        sent(None, refusal="I cannot help with that."),
        error="the model refused: I cannot help",
        refusal="I cannot help with that.",
    ),
    "half a surrogate pair": Behaviour(sent("so \ud800 far"), error="half a surrogate pair"),
    "a text of 20 MB": Behaviour(sent("n" * 20 * 2**20), error="20 MiB long, more than 4 MiB"),
}

CONTENTS: dict[str, Behaviour] = {
    "parts, thinking and text": Behaviour(
        sent([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": TEXT}]),
        TEXT,
        reasoning="hm",
        seen="Mistral (magistral)",
    ),
    "parts, text in pieces": Behaviour(sent([{"type": "text", "text": piece} for piece in PIECES]), TEXT),
    "parts, output_text": Behaviour(sent([{"type": "output_text", "text": TEXT, "annotations": []}]), TEXT),
    "parts, redacted thinking": Behaviour(
        sent([{"type": "redacted_thinking", "data": "eA=="}, {"type": "text", "text": TEXT}]), TEXT
    ),
    "parts, refusal": Behaviour(
        sent([{"type": "refusal", "refusal": "No."}]), error="the model refused: No", refusal="No."
    ),
    "a part instead of a list": Behaviour(sent({"type": "text", "text": TEXT}), TEXT),
    "strings in a list": Behaviour(sent(PIECES), TEXT),
    "a completion's text": Behaviour(Answer(body=body({"text": TEXT, "finish_reason": "stop"})), TEXT),
    "text in the second choice": Behaviour(
        Answer(body=json.dumps({"choices": [said(None, "tool_calls"), said(TEXT)]}).encode()), TEXT, seen="Copilot"
    ),
    "reasoning_content": Behaviour(sent(TEXT, reasoning_content="hm"), TEXT, reasoning="hm"),
    "reasoning alone": Behaviour(sent("", reasoning="hm"), error="empty content beside reasoning text", reasoning="hm"),
}

BODIES: dict[str, Behaviour] = {
    "comment lines": Behaviour(
        Answer(body=b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n" + GOOD.body), TEXT, seen="OpenRouter"
    ),
    "blank lines": Behaviour(Answer(body=b"\n  \r\n \n" + GOOD.body + b"\n\n"), TEXT, seen="OpenRouter, DeepSeek"),
    "a byte order mark": Behaviour(Answer(body=b"\xef\xbb\xbf" + GOOD.body), TEXT),
    "UTF-16": Behaviour(Answer(body=GOOD.body.decode().encode("utf-16")), TEXT),
    "Latin-1, named": Behaviour(
        Answer(
            body=json.dumps(json.loads(sent("café").body), ensure_ascii=False).encode("latin-1"),
            headers={"Content-Type": "application/json; charset=ISO-8859-1"},
        ),
        "café",
    ),
    "UTF-8, called Latin-1": Behaviour(
        Answer(
            body=json.dumps(json.loads(GOOD.body), ensure_ascii=False).encode(),
            headers={"Content-Type": "application/json; charset=ISO-8859-1"},
        ),
        TEXT,
    ),
    "Latin-1, not named": Behaviour(Answer(body=b'{"choices": "caf\xe9"}'), ends=r"not in UTF-8 \(byte 17 of 19\)"),
    "gzip": Behaviour(Answer(body=gzip.compress(GOOD.body), headers={"Content-Encoding": "gzip"}), TEXT),
    "a line end inside a string": Behaviour(Answer(body=GOOD.body.replace(b" \\t", b" \t")), TEXT),
    "an integer of 5,000 digits": Behaviour(
        Answer(body=GOOD.body.replace(b'"id": "c"', b'"id": ' + b"9" * 5000)), TEXT
    ),
    "in a list": Behaviour(Answer(body=b"[" + GOOD.body + b"]"), TEXT),
    "a stream": Behaviour(stream(events(*CHUNKS)), TEXT),
    "a stream with CRLF and comments": Behaviour(stream(b": hi\r\n\r\n" + events(*CHUNKS, newline="\r\n")), TEXT),
    "a stream without [DONE]": Behaviour(stream(events(*CHUNKS, end="")), TEXT),
    "a stream of one completion": Behaviour(stream(events(json.loads(GOOD.body))), TEXT),
    "a stream with usage": Behaviour(
        stream(events(*CHUNKS, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})),
        TEXT,
        usage=(3, 4, None, None),
    ),
    "a stream with reasoning": Behaviour(
        stream(events(delta(reasoning_content="h"), delta(reasoning_content="m"), *CHUNKS)), TEXT, reasoning="hm"
    ),
    "a stream that halves a character": Behaviour(
        stream(
            b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n'
            b'data: {"choices": [{"delta": {"content": "\\ude00"}, "finish_reason": "stop"}]}\n\n'
        ),
        "😀",
    ),
    "a stream of lines": Behaviour(Answer(body=b"\n".join(json.dumps(chunk).encode() for chunk in CHUNKS)), TEXT),
    "a stream that is cut off": Behaviour(stream(events(*CHUNKS[:-1], end="")), TEXT, then=GOOD),
    "a stream that ends in an error": Behaviour(
        stream(
            events(
                *CHUNKS[:2],
                {"error": {"code": 502, "message": "gone"}, "choices": [{"delta": {}, "finish_reason": "error"}]},
            )
        ),
        TEXT,
        then=GOOD,
        seen="OpenRouter",
    ),
    "a web page": Behaviour(
        Answer(body=b"<!DOCTYPE html><html>hello</html>", headers={"Content-Type": "text/html"}),
        ends="web page.*end in /v1",
    ),
    "text": Behaviour(Answer(body=b"Service is starting"), ends="text, not JSON: Service is starting"),
    "nothing": Behaviour(Answer(body=b""), TEXT, then=GOOD),
    "JSON that is cut off": Behaviour(Answer(body=GOOD.body[:-30]), TEXT, then=GOOD),
    "other JSON": Behaviour(Answer(body=b'{"hello": 1}'), ends="holds no choices"),
    "a body of 80 MB": Behaviour(
        Answer(body=gzip.compress(b" " * 80 * 2**20, 1), headers={"Content-Encoding": "gzip"}), ends="over 64 MiB"
    ),
}

ERRORS: dict[str, Behaviour] = {
    "429 inside 200": Behaviour(broken(429), TEXT, then=GOOD, seen="OpenRouter"),
    "502 inside 200": Behaviour(broken(502, "Provider returned error"), TEXT, then=GOOD, seen="OpenRouter"),
    "503 as a string": Behaviour(broken("503"), TEXT, then=GOOD),
    "rate limit without a number": Behaviour(broken("rate_limit_exceeded"), TEXT, then=GOOD),
    "overloaded": Behaviour(
        Answer(body=b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}'),
        TEXT,
        then=GOOD,
    ),
    "an error in a list": Behaviour(
        Answer(body=b'[{"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}]'),
        TEXT,
        then=GOOD,
        seen="Gemini",
    ),
    "an error that is text": Behaviour(Answer(body=b'{"error": "Model unloaded."}'), TEXT, then=GOOD, seen="LM Studio"),
    "finish_reason error": Behaviour(
        Answer(body=body({**said("The ans", "error"), "error": {"code": 502, "message": "gone"}})), TEXT, then=GOOD
    ),
    "finish_reason error alone": Behaviour(sent("The ans", "error"), TEXT, then=GOOD),
    "an error beside null choices": Behaviour(
        Answer(body=b'{"choices": null, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}'),
        TEXT,
        then=GOOD,
        seen="MiniMax",
    ),
    "402 inside 200": Behaviour(broken(402, "Insufficient credits"), ends="out of credit"),
    "no balance inside 200": Behaviour(
        Answer(body=b'{"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}'), ends="out of credit"
    ),
    "403 key limit": Behaviour(
        failure(403, "Key limit exceeded (total limit). Manage it on the settings page"),
        ends="out of credit",
        seen="OpenRouter",
    ),
    "401 inside 200": Behaviour(broken(401, "No auth credentials found"), ends="requires a key"),
    "404 inside 200": Behaviour(
        Answer(body=b'{"error": "Unexpected endpoint or method. (POST /chat/completions)"}'),
        ends="Unexpected endpoint",
        seen="LM Studio",
    ),
    "400 inside 200": Behaviour(
        broken(400, "too long", type="invalid_request_error"), ends="error 400 inside HTTP 200: too long"
    ),
    "529": Behaviour(failure(529, "overloaded"), TEXT, then=GOOD),
    "an error that is null": Behaviour(Answer(body=body(said(TEXT), error=None)), TEXT),
}

USAGES: dict[str, Behaviour] = {
    "plain": Behaviour(used(prompt_tokens=7, completion_tokens=5), TEXT, usage=(7, 5, None, None)),
    "reasoning in the total alone": Behaviour(
        used(
            prompt_tokens=100,
            completion_tokens=50,
            total_tokens=8150,
            completion_tokens_details={"reasoning_tokens": 8000},
        ),
        TEXT,
        usage=(100, 50, 8150, 8000),
        seen="Gemini, xAI",
    ),
    "floats": Behaviour(used(prompt_tokens=7.0, completion_tokens=5.0), TEXT, usage=(7, 5, None, None)),
    "strings": Behaviour(used(prompt_tokens="7", completion_tokens="5"), TEXT, usage=(7, 5, None, None)),
    "null": Behaviour(Answer(body=body(said(TEXT), usage=None)), TEXT),
    **{
        f"completion_tokens {count!r}": Behaviour(
            used(prompt_tokens=7, completion_tokens=count), TEXT, remark="usage is no count of tokens"
        )
        for count in (2**63, 10**30, -1, 0.5, "many", [5], True)
    },
}

TABLE: dict[str, Behaviour] = {
    f"{group}: {name}": behaviour
    for group, rows in {
        "end": ENDS,
        "content": CONTENTS,
        "body": BODIES,
        "error": ERRORS,
        "usage": USAGES,
    }.items()
    for name, behaviour in rows.items()
}


@dataclass
class Serving:
    """A behaviour as a script for `FakeServer`, which counts the tries of each request."""

    behaviour: Behaviour
    tries: dict[str, int] = field(default_factory=dict[str, int])

    def __call__(self, seen: Seen) -> Answer:
        self.tries[seen.question] = self.tries.get(seen.question, 0) + 1
        again = self.tries[seen.question] > 1 and self.behaviour.then is not None
        return self.behaviour.then or self.behaviour.answer if again else self.behaviour.answer


if __name__ == "__main__":
    with FakeServer(Serving(TABLE[sys.argv[1]])) as server:
        print(server.url, flush=True)  # noqa: T201
        time.sleep(86400)

__all__ = ["TABLE", "TEXT", "Behaviour", "Serving", "completion"]
