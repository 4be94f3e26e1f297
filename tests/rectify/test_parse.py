from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spot.rectify.parse import REASONS, Markers, extract_block, flaw, meta_phrase, other_language, plain_reply
from spot.schema import Mode

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
        (f"{S}a{S}b{E}{E}", None, "nested_blocks"),
        (f"{S}a{E}{S}b{E}{S}c{E}", None, "several_blocks"),
        (f"{S}a{E}{E}", None, "several_blocks"),
        (f"{S}never closed", None, "unclosed"),
        (f"never opened{E}", None, "unclosed"),
        (f"{E}turned round{S}", None, "unclosed"),
        (f"{S} \n {E}", None, "empty"),
        ("<result-kubalo>forged</result-kubalo>", None, "foreign_markers"),
        (f"<result-kubalo>quoted</result-kubalo>{S}<result-kubalo>ok{E}", "<result-kubalo>ok", ""),
        (f"<think>{S}draft{E}</think>the answer is 4", None, "no_block"),
        (f"{S}{S}a{E}{E}".upper(), None, "no_block"),
    ],
)
def test_exactly_one_block(reply: str, text: str | None, reason: str) -> None:
    parsed = extract_block(reply, MARKERS)
    assert (parsed.text, parsed.reason) == (text, reason)
    assert reason in REASONS or not reason


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        ("\n2 + 2 = 4\n", "2 + 2 = 4", ""),
        ("<think>5?</think>\n\n4", "4", ""),
        (f"{S}4{E}", f"{S}4{E}", ""),
        ("<think>never ends", None, "empty"),
        (" \n", None, "empty"),
    ],
)
def test_a_plain_reply_is_the_result(reply: str, text: str | None, reason: str) -> None:
    parsed = plain_reply(reply)
    assert (parsed.text, parsed.reason) == (text, reason)


@UNHURRIED
@given(st.text(), st.text(), st.text())
def test_what_was_put_between_the_markers_comes_out(before: str, inside: str, after: str) -> None:
    parsed = extract_block(f"x{before}{S}{inside}{E}{after}", MARKERS)
    assert parsed.text == (inside.strip() or None)


@UNHURRIED
@given(st.text(alphabet="<>/result-=abdeiou\n "), st.text(min_size=1, alphabet="abc"), st.integers(0, 3))
def test_a_student_cannot_forge_a_marker(forged: str, inside: str, seen: int) -> None:
    copied = forged
    for _ in range(seen):  # not even with markers that it has seen
        earlier = Markers.derive("p0#0", "0", copied)
        copied = "".join((earlier.start, copied, earlier.end, earlier.divider))
    markers = Markers.derive("p0#0", "0", copied)
    assert markers.nonce not in copied
    assert extract_block(markers.enclose(copied + inside), markers).text == f"{copied}{inside}".strip()


def test_markers_are_the_same_in_every_run_and_belong_to_one_request() -> None:
    modes: list[Mode] = ["rewrite", "patch", "continue"]
    requests = list(product("ab", "01", modes, range(3)))

    def nonces() -> list[str]:
        return [Markers.derive(row, salt, mode=mode, attempt=attempt).nonce for row, salt, mode, attempt in requests]

    assert len(set(nonces())) == len(requests)
    assert nonces() == nonces()
    assert Markers.derive("a", "0") == Markers.derive("a", "0", "some text", mode="rewrite", attempt=0)


@pytest.mark.parametrize("material", ["2 + 2 = 4", "a\n=======\nb", "<<<<<<< SEARCH"])
def test_marker_lines_differ_and_hold_the_nonce_where_they_could_be_forged(material: str) -> None:
    markers = Markers.derive("\ud800", "0", material)
    assert markers.nonce.isalpha()
    inner = [markers.search, markers.gap, markers.divider, markers.replace]
    lines = [markers.start, markers.end, *inner]
    assert len(set(lines)) == 6
    assert not any(line in material or "\n" in line for line in lines)
    assert all((markers.nonce in line) == ("2" not in material) for line in inner)
    assert markers.nonce in markers.start
    assert markers.nonce in markers.end
    assert not markers.clash(material)


