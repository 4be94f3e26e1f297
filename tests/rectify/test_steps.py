import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spot.rectify.parse import Markers
from spot.rectify.patch import Edit
from spot.rectify.steps import Step, StepError, read_step, split_steps, write_step

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
M = Markers("kubalozi", tagged=True)
ANSWER = "Tom has 3 apples. He buys 4, so 3 + 4 = 8.\n\nThen 8 * 2 = 16. That is all.\nA: 16"

PIECES = st.sampled_from(
    ["a", "B", "1.", "x.", "Mr. ", ". ", "! ", "\n", "\n\n", " ", "\u3002", "2+2=4. ", "So ", "$y$. "]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES).map("".join))


def read(old: str, new: str, response: str = ANSWER) -> str:
    step = read_step(response, Edit(old, new).written(M), M)
    return response[: step.start] + step.text


@UNHURRIED
@given(TEXTS)
def test_splitting_loses_nothing_and_every_step_says_something(text: str) -> None:
    steps = split_steps(text)
    assert "".join(steps) == text
    assert all(step.strip() for step in steps) or not text.strip()


@pytest.mark.parametrize(
    "steps",
    [
        ["Tom has 3 apples. ", "He buys 4.\n\n", "So 7.\n", "A: 7"],
        ["\n  The price is $3.50 a day. ", "It is 3.5 * 2 = 7! ", "Right? ", "Yes."],
        ["1. Add: 2 + 2 = 4\n", "2. Double it. ", "That gives 8\n", "   (indented) So \\boxed{8}.\n"],
        ['He said "stop." ', "Then (it is done.) ", "**So x = 1.** ", "$y = 2.$ ", "\\[z\\]"],
        ["Mr. Smith and Dr. Who, i.e. Both, have 5 vs. 3 eggs, see eq. 2. ", "Then 5."],
        ["x = 2. ", "Then y = 3 approx. in the end, e.g. here."],
        ["\u7b2c\u4e00\u6b65\u3002", "\u7b2c\u4e8c\u6b65\uff01\n", "\u7b54\u6848\u662f4\u3002"],
        ["3 + 4 = 7 <<3+4=7>>7\r\n", "A: 7\r\n"],
    ],
)
def test_a_step_is_a_line_or_a_sentence(steps: list[str]) -> None:
    assert split_steps("".join(steps)) == steps


def without_space(text: str) -> str:
    return "".join(text.split())


@UNHURRIED
@given(TEXTS, TEXTS, TEXTS)
def test_what_was_written_leads_to_the_beginning_of_the_chosen_text(common: str, rest: str, other: str) -> None:
    rejected, chosen = common + rest, common + other
    markers = Markers.derive("p0#0", "0", rejected, chosen, mode="continue")
    try:
        block = write_step(rejected, chosen, markers)
    except ValueError:
        assert not chosen.strip() or rejected.split() == chosen.split()
        return
    step = read_step(rejected, block, markers)
    begun = rejected[: step.start] + step.text
    assert step.text.strip()
    assert without_space(chosen).startswith(without_space(begun))


@UNHURRIED
@given(TEXTS, TEXTS, st.data())
def test_student_text_before_the_step_stays_as_it_is(rejected: str, new: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rejected)))
    markers = Markers.derive("p0#0", "0", rejected, new)
    try:
        step = read_step(rejected, Edit(rejected[start:], new).written(markers), markers)
    except StepError:
        return
    assert without_space(new).startswith(without_space(step.text))
    assert 0 <= step.start <= len(rejected)


@pytest.mark.parametrize(
    ("old", "new", "begun"),
    [
        pytest.param(
            "He buys 4, so 3 + 4 = 8.", "He buys 4, so 3 + 4 = 7.", "He buys 4, so 3 + 4 = 7.\n\n", id="line's end"
        ),
        pytest.param("Tom has 3 apples.", "Tom has 2 apples.", None, id="the space within a line is the student's"),
        pytest.param("3 + 4 = 8", "3 + 4 = 7", None, id="a part of a step"),
        pytest.param(
            "He buys 4, so 3 + 4 = 8.\n\nThen 8 * 2 = 16.",
            "He buys 4, so 3 + 4 = 7.\n\nThen 7 * 2 = 14.",
            "He buys 4, so 3 + 4 = 7.\n\n",
            id="what follows the first step that differs is left to the student",
        ),
        pytest.param(
            "He buys 4, so 3 + 4 = 8.\n\nThen 8 * 2 = 16.",
            "He buys 4, so 3 + 4 = 8.\n\nThen 8 * 2 = 15. No. Yes.",
            "He buys 4, so 3 + 4 = 8.\n\nThen 8 * 2 = 15.",
            id="steps that are the same do not count",
        ),
        pytest.param("That is all.\nA: 16", "That is all.", "That is all.\n", id="a step too many"),
        pytest.param("A: 16", "A: 14\n", "A: 14", id="the last step"),
    ],
)
def test_the_student_goes_on_from_the_first_step_that_differs(old: str, new: str, begun: str | None) -> None:
    assert read(old, new) == ANSWER[: ANSWER.index(old)] + (new if begun is None else begun)


def test_white_space_is_forgiven_as_in_patches() -> None:
    assert read("\nTom has 3 apples. \n", "\nTom has 2 apples.\n", "Tom has 3 apples.\nMore.") == "Tom has 2 apples.\n"


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("Tom has 2 apples.", "there is no edit"),
        (
            "\n".join([Edit("apples", "a").written(M), Edit("Tom", "b").written(M)]),
            "there are 2 edits: write one, for the first",
        ),
        (
            Edit("16", "14").written(M),
            "the quoted step is in the answer 2 times (lines 3, 4): \u00ab16\u00bb; copy more",
        ),
        (
            Edit("Tom has 4 apples.", "x").written(M),
            "the quoted step is not in the answer: \u00abTom has 4 apples.\u00bb; the",
        ),
        (Edit("", "x").written(M), "the quoted step is empty"),
        (Edit("A: 16", " \n").written(M), "the step's right version is missing"),
        (Edit("A: 16", "A:  16\n").written(M), "the step's right version is the same as the quoted step"),
    ],
)
def test_complaints(block: str, told: str) -> None:
    with pytest.raises(StepError) as caught:
        read_step(ANSWER, block, M)
    assert told in str(caught.value)


def test_the_first_differing_step_is_quoted_whole() -> None:
    chosen = ANSWER.replace("= 8", "= 7").replace("8 * 2 = 16", "7 * 2 = 14").replace("A: 16", "A: 14")
    block = write_step(ANSWER, chosen, M)
    assert block == Edit("He buys 4, so 3 + 4 = 8.", "He buys 4, so 3 + 4 = 7.").written(M)
    assert read_step(ANSWER, block, M) == Step(18, "He buys 4, so 3 + 4 = 7.\n\n")


def test_an_ambiguous_step_is_quoted_with_what_follows() -> None:
    block = write_step("So 4.\nSo 4.\nEnd", "So 3.\nSo 4.\nEnd", M)
    assert block == Edit("So 4.\nSo 4.", "So 3.").written(M)


@pytest.mark.parametrize(("rejected", "chosen"), [("a", "a"), ("a b", "a\n b"), ("a", " "), ("", "")])
def test_there_has_to_be_a_step_that_differs(rejected: str, chosen: str) -> None:
    with pytest.raises(ValueError, match="no step differs"):
        write_step(rejected, chosen, M)
