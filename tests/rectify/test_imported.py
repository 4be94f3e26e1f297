import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.rectify.conftest import MakeFailure

from spot.errors import UserError
from spot.rectify.base import Correction
from spot.rectify.imported import ImportedOracle
from spot.schema import Dropped


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_attempt_goes_before_problem_and_the_missing_are_told(make_failure: MakeFailure, tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.jsonl",
        {"problem_id": "p0", "response": "by problem"},
        {"attempt_id": "p0#0", "response": "by attempt", "meta": {"who": "me"}},
        {"problem_id": "p1", "response": "by problem"},
    )
    oracle = ImportedOracle(file)

    async def run() -> list[list[Correction]]:
        return [group async for group in oracle.correct([make_failure(number) for number in range(3)])]

    (group,) = asyncio.run(run())
    assert [(c.text, c.reason) for c in group] == [("by attempt", ""), ("by problem", ""), (None, "not_in_file")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"response": "x"}, r"c\.jsonl:2: needs either 'attempt_id' or 'problem_id'"),
        ({"attempt_id": "a", "problem_id": "p", "response": "x"}, r"c\.jsonl:2: needs either"),
        ({"attempt_id": "a"}, r"c\.jsonl:2: the field 'response' is missing"),
        ({"attempt_id": "a", "response": 3}, r"c\.jsonl:2: field 'response'"),
        ({"problem_id": "p0", "response": "x"}, r"c\.jsonl: two rows for problem_id 'p0'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    file = write(tmp_path / "c.jsonl", {"problem_id": "p0", "response": "ok"}, row)
    with pytest.raises(UserError, match=told):
        ImportedOracle(file)


def test_bad_rows_can_be_skipped_and_are_recorded(tmp_path: Path) -> None:
    dropped: list[Dropped] = []
    file = write(tmp_path / "c.jsonl", {"response": "x"}, {"problem_id": "p0", "response": "ok"})
    ImportedOracle(file, on_bad_row="skip", dropped=dropped)
    assert [row.id for row in dropped] == ["line 1"]
