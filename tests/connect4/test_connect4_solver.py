import random
from itertools import count, islice

import pytest
from tests.connect4.twin import Grid, forcing_moves, random_grid, text_of, twin_forcing_moves, twin_has_four

from spot.connect4 import Board, winning_moves
from spot.connect4.board import Player, cells_of
from spot.connect4.solver import MAX_PLIES, Solver, check_plies
from spot.errors import UserError

PLAYERS: tuple[Player, Player] = ("X", "O")


def unfinished(seed: int, discs: range, number: int) -> list[Grid]:
    rng = random.Random(seed)
    grids = (random_grid(rng, rng.choice(discs)) for _ in count())
    return list(islice((grid for grid in grids if not any(twin_has_four(grid, player) for player in PLAYERS)), number))


@pytest.mark.parametrize(
    ("discs", "plies", "number"),
    [
        pytest.param(range(33, 43), 9, 60, id="to the end of near-full boards"),
        pytest.param(range(8, 34), 3, 60, id="three plies anywhere"),
        pytest.param(range(20, 34), 5, 20, id="five plies later on"),
    ],
)
def test_forced_wins_agree_with_plain_minimax(discs: range, plies: int, number: int) -> None:
    told: set[bool] = set()
    solver = Solver()
    for grid in unfinished(plies, discs, number):
        board = Board.from_text(text_of(grid))
        for player in PLAYERS:
            own, other = board.bits(player)
            for limit in range(1, plies + 1, 2):
                expected = twin_forcing_moves(grid, player, limit)
                assert list(forcing_moves(board, player, limit)) == expected
                # What is remembered from other limits and boards changes nothing.
                assert list(cells_of(solver.forcing_bits(own, other, limit))) == expected
                assert solver.wins(own, other, limit) == bool(expected)
                told.add(bool(expected))
    assert told == {False, True}


def test_three_with_two_open_ends_wins_in_three_plies() -> None:
    board = Board.from_moves("2233")  # X has two side by side at the bottom
    assert forcing_moves(board, "X", 1) == ()
    assert forcing_moves(board, "X", 3) == ((0, 1), (0, 4))


def test_a_threat_of_the_other_comes_first() -> None:
    board = Board.from_moves("262636")  # O has three upwards in column 6, X two at the bottom and two upwards
    assert board.to_move == "X"
    assert forcing_moves(board, "O", 1) == ((3, 6),)
    assert forcing_moves(board, "X", 3) == ()


def test_one_ply_is_the_winning_moves() -> None:
    for grid in unfinished(1, range(42), 50):
        board = Board.from_text(text_of(grid))
        for player in PLAYERS:
            assert forcing_moves(board, player, 1) == winning_moves(board, player)
            assert set(forcing_moves(board, player, 3)) >= set(winning_moves(board, player))


@pytest.mark.parametrize("plies", [0, 2, -1, MAX_PLIES + 2])
def test_a_win_takes_an_odd_number_of_plies(plies: int) -> None:
    with pytest.raises(UserError, match="odd number"):
        check_plies(plies)
