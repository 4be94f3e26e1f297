import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.connect4.twin import random_grid, text_of, twin_has_four, twin_winning_moves

from spot.connect4 import Board, winning_moves
from spot.connect4.board import Player, cells_of, has_four, mirrored, winning_bits
from spot.errors import UserError

OPENING = """
. . . . . . .
. . . . . . .
. . . . . . .
. . . X . . .
. . . O . . .
. X X X O O .
"""

columns = st.lists(st.integers(0, 6), max_size=60)


def played(moves: list[int]) -> Board:
    """The board after these moves, as far as they are possible and nobody has won."""
    board = Board()
    for column in moves:
        if not board.is_over and board.at(5, column) is None:
            board = board.play(column)
    return board


def bits_of(rows: str) -> tuple[int, int]:
    """X's and O's bits of rows written from the top, also where their counts are none that a game reaches."""
    lines = rows.split("|")[::-1]
    x, o = (
        sum(1 << 7 * column + row for row, line in enumerate(lines) for column in range(7) if line[column] == letter)
        for letter in "XO"
    )
    return x, o


@pytest.mark.parametrize(
    ("rows", "for_x", "for_o"),
    [
        pytest.param(".......", [], [], id="an empty board"),
        pytest.param("X.O....|X.O....|X.O....", [(3, 0)], [(3, 2)], id="upwards, whoever is to move"),
        pytest.param(".OOO...", [], [(0, 0), (0, 4)], id="both ends of a line"),
        pytest.param(".OOO...|.XXX...", [(0, 0), (0, 4)], [], id="ends in the air cannot be played"),
        pytest.param("XX.X...", [(0, 2)], [], id="a gap within a line"),
        pytest.param("OO.O...|XX.X...", [(0, 2)], [], id="a gap above an empty cell"),
        pytest.param("XXX.XXX", [(0, 3)], [], id="a cell that completes two lines is one move"),
        pytest.param("...X...|..XO...|.XOO...|.OXX...", [(0, 0)], [], id="low end of a rising diagonal"),
        pytest.param("OX.....|OOX....|XOOX...", [(3, 0)], [], id="high end of a falling diagonal"),
        pytest.param(".X.....|OOX....|XOOX...", [], [], id="high end of a falling diagonal in the air"),
        pytest.param("O......|O......|O......|X......|X......|X......", [], [], id="a full column"),
        pytest.param("X......|X......|X......|O......|O......|O......", [], [], id="no line from a column to the next"),
        pytest.param("....XXX", [(0, 3)], [], id="no line around the edge"),
    ],
)
def test_winning_moves_of(rows: str, for_x: list[tuple[int, int]], for_o: list[tuple[int, int]]) -> None:
    x, o = bits_of(rows)
    assert list(cells_of(winning_bits(x, o))) == for_x
    assert list(cells_of(winning_bits(o, x))) == for_o


def test_winning_moves_are_cells_by_row_and_column() -> None:
    board = Board.from_text(OPENING)
    (move,) = winning_moves(board, "X")
    assert (move, move.row, move.column) == ((0, 0), 0, 0)
    assert winning_moves(board, "O") == ()


def test_twenty_thousand_random_boards_agree_with_the_twin() -> None:
    rng = random.Random(5)
    grids = [random_grid(rng, rng.randrange(43)) for _ in range(20_000)]
    boards = [Board.from_text(text_of(grid)) for grid in grids]
    x, o = (np.array([board.bits(player)[0] for board in boards], np.uint64) for player in ("X", "O"))
    at_once: dict[Player, list[int]] = {"X": winning_bits(x, o).tolist(), "O": winning_bits(o, x).tolist()}
    for player, bulk in at_once.items():
        found = [list(winning_moves(board, player)) for board in boards]
        assert found == [twin_winning_moves(grid, player) for grid in grids]
        assert found == [list(cells_of(bits)) for bits in bulk]
        assert [has_four(board.bits(player)[0]) for board in boards] == [twin_has_four(grid, player) for grid in grids]


