import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spot.connect4 import build_dataset
from spot.connect4.answer import write_answer
from spot.connect4.board import Cell
from spot.schema import Problem, Verdict
from spot.verify.connect4 import Reading, Scores, always_none, read, scores, verify
from spot.verify.resolve import resolve

FORM = "My winning moves: <cells or none>\nOpponent's winning moves: <cells or none>"
MINE, THEIRS = [(0, 3), (2, 2)], [(1, 5)]
RIGHT = "My winning moves: (0, 3), (2, 2)\nOpponent's winning moves: (1, 5)"
STATED = "My winning moves: (2, 2), (0, 3)\nOpponent's winning moves: (1, 5)"  # by column, as answers are kept
NONE = "My winning moves: none\nOpponent's winning moves: none"


def problem(mine: list[tuple[int, int]], opponent: list[tuple[int, int]]) -> Problem:
    answer = write_answer([Cell(*cell) for cell in mine], [Cell(*cell) for cell in opponent])
    return Problem(id="b", prompt="board", answer=answer)


ASKED = problem(MINE, THEIRS)

READABLE = [
    pytest.param(RIGHT, id="as asked"),
    pytest.param("Opponent's winning moves: (1, 5)\nMy winning moves: (2, 2), (0, 3)", id="any order"),
    pytest.param(RIGHT.replace(" ", "").replace("winningmoves", " winning moves"), id="no spaces"),
    pytest.param("My  winning moves :  ( 0 ,3 ) ,(2,  2)\n\n  Opponent's winning moves:(1 , 5 )  ", id="odd spaces"),
    pytest.param("**My winning moves:** (0, 3), (2, 2)\n**Opponent's winning moves:** (1, 5)", id="bold labels"),
    pytest.param("**My winning moves**: **(0, 3)**, **(2, 2)**\n*Opponent's winning moves*: `(1, 5)`", id="bold cells"),
    pytest.param(
        "- My winning moves: (0, 3), (2, 2).\n- Opponent's winning moves: (1, 5).", id="bullets and full stops"
    ),
    pytest.param("1. My winning moves: (0, 3), (2, 2)\n2. Opponent's winning moves: (1, 5)", id="numbered"),
    pytest.param(
        "> MY WINNING MOVES: (0, 3) (2, 2)\n> opponent’s winning moves: (1, 5)", id="case and curly apostrophe"
    ),
    pytest.param("My winning moves: [(0, 3), (2, 2)]\nOpponent's winning moves: [(1, 5)]", id="as Python lists"),
    pytest.param("My winning moves: [[0, 3], [2, 2]]\nOpponent's winning moves: [1, 5]", id="square brackets"),
    pytest.param("My winning moves: {(0,3), (2,2)}\nOpponent's winning moves: {(1,5)}", id="sets"),
    pytest.param("My winning moves: $(0,3), (2,2)$\nOpponent's winning moves: \\boxed{(1, 5)}", id="math and a box"),
    pytest.param("My winning moves: (0, 3); (2, 2)\nOpponent's winning move: (1, 5)", id="semicolons, singular"),
    pytest.param("My winning moves: (0, 3) and (2, 2)\nMy opponent's winning moves: (1, 5)", id="and, my opponent's"),
    pytest.param("My winning moves: (0, 3), (2, 2); opponent's winning moves: (1, 5)", id="on one line"),
    pytest.param("My winning moves: (0, 3), (2, 2) Opponent's winning moves: (1, 5)", id="on one line, no separator"),
    pytest.param("My winning moves: (0, 3), (2, 2) and opponent's winning moves: (1, 5)", id="on one line with and"),
    pytest.param("My winning moves:\n(0, 3)\n(2, 2)\n\nOpponent's winning moves:\n- (1, 5)\n", id="cells below"),
    pytest.param(
        "### My winning moves:\n\n* (0, 3)\n* (2, 2)\n\n### Opponent's winning moves:\n\n* (1, 5)", id="headings"
    ),
    pytest.param(
        "Final answer: My winning moves: (0, 3), (2, 2)\nOpponent's winning moves: (1, 5)", id="after a colon"
    ),
    pytest.param(RIGHT.replace("\n", "\r\n"), id="Windows line ends"),
    pytest.param(
        "My winning moves： （0， 3）， （2，2）\nOpponent's winning moves:\u00a0(1,\u00a05)", id="full width"
    ),
    pytest.param("My winning moves: (0, 3), (2, 2), (0, 3)\nOpponent's winning moves: (1, 5)", id="a cell said twice"),
    pytest.param(f"{NONE}\nWait, that is not right.\n{RIGHT}", id="the last statement counts"),
    pytest.param(f"My winning moves: (5, 5)\n{RIGHT}", id="one corrected, the other said once"),
    pytest.param(f"{RIGHT}\nOpponent's winning moves: <cells or none>", id="the form after the answer"),
    pytest.param(f"The form is\n{FORM}\nso:\n{RIGHT}", id="the form before the answer"),
    pytest.param(f"{RIGHT}\nMy winning moves: (row, column), ...", id="another form after the answer"),
    pytest.param(f"{RIGHT}\nMy winning moves: [...]", id="a form of dots after the answer"),
    pytest.param(f'{RIGHT}\nMy winning moves: "<cells or none>".', id="the form in quotes after the answer"),
    pytest.param(f"<think>{NONE}</think>\n{RIGHT}", id="a draft in a think block"),
    pytest.param(f"{RIGHT}\n<think>Hm.\n{NONE}", id="an unclosed think block after the answer"),
    pytest.param(f"{NONE}\n</think>\n{RIGHT}", id="a think block opened in the prompt"),
    pytest.param(f"{RIGHT}\n\nI hope this helps! (4, 4) was close.", id="prose after the answer"),
    pytest.param(f"What are my winning moves? Not (3, 3): it is in the air.\n{RIGHT}", id="prose before the answer"),
]

