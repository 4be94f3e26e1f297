"""The data set: positions out of random games, each asked for both players' winning moves.

Every row is drawn for a slot, and the slots go round in two cycles: how many discs the board has (so both sides are to
move alike often and early and late positions appear alike), and whether nobody has a move to name (every fifth; in
random play it is about every second). A shorter set is therefore the beginning of a longer one.
"""

from collections.abc import Callable, Iterator
from itertools import count, islice

from spot.connect4.answer import MINE, OPPONENT, write_answer
from spot.connect4.board import COLUMN, COLUMNS, HEIGHT, Board, cells_of, has_four, mirrored, playable
from spot.connect4.solver import Solver, check_plies
from spot.errors import UserError
from spot.schema import Problem, derived_seed

DISCS = range(8, 36)
"""How many discs a board may have: with fewer hardly anybody can win yet, and few random games last longer. As many odd
numbers as even ones, for the sides to be balanced."""

QUIET_EVERY = 5
"""One slot in so many is for a board on which neither player has a move to name, and no other slot is."""

DEEPEST = 11
"""The most plies a set asks for: 500 boards take some minutes, and several times as long for every two more."""

MAX_DRAWS = 20_000
"""Games in a row without a new board for a slot, after which its kind of board counts as used up."""

PROMPT = """\
Connect4 is played on a grid of 6 rows and 7 columns. A disc that is dropped into a column falls to the lowest empty \
cell of that column. The first player with four discs in an unbroken straight line, horizontal, vertical or diagonal, \
wins the game.

Cells are written (row, column). Row 0 is the bottom row and row 5 the top one, column 0 is on the left and column 6 \
on the right. X made the first move; a dot is an empty cell.

{board}

You play {me}, and it is your turn. Your opponent plays {other}. {task}

1. Find all of your winning moves.
2. Find all of your opponent's winning moves: the moves that would be winning for {other} if it were {other}'s turn \
on this board.

When you are done, end with these two lines. Put the cells there, separated by commas, or the single word none if \
there is no such move:
{mine}: <cells or none>
{opponent}: <cells or none>"""

AT_ONCE = """\
A winning move is a cell that a disc can fall into right now and that gives the player who drops it four in a row."""

FORCED = """\
A winning move is a cell that a disc can fall into right now and after which the player who drops it can force four in \
a row within {plies} plies, whatever the other player does. Every disc is one ply: the winning move itself is the \
first, the answer to it the second, and so on; faster wins count too."""


def build_dataset(
    n: int = 500, seed: int = 0, plies: int = 1, progress: Callable[[int, int], None] | None = None
) -> list[Problem]:
    """Exactly `n` problems, the same on every machine.

    No board or mirror image of one appears twice, no game is finished, a fifth of the boards (rounded down) have no
    cell in either answer. `meta` holds the board's text, the side to move, both answers as `[row, column]`.

    Args:
        n: how many.
        seed: decides the games.
        plies: 1 asks for moves that win at once. A larger odd number asks for all moves that force a win within so
            many plies, on boards where looking two plies less far gives another answer (but for the quiet fifth).
        progress: told how many are done, of how many.

    Raises:
        UserError: `n` is less than 1 or more than there are such boards, or `plies` is even or not from 1 to `DEEPEST`.
    """
    if n < 1:
        raise UserError(f"n is {n}: give the number of boards, 1 or more")
    check_plies(plies, DEEPEST)
    problems: list[Problem] = []
    for board, mine, opponent in islice(_boards(random_columns(derived_seed(seed, "connect4", plies)), plies), n):
        problems.append(_problem(board, mine, opponent, plies, seed, len(problems)))
        if progress is not None:
            progress(len(problems), n)
    if len(problems) < n:
        raise UserError(f"n is {n}: random games gave only {len(problems)} different boards; ask for fewer")
    return problems


def _boards(games: Iterator[int], plies: int) -> Iterator[tuple[Board, int, int]]:
    """New boards with both answers as bits, slot after slot, until every kind of board is used up."""
    solver, seen = Solver(), set[tuple[int, int]]()
    used_up: set[tuple[int, bool]] = set()
    for slot in count():
        quiet = slot % QUIET_EVERY == QUIET_EVERY - 1
        # In steps of two: the side to move stays the slot's.
        for index in range(slot, slot + len(DISCS), 2):
            discs = DISCS[index % len(DISCS)]
            if (discs, quiet) in used_up:
                continue
            if drawn := _draw(games, solver, seen, discs, quiet, plies):
                yield drawn
                break
            used_up.add((discs, quiet))
        else:
            return


def _draw(
    games: Iterator[int], solver: Solver, seen: set[tuple[int, int]], discs: int, quiet: bool, plies: int
) -> tuple[Board, int, int] | None:
    for _ in range(MAX_DRAWS):
        position = random_position(games, discs)
        if position is None:
            continue
        own, other = position
        kin = min(position, (mirrored(own), mirrored(other)))
        if kin in seen:
            continue
        mine, opponent = solver.forcing_bits(own, other, plies), solver.forcing_bits(other, own, plies)
        if quiet != (not mine and not opponent) or not (quiet or _needs(solver, own, other, plies, (mine, opponent))):
            continue
        seen.add(kin)
        board = Board(own, other) if discs % 2 == 0 else Board(other, own)
        return board, mine, opponent
    return None


def _needs(solver: Solver, own: int, other: int, plies: int, answers: tuple[int, int]) -> bool:
    """Whether looking two plies less far would give another answer."""
    if plies == 1:
        return True
    return answers != (solver.forcing_bits(own, other, plies - 2), solver.forcing_bits(other, own, plies - 2))


def random_columns(seed: int) -> Iterator[int]:
    """Columns without end, all alike likely: the same on every machine.

    Three bits each of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014: a counter, mixed), seven of the eight used.
    """
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        bits = state
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        bits ^= bits >> 31
        for _ in range(21):
            if (column := bits & 7) < COLUMNS:
                yield column
            bits >>= 3


def random_position(columns: Iterator[int], discs: int) -> tuple[int, int] | None:
    """The side to move's discs and the other's after `discs` random moves; `None` where the game ended before.

    A full column is passed over, so that the open ones stay alike likely.
    """
    own, other = 0, 0
    for _ in range(discs):
        cells, move = playable(own | other), 0
        while not move:
            move = cells & COLUMN << HEIGHT * next(columns)
        own, other = other, own | move
        if has_four(other):
            return None
    return own, other


def _problem(board: Board, mine: int, opponent: int, plies: int, seed: int, index: int) -> Problem:
    me, other = ("X", "O") if board.to_move == "X" else ("O", "X")
    task = AT_ONCE if plies == 1 else FORCED.format(plies=plies)
    kind = "connect4" if plies == 1 else f"connect4-plies{plies}"
    return Problem(
        id=f"{kind}-{seed}-{index}",
        prompt=PROMPT.format(board=board.to_text(), me=me, other=other, task=task, mine=MINE, opponent=OPPONENT),
        answer=write_answer(cells_of(mine), cells_of(opponent)),
        source="connect4",
        meta={
            "board": board.to_text(),
            "to_move": me,
            "discs": board.discs,
            "plies": plies,
            "mine": [list(cell) for cell in cells_of(mine)],
            "opponent": [list(cell) for cell in cells_of(opponent)],
        },
    )
