"""Token-level measures against slow twins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.audit.edits import binned, edits, rank_correlation, summarise_edits
from spot.pairs.change import change_ratio, edit_distance
from spot.pairs.tokens import Encoder, encode_all

Ids = st.lists(st.integers(0, 4), min_size=1, max_size=20)


def slow_levenshtein(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row[0] = row[:], i
        for j, y in enumerate(b, start=1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
    return row[-1]


@given(rejected=Ids, chosen=Ids)
def test_the_measures_are_what_they_say(rejected: list[int], chosen: list[int]) -> None:
    found = edits(rejected, chosen)
    longer = max(len(rejected), len(chosen))
    assert found.change_ratio == pytest.approx(change_ratio(rejected, chosen))
    assert found.lcs_distance == pytest.approx(1 - (1 - found.change_ratio) * len(chosen) / longer)
    assert found.edits == slow_levenshtein(rejected, chosen)
    assert found.edit_distance == pytest.approx(found.edits / longer) == edit_distance(rejected, chosen)
    head, tail = found.shared_prefix, found.shared_suffix
    assert rejected[:head] == chosen[:head] and rejected[len(rejected) - tail :] == chosen[len(chosen) - tail :]
    assert head + tail <= min(len(rejected), len(chosen))
    assert rejected[head : head + 1] != chosen[head : head + 1] or rejected == chosen
    assert found.first_edit == head / len(rejected)


def test_eq_1_does_not_see_a_deletion_and_the_flag_does() -> None:
    found = edits(list(range(100)), list(range(69)))
    assert found.change_ratio == 0
    assert [found.edit_distance, found.lcs_distance] == pytest.approx([0.31, 0.31])
    assert found.shortened
    assert not edits(list(range(100)), list(range(70))).shortened


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        edits([], [1])
    with pytest.raises(ValueError, match="neither"):
        edit_distance([], [])


@given(st.lists(st.floats(0, 1)))
def test_every_value_is_in_one_bin(values: list[float]) -> None:
    assert sum(binned(values)) == len(values)


def test_bins_are_closed_above() -> None:
    assert binned([0.05])[0] == binned([0])[0] == 1
    assert binned([0.55])[10] == 1
    assert binned([1])[19] == 1


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) is None
    # By hand: ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_the_summary_says_whether_much_changed_answers_are_changed_early() -> None:
    rows = [edits(list(range(20)), [*range(start), *range(100, 120 - start)]) for start in (2, 8, 14)]
    found = summarise_edits(rows)
    assert found.earlier_with_ratio == pytest.approx(-1)
    assert found.change_ratio.n == sum(found.change_ratio_bins) == 3
    assert found.change_ratio.median == pytest.approx(0.6)


class Slow:
    """A tokenizer that transformers has no fast version of."""

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def test_encoders_agree_with_their_tokenizer_whether_fast_or_slow() -> None:
    from spot.hub import load_tokenizer, model_path

    tokenizer = load_tokenizer(model_path("lab"))
    texts = ["Then there are 33 - 12 = 21 apples.", "", "数学 <|im_end|> naïve\n\n" * 400]
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    encoder = Encoder(tokenizer)
    assert encoder.batch(texts) == [encoder(text) for text in texts] == wanted
    assert encode_all(encoder, texts) == wanted
    assert encoder.batch([]) == []
    assert Encoder(Slow()).batch(["ab", "c"]) == [[97, 98], [99]]
    assert encode_all(lambda text: [len(text)], texts[:1]) == [[35]]
