"""Style drift."""

from spot.audit.style import StyleAudit

PLAIN = "The sum is 4. So the answer is 4."
MARKED = "# Solution\n\n- **Therefore** the sum is $4$.\n- `x` is <b>\n\n| a | b |\n\\boxed{4}"


def test_marks_are_counted_and_their_drift_is_seen() -> None:
    audit = StyleAudit()
    row = audit.add(PLAIN, MARKED)
    assert row.rejected_marks == {}
    assert row.chosen_marks == {
        "line break": 6, "heading": 1, "list item": 2, "bold": 1, "code": 1, "formula": 1, "box": 1, "table row": 1,
        "tag": 1,
    }  # fmt: skip
    bold = next(mark for mark in audit.summary().marks if mark.mark == "bold")
    assert (bold.only_chosen, bold.only_rejected) == (1, 0)
    assert bold.rejected_rate == 0
    assert bold.chosen_rate == 1000 / len(MARKED)


def test_stars_and_products_are_no_bold_words() -> None:
    assert "bold" not in StyleAudit().add("2 ** 3 ** 4", "a**b").chosen_marks
    assert StyleAudit().add("2 ** 3 ** 4", "x").rejected_marks == {}


def test_vocabulary_is_the_share_of_known_words() -> None:
    row = StyleAudit().add("one two THREE 4", "Three four 5 one")
    assert row.vocabulary == 2 / 3
    assert StyleAudit().add("a", "12").vocabulary == 1


def test_words_that_corrections_keep_bringing_in_stand_out() -> None:
    audit = StyleAudit()
    for number in range(100):
        audit.add(f"So {number} now", f"Actually {'now' if number % 2 else 'then'} so {number}")
    audit.add("actually so", "so")
    words = audit.summary().words
    assert [(row.word, row.brought, row.taken) for row in words] == [("actually", 100, 1), ("then", 50, 0)]
    assert "so" not in {row.word for row in words}


def test_the_same_style_drifts_nowhere() -> None:
    audit = StyleAudit()
    for _ in range(3):
        audit.add(MARKED, MARKED)
    found = audit.summary()
    assert found.words == []
    assert all(mark.only_chosen == mark.only_rejected == 0 for mark in found.marks)
    assert found.characters_ratio.median == found.vocabulary.median == 1
