"""Reading answers: boxes, think blocks, patterns."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.errors import UserError
from spot.verify.boxed import compile_pattern, last_boxed, last_match, without_thoughts


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        pytest.param(r"so \boxed{5}.", "5", id="plain"),
        pytest.param(r"\boxed{5} no, \boxed{6}", "6", id="last wins"),
        pytest.param(r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", id="nested braces"),
        pytest.param(r"\boxed{\text{a {b {c}}}}", r"\text{a {b {c}}}", id="deeply nested braces"),
        pytest.param(r"\boxed{\{1, 2\}}", r"\{1, 2\}", id="escaped braces"),
        pytest.param(r"\boxed{\left\{ x \right.}", r"\left\{ x \right.", id="one escaped brace is no brace"),
        pytest.param(r"\boxed{a \\{b}}", r"a \\{b}", id="a line break does not escape the brace"),
        pytest.param(r"\boxed {7}", "7", id="space before the brace"),
        pytest.param("\\boxed\n{7}", "7", id="line break before the brace"),
        pytest.param("\\boxed{\n 7 \n}", "7", id="stripped"),
        pytest.param(r"\boxed{\boxed{5}}", "5", id="box in a box"),
        pytest.param(r"\boxed{5} as \boxed asks", "5", id="the bare word boxed is no box"),
        pytest.param(r"\boxed{}", "", id="empty box"),
        pytest.param("the answer is 5", None, id="no box, not the last number"),
        pytest.param(r"\boxed{\frac{1}{2}", None, id="unclosed"),
        pytest.param(r"\boxed{5} and then \boxed{6", None, id="last one unclosed, earlier one does not count"),
        pytest.param(r"\fbox{5}", None, id="fbox is no box"),
        pytest.param(r"\boxed 5", None, id="no braces"),
        pytest.param("", None, id="empty response"),
        pytest.param(r"<think>\boxed{5}</think>", None, id="only in thought"),
        pytest.param(r"<think>\boxed{5}</think> \boxed{6}", "6", id="after thought"),
        pytest.param(r"\boxed{6} <think>\boxed{5}</think>", "6", id="thought after the answer"),
        pytest.param(r"<think> \boxed{5} never ends \boxed{6}", None, id="unclosed thought"),
        pytest.param(r"\boxed{4} <think> \boxed{5}", "4", id="answer before an unclosed thought"),
        pytest.param(r"\boxed{5} </think> \boxed{6}", "6", id="thought opened in the prompt"),
        pytest.param(r"\boxed{5} </think>", None, id="thought opened in the prompt, no answer"),
        pytest.param(r"<think>a<think>b</think>\boxed{5}</think>\boxed{6}", "6", id="thought in a thought"),
        pytest.param(r"<think>a<think>b</think>\boxed{5}</think>", None, id="thought in a thought, no answer"),
        pytest.param(r"<think></think>\boxed{6}", "6", id="empty thought"),
        pytest.param(r"\bo<think></think>xed{5}", None, id="pieces around a thought do not join"),
    ],
)
def test_last_boxed(response: str, expected: str | None) -> None:
    assert last_boxed(response) == expected


TEXT = st.text(st.characters(exclude_characters="{}\\<>", exclude_categories=["Cs"]))


@settings(deadline=None)
@given(TEXT, TEXT, TEXT)
def test_a_box_gives_back_what_was_put_in(thought: str, before: str, content: str) -> None:
    response = f"<think>{thought} \\boxed{{draft}}</think>{before}\\boxed{{{content}}}{before}"
    assert last_boxed(response) == content.strip()


@settings(deadline=None)
@given(TEXT)
def test_text_without_tags_is_untouched(text: str) -> None:
    assert without_thoughts(text) == text


def test_hostile_lengths_are_linear() -> None:
    start = time.process_time()
    assert last_boxed(r"\boxed{" * 100_000) is None
    assert last_boxed("<think>" * 100_000 + r"\boxed{1}") is None
    assert last_boxed(r"\boxed{" + "{" * 500_000 + "}" * 500_000 + "}") is not None
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("so\nA: 18", "18"),
        ("A: 17\nno\nA: 18 ", "18"),
        ("A:\n18", "18"),
        (r"\boxed{18}", None),
        ("<think>A: 17</think>", None),
        ("<think>A: 17</think>A: 18", "18"),
    ],
)
def test_last_match(response: str, expected: str | None) -> None:
    assert last_match(response, r"A:\s*(.+)") == expected


def test_a_group_that_took_no_part_is_no_answer() -> None:
    assert last_match("none", r"none|A: (\d+)") is None


@pytest.mark.parametrize("pattern", ["A: (", "A: .+", "(A): (.+)", ""])
def test_a_pattern_that_cannot_serve_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="pattern"):
        compile_pattern(pattern)
