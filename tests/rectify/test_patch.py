from collections.abc import Callable
from itertools import product, takewhile
from random import Random

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from spot.rectify.parse import Markers, extract_block
from spot.rectify.patch import Edit, EditError, apply_edits, parse_edits, write_edits
from spot.rectify.steps import split_steps

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
M = Markers("kubalozi", tagged=True)
BARE = Markers("kubalozi")
ANSWER = "Tom has 3 apples.\nHe buys 4, so 3 + 4 = 8 apples.\nThen 8 * 2 = 16.\nA: 16"

# Any text, texts full of repetitions and white space, and texts made of pieces of the format itself.
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="ab \n\r"),
    st.text(alphabet="a\n", max_size=40),
    st.lists(st.sampled_from(["<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "\n", "x", " ", "="])).map("".join),
)


def block(*edits: tuple[str, str]) -> str:
    return "\n".join(Edit(old, new).written(M) for old, new in edits)


def shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def complaint(response: str, *edits: tuple[str, str]) -> str:
    with pytest.raises(EditError) as caught:
        apply_edits(response, block(*edits), M)
    return str(caught.value)


@UNHURRIED
@given(TEXTS, TEXTS)
def test_what_was_written_gives_the_chosen_text_exactly(rejected: str, chosen: str) -> None:
    markers = Markers.derive("p0#0", "0", rejected, chosen, mode="patch")
    written = write_edits(rejected, chosen, markers)
    assert apply_edits(rejected, written, markers) == chosen
    inside = extract_block(f"Let me see.\n{markers.enclose(written)}\nDone.", markers)
    assert inside.text is not None
    assert apply_edits(rejected, inside.text, markers) == chosen


@UNHURRIED
@given(TEXTS, TEXTS, st.sampled_from([str.splitlines, split_steps, str.split, list]))
def test_edits_of_whole_parts_give_it_too(rejected: str, chosen: str, split: Callable[..., list[str]]) -> None:
    def lossless(text: str) -> list[str]:
        parts = split(text, True) if split is str.splitlines else split(text)
        return parts if "".join(parts) == text else [text]

    markers = Markers.derive("p0#0", "0", rejected, chosen, mode="patch")
    assert apply_edits(rejected, write_edits(rejected, chosen, markers, lossless), markers) == chosen


@UNHURRIED
@given(st.text(alphabet="ab\n", max_size=14), st.text(alphabet="ab\n", max_size=14))
def test_no_single_edit_around_all_that_differs_is_shorter(rejected: str, chosen: str) -> None:
    assume(rejected != chosen)
    first = shared(rejected, chosen)
    last = len(rejected) - shared(rejected[first:][::-1], chosen[first:][::-1])
    grown = len(chosen) - len(rejected)
    written = write_edits(rejected, chosen, M)
    for start, end in product(range(first + 1), range(last, len(rejected) + 1)):
        old = rejected[start:end]
        if old and rejected.find(old) == rejected.rfind(old):
            assert len(written) <= len(Edit(old, chosen[start : end + grown]).written(M))


def test_distant_changes_are_edits_of_their_own_and_near_ones_are_one() -> None:
    filler = " and so on ".join(["one", "two", "three", "four", "seven", "nine", "ten"])
    far = parse_edits(write_edits(f"a=5 {filler} b=5", f"a=7 {filler} b=8", M), M)
    assert far == [Edit("5 ", "7 "), Edit("=5", "=8")] or far == [Edit("5 ", "7 "), Edit("b=5", "b=8")]
    near = parse_edits(write_edits(f"a=5 b=6 {filler}", f"a=7 b=8 {filler}", M), M)
    assert len(near) == 1


@UNHURRIED
@given(st.lists(st.text(alphabet="xyz \n", min_size=1), min_size=1, max_size=6), st.randoms())
def test_only_what_is_edited_changes_in_whatever_order_edits_come(news: list[str], random: Random) -> None:
    frame = [f"[{number}]" for number in range(len(news) + 1)]
    response = "".join(f"{left}<old {number}>" for number, left in enumerate(frame[:-1])) + frame[-1]
    edits = [(f"<old {number}>", new) for number, new in enumerate(news)]
    expected = "".join(f"{left}{new}" for left, new in zip(frame, news, strict=False)) + frame[-1]
    random.shuffle(edits)
    assert apply_edits(response, block(*edits), M) == expected


@pytest.mark.parametrize(
    ("edits", "result"),
    [
        pytest.param([("3 + 4 = 8", "3 + 4 = 7")], ANSWER.replace("= 8", "= 7"), id="one edit"),
        pytest.param([(" apples.\nHe", " pears.\nHe")], ANSWER.replace(" apples.\nHe", " pears.\nHe"), id="over lines"),
        pytest.param([("\nA: 16", "")], ANSWER.removesuffix("\nA: 16"), id="an empty new text deletes"),
        pytest.param([("A: 16", "A: 16\n")], ANSWER + "\n", id="a new text may end in a newline"),
        pytest.param([("3 + 4 = 8", "a"), (" apples.\nThen", "b")], ANSWER[:32] + "ab" + ANSWER[54:], id="touching"),
        pytest.param([("He buys 4", "He buys 4")], ANSWER, id="an edit that changes nothing"),
        pytest.param([("A: 16", "A: {{x}} \\1 \\g<0>")], ANSWER[:-5] + "A: {{x}} \\1 \\g<0>", id="no templates"),
    ],
)
def test_edits_apply(edits: list[tuple[str, str]], result: str) -> None:
    assert apply_edits(ANSWER, block(*edits), M) == result


@pytest.mark.parametrize(
    ("response", "edit", "result"),
    [
        pytest.param("a \nb", ("a\nb", "c"), "c", id="white space at a line's end in the answer"),
        pytest.param("a\nb", ("a  \nb", "c"), "c", id="white space at a line's end in the old text"),
        pytest.param("a\r\nb\r\n", ("a\nb", "c"), "c\r\n", id="carriage returns are white space"),
        pytest.param("1 a\n2", ("a \n", "b\n"), "1 b\n2", id="before a newline"),
        pytest.param("a 2\n", ("2 ", "3 "), "a 3 \n", id="white space after the last line"),
        pytest.param("x a y", ("\na\n", "\nb\n"), "x b y", id="a newline on both sides goes from the new text too"),
        pytest.param("x a y", ("a\n", "b"), "x b y", id="a newline on one side"),
        pytest.param("x\na y", ("\na\n", " b\n"), "x b y", id="only the newline that is not there is dropped"),
        pytest.param("a\nb", ("\na  \nb", ""), "", id="both at once"),
    ],
)
def test_white_space_is_forgiven_where_the_place_is_unique(response: str, edit: tuple[str, str], result: str) -> None:
    assert apply_edits(response, block(edit), M) == result


@pytest.mark.parametrize(
    ("response", "edit"),
    [
        pytest.param("a  b", ("a b", "c"), id="white space within a line counts"),
        pytest.param("  a\n  b", ("a\nb", "c"), id="indentation counts"),
        pytest.param("a\n\nb", ("a\nb", "c"), id="blank lines count"),
        pytest.param("a 2 apples", ("2 \n", "3\n"), id="no line ends there"),
        pytest.param("A", ("a", "c"), id="case counts"),
        pytest.param("x\u2212y", ("x-y", "c"), id="look-alikes count"),
        pytest.param("abc", ("\n\nabc", "c"), id="two newlines"),
        pytest.param("abc", ("\n", "c"), id="white space alone"),
        pytest.param("", ("abc", "c"), id="an empty answer"),
    ],
)
def test_nothing_else_is_forgiven(response: str, edit: tuple[str, str]) -> None:
    assert "edit 1: its old text is not in the answer" in complaint(response, edit)


@pytest.mark.parametrize(("response", "old"), [("a \nb a\t\nb", "a\nb"), ("x a a", "a\n"), ("a\t\n a\t\n", "\na \n")])
def test_forgiving_needs_a_unique_place(response: str, old: str) -> None:
    assert "2 times" in complaint(response, (old, "c"))


def test_exact_places_come_before_forgiven_ones() -> None:
    assert apply_edits("a \na", block(("a ", "b")), M) == "b\na"


def test_complaints_name_the_edit_the_places_and_the_nearest_text() -> None:
    told = complaint(ANSWER, ("A: 16", "A: 14"), ("16", "14"), ("He bought 4, so 3+4", "x"), ("zebra", "y"), ("", "z"))
    assert told.splitlines() == [
        "edit 2: its old text is in the answer 2 times (lines 3, 4): \u00ab16\u00bb; copy more of the text "
        "around the place that is meant",
        "edit 3: its old text is not in the answer: \u00abHe bought 4, so 3+4\u00bb; the nearest is in line 2: "
        "\u00abHe buys 4, so 3 + 4 = 8 apples.\u00bb",
        "edit 4: its old text is not in the answer: \u00abzebra\u00bb",
        "edit 5: its old text is empty: copy the text to be replaced; to insert, copy what stands beside it",
    ]


@pytest.mark.parametrize(
    ("old", "until", "new", "result"),
    [
        pytest.param("He buys", "A: 16", "A: 14", "Tom has 3 apples.\nA: 14", id="over lines"),
        pytest.param("He buys", "apples", "So", "Tom has 3 apples.\nSo.\nThen 8 * 2 = 16.\nA: 16", id="unique after"),
        pytest.param("Tom", "\nA: 16", "", "", id="everything"),
        pytest.param(
            "Then", " 8", "", "Tom has 3 apples.\nHe buys 4, so 3 + 4 = 8 apples.\n * 2 = 16.\nA: 16", id="touching"
        ),
        pytest.param("\nTom", "A: 16\n", "\nSo\n", "So", id="newlines forgiven at the ends of both"),
        pytest.param("Tom has 3 apples. \nHe", "16.  \nA", "B", "B: 16", id="white space at line ends"),
    ],
)
def test_the_middle_of_an_old_text_may_be_left_out(old: str, until: str, new: str, result: str) -> None:
    written = Edit(old, new, until).written(M)
    assert parse_edits(written, M) == [Edit(old, new, until)]
    assert apply_edits(ANSWER, written, M) == result


@pytest.mark.parametrize(
    ("old", "until", "told"),
    [
        (
            "apples",
            "16",
            "its old text's beginning is in the answer 2 times (lines 1, 2): \u00abapples\u00bb; copy more",
        ),
        (
            "Then",
            "16",
            "its old text's end is in the answer after its beginning 2 times (lines 3, 4): \u00ab16\u00bb; copy",
        ),
        ("Then", "He buys", "its old text's end is not in the answer after its beginning: \u00abHe buys\u00bb"),
        (
            "Then 8",
            "8 * 2",
            "its old text's end is not in the answer after its beginning: \u00ab8 * 2\u00bb; the nearest is",
        ),
        ("", "16", "its old text is empty"),
        ("Then", "", "its old text is empty"),
    ],
)
def test_both_ends_of_what_is_left_out_have_to_be_found(old: str, until: str, told: str) -> None:
    with pytest.raises(EditError) as caught:
        apply_edits(ANSWER, Edit(old, "x", until).written(M), M)
    assert f"edit 1: {told}" in str(caught.value)


def test_edits_with_a_middle_left_out_overlap_too() -> None:
    with pytest.raises(EditError, match="edits 1 and 2 overlap in line 3: join them"):
        apply_edits(ANSWER, f"{Edit('He', '', '16.').written(M)}\n{Edit('Then 8', '').written(M)}", M)


def test_a_long_passage_is_written_once() -> None:
    old, new = (" ".join(f"{word}{number}" for number in range(40)) for word in "xy")
    (edit,) = parse_edits(write_edits(f"So {old}. End", f"So {new}. End", M), M)
    assert edit.until is not None
    assert len(edit.old + edit.until) < 12


def test_overlapping_places_of_one_text_are_counted() -> None:
    assert "3 times (line 1)" in complaint("aaaa", ("aa", "b"))


@pytest.mark.parametrize(
    "edits",
    [
        [("8 * 2", "x"), ("Then 8", "y")],
        [("8 * 2", "x"), ("8 * 2", "y")],
        [("* 2", "x"), ("Then 8 * 2 = 16", "y")],
    ],
)
def test_edits_that_overlap(edits: list[tuple[str, str]]) -> None:
    assert complaint(ANSWER, *edits) == "edits 1 and 2 overlap in line 3: join them"


def test_long_texts_are_shortened_in_complaints() -> None:
    assert len(complaint("y" * 5000, ("x" * 5000, ""))) < 400


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is no edit: an edit begins with the line '<<<<<<< SEARCH kubalozi'"),
        ("2 + 2 = 4", "there is no edit"),
        ("<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE", "there is no edit"),
        ("<<<<<<< SEARCH another\na\n======= another\nb\n>>>>>>> REPLACE another", "there is no edit"),
        (f"{M.search} a {M.divider} b {M.replace}", "there is no edit"),
        (f"{M.search}\na\n{M.divider}\nb", "edit 1: the line '>>>>>>> REPLACE kubalozi' is missing"),
        (
            f"{M.search}\na\n{M.replace}",
            "edit 1: expected the line '======= kubalozi' before '>>>>>>> REPLACE kubalozi'",
        ),
        (
            f"{block(('a', 'b'))}\n{M.divider}",
            "edit 2: expected the line '<<<<<<< SEARCH kubalozi' before '======= kubalozi'",
        ),
        (f"{block(('a', 'b'))}\n{M.search}\nb", "edit 2: the line '======= kubalozi' is missing"),
        (f"{M.gap}\nb", "edit 1: expected the line '<<<<<<< SEARCH kubalozi' before '....... kubalozi'"),
        (f"{M.search}\na\n{M.gap}\nb", "edit 1: the line '======= kubalozi' is missing"),
        (
            f"{M.search}\na\n{M.gap}\nb\n{M.gap}\nc",
            "edit 1: expected the line '======= kubalozi' before '....... kubalozi'",
        ),
    ],
)
def test_a_block_that_is_not_a_row_of_edits(text: str, told: str) -> None:
    with pytest.raises(EditError) as caught:
        apply_edits("a", text, M)
    assert told in str(caught.value)


