"""Boards as two numbers, one bit a cell, and the moves that win at once.

Cell (row, column) is bit `7 * column + row`, row 0 at the bottom. Bit 6 of each column is above the board and never
set: it keeps a line that is shifted from running on into the next column.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from spot.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Player = Literal["X", "O"]

ROWS, COLUMNS = 6, 7
HEIGHT = ROWS + 1
COLUMN = (1 << ROWS) - 1
BOTTOM = sum(1 << HEIGHT * column for column in range(COLUMNS))
CELLS = COLUMN * BOTTOM

# Shifts along the four directions: up, right, falling diagonal, rising diagonal.
_STEPS = (1, HEIGHT, HEIGHT - 1, HEIGHT + 1)
_LINE = re.compile(r"(?:[0-5]\s*\|?\s*)?([.XO](?:\s*[.XO]){6})\s*\|?", re.IGNORECASE)
_COLUMN_NUMBERS = "0123456"

# One board, or an array of many.
Bits = TypeVar("Bits", int, "NDArray[np.uint64]")


class Cell(NamedTuple):
    """A cell by its coordinates: row 0 is the lowest, column 0 the leftmost."""

    row: int
    column: int


_CELL_OF = {1 << HEIGHT * column + row: Cell(row, column) for column in range(COLUMNS) for row in range(HEIGHT)}


@dataclass(frozen=True)
class Board:
    """A position: the bits of X's discs and of O's. X moves first, so X has as many discs as O, or one more.

    Raises:
        UserError: bits outside the board, a cell taken twice, a disc in the air, or counts that no game reaches.
    """

    x: int = 0
    o: int = 0

    def __post_init__(self) -> None:
        taken = self.x | self.o
        if min(self.x, self.o) < 0 or taken & ~CELLS:
            raise UserError(f"not a board: discs outside its {ROWS} rows and {COLUMNS} columns")
        if self.x & self.o:
            raise UserError(f"not a board: X and O both at {written_cell(*cells_of(self.x & self.o)[:1])}")
        if floating := taken & ~_supported(taken):
            raise UserError(f"not a board: no disc below {written_cell(*cells_of(floating)[:1])}")
        if self.x.bit_count() - self.o.bit_count() not in (0, 1):
            raise UserError(
                f"not a board: {self.x.bit_count()} X and {self.o.bit_count()} O; X moves first, then they take turns"
            )

    @classmethod
    def from_moves(cls, columns: str) -> "Board":
        """The board after discs fell into these columns in turn, X first: "3342" is four moves."""
        board = cls()
        for column in columns:
            board = board.play(int(column) if column in _COLUMN_NUMBERS else -1)
        return board

    @classmethod
    def from_text(cls, text: str) -> "Board":
        """Read six lines of seven cells (`.`, `X`, `O`), the top row first, as `to_text` or without its coordinates."""
        lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
        if lines and "".join(lines[-1].split()) == _COLUMN_NUMBERS:
            lines.pop()
        if len(lines) != ROWS:
            raise UserError(f"not a board: {len(lines)} rows of cells, not {ROWS}")
        bits = {"X": 0, "O": 0}
        for row, line in zip(reversed(range(ROWS)), lines, strict=True):
            match = _LINE.fullmatch(line)
            if match is None:
                raise UserError(
                    f"not a board: row {row} is {line[:40]!r}; it needs {COLUMNS} cells of '.', 'X' and 'O'"
                )
            for column, letter in enumerate(match[1].upper().replace(" ", "").replace("\t", "")):
                if letter != ".":
                    bits[letter] |= 1 << HEIGHT * column + row
        return cls(bits["X"], bits["O"])

    def to_text(self) -> str:
        """The board as six lines, the top row first, with the coordinates on the left and below."""
        rows = (
            f"{row} | " + " ".join(self.at(row, column) or "." for column in range(COLUMNS))
            for row in reversed(range(ROWS))
        )
        return "\n".join([*rows, "    " + " ".join(_COLUMN_NUMBERS)])

    def at(self, row: int, column: int) -> Player | None:
        """Whose disc is at a cell."""
        bit = 1 << HEIGHT * column + row
        return "X" if self.x & bit else "O" if self.o & bit else None

    def bits(self, player: Player) -> tuple[int, int]:
        """The discs of `player` and of the other."""
        if player not in ("X", "O"):
            raise UserError(f"player {player!r} is neither 'X' nor 'O'")
        return (self.x, self.o) if player == "X" else (self.o, self.x)

    @property
    def discs(self) -> int:
        """How many discs are on the board."""
        return (self.x | self.o).bit_count()

    @property
    def to_move(self) -> Player:
        """The side to move."""
        return "X" if self.discs % 2 == 0 else "O"

    @property
    def is_over(self) -> bool:
        """Whether somebody has four in a row, or no cell is left."""
        return has_four(self.x) or has_four(self.o) or self.discs == ROWS * COLUMNS

    def play(self, column: int) -> "Board":
        """The board after the side to move drops a disc into `column`."""
        bit = playable(self.x | self.o) & (COLUMN << HEIGHT * column if 0 <= column < COLUMNS else 0)
        if not bit:
            raise UserError(f"no disc can fall into column {column}: it is full, or there is no such column")
        return Board(self.x | bit, self.o) if self.to_move == "X" else Board(self.x, self.o | bit)


def winning_moves(board: Board, player: Player) -> tuple[Cell, ...]:
    """The cells that `player` can play at once, it being their turn or not, and that complete four in a row.

    Ordered by column. Only the lowest empty cell of a column can be played.
    """
    return cells_of(winning_bits(*board.bits(player)))


def winning_bits(own: Bits, other: Bits) -> Bits:
    """The playable cells that complete four in a row for `own`; for one board (ints) or for many (uint64 arrays)."""
    lines = own & 0
    for step in _STEPS:
        before, after = own << step, own >> step
        # The new disc is last or third of its line, or first or second.
        lines |= before & (own << 2 * step) & (own << 3 * step | after)
        lines |= after & (own >> 2 * step) & (own >> 3 * step | before)
    return lines & playable(own | other)  # pyright: ignore[reportArgumentType] (numpy's stubs take it for signed)


def playable(taken: Bits) -> Bits:
    """The lowest empty cell of each column: adding one at its bottom carries through the discs."""
    return (taken + BOTTOM) & CELLS  # pyright: ignore[reportReturnType] (numpy's stubs take it for signed)


def has_four(own: int) -> bool:
    """Whether `own` has four in a row."""
    for step in _STEPS:
        pairs = own & (own >> step)
        if pairs & (pairs >> 2 * step):
            return True
    return False


def mirrored(own: int) -> int:
    """The same discs with left and right swapped."""
    return sum((own >> HEIGHT * column & COLUMN) << HEIGHT * (COLUMNS - 1 - column) for column in range(COLUMNS))


def each_bit(bits: int) -> Iterator[int]:
    """The set bits, from low to high: by column, in a column upwards."""
    while bits:
        bit = bits & -bits
        yield bit
        bits ^= bit


def cells_of(bits: int) -> tuple[Cell, ...]:
    """The cells of the set bits, ordered by column."""
    return tuple(_CELL_OF[bit] for bit in each_bit(bits))


def written_cell(cell: Cell) -> str:
    """A cell as answers write it: `(row, column)`."""
    return f"({cell.row}, {cell.column})"


def _supported(taken: int) -> int:
    """The cells at the bottom or on a disc."""
    return (taken << 1 | BOTTOM) & CELLS
