"""The commands of docs/oracles.md, run in order, with a server of our own in the place of the provider's."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.batch_server import BatchServer
from tests.fake_server import FakeServer
from tests.oracle_server import LabOracle
from tests.warm import warm_process

from spot.files.store import read_rows
from spot.lab.world import World
from spot.schema import Attempt, Pair, Rectification

PAGE = (Path(__file__).parents[1] / "docs" / "oracles.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
pytestmark = pytest.mark.slow
URL, KEY = "https://api.example.com/v1", "sk-planted-0123456789"
SHELL = f"""set -euo pipefail
export ORACLE_KEY={KEY}
. ./spot.sh
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of all commands; `spot.sh` in it defines `spot`."""
    folder = tmp_path_factory.mktemp("oracles")
    with warm_process(HF_HUB_OFFLINE="1") as python:
        (folder / "spot.sh").write_text(f'spot() {{ {shlex.join(python)} spot "$@"; }}\n')
        yield folder


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    problems = World.load().problems("in_domain", "train", 30, 0)
    with FakeServer(LabOracle(problems)) as running:
        yield running


def run(block: str, place: Path, url: str, expected: int = 0) -> str:
    code = SHELL + block.replace(URL, url).replace("export ORACLE_KEY=...", ":")
    environment = os.environ | {"COLUMNS": "120", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(["bash", "-c", code], cwd=place, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == expected, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert KEY not in done.stdout + done.stderr
    return done.stdout + done.stderr


def find(part: str) -> str:
    [found] = [block for block in BLOCKS if part in block]
    return found


@pytest.fixture(scope="module")
def attempts(place: Path, server: FakeServer) -> list[Attempt]:
    run(find("spot elicit"), place, server.url)
    return [row for row in read_rows(place / "attempts.jsonl", Attempt) if row.outcome == "wrong"]


def corrections(place: Path, name: str) -> list[Rectification]:
    return read_rows(place / f"{name}.jsonl", Rectification)


def test_every_command_of_the_page_is_run_here() -> None:
    assert sum(block.count("spot ") for block in BLOCKS) == 13


def test_a_model_and_its_ledger(place: Path, server: FakeServer, attempts: list[Attempt]) -> None:
    block = find("spot ledger")
    dry = run(block.replace("--max_cost 5", "--max_cost 5 --dry_run").partition("spot ledger")[0], place, server.url)
    assert f"{len(attempts)} requests about {len(attempts)} wrong attempts" in " ".join(dry.split())
    shown = run(block, place, server.url)
    rows = corrections(place, "corrections")
    assert len(rows) == len(attempts) and all(row.accepted for row in rows)
    assert re.search(rf"rectify +big-model +stop +{len(attempts)} ", shown)
    asked = len(server.seen)
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
    (place / "corrections.jsonl").unlink()
    run(block, place, server.url)
    assert len(server.seen) == asked  # from the ledger, for free
    exported = place / "requests.jsonl"
    run(f"spot ledger corrections.ledger.sqlite --export {exported.name}", place, server.url)
    assert len(exported.read_text().splitlines()) == len(attempts)
    written = b"".join(file.read_bytes() for file in place.rglob("*") if file.is_file())
    assert KEY.encode() not in written


def test_the_other_modes(place: Path, server: FakeServer, attempts: list[Attempt]) -> None:
    run(find("--mode continue"), place, server.url)
    for name, mode in [("patched", "patch"), ("continued", "continue")]:
        rows = corrections(place, name)
        assert len(rows) == len(attempts) and {row.mode for row in rows} == {mode}
        assert sum(row.accepted for row in rows) >= 0.9 * len(rows)


def test_candidates_and_a_target(place: Path, server: FakeServer, attempts: list[Attempt]) -> None:
    assert len(attempts) > 5
    run(find("--target_pairs"), place, server.url)
    pairs = read_rows(place / "pairs.jsonl", Pair)
    assert len(pairs) == len({pair.id.partition("~")[0] for pair in pairs}) == 5


def test_batches(place: Path, attempts: list[Attempt]) -> None:
    block = find("rectify.batch=true")
    oracle = LabOracle(World.load().problems("in_domain", "train", 30, 0))
    with BatchServer(polls=1, text=lambda prompt: str(oracle.written(prompt))) as provider:
        assert "run the same command again" in run(block, place, provider.url, expected=3)
        run(block, place, provider.url)
    assert set(provider.ran.values()) == {1} and provider.ran.total() == len(attempts)
    assert all(row.accepted for row in corrections(place, "batched"))
    assert len(corrections(place, "batched")) == len(attempts)


def test_the_student_itself(place: Path, server: FakeServer, attempts: list[Attempt]) -> None:
    run(find("rectify.oracle=self"), place, server.url)
    assert len(corrections(place, "own")) == len(attempts)
    assert corrections(place, "own")[0].oracle.startswith("self:lab")


def test_a_person(place: Path, server: FakeServer, attempts: list[Attempt]) -> None:
    block = find("rectify.oracle=human")
    assert "human.jsonl" in run(block, place, server.url)
    queue = place / "by-hand.human.jsonl"
    rows = [json.loads(line) for line in queue.read_text().splitlines()]
    assert len(rows) == len(attempts)
    right = {row.attempt_id: row.response for row in corrections(place, "corrections")}
    for row in rows:
        row["response"] = right[row["attempt_id"]]
    queue.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(block.partition("||")[0], place, server.url)
    assert all(row.accepted and row.oracle == "human" for row in corrections(place, "by-hand"))


def test_a_file(place: Path, server: FakeServer, attempts: list[Attempt]) -> None:
    made = [{"attempt_id": row.attempt_id, "response": row.response} for row in corrections(place, "corrections")]
    (place / "corrections-by-others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    run(find("rectify.oracle=import"), place, server.url)
    assert sum(row.accepted for row in corrections(place, "imported")) == len(attempts)


def test_the_script(place: Path, server: FakeServer, attempts: list[Attempt]) -> None:
    run(find("rectify.oracle=scripted"), place, server.url)
    assert len(corrections(place, "scripted")) == len(attempts)
