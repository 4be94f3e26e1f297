import asyncio
import json
from typing import Any

import pytest
from tests.fake_server import Answer, FakeServer, completion

from spot.models.base import Reply, Request, Usage
from spot.models.endpoint.model import EndpointModel
from spot.schema import Message, Sampling


def answer(url: str, prefix: str = "") -> Reply:
    async def run() -> list[Reply]:
        request = Request("0", (Message(role="user", content="q"),), 1, prefix=prefix)
        return [reply async for group in EndpointModel("m", url).generate([request], Sampling()) for reply in group]

    (reply,) = asyncio.run(run())
    return reply


def body(message: dict[str, Any], finish_reason: str = "stop", **fields: Any) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return Answer(body=json.dumps({"choices": [choice], **fields}).encode())


@pytest.mark.parametrize(
    ("message", "reasoning"),
    [
        ({"content": "A"}, ""),
        ({"content": "A", "reasoning_content": "hm"}, "hm"),
        ({"content": "A", "reasoning": "hm"}, "hm"),
        ({"content": "A", "reasoning_content": None, "reasoning": "hm"}, "hm"),
        ({"content": "A", "reasoning": {"text": "hm"}}, "hm"),
        ({"content": "A", "reasoning": "hm \ud800"}, "hm ?"),
    ],
)
def test_reasoning_is_kept_apart(message: dict[str, Any], reasoning: str) -> None:
    with FakeServer(lambda _: body(message)) as server:
        assert answer(server.url) == Reply("0", "A", "stop", reasoning=reasoning)


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}, Usage(7, 5, 12)),
        ({"prompt_tokens": 7, "total_tokens": 12}, Usage(7, 5, 12)),
        ({"prompt_tokens": 7, "total_tokens": 2}, None),
        ({"input_tokens": 7, "output_tokens": 5}, Usage(7, 5)),
        (
            {"prompt_tokens": 7, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 3}},
            Usage(7, 5, None, 3),
        ),
        ({"prompt_tokens": 7, "completion_tokens": 5, "reasoning_tokens": 30, "total_tokens": 42}, Usage(7, 5, 42, 30)),
        ({"prompt_tokens": 7}, None),
        ({"prompt_tokens": 7, "completion_tokens": "5"}, Usage(7, 5)),
        ({"prompt_tokens": True, "completion_tokens": 5}, None),
        ({"prompt_tokens": -7, "completion_tokens": 5}, None),
        ({"prompt_tokens": 7.0, "completion_tokens": 5}, Usage(7, 5)),
        ({"prompt_tokens": 7.5, "completion_tokens": 5}, None),
        ({"prompt_tokens": 7, "completion_tokens": 2**63}, None),
        ({"prompt_tokens": 7, "completion_tokens": "many"}, None),
        ({"prompt_tokens": 7, "completion_tokens": 1e400}, None),
        ([7, 5], None),
        (None, None),
    ],
)
@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter"])
def test_usage_is_read_where_it_makes_sense(usage: Any, read: Usage | None, finish_reason: str) -> None:
    with FakeServer(lambda _: body({"content": "A"}, finish_reason, usage=usage)) as server:
        assert answer(server.url).usage == read


def test_a_prefix_is_sent_as_the_beginning_of_the_answer() -> None:
    with FakeServer(lambda _: completion(" so good")) as server:
        reply = answer(server.url, prefix="So far")
        sent = server.seen[0].body
    assert sent["messages"][-1] == {"role": "assistant", "content": "So far"}
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert reply.text == " so good"
