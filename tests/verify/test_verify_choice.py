"""Multiple choice: statements of an answer in the forms that models give, and what only looks like one."""

import pytest

from spot.schema import Problem
from spot.verify.choice import LETTERS, last_letter
from spot.verify.resolve import resolve

OPTIONS = ["An increase in entropy", "A decrease in entropy", "No change", "$\\frac{1}{2}$ of it"]
STATED: list[tuple[str, str | None]] = [
    ("Answer: B. A decrease in entropy", "B"),
    ("Answer:\n\nC", "C"),
    ("The correct answer is: C", "C"),
    ("Answer: \\(C\\)", "C"),
    ("Answer: <b>C</b>", "C"),
    ("<strong>Answer: C</strong>", "C"),
    ("Answer: C;", "C"),
    ("Answer: C; A is wrong", None),
    ("Answer: C\u200b", "C"),
    ("Answer: $\\mathsf{C}$", "C"),
    ("Answer: {\\bf C}", "C"),
    ("Answer: \\texttt{C}", "C"),
    ("\\boxed{Answer: C}", "C"),
    ("Answer: A decrease in entropy", "B"),
    ("Answer: No change", "C"),
    ("Answer: no change.", "C"),
    ("Answer: D. $\\frac{1}{2}$ of it", "D"),
    ("Answer: $\\frac{1}{2}$ of it", "D"),
    ("\\boxed{C}", "C"),
    ("\\boxed{\\text{C}}", "C"),
    ("$\\boxed{\\text{(C) No change}}$", "C"),
    ("**Answer:** C", "C"),
    ("**Answer**: (C)", "C"),
    ("### Final Answer\n\nAnswer: **C**", "C"),
    ("Therefore, the correct answer is C.", "C"),
    ("So the answer is (C).", "C"),
    ("The correct option is B", "B"),
    ("Thus the best answer is **D**.", "D"),
    ("The answer is C because entropy stays.", "C"),
    ("the answer is a matter of taste", None),
    ("A decrease in entropy follows.", None),
    ("If the answer is B, then\nwe fail", None),
    ("Suppose the answer is B.", None),
    ("The answer is not B.", None),
    ("The answer is B.\nAnswer: C", "C"),
    ("Answer: B\nWait, the answer is C.", "C"),
    ("Answer: B. No change", None),
    ("Answer: B. No, A is right", None),
    ("Answer: C (No change)", "C"),
    ("Answer: C) No change", "C"),
    ("Answer: C - No change", "C"),
    ("Answer: C: No change", "C"),
    ("Answer: **C. No change**", "C"),
    ("Answer: C No change", "C"),
    ("Answer: [C]", "C"),
    ("Answer: $C$", "C"),
    ("Answer: \\textbf{C}", "C"),
    ("Answer: \\[C\\]", "C"),
    ("Answer: {C}", "C"),
    ("> Answer: C", "C"),
    ("- Answer: C", "C"),
    ("1. Answer: C", "C"),
    ("Final answer: C", "C"),
    ("Final Answer: The correct answer is C", "C"),
    ("Answer: The answer is C.", "C"),
    ("Answer: option C", "C"),
    ("Answer: Option (C)", "C"),
    ("Answer: <letter>", None),
    ("Answer: A, B, C or D", None),
    ("Answer: A/B", None),
    ("Answer: A and B", None),
    ("Answer: both A and B", None),
    ('end with "Answer: " and the letter', None),
    ("Answer: ___", None),
    ("Answer: X", None),
    ("Answer: [letter]", None),
    ("Answer: $LETTER", None),
    ("Answer: (letter of your choice)", None),
    ("Answer: C?", None),
    ("Answer: A good one", None),
    ("My final answer is D", "D"),
    ("my answer: D", "D"),
    ("The answer is: \\boxed{C}", "C"),
    ("Answer: \\boxed{C}. Done", "C"),
    ("\\boxed{B} no \\boxed{C}", "C"),
    ("\\boxed{12}\nAnswer: C", "C"),
    ("Answer: C\n\nExplanation: A is wrong, B is wrong.", "C"),
    ("Answer: C\n\n\\boxed{C}", "C"),
    ("Answer: B\n\\boxed{C}", "C"),
    ("ANSWER: C", "C"),
    ("Answer : C", "C"),
    ("Answer = C", "C"),
    ("Answer:\n\n\nC", "C"),
    ("Answer:\n\n**C**\n", "C"),
    ("Answer:\n\nC. No change", "C"),
    ("Answer:\n\nA good point", None),
    ("Answer:\n\nA", "A"),
    ("Answer:\n\n(C)", "C"),
    ("Answer:\n$$\n\\boxed{C}\n$$", "C"),
    ("<think>Answer: C", None),
    ("The correct choice is (A).", "A"),
    ("The answer is A", "A"),
    ("The answer is C. Option A fails because it would.", "C"),
    ("The correct answer is option C.", "C"),
    ("The correct answer is **C. No change**", "C"),
    ("The answer is C, since nothing changes", "C"),
    ("I believe that the answer is C", "C"),
    ("the answer might be B", None),
    ("It could be that the answer is B", None),
    ("Answer: None of the above", None),
    ("Answer: C.", "C"),
    ("Answer: C,", "C"),
    ("Answer: C!", "C"),
    ("Answer: 'C'", "C"),
    ('Answer: "C"', "C"),
    ("The answer is 'C'.", "C"),
    ("**The answer is C**", "C"),
    ("Answer: C。", "C"),
    ("The answer to the question is C.", "C"),
    ("The answer must be C.", "C"),
    ("### Answer\nC", "C"),
    ("**Final Answer**\n\n(C) No change", "C"),
    ("Answer: C\n\n### Answer\n\nas above", "C"),
    ("### Answer\n\nA good point", None),
    ("Answer: C, No change", "C"),
    ("Answer: B, No change", None),
    ("Answer: a, c", None),
]


