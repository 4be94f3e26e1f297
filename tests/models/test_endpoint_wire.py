import contextlib
import itertools
import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spot.models.base import Body, Reply, Usage
from spot.models.endpoint import completion, error_body
from spot.models.endpoint.completion import Rejected, UnreadableError, read

UNHURRIED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@UNHURRIED
@given(st.binary(max_size=200))
def test_no_body_crashes_the_reader(body: bytes) -> None:
    with contextlib.suppress(UnreadableError):
        completion.read("a", Body(body))


def _objects(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    names = st.sampled_from(["choices", "message", "delta", "content", "text", "finish_reason", "error", "type"])
    return st.lists(values, max_size=2) | st.dictionaries(names, values, max_size=3)


@UNHURRIED
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), _objects, max_leaves=8))
def test_no_json_crashes_the_reader(value: object) -> None:
    with contextlib.suppress(UnreadableError):
        completion.read("a", Body(json.dumps(value).encode()))


@UNHURRIED
@given(st.text())
def test_one_line_is_one_short_line(text: str) -> None:
    line = error_body.one_line(text)
    assert len(line) <= 300
    assert line.splitlines() in ([line], [])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, 0.0),
    ],
)
def test_retry_after_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert error_body.retry_after(headers) == seconds


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process cannot be set here")
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "XYZ-9", "XYZ+5"])
@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S -0000", "%a %b %d %H:%M:%S %Y"])
def test_a_date_to_retry_after_is_in_utc(form: str, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        wait = error_body.retry_after({"retry-after": time.strftime(form, time.gmtime(time.time() + 100))})
    finally:
        monkeypatch.undo()
        time.tzset()
    assert wait is not None
    assert 90 < wait <= 100


@pytest.mark.parametrize(
    "finish_reason", ["incomplete", "max_output", "MAX_LEN", "limit", "cutoff", "cut-off", "pause_turn", "outputLimit"]
)
def test_a_text_that_is_cut_off_is_no_whole_answer(finish_reason: str) -> None:
    body = Body(json.dumps({"choices": [{"message": {"content": "so"}, "finish_reason": finish_reason}]}).encode())
    assert read("0", body) == Reply("0", "so", "length", body=body)


@pytest.mark.parametrize("order", list(itertools.permutations([(0, "a"), (0, "b"), (1, "X"), (None, "c")])))
def test_a_stream_of_several_choices_is_not_mixed(order: tuple[tuple[int | None, str], ...]) -> None:
    chunks = [{"choices": [{"index": index, "delta": {"content": text}}]} for index, text in order]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    reply = read("0", Body(stream.encode()))
    assert isinstance(reply, Reply)
    assert reply.text == "".join(text for _, text in order if text != "X")


def test_a_message_that_is_the_text_itself_is_used() -> None:
    reply = read("0", Body(b'{"choices": [{"message": "so", "finish_reason": "stop"}]}'))
    assert isinstance(reply, Reply)
    assert reply.text == "so"


def test_a_problem_document_is_an_error_of_its_status() -> None:
    rejected = read("0", Body(b'{"type": "about:blank", "title": "Too Many Requests", "status": 429}'))
    assert isinstance(rejected, Rejected)
    assert (rejected.status, rejected.says) == (429, "Too Many Requests")


def test_an_answer_of_another_api_is_told_at_once() -> None:
    with pytest.raises(UnreadableError) as error:
        read("0", Body(b'{"model": "m", "message": {"role": "assistant", "content": "so"}, "done": true}'))
    assert error.value.kind == "foreign"


@pytest.mark.parametrize(
    ("usage", "output"),
    [
        (Usage(100, 50, 150, 900), 950),  # more reasoning than completion is counted outside it
        (Usage(100, 50, None, 900), 950),
        (Usage(100, 50, 8150, 8000), 8050),
        (Usage(100, 50, 150, 50), 50),
        (Usage(100, 0, 100, 7), 7),
        (Usage(100, 50, 8150), 8050),
    ],
)
def test_reasoning_is_paid_for_wherever_it_is_counted(usage: Usage, output: int) -> None:
    assert usage.output_tokens == output
