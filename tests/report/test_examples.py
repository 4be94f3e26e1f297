import random
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from spot.files.store import read_rows
from spot.report.diff import Span
from spot.report.examples import Piece, fitted, rectified_examples, shortened, spread
from spot.schema import Attempt, Message, Pair, Problem, Rectification


def pair(number: int, ratio: float) -> Pair:
    return Pair(
        id=f"p{number}",
        problem_id=f"p{number}",
        prompt="q",
        chosen="a 2",
        rejected="a 1",
        change_ratio=ratio,
        oracle="o",
    )


ratios = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.6]) | st.floats(0, 1), max_size=30)


@given(ratios, st.randoms(use_true_random=False))
def test_examples_span_the_range_whatever_the_order(values: list[float], rng: random.Random) -> None:
    pairs = [pair(number, value) for number, value in enumerate(values)]
    shown = spread(pairs)
    assert spread(rng.sample(pairs, len(pairs))) == shown
    assert len({one.id for one in shown}) == len(shown) == min(5, len(pairs))
    assert [one.change_ratio for one in shown] == sorted(one.change_ratio for one in shown)
    if pairs:
        assert (shown[0].change_ratio, shown[-1].change_ratio) == (min(values), max(values))


def test_known_and_given_answers_come_from_the_rows(new_run: Callable[..., Path]) -> None:
    run = new_run(questions=2)
    pairs = read_rows(run / "pairs.jsonl", Pair)
    attempts = read_rows(run / "attempts.jsonl", Attempt)
    rectifications = read_rows(run / "rectifications.jsonl", Rectification)
    shown = rectified_examples(pairs, {}, attempts, rectifications)
    for example in shown:
        assert example.known and example.known in "".join(piece.text for piece in example.chosen)
        assert example.said and example.said in "".join(piece.text for piece in example.rejected)
    alone = rectified_examples(pairs, {}, [], [])
    assert {(example.known, example.said) for example in alone} == {(None, None)}


def test_a_problems_own_answer_wins_over_what_was_read_from_the_correction() -> None:
    problem = Problem(id="p0", prompt="q", answer="2.0")
    with_meta = pair(0, 0.1).model_copy(update={"meta": {"answer": "two"}})
    assert rectified_examples([with_meta], {"p0": problem}, [], [])[0].known == "2.0"
    assert rectified_examples([with_meta], {}, [], [])[0].known == "two"


def test_chat_prompts_and_answers_are_shown_as_text() -> None:
    chat = pair(0, 0.1).model_copy(
        update={
            "prompt": [Message(role="system", content="Be brief."), Message(role="user", content="1+1?")],
            "chosen": [Message(role="assistant", content="2")],
            "rejected": [Message(role="assistant", content="3")],
        }
    )
    [shown] = rectified_examples([chat], {}, [], [])
    assert shown.question[0].text == "[system] Be brief.\n\n[user] 1+1?"
    assert [(piece.kind, piece.text) for piece in shown.rejected + shown.chosen] == [("changed", "3"), ("changed", "2")]


@given(st.lists(st.tuples(st.text(min_size=1, max_size=300), st.integers(1, 100)), min_size=1, max_size=6))
def test_shortening_keeps_the_changes_and_says_what_it_leaves_out(parts: list[tuple[str, int]]) -> None:
    spans = [Span(text * times, index % 2 == 1) for index, (text, times) in enumerate(parts)]
    pieces = shortened(spans, context=50, longest=200)
    kept = sum(len(piece.text) for piece in pieces if piece.kind != "gap")
    left_out = sum(int(piece.text.split()[0].replace(",", "")) for piece in pieces if piece.kind == "gap")
    assert kept + left_out == sum(len(span.text) for span in spans)
    assert kept <= len(spans) * 300
    changed = [piece.text for piece in pieces if piece.kind == "changed"]
    assert [text[:200] for text in changed] == [span.text[:200] for span in spans if span.changed]


def test_short_texts_are_shown_whole() -> None:
    spans = [Span("same " * 100, False), Span("new", True), Span(" rest", False)]
    assert "".join(piece.text for piece in shortened(spans)) == "same " * 100 + "new rest"


pieces = st.lists(
    st.builds(Piece, st.sampled_from(["same", "changed"]), st.text(min_size=1, max_size=400))
    | st.integers(1, 10**6).map(lambda number: Piece("gap", f"{number:,} characters left out", number)),
    max_size=12,
)


@given(pieces, st.integers(100, 1000))
def test_fitting_takes_from_the_middle_and_says_how_much(given: list[Piece], longest: int) -> None:
    def length(some: list[Piece]) -> int:
        return sum(piece.left_out or len(piece.text) for piece in some)

    def text(some: list[Piece]) -> str:
        return "".join(f"<{piece.left_out}>" if piece.kind == "gap" else piece.text for piece in some)

    shown = fitted(given, longest)
    assert length(shown) == length(given)
    if shown != given:
        new = next(place for place, piece in enumerate(shown) if piece not in given and piece.kind == "gap")
        assert text(given).startswith(text(shown[:new]))
        assert text(given).endswith(text(shown[new + 1 :]))
        assert sum(len(piece.text) + 30 for piece in shown[:new] + shown[new + 1 :]) <= longest


def test_what_fits_is_left_as_it_is() -> None:
    given = [Piece("same", "So "), Piece("changed", "12")]
    assert fitted(given, 65) == given
    assert fitted(given, 64) != given
