"""The commands of docs/audit.md, run in order, with a server of our own in the place of the provider's."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fake_server import FakeServer
from tests.judge_server import LabJudgeServer
from tests.warm import warm_process

from spot.audit.agreement import LabelledAnswer, read_labels
from spot.audit.question import KINDS
from spot.audit.summary import read_audit
from spot.files.store import read_rows
from spot.lab.world import World

PAGE = (Path(__file__).parents[1] / "docs" / "audit.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
pytestmark = pytest.mark.slow
URL, KEY = "https://api.example.com/v1", "sk-planted-0123456789"
SHELL = f"""set -euo pipefail
export JUDGE_KEY={KEY}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    problems = World.load().problems("in_domain", "train", 100, 0)
    with FakeServer(LabJudgeServer(problems, finds=0.9, invents=0.02)) as running:
        yield running


@pytest.fixture(scope="module")
def python() -> Iterator[list[str]]:
    with warm_process(HF_HUB_OFFLINE="1") as running:
        yield running


def run(block: str, place: Path, url: str, python: list[str]) -> str:
    code = f'{SHELL}spot() {{ {shlex.join(python)} spot "$@"; }}\n' + block.replace(URL, url).replace(
        "export JUDGE_KEY=...", ":"
    )
    environment = os.environ | {"COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(["bash", "-c", code], cwd=place, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert KEY not in done.stdout + done.stderr
    return done.stdout


def test_the_commands_in_order(tmp_path: Path, server: FakeServer, python: list[str]) -> None:
    first, labels, judge = BLOCKS
    shown = run(first, tmp_path, server.url, python)
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE, re.MULTILINE)
    for line in rows[2 : rows.index("overlap with evaluation") + 1]:
        for name in (part.strip() for part in line.split(",")):
            assert name in shown, name
    assert "judge" not in shown and not server.seen
    run(labels, tmp_path, server.url, python)
    assert len(read_rows(tmp_path / "labels.jsonl", LabelledAnswer)) == 40
    shown = run(judge, tmp_path, server.url, python)
    for line in rows[rows.index("judge agrees with labels") :]:
        assert line in shown, line
    assert re.search(r"judge +big-model +stop +\d+ ", shown)
    summary = read_audit(tmp_path / "runs" / "first")
    assert summary is not None and summary.judge is not None and summary.judge.agreement is not None
    assert summary.judge.agreement.rows == 40 and summary.judge.agreement.accuracy.value > 0.9
    assert len(server.seen) == summary.pairs
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
    page = (tmp_path / "runs" / "first" / "report.html").read_text()
    assert "judge agrees with labels" in page and "finds of the wrong steps" in page
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY.encode() not in written


def test_the_row_shown_can_be_read_and_the_kinds_are_all(tmp_path: Path) -> None:
    [shown] = re.findall(r"^```json\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(json.loads(shown)) + "\n")
    assert len(read_labels(path)) == 1
    assert all(f"`{kind}`" in PAGE for kind in KINDS)
