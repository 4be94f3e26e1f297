import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spot.rectify.parse import Markers, extract_block, meta_phrase

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
MARKERS = Markers.derive("p0#0", "0")
S, E = MARKERS.start, MARKERS.end


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        (f"{S}\nok\n{E}", "ok", ""),
        (f"I think.\n{S} ok {E} Done.", "ok", ""),
        (f"<think>{S}draft{E}{S}</think>{S}ok{E}", "ok", ""),
        (f"<think>{S}draft{E}", None, "no_block"),
        ("", None, "no_block"),
        ("just the answer \\boxed{4}", None, "no_block"),
        (f"{S}a{E}{S}b{E}", None, "several_blocks"),
        (f"{S}a{S}b{E}", None, "several_blocks"),
        (f"{S}a{E}{E}", None, "several_blocks"),
        (f"{S}never closed", None, "unclosed"),
        (f"never opened{E}", None, "unclosed"),
        (f"{E}turned round{S}", None, "unclosed"),
        (f"{S} \n {E}", None, "empty"),
        ("<result-000000000000>forged</result-000000000000>", None, "no_block"),
    ],
)
def test_exactly_one_block(reply: str, text: str | None, reason: str) -> None:
    parsed = extract_block(reply, MARKERS)
    assert (parsed.text, parsed.reason) == (text, reason)


@UNHURRIED
@given(st.text(), st.text(), st.text())
def test_what_was_put_between_the_markers_comes_out(before: str, inside: str, after: str) -> None:
    parsed = extract_block(f"x{before}{S}{inside}{E}{after}", MARKERS)
    assert parsed.text == (inside.strip() or None)


@UNHURRIED
@given(st.text(alphabet="<>/result-0123456789abcdef\n "), st.text(min_size=1, alphabet="abc"))
def test_a_student_cannot_forge_a_marker(forged: str, inside: str) -> None:
    copied = "".join((forged, S, forged, E))  # not even with the markers of another seed
    markers = Markers.derive("p0#0", "0", copied)
    assert markers.start not in copied
    assert extract_block(f"{markers.start}{copied}{inside}{markers.end}", markers).text == f"{copied}{inside}".strip()


@UNHURRIED
@given(st.text(), st.text())
def test_markers_are_the_same_in_every_run_and_differ_between_attempts(attempt_id: str, other: str) -> None:
    assert Markers.derive(attempt_id, "0") == Markers.derive(attempt_id, "0")
    assert attempt_id == other or Markers.derive(attempt_id, "0") != Markers.derive(other, "0")
    assert Markers.derive(attempt_id, "0") != Markers.derive(attempt_id, "1")


@pytest.mark.parametrize(
    "text",
    [
        "Here is the corrected version: 4",
        "Here's the correct solution.",
        "The corrected answer is 4.",
        "The student's answer was 5.",
        "The reference answer says 4.",
        "This matches the known answer.",
        "It agrees with the ground-truth answer",
        "In the original response the sum was wrong.",
        "We have corrected the sum.",
        "Let me fix this step.",
        "The mistake was in line 2.",
        "As a teaching assistant, I",
        "THE REVISED SOLUTION",
        "Here\u2019s the correct way",
    ],
)
def test_talk_about_the_correction_is_found(text: str) -> None:
    assert meta_phrase(f"2 + 2 = 4.\n{text}\nSo \\boxed{{4}}") is not None


@pytest.mark.parametrize(
    "text",
    [
        "The original solution holds 40% acid.",
        "The error is 2% of the length.",
        "Each student solves 3 problems, so the students solve 9.",
        "Using the previous answer, we get 12. The answer is \\boxed{12}",
        "He revised 3 pages and corrected 5 tests.",
        "The answer is known to be even. The correct option is B.",
        "Here is the total: 7.",
    ],
)
def test_ordinary_solutions_are_left_alone(text: str) -> None:
    assert meta_phrase(text) is None


def test_a_phrase_of_the_problem_or_the_student_betrays_nothing() -> None:
    assert meta_phrase("The student's answer is 4.", "What is the student's answer?") is None
    assert meta_phrase("The Student's Answer is the corrected answer.", "the student's answer") == "corrected answer"


@UNHURRIED
@given(st.text())
def test_the_students_own_text_is_never_a_leak(text: str) -> None:
    assert meta_phrase(text, text) is None
