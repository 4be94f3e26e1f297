from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.report.diff import marked

words = st.sampled_from(
    ["So", "12", "13", " ", "\n", "+", "the", "ans", "\\boxed", "{", "}", "é", "数", "שלום", "👩‍👩‍👧", "_"]
)
texts = st.one_of(st.text(), st.lists(words, max_size=60).map("".join))


@given(texts, texts)
def test_spans_give_back_both_texts_exactly(rejected: str, chosen: str) -> None:
    left, right = marked(rejected, chosen)
    assert "".join(span.text for span in left) == rejected
    assert "".join(span.text for span in right) == chosen


@given(texts, texts)
def test_spans_alternate_and_are_not_empty(rejected: str, chosen: str) -> None:
    for spans in marked(rejected, chosen):
        assert all(span.text for span in spans)
        assert all(first.changed != second.changed for first, second in pairwise(spans))


@given(texts)
def test_a_text_against_itself_is_unchanged(text: str) -> None:
    for spans in marked(text, text):
        assert not any(span.changed for span in spans)


@given(texts, texts)
def test_unchanged_words_are_the_same_on_both_sides(rejected: str, chosen: str) -> None:
    left, right = ("".join(span.text for span in spans if not span.changed) for spans in marked(rejected, chosen))
    # White space between two changes is marked on either side alone, so it is left out of the comparison.
    assert "".join(left.split()) == "".join(right.split())


@given(texts)
def test_everything_is_new_against_nothing(text: str) -> None:
    _, right = marked("", text)
    assert all(span.changed for span in right)


@pytest.mark.parametrize(
    ("rejected", "chosen", "gone", "new"),
    [
        ("3 + 4 = 8.", "3 + 4 = 7.", ["8"], ["7"]),
        ("it is 126", "it is 128", ["126"], ["128"]),  # a number is one word
        ("$\\boxed{12}$", "$\\boxed{15}$", ["12"], ["15"]),
        ("we add the two", "we multiply both two", ["add the"], ["multiply both"]),  # one span, space included
        ("答案是三", "答案是四", ["三"], ["四"]),
        ("cafe\u0301 au lait", "cafe\u0301 noir", ["au lait"], ["noir"]),
        ("a b c", "a c", ["b "], []),
    ],
)
def test_what_is_marked(rejected: str, chosen: str, gone: list[str], new: list[str]) -> None:
    left, right = marked(rejected, chosen)
    assert [span.text for span in left if span.changed] == gone
    assert [span.text for span in right if span.changed] == new


def test_long_texts_that_differ_little_are_aligned() -> None:
    text = "word another 12 + 3 = 15. " * 20_000
    left, right = marked(text + "8 end", text + "9 end")
    assert [span.text for span in left if span.changed] == ["8"]
    assert [span.text for span in right if span.changed] == ["9"]


def test_texts_too_long_to_align_are_marked_between_their_common_ends() -> None:
    rejected = "so " + "".join(f"a{number}" for number in range(40_000)) + " end"
    chosen = "so " + "".join(f"b{number}" for number in range(40_000)) + " end"
    left, right = marked(rejected, chosen)
    assert [span.changed for span in left] == [span.changed for span in right] == [False, True, False]
    assert "".join(span.text for span in left) == rejected
    assert "".join(span.text for span in right) == chosen
