"""Ledgers that an earlier version wrote: `fixtures/made_at_db0cc1e` holds what its `elicit` and `rectify` left behind.

The server stood at `http://127.0.0.1:9/v1`, where nobody answers now, so a request that is sent again fails.
The ledgers are SQL dumps; p3 came without usage, p4 was cut off, and the correction of p2 was refused (HTTP 400).
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from spot.models.base import Reply, Usage
from spot.models.paid.ledger import Ledger

MADE = Path(__file__).parents[1] / "fixtures" / "made_at_db0cc1e"
URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for rows in MADE.glob("*.jsonl"):
        shutil.copy(rows, tmp_path)
    for dump in MADE.glob("*.sql"):
        with sqlite3.connect(tmp_path / f"{dump.stem}.sqlite") as database:
            database.executescript(dump.read_text("utf-8"))
    return tmp_path


def run(place: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "spot", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(path: Path) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in map(json.loads, path.read_bytes().splitlines())}


def test_the_account_of_an_older_ledger(place: Path) -> None:
    for read_only in (True, False):
        with Ledger(place / "corrections.ledger.sqlite", read_only=read_only) as ledger:
            assert {line.outcome: line.requests for line in ledger.lines()} == {"stop": 1, "refused": 1}
            assert ledger.spent() == (pytest.approx(0.000124), 0)
            keys = {str(row["key"]): row["request_id"] for row in ledger.rows()}
            [[reply]] = ledger.replies(dict.fromkeys(keys, "now"))
    assert isinstance(reply, Reply) and reply.usage == Usage(100, 12) and reply.reasoning == "The sum is 2."
    assert run(place, "ledger", "corrections.ledger.sqlite").count("rectify") == 2


def test_the_same_commands_send_nothing_again(place: Path) -> None:
    before = rows(place / "attempts.jsonl")
    (place / "attempts.jsonl").unlink()
    model = ["--model", "m", f"student.base_url={URL}"]
    run(place, "elicit", "--problems", "problems.jsonl", "--output", "attempts.jsonl", *model, "elicit.samples=1")
    after = rows(place / "attempts.jsonl")
    assert {id: row["response"] for id, row in after.items()} == {id: row["response"] for id, row in before.items()}
    assert "\u2028" in str(after["p2#0"]["response"])

    lines = (place / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    (place / "attempts.jsonl").write_bytes(b"".join(line for line in lines if b"p2#0" not in line))
    before = rows(place / "corrections.jsonl")
    (place / "corrections.jsonl").unlink()
    oracle = ["rectify.oracle=model", "rectify.model=m", f"rectify.base_url={URL}", "rectify.max_cost=1"]
    prices = ["rectify.input_price=1", "rectify.output_price=2"]
    files = ["--problems", "problems.jsonl", "--attempts", "attempts.jsonl", "--output", "corrections.jsonl"]
    run(place, "rectify", *files, *oracle, *prices)
    [(id, row)] = rows(place / "corrections.jsonl").items()
    assert row["ledger_key"] == before[id]["ledger_key"] and row["response"] == before[id]["response"]