@pytest.mark.parametrize(("response", "letter"), STATED)
def test_the_last_statement_counts(response: str, letter: str | None) -> None:
    verdict = resolve("choice")(response, Problem(id="q", prompt="?", answer="C", meta={"options": OPTIONS}))
    assert verdict.answer == letter and verdict.correct is (letter == "C")
    assert verdict.reason == ("" if letter else "no answer")


@pytest.mark.parametrize("place", range(10))
@pytest.mark.parametrize(
    "wrapper", ["{}", "**{}**", "({})", "\\({}\\)", "${}$", "\\boxed{{{}}}", "\\text{{{}}}", "{}.", "{}. option {}"]
)
def test_every_letter_in_every_wrapper(place: int, wrapper: str) -> None:
    texts = [f"option {letter}" for letter in LETTERS[:10]]
    content = wrapper.format(LETTERS[place], LETTERS[place])
    for form in (
        "Answer: {}",
        "Answer:\n\n{}",
        "The correct answer is: {}",
        "Draft: A.\nFinal answer: {}",
        "\\boxed{{Answer: {}}}",
    ):
        assert last_letter(form.format(content), texts) == LETTERS[place]
    assert last_letter(f"Answer: option {LETTERS[place]}", texts) == LETTERS[place]


def test_options_that_are_numbers_or_letters() -> None:
    options = ["3", "5", "A", "AB"]
    found = {said: last_letter(f"Answer: {said}", options) for said in ("5", "A", "AB", "B. 5", "B. 3", "C. A", "3")}
    assert found == {"5": "B", "A": "A", "AB": "D", "B. 5": "B", "B. 3": None, "C. A": "C", "3": "A"}


def test_two_options_of_one_text_name_no_letter() -> None:
    assert last_letter("Answer: same", ["same", "same", "other"]) is None
    assert last_letter("Answer: B. same", ["same", "same", "other"]) == "B"


def test_a_megabyte_of_statements_takes_no_time() -> None:
    options = ["a", "b", "c", "d"]
    for text in ("the answer is ", "\\boxed{", "\\boxed{x}", "Answer: ", "if the answer is A ", "{" * 10):
        assert last_letter(text * (1_000_000 // len(text)) + "\nAnswer: C", options) in ("C", None)