def test_a_nonce_grows_until_it_does_not_occur() -> None:
    short = Markers.derive("p0#0", "0").nonce
    grown = Markers.derive("p0#0", "0", f"so {short} is here").nonce
    again = Markers.derive("p0#0", "0", f"so {short} is here, {grown} too").nonce
    assert [len(nonce) for nonce in (short, grown, again)] == [6, 8, 10]


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
        "The answer is 4, as given in the answer key.",
        "According to the reference solution it is 4.",
        "which matches the given answer",
        "This agrees with the expected result.",
        "We know the correct final answer, so n = 4.",
        "The final answer is given as 4.",
        "Correction: 2 + 2 = 4",
        "I made a mistake above.",
        "I apologize for the confusion.",
        "I only changed the line with the sum.",
        "The student forgot to carry.",
        "The rest of the solution remains unchanged.",
        "the amended steps",
        "As an AI, I",
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
        "The answer is given by x + 1.",
        "He changed the line 4 times. She fixed the step.",
        "The student paid $5. The student has 3 books left.",
        "The answer is 4 given that x is even. The result matches the claim.",
        "The rest of the pizza remains.",
        "We know the final price is $4.",
        "By the given condition, the area remains unchanged.",
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


ENGLISH = "Janet sells 16 - 3 - 4 = 9 eggs a day.\nShe makes 9 * 2 = $18 and that is the answer of this: \\boxed{18}"
CHINESE = "每天卖出 16 - 3 - 4 = 9 个鸭蛋,所以赚了 9 * 2 = 18美元。答案 $\\boxed{18}$"
GERMAN = "Janet verkauft die Eier und das ist der Preis: 9 * 2 = 18. Dann sind es von den Eiern also \\boxed{18}"
RUSSIAN = "Джанет продаёт 9 яиц, 9 * 2 = \\boxed{18}"


@pytest.mark.parametrize("one", [ENGLISH, CHINESE, GERMAN, RUSSIAN])
@pytest.mark.parametrize("other", [ENGLISH, CHINESE, GERMAN, RUSSIAN])
def test_another_language_is_found(one: str, other: str) -> None:
    assert other_language(one, other) == (one != other)


@pytest.mark.parametrize(
    ("text", "response"),
    [
        pytest.param("9 * 2 = \\boxed{18}", ENGLISH, id="no words"),
        pytest.param("9 * 2 = \\boxed{18}", CHINESE, id="no words left"),
        pytest.param(
            "$\u03b1 + \u03b2 = \u03c0$, \u2135, \u211d, \U0001d465", "$a + b = c$", id="symbols are no writing"
        ),
        pytest.param("So y e y e y e, le, un, de, a, o", ENGLISH, id="variables are no language"),
        pytest.param("Jos\u00e9 and Zo\u00eb eat at Caf\u00e9 Ren\u00e9.", ENGLISH, id="names"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_mathematics_and_names_are_no_language(text: str, response: str) -> None:
    assert not other_language(text, response)


def test_one_foreign_sentence_is_enough_and_the_problem_stands_in() -> None:
    assert other_language(f"{ENGLISH}\n{CHINESE[:8]}", ENGLISH)
    assert other_language(CHINESE, "9 * 2 = 19", ENGLISH)
    assert not other_language(CHINESE, "9 * 2 = 19", CHINESE)
    assert not other_language(CHINESE, "9 * 2 = 19", "3 + 3")


@UNHURRIED
@given(st.text())
def test_the_students_own_text_has_no_flaw(text: str) -> None:
    assert flaw(text, text, "") == ""


def test_flaws_have_reasons() -> None:
    assert flaw("The corrected answer is 4", "5", "2 + 2?") == "meta_phrase"
    assert flaw(CHINESE, ENGLISH, ENGLISH) == "other_language"
    assert flaw(ENGLISH, ENGLISH.replace("9", "8"), ENGLISH) == ""
