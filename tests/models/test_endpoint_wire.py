import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spot.models.base import Body
from spot.models.endpoint import completion, error_body
from spot.models.endpoint.completion import UnreadableError

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
    ],
)
def test_retry_after_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert error_body.retry_after(headers) == seconds
