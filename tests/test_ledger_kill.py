"""Fifty kills at random moments: nothing on record is asked again, and what was in flight is counted."""

import json
import sys
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from tests.fake_server import Answer, FakeServer, Seen, completion
from tests.patience import finish

from spot.models.paid.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.kill, pytest.mark.timeout(0)]
REQUESTS, CONCURRENCY, KILLS = 600, 12, 50


def test_fifty_kills_lose_nothing_and_pay_twice_only_for_what_was_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    asked: Counter[str] = Counter()
    lock = threading.Lock()
    asked_again_though_on_record: list[str] = []

    def script(seen: Seen) -> Answer:
        with lock:
            asked[seen.question] += 1
            if asked[seen.question] > 1:
                with Ledger(path) as ledger:
                    held = {
                        json.loads(row["body"])["messages"][0]["content"] for row in ledger.rows() if row["replied"]
                    }
                if seen.question in held:
                    asked_again_though_on_record.append(seen.question)
        body = json.loads(completion(f"answer to {seen.question}").body)
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return Answer(body=json.dumps(body | {"usage": usage}).encode(), delay=0.01)

    with FakeServer(script) as server:
        script_path = Path(__file__).with_name("ledger_kills.py")
        arguments = [server.url, str(path), *map(str, (REQUESTS, CONCURRENCY, KILLS, 0))]
        done = finish([sys.executable, str(script_path), *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == 0
    # Each kill leaves at most as many tries open as were in flight. They stay on the account, but for those whose body
    # was on the disk and not yet read: the next go reads it, so each settles one try of the kill before.
    steps = [after - before for before, after in pairwise([0, *told["unknown"]])]
    assert all(-CONCURRENCY <= step <= CONCURRENCY for step in steps), steps
    with Ledger(path) as ledger:
        rows = list(ledger.rows())
        spent, possible = ledger.spent()
    assert {row["request_id"]: row["text"] for row in rows} == {
        f"r{n}": f"answer to question {n}" for n in range(REQUESTS)
    }
    assert all(row["replied"] == 1 for row in rows)
    assert asked_again_though_on_record == []
    hit = sum(step > 0 for step in steps)
    assert hit >= 10, f"only {hit} kills hit requests in flight"
    unknown = sum(row["sends"] - row["replied"] - row["refused"] for row in rows)
    assert told["unknown"][-1] - CONCURRENCY <= unknown <= told["unknown"][-1]  # the last go read what was on the disk
    assert asked.total() - REQUESTS <= unknown
    assert spent > 0 and possible > 0