@given(columns)
def test_mirrored_boards_have_mirrored_moves(moves: list[int]) -> None:
    board = played(moves)
    mirror = Board(mirrored(board.x), mirrored(board.o))
    for player in ("X", "O"):
        expected = sorted((row, 6 - column) for row, column in winning_moves(board, player))
        assert sorted(winning_moves(mirror, player)) == expected
    assert (mirrored(mirror.x), mirrored(mirror.o)) == (board.x, board.o)


@given(columns)
def test_swapped_players_have_swapped_moves(moves: list[int]) -> None:
    board = played(moves[: len(moves) // 2 * 2])
    if board.to_move == "X":  # with a disc more than O, X cannot be O
        swapped = Board(board.o, board.x)
        assert winning_moves(swapped, "X") == winning_moves(board, "O")
        assert winning_moves(swapped, "O") == winning_moves(board, "X")


@given(columns)
def test_a_winning_move_ends_the_game(moves: list[int]) -> None:
    board = played(moves)
    wins = {column for _, column in winning_moves(board, board.to_move)}
    if not board.is_over:
        for column in range(7):
            if board.at(5, column) is None:
                after = board.play(column)
                assert has_four(after.bits(board.to_move)[0]) == (column in wins)


@given(columns)
def test_text_goes_there_and_back(moves: list[int]) -> None:
    board = played(moves)
    text = board.to_text()
    bare = "\n".join(line[4:].replace(" ", "") for line in text.splitlines()[:6])
    assert Board.from_text(text) == Board.from_text(bare) == Board.from_text(bare.lower()) == board


def test_text_has_row_0_at_the_bottom() -> None:
    assert Board.from_moves("3342").to_text().splitlines()[-3:] == [
        "1 | . . . O . . .",
        "0 | . . O X X . .",
        "    0 1 2 3 4 5 6",
    ]


def test_side_to_move_and_end() -> None:
    board = Board.from_moves("010101")
    assert (board.to_move, board.discs, board.is_over) == ("X", 6, False)
    assert board.play(0).is_over
    assert Board.from_moves("0").to_move == "O"
    draw = Board.from_text("XXOOXXO\nOOXXOOX\n" * 3)
    assert draw.is_over
    assert winning_moves(draw, "X") == winning_moves(draw, "O") == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Board(1 << 6, 0), "outside", id="the bit above a column"),
        pytest.param(lambda: Board(1 << 60, 0), "outside", id="a bit to the right"),
        pytest.param(lambda: Board(-1, 0), "outside", id="a negative number"),
        pytest.param(lambda: Board(1, 1), r"both at \(0, 0\)", id="a cell taken twice"),
        pytest.param(lambda: Board(1 << 15, 0), r"no disc below \(1, 2\)", id="a disc in the air"),
        pytest.param(lambda: Board(0, 1), "0 X and 1 O", id="O before X"),
        pytest.param(lambda: Board(3, 0), "2 X and 0 O", id="X twice in a row"),
        pytest.param(lambda: Board.from_text(""), "0 rows", id="no text"),
        pytest.param(lambda: Board.from_text(".......\n" * 5), "5 rows", id="a row too few"),
        pytest.param(lambda: Board.from_text(".......\n" * 5 + "...X.."), "row 0 is '...X..'", id="a cell too few"),
        pytest.param(lambda: Board.from_text(".......\n" * 5 + "...X...."), "row 0", id="a cell too many"),
        pytest.param(lambda: Board.from_text(".......\n" * 5 + "...Y..."), "row 0", id="another letter"),
        pytest.param(lambda: Board.from_moves("0000000"), "column 0", id="a full column"),
        pytest.param(lambda: Board.from_moves("7"), "column", id="no such column"),
        pytest.param(lambda: winning_moves(Board(), "x"), "'x'", id="an unknown player"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_not_a_board(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
