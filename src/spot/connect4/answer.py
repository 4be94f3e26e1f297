"""The two lines in which an answer states its cells; `spot.verify.connect4` reads them."""

from collections.abc import Iterable

from spot.connect4.board import Cell, written_cell

MINE = "My winning moves"
OPPONENT = "Opponent's winning moves"
NONE = "none"


def write_answer(mine: Iterable[Cell], opponent: Iterable[Cell]) -> str:
    """Both lines, cells ordered by column."""
    return f"{write_line(MINE, mine)}\n{write_line(OPPONENT, opponent)}"


def write_line(label: str, cells: Iterable[Cell]) -> str:
    """One line: its label, then the cells or the word none."""
    ordered = sorted(cells, key=lambda cell: (cell.column, cell.row))
    return f"{label}: {', '.join(map(written_cell, ordered)) or NONE}"