WRONG = [
    pytest.param("My winning moves: (0, 3)\nOpponent's winning moves: (1, 5)", "mine", id="a cell missing"),
    pytest.param(
        "My winning moves: (0, 3), (2, 2), (3, 3)\nOpponent's winning moves: (1, 5)", "mine", id="one too many"
    ),
    pytest.param("My winning moves: (3, 0), (2, 2)\nOpponent's winning moves: (1, 5)", "mine", id="column before row"),
    pytest.param("My winning moves: (0, 3), (2, 2)\nOpponent's winning moves: none", "opponent", id="none said of one"),
    pytest.param("My winning moves: (1, 5)\nOpponent's winning moves: (0, 3), (2, 2)", "both", id="the sides swapped"),
    pytest.param(NONE, "both", id="always none"),
    pytest.param(
        "My winning moves: (9, 99), (0, 3), (2, 2)\nOpponent's winning moves: (1, 5)", "mine", id="off the board"
    ),
    pytest.param(f"{RIGHT}\nMy winning moves: none", "mine", id="the last statement is the wrong one"),
]

# Each of these is a statement of my moves that must not be credited, whatever the known answer, nor read as none.
UNREADABLE = [
    pytest.param("", id="empty"),
    pytest.param("   \n", id="blank"),
    pytest.param("<cells or none>", id="the form"),
    pytest.param("...", id="dots"),
    pytest.param("[...]", id="dots in brackets"),
    pytest.param("(row, column)", id="the form of a cell"),
    pytest.param("[]", id="an empty list"),
    pytest.param("()", id="empty brackets"),
    pytest.param("-", id="a dash"),
    pytest.param("N/A", id="not applicable"),
    pytest.param("0", id="a number"),
    pytest.param("nothing I can see", id="prose that means none"),
    pytest.param("none, or perhaps (0, 3)", id="none and a cell"),
    pytest.param("(0, 3) or none", id="a cell or none"),
    pytest.param("none?", id="a question"),
    pytest.param("nonesuch", id="a word that begins with none"),
    pytest.param("not none", id="not none"),
    pytest.param("(0, 3), (2, 2), ...", id="cells and dots"),
    pytest.param("(0, 3), (2, 2),", id="a list that goes on"),
    pytest.param("(0, 3), (2, 2", id="an unclosed bracket"),
    pytest.param("0, 3", id="no brackets"),
    pytest.param("(0 3)", id="no comma"),
    pytest.param("(0, 3, 2)", id="three numbers"),
    pytest.param("(-1, 3)", id="a negative row"),
    pytest.param("(0.0, 3)", id="a decimal"),
    pytest.param("(zero, three)", id="words"),
    pytest.param("column 3", id="a column"),
    pytest.param("(0, 3) is the only one", id="a cell with a remark"),
    pytest.param("the same as above", id="a reference"),
    pytest.param("(000, 3)", id="three digits"),
    pytest.param("(٠, ٣)", id="digits of another script"),
    pytest.param("(0, 3) \u202e(2, 2)", id="right to left text"),
    pytest.param("(0, 3)" + " " * 2000 + "(2, 2)", id="a second cell a long way off"),
    pytest.param("9" * 1_000_000, id="a million digits"),
    pytest.param("(0, 3), " * 100_000 + "(0, 3)", id="a hundred thousand cells"),
]


