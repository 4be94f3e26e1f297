import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from tests.connect4.twin import forcing_moves

from spot.connect4 import Board, build_dataset, winning_moves
from spot.connect4.board import mirrored
from spot.connect4.command import write_dataset
from spot.connect4.dataset import DISCS, random_columns
from spot.errors import UserError
from spot.files.store import read_rows
from spot.schema import Problem
from spot.verify.connect4 import verify

GOLDEN = "3aba1e4024de4ea4fa514cfa1330b8da372e31c06be705584587089416203c8c"


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return build_dataset(500, 0)


def board_of(problem: Problem) -> Board:
    return Board.from_text(problem.meta["board"])


def test_the_set_has_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    write_dataset(tmp_path / "boards.jsonl", 500, 0, 1, Console(quiet=True))
    assert hashlib.sha256((tmp_path / "boards.jsonl").read_bytes()).hexdigest() == GOLDEN


def test_the_bytes_do_not_depend_on_hash_order() -> None:
    code = "from spot.connect4 import build_dataset; print([p.model_dump_json() for p in build_dataset(40, 1, 3)])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_random_columns_are_splitmix64() -> None:
    # The first number of the reference implementation from seed 0 is 0xE220A8397B1DCDAF; read from its low end.
    first = 0xE220A8397B1DCDAF
    expected = [column for i in range(21) if (column := first >> 3 * i & 7) < 7]
    columns = random_columns(0)
    assert [next(columns) for _ in expected] == expected
    counts = Counter(next(columns) for _ in range(70_000))
    assert set(counts) == set(range(7))
    assert all(9_500 < number < 10_500 for number in counts.values())


def test_rows_hold_both_answers(problems: list[Problem]) -> None:
    for problem in problems:
        board, meta = board_of(problem), problem.meta
        me, other = meta["to_move"], "O" if meta["to_move"] == "X" else "X"
        assert (board.to_move, board.discs, meta["plies"]) == (me, meta["discs"], 1)
        assert meta["mine"] == [list(cell) for cell in winning_moves(board, me)]
        assert meta["opponent"] == [list(cell) for cell in winning_moves(board, other)]
        assert verify(problem.answer, problem).correct is True
    json.dumps(problems[0].meta)


def test_no_board_twice_mirrored_or_finished(problems: list[Problem]) -> None:
    boards = [board_of(problem) for problem in problems]
    assert not any(board.is_over for board in boards)
    kinds = {min((board.x, board.o), (mirrored(board.x), mirrored(board.o))) for board in boards}
    assert len(kinds) == len(boards) == 500
    assert [problem.id for problem in problems] == [f"connect4-0-{index}" for index in range(500)]


def test_a_fifth_is_quiet_and_sides_and_discs_are_balanced(problems: list[Problem]) -> None:
    assert sum(not problem.meta["mine"] and not problem.meta["opponent"] for problem in problems) == 100
    assert Counter(problem.meta["to_move"] for problem in problems) == {"X": 250, "O": 250}
    by_discs = Counter(problem.meta["discs"] for problem in problems)
    assert set(by_discs) == set(DISCS)
    assert max(by_discs.values()) - min(by_discs.values()) <= 1
    assert sum(problem.meta["mine"] != [] for problem in problems) > 200
    assert sum(problem.meta["opponent"] != [] for problem in problems) > 200


@pytest.mark.parametrize("n", [1, 4, 5, 9, 99])
def test_a_shorter_set_is_the_beginning_of_a_longer_one(problems: list[Problem], n: int) -> None:
    shorter = build_dataset(n, 0)
    assert shorter == problems[:n]
    assert sum(not problem.meta["mine"] and not problem.meta["opponent"] for problem in shorter) <= n / 5


def test_other_seeds_give_other_boards(problems: list[Problem]) -> None:
    other = build_dataset(100, 1)
    assert {str(problem.prompt) for problem in other}.isdisjoint(str(problem.prompt) for problem in problems)
    assert {problem.id for problem in other}.isdisjoint(problem.id for problem in problems)


def test_the_prompt_shows_the_board_and_who_plays(problems: list[Problem]) -> None:
    for problem in problems[:60]:
        prompt, me = str(problem.prompt), problem.meta["to_move"]
        other = "O" if me == "X" else "X"
        assert problem.meta["board"] in prompt
        assert f"You play {me}, and it is your turn. Your opponent plays {other}." in prompt
        assert prompt.endswith("My winning moves: <cells or none>\nOpponent's winning moves: <cells or none>")
        assert "{" not in prompt


def test_a_deeper_set_needs_its_depth() -> None:
    problems = build_dataset(40, 0, plies=3)
    for index, problem in enumerate(problems):
        board, meta = board_of(problem), problem.meta
        me, other = board.to_move, "X" if board.to_move == "O" else "O"
        deep = [[list(cell) for cell in forcing_moves(board, player, 3)] for player in (me, other)]
        assert [meta["mine"], meta["opponent"]] == deep
        if index % 5 == 4:
            assert deep == [[], []]
        else:
            assert deep != [[list(cell) for cell in winning_moves(board, player)] for player in (me, other)]
        assert problem.id == f"connect4-plies3-0-{index}"
        assert "within 3 plies" in str(problem.prompt)
        assert verify(problem.answer, problem).correct is True


def test_a_used_up_kind_of_board_makes_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spot.connect4.dataset.DISCS", range(4, 8))
    monkeypatch.setattr("spot.connect4.dataset.MAX_DRAWS", 300)
    problems = build_dataset(400, 0)
    by_discs = Counter(problem.meta["discs"] for problem in problems)
    assert by_discs[4] < by_discs[6]  # two discs a side win nothing
    assert Counter(problem.meta["to_move"] for problem in problems) == {"X": 200, "O": 200}


def test_more_boards_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spot.connect4.dataset.DISCS", range(2))
    monkeypatch.setattr("spot.connect4.dataset.MAX_DRAWS", 100)
    with pytest.raises(UserError, match=r"n is 9: .* only \d different boards"):
        build_dataset(9)


@pytest.mark.parametrize(
    ("n", "plies", "message"),
    [
        (0, 1, "n is 0"),
        (-5, 1, "n is -5"),
        (5, 2, "odd number"),
        (5, 0, "odd number"),
        (5, 13, "odd number from 1 to 11"),
    ],
)
def test_bad_numbers_are_refused(n: int, plies: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_dataset(tmp_path / "boards.jsonl", n, 0, plies, Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_problems_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "boards.jsonl"
    write_dataset(path, 7, 3, 1, Console())
    assert read_rows(path, Problem) == build_dataset(7, 3)
    assert capsys.readouterr().out.split() == [f"{path}:", "7", "boards"]