def test_what_stands_around_edits_is_ignored_and_separators_of_others_are_text() -> None:
    old = "<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE"
    text = f"First:\n```\n{block((old, 'z'))}\n```\nThen:\n{block(('end', 'END'))}\nDone."
    assert apply_edits(f"{old} end", text, M) == "z END"


def test_markers_may_have_white_space_after_them() -> None:
    assert apply_edits("a b", f"{M.search}  \na\n{M.divider}\t\nc\n{M.replace}  ", M) == "c b"


def test_short_marker_lines_where_nothing_can_be_taken_for_them() -> None:
    assert Edit("a", "b").written(BARE) == "<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE"
    assert Edit("a", "", "c").written(BARE) == "<<<<<<< SEARCH\na\n.......\nc\n=======\n>>>>>>> REPLACE"
    assert apply_edits("a == b", Edit("==", "=").written(BARE), BARE) == "a = b"
    assert apply_edits("a", Edit("a", "========= and =======").written(BARE), BARE) == "========= and ======="


@pytest.mark.parametrize("text", ["=======", "a\n>>>>>>> REPLACE", "<<<<<<< SEARCH", "x ....... y", "kubalozi"])
def test_texts_that_could_be_taken_for_markers_are_refused(text: str) -> None:
    for texts in ((text, "a"), ("a", text)):
        with pytest.raises(ValueError, match="derive markers from both texts"):
            write_edits(*texts, BARE)
        markers = Markers.derive("p0#0", "0", *texts)
        assert markers.tagged == (text != "kubalozi")
        assert apply_edits(texts[0], write_edits(*texts, markers), markers) == texts[1]