@pytest.mark.parametrize("response", READABLE)
def test_readable_answers_are_right(response: str) -> None:
    assert read(response) == Reading(frozenset({Cell(0, 3), Cell(2, 2)}), frozenset({Cell(1, 5)}))
    assert verify(response, ASKED) == Verdict(correct=True, answer=STATED)


@pytest.mark.parametrize(
    "said", ["none", "None", "NONE.", "**none**", "(none)", "[None]", "`none`", "\\boxed{none}", "\nnone"]
)
def test_none_is_read_where_it_is_said(said: str) -> None:
    response = f"My winning moves: {said}\nOpponent's winning moves: {said}"
    assert verify(response, problem([], [])) == Verdict(correct=True, answer=NONE)


@pytest.mark.parametrize(("response", "fault"), WRONG)
def test_wrong_answers_are_wrong(response: str, fault: str) -> None:
    verdict, found = verify(response, ASKED), scores([response], [ASKED])
    assert verdict.correct is False
    assert verdict.answer is not None
    assert ("My winning moves: wrong" in verdict.reason) == (fault in ("mine", "both"))
    assert ("Opponent's winning moves: wrong" in verdict.reason) == (fault in ("opponent", "both"))
    assert (found.mine, found.opponent) == (fault == "opponent", fault == "mine")
    assert (found.joint, found.unreadable) == (0, 0)


@pytest.mark.parametrize("mine", [[], [(0, 3)], MINE])
@pytest.mark.parametrize("said", UNREADABLE)
def test_what_cannot_be_read_is_never_credited(said: str, mine: list[tuple[int, int]]) -> None:
    asked = problem(mine, [])
    response = f"My winning moves: {said}\nOpponent's winning moves: none"
    assert read(response) == Reading(None, frozenset())
    verdict = verify(response, asked)
    assert (verdict.correct, verdict.answer) == (False, "Opponent's winning moves: none")
    assert verdict.reason == "My winning moves: no answer"
    assert scores([response], [asked]) == Scores(n=1, mine=0, opponent=1, joint=0, unreadable=1)
    other = f"My winning moves: none\nOpponent's winning moves: {said}"
    assert read(other) == Reading(frozenset(), None)


@pytest.mark.parametrize(
    "response",
    [
        pytest.param("", id="nothing"),
        pytest.param("none", id="none without a label"),
        pytest.param("(0, 3), (2, 2)\n(1, 5)", id="cells without labels"),
        pytest.param("There are none.", id="prose"),
        pytest.param(FORM, id="the form"),
        pytest.param(f"<think>{RIGHT}", id="an unclosed think block"),
        pytest.param(f"<think>{RIGHT}</think>", id="only a think block"),
        pytest.param(f"<think>a</think>b<think>{RIGHT}", id="a second think block, unclosed"),
        pytest.param("These are not my winning moves: (0, 3), (2, 2)", id="a label within a sentence"),
        pytest.param("My winning moves (0, 3), (2, 2)", id="no colon"),
        pytest.param("\\text{My winning moves: (0, 3)}", id="wrapped in LaTeX"),
        pytest.param("My winning <think>moves: (0, 3)</think>moves: none", id="a label around a thought"),
    ],
)
def test_no_statement_is_no_answer(response: str) -> None:
    assert verify(response, ASKED) == Verdict(correct=False, reason="no answer")
    assert verify(response, problem([], [])) == Verdict(correct=False, reason="no answer")


