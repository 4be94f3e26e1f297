"""Connect4 once more, as slowly and plainly as can be: lists of letters, every line of the board looked at."""

import random

from spot.connect4.board import Board, Cell, Player, cells_of
from spot.connect4.solver import Solver

ROWS, COLUMNS = 6, 7
Grid = list[list[str]]  # grid[row][column], row 0 at the bottom, "." for an empty cell

LINES = [
    [(row + step * rise, column + step * run) for step in range(4)]
    for row in range(ROWS)
    for column in range(COLUMNS)
    for rise, run in ((0, 1), (1, 0), (1, 1), (-1, 1))
    if 0 <= row + 3 * rise < ROWS and column + 3 * run < COLUMNS
]
THROUGH = {
    (row, column): [line for line in LINES if (row, column) in line] for row in range(ROWS) for column in range(7)
}


def twin_completes(grid: Grid, cell: tuple[int, int], player: str) -> bool:
    """Whether a line through `cell` is all of `player`."""
    return any(all(grid[row][column] == player for row, column in line) for line in THROUGH[cell])


def twin_has_four(grid: Grid, player: str) -> bool:
    return any(all(grid[row][column] == player for row, column in line) for line in LINES)


def twin_open_cells(grid: Grid) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for column in range(COLUMNS):
        empty = [row for row in range(ROWS) if grid[row][column] == "."]
        if empty:
            found.append((min(empty), column))
    return found


def twin_winning_moves(grid: Grid, player: str) -> list[tuple[int, int]]:
    return twin_forcing_moves(grid, player, 1)


def twin_forcing_moves(grid: Grid, player: str, plies: int) -> list[tuple[int, int]]:
    """The first moves after which `player` has four within `plies`, by minimax over every move there is."""
    return [cell for cell in twin_open_cells(grid) if _forces(grid, cell, player, plies)]


def _forces(grid: Grid, cell: tuple[int, int], player: str, plies: int) -> bool:
    row, column = cell
    grid[row][column] = player
    found = twin_completes(grid, cell, player) or (plies > 1 and _every_reply_loses(grid, player, plies - 1))
    grid[row][column] = "."
    return found


def _every_reply_loses(grid: Grid, player: str, plies: int) -> bool:
    other = "O" if player == "X" else "X"
    replies = twin_open_cells(grid)
    for row, column in replies:
        grid[row][column] = other
        loses = not twin_completes(grid, (row, column), other) and bool(twin_forcing_moves(grid, player, plies - 1))
        grid[row][column] = "."
        if not loses:
            return False
    return bool(replies)


def random_grid(rng: random.Random, discs: int) -> Grid:
    """A grid after so many random moves, whoever has won meanwhile."""
    grid = [["."] * COLUMNS for _ in range(ROWS)]
    for move in range(discs):
        row, column = rng.choice(twin_open_cells(grid))
        grid[row][column] = "XO"[move % 2]
    return grid


def text_of(grid: Grid) -> str:
    return "\n".join("".join(row) for row in reversed(grid))


def forcing_moves(board: Board, player: Player, plies: int) -> tuple[Cell, ...]:
    """What a new solver says, as cells."""
    return cells_of(Solver().forcing_bits(*board.bits(player), plies))
