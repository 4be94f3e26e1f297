"""How fast Connect4 boards are labelled on one core, and whether the labels are right.

    OMP_NUM_THREADS=1 python -m benchmarks.connect4_speed
    OMP_NUM_THREADS=1 python -m benchmarks.connect4_speed --deeper    # sets of forced wins too, some minutes

A board is labelled when the winning moves of both players are known: as bits for many boards at once (uint64 arrays),
as bits for one board at a time, and by `winning_moves`, which gives cells. The same boards, random ones with 0 to 42
discs, are labelled by the twin of the tests (lists of letters, every line looked at). Prints Markdown: wall time and
CPU time, the median of `--repeats`; on a shared machine the second is the one to compare.
"""

import argparse
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from tests.connect4.twin import Grid, random_grid, text_of, twin_winning_moves

from spot.connect4 import Board, build_dataset, winning_moves
from spot.connect4.board import Cell, cells_of, winning_bits
from spot.connect4.command import write_dataset
from spot.verify.connect4 import always_none, verify

SEED = 0


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of `work`, medians."""
    found: list[tuple[float, float]] = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return median(wall for wall, _ in found), median(cpu for _, cpu in found)


def labelled_by_twin(grids: list[Grid]) -> list[tuple[list[tuple[int, int]], ...]]:
    """Both players' winning moves, the slow way."""
    return [tuple(twin_winning_moves(grid, player) for player in "XO") for grid in grids]


def mismatches(grids: list[Grid], boards: list[Board], bulk: tuple[list[int], list[int]]) -> int:
    """How many boards `winning_moves`, the bits in bulk and the twin do not all agree on."""

    def same(cells: tuple[Cell, ...], bits: int, expected: list[tuple[int, int]]) -> bool:
        return list(cells) == list(cells_of(bits)) == expected

    return sum(
        not (same(winning_moves(board, "X"), x, expected[0]) and same(winning_moves(board, "O"), o, expected[1]))
        for board, x, o, expected in zip(boards, *bulk, labelled_by_twin(grids), strict=True)
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--boards", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--deeper", action="store_true", help="also sets that ask for forced wins")
    options = parser.parse_args()
    rng = random.Random(SEED)
    grids = [random_grid(rng, rng.randrange(43)) for _ in range(options.boards)]
    boards = [Board.from_text(text_of(grid)) for grid in grids]
    x, o = (np.array(bits, np.uint64) for bits in zip(*(board.bits("X") for board in boards), strict=True))
    print(f"{options.boards:,} random boards, Python {platform.python_version()}, numpy {np.__version__}\n")
    print("| both players' winning moves | boards a second (wall) | (CPU) |\n| --- | --- | --- |")
    ways: dict[str, Callable[[], object]] = {
        "arrays of bits": lambda: (winning_bits(x, o), winning_bits(o, x)),
        "bits, one board at a time": lambda: [
            (winning_bits(board.x, board.o), winning_bits(board.o, board.x)) for board in boards
        ],
        "`winning_moves`": lambda: [(winning_moves(board, "X"), winning_moves(board, "O")) for board in boards],
    }
    for name, work in ways.items():
        wall, cpu = timed(work, options.repeats)
        print(f"| {name} | {options.boards / wall:,.0f} | {options.boards / cpu:,.0f} |", flush=True)
    some = grids[: options.boards // 20]
    wall, cpu = timed(lambda: labelled_by_twin(some), 1)
    print(f"| the twin | {len(some) / wall:,.0f} | {len(some) / cpu:,.0f} |\n", flush=True)

    wrong = mismatches(grids, boards, (winning_bits(x, o).tolist(), winning_bits(o, x).tolist()))
    print(f"Mismatches with the twin: {wrong} of {options.boards:,} boards\n", flush=True)

    print("| sets | wall, s | CPU, s |\n| --- | --- | --- |")
    with TemporaryDirectory() as directory:
        path = Path(directory) / "boards.jsonl"
        wall, cpu = timed(lambda: write_dataset(path, 500, SEED, 1, Console(quiet=True)), options.repeats)
        print(f"| 500 boards, made and written | {wall:.2f} | {cpu:.2f} |", flush=True)
    problems = build_dataset(500, SEED)
    wall, cpu = timed(lambda: [verify(problem.answer, problem) for problem in problems], options.repeats)
    print(f"| 500 answers verified | {wall:.3f} | {cpu:.3f} |", flush=True)
    for plies in (3, 5, 7, 9, 11) if options.deeper else ():
        wall, cpu = timed(lambda plies=plies: build_dataset(500, SEED, plies), 1)
        print(f"| 500 boards, forced wins within {plies} plies | {wall:.1f} | {cpu:.1f} |", flush=True)
    none = always_none(problems)
    print(
        f"\nAlways none on the 500 boards: mine {none.mine:.1%}, opponent's {none.opponent:.1%}, both {none.joint:.1%}"
    )


if __name__ == "__main__":
    main()