def test_the_whole_prompt_repeated_is_no_answer() -> None:
    for asked in build_dataset(10):
        assert verify(str(asked.prompt), asked) == Verdict(correct=False, reason="no answer")


def test_a_list_that_became_unreadable_is_not_read_from_its_draft() -> None:
    for said in ("I am not sure any more", "(0, 3)<br>", "[]", "none <end>", ""):
        assert read(f"{RIGHT}\nMy winning moves: {said}").mine is None


@pytest.mark.parametrize("known", ["", "42", "My winning moves: none", NONE.replace("none", "?")])
def test_an_unreadable_known_answer_is_unscored(known: str) -> None:
    asked = Problem(id="b", prompt="board", answer=known)
    assert verify(RIGHT, asked).correct is None
    with pytest.raises(ValueError, match="known answer"):
        scores([RIGHT], [asked])


@given(st.text(alphabet="My winngmoves:Opt'()[]{},;.\n\t 0123*_-<>none/thik", max_size=300))
def test_any_text_is_judged(text: str) -> None:
    assert verify(text, ASKED).correct is False or read(text) == read(RIGHT)


cells = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), unique=True)


@given(cells, cells)
def test_what_is_written_can_be_read(mine: list[tuple[int, int]], opponent: list[tuple[int, int]]) -> None:
    asked = problem(mine, opponent)
    assert read(asked.answer) == Reading(*(frozenset(Cell(*cell) for cell in some) for some in (mine, opponent)))
    assert verify(asked.answer, asked) == Verdict(correct=True, answer=asked.answer)


@pytest.mark.parametrize(
    "filler", ["\n", " ", "*", ")", "- ", "My winning moves:", "my winning moves: (", "1. ", "<think>"]
)
def test_reading_is_linear_in_length(filler: str) -> None:
    start = time.process_time()
    read(filler * (1_000_000 // len(filler)))
    assert time.process_time() - start < 20


def test_the_two_baselines_of_always_none() -> None:
    problems = [problem([], []), problem([], THEIRS), problem(MINE, []), problem(MINE, THEIRS), problem([], THEIRS)]
    assert always_none(problems) == Scores(n=5, mine=3 / 5, opponent=2 / 5, joint=1 / 5, unreadable=0)


def test_scores_of_a_set() -> None:
    responses = [RIGHT, NONE, "", RIGHT.replace("(1, 5)", "?")]
    assert scores(responses, [ASKED] * 4) == Scores(n=4, mine=2 / 4, opponent=1 / 4, joint=1 / 4, unreadable=2 / 4)


def test_scores_need_as_many_responses_as_problems() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        scores([RIGHT], [ASKED, ASKED])
    with pytest.raises(ValueError, match="at least one"):
        scores([], [])


def test_found_by_name() -> None:
    assert resolve("connect4")(RIGHT, ASKED).correct is True


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(r"\boxed{My winning moves: \text{none} \\ My opponent's winning moves: (1, 2)}", id="line break"),
        pytest.param("\\boxed{\nMy winning moves: none\nOpponent's winning moves: (1, 2)\n}", id="pair of lines"),
        pytest.param(
            r"$$\boxed{\begin{aligned}&\text{My winning moves: none}\\&\text{Opponent's winning moves: }(1,2)"
            r"\end{aligned}}$$",
            id="aligned",
        ),
        pytest.param(
            "My winning moves: \\boxed{\\text{none}}\nOpponent's winning moves: \\boxed{(1, 2)}", id="a box each"
        ),
        pytest.param("My winning moves: \\text{none}\nOpponent's winning moves: $\\{(1, 2)\\}$", id="a set"),
        pytest.param(
            "\\boxed{\\text{My winning moves: none}}\n\\boxed{\\text{Opponent's winning moves: (1, 2)}}",
            id="a box a line",
        ),
        pytest.param(
            r"\boxed{\text{My winning moves: } \text{none}, \quad \text{Opponent's winning moves: } \left(1,2\right)}",
            id="one line",
        ),
    ],
)
def test_latex_around_both_lists(response: str) -> None:
    assert read(response) == Reading(frozenset(), frozenset([Cell(1, 2)]))
