"""People as the Oracle: a queue that several processes share and that a run waits for."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.rectify.conftest import MakeFailure

from spot.errors import StoppedEarly, UserError
from spot.files.store import Appender, read_rows
from spot.rectify import human
from spot.rectify.base import Correction, Failure
from spot.rectify.human import HumanOracle, Queue
from spot.rectify.imported import ImportedOracle
from spot.rectify.run import rectify
from spot.schema import Rectification
from spot.verify.exact import verify_exact

RIGHT = "2 + 2 = 4, so \\boxed{4}"


@pytest.fixture
def failures(make_failure: MakeFailure) -> list[Failure]:
    return [make_failure(number) for number in range(3)]


@pytest.fixture
def queue(tmp_path: Path, failures: list[Failure]) -> Queue:
    queue = Queue(tmp_path / "human.sqlite")
    queue.want(failures)
    return queue


def ask(oracle: HumanOracle | ImportedOracle, failures: Sequence[Failure]) -> tuple[list[Correction], str]:
    """What the Oracle gives, and why it stopped."""
    given: list[Correction] = []

    async def run() -> None:
        async for group in oracle.correct(failures):
            given.extend(group)

    try:
        asyncio.run(run())
    except StoppedEarly as stop:
        return given, str(stop)
    return given, ""


def edit(path: Path, **changes: dict[str, Any]) -> None:
    """Change rows of an exported file, by the number in their attempt's id: `p1={"response": ...}`."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change = changes.get(row["attempt_id"].partition("#")[0], {})
        row["meta"] |= change.get("meta", {})
        row["response"] = change.get("response", row["response"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_process(queue: Queue, code: str) -> subprocess.Popen[str]:
    """A process that runs `code`, which may use `queue`."""
    start = "import sys\nfrom pathlib import Path\nfrom spot.rectify.human import Queue\n"
    start += f"queue = Queue(Path({str(queue.path)!r}))\n"
    return subprocess.Popen([sys.executable, "-c", start + code], stdout=subprocess.PIPE, text=True)


def test_it_stops_until_all_is_answered_and_gives_each_answer(failures: list[Failure], tmp_path: Path) -> None:
    oracle = HumanOracle(tmp_path / "human.sqlite")
    given, stop = ask(oracle, failures)
    assert given == [] and "3 of 3 corrections are open;" in stop and "human.jsonl" in stop and "\n" not in stop
    oracle.queue.submit("p1#0", RIGHT, "anna")
    oracle.queue.skip("p2#0", "the known answer\n is wrong", "ben")
    given, stop = ask(oracle, failures)
    assert given == [Correction("p1#0", RIGHT), Correction("p2#0", None, "skipped: the known answer is wrong")]
    assert "1 of 3 corrections are open" in stop
    given, stop = ask(oracle, failures[:1])  # the others are on record by now, so the run does not pass them
    assert given == [] and "1 of 1 corrections are open" in stop
    oracle.queue.submit("p0#0", RIGHT, "anna")
    assert ask(oracle, failures[:1]) == ([Correction("p0#0", RIGHT)], "")
    assert not oracle.file.exists()


def test_a_run_goes_on_where_people_have_got_to(failures: list[Failure], tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"

    def go() -> list[Rectification]:
        stored = read_rows(output, Rectification) if output.exists() else []
        oracle = HumanOracle(tmp_path / "human.sqlite")
        with Appender(output) as appender:
            asyncio.run(rectify(failures, oracle, verify_exact, appender, stored=stored))
        return read_rows(output, Rectification)

    with pytest.raises(StoppedEarly):
        go()
    Queue(tmp_path / "human.sqlite").submit("p1#0", RIGHT, "anna")
    with pytest.raises(StoppedEarly):
        go()
    assert [row.id for row in read_rows(output, Rectification)] == ["p1#0~human.0"]
    edit(tmp_path / "human.jsonl", p0={"response": RIGHT}, p2={"meta": {"skip": "unclear"}})
    rows = go()
    assert [(row.attempt_id, row.accepted, row.reason, row.mode) for row in rows] == [
        ("p1#0", True, "", "rewrite"),
        ("p0#0", True, "", "rewrite"),
        ("p2#0", False, "skipped: unclear", "rewrite"),
    ]


def test_what_is_open_is_shown_with_all_that_is_needed(queue: Queue) -> None:
    queue.save_draft("p1#0", "2 + 2 =", "anna")
    queue.submit("p0#0", RIGHT, "ben")
    shown = queue.open_corrections()
    assert [(row.attempt_id, row.claimed_by, row.draft) for row in shown] == [
        ("p1#0", "anna", "2 + 2 ="),
        ("p2#0", None, None),
    ]
    assert (shown[0].problem, shown[0].answer, shown[0].response) == ("What is 2 + 2?", "4", "2 + 2 = 5, so \\boxed{5}")


def test_a_claim_keeps_others_out_until_it_runs_out(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    assert queue.claim("p0#0", "anna") and queue.claim("p0#0", "anna") and not queue.claim("p0#0", "ben")
    for act in (queue.save_draft, queue.submit, queue.skip):
        with pytest.raises(UserError, match="attempt 'p0#0': anna is working on this correction"):
            act("p0#0", "mine", "ben")
    now = time.time()
    monkeypatch.setattr(human.time, "time", lambda: now + human.CLAIM_SECONDS + 1)
    assert queue.open_corrections()[0].claimed_by is None
    assert queue.claim("p0#0", "ben") and not queue.claim("p0#0", "anna")


def test_an_answer_is_given_once(queue: Queue) -> None:
    queue.submit("p0#0", RIGHT, "anna")
    queue.submit("p0#0", RIGHT, "anna")  # a form that was sent twice
    with pytest.raises(UserError, match="its correction was already submitted by anna"):
        queue.submit("p0#0", "another", "ben")
    with pytest.raises(UserError, match="was already submitted by anna"):
        queue.claim("p0#0", "ben")
    with pytest.raises(UserError, match="attempt 'p9#0': no correction of it is wanted"):
        queue.submit("p9#0", RIGHT, "anna")
    with pytest.raises(UserError, match="the correction is empty; skip what cannot"):
        queue.submit("p1#0", " \n", "anna")
    with pytest.raises(UserError, match="the correction is the wrong answer itself"):
        queue.submit("p1#0", "2 + 2 = 5, so \\boxed{5}\n", "anna")


def test_what_does_not_verify_comes_back_with_the_reason(failures: list[Failure], tmp_path: Path) -> None:
    oracle = HumanOracle(tmp_path / "human.sqlite", verify_exact)
    ask(oracle, failures)
    oracle.queue.submit("p0#0", "2 + 2 = 4, so \\boxed{5}", "anna")
    edit(oracle.file, p1={"response": "2 + 2 = 4"})
    given, stop = ask(oracle, failures)
    assert given == [] and "3 of 3 corrections are open (2 came back, meta.note says why);" in stop
    first, second, third = oracle.queue.open_corrections()
    assert (first.draft, first.note) == ("2 + 2 = 4, so \\boxed{5}", "does not verify: the answer '5' was read;")
    assert (second.draft, second.note) == ("2 + 2 = 4", "does not verify: no answer was read; no answer")
    assert third.note == ""
    exported = [json.loads(line) for line in oracle.file.read_text().splitlines()]
    assert [row["response"] for row in exported] == [first.draft, second.draft, failures[2].attempt.response]
    assert ask(oracle, failures)[1].startswith("3 of 3 corrections are open;")  # they are not submitted again
    edit(oracle.file, p0={"response": RIGHT}, p1={"response": RIGHT})
    assert [correction.text for correction in ask(oracle, failures)[0]] == [RIGHT, RIGHT]


def test_an_answer_belongs_to_the_response_that_was_shown(failures: list[Failure], make_failure: MakeFailure,
                                                          tmp_path: Path) -> None:  # fmt: skip
    oracle = HumanOracle(tmp_path / "human.sqlite")
    ask(oracle, failures)
    oracle.queue.submit("p0#0", RIGHT, "anna")
    edit(oracle.file, p1={"response": RIGHT})
    others = [make_failure(number, response="2 + 2 = 6") for number in range(3)]
    with pytest.raises(UserError, match=r"human\.jsonl:2: attempt 'p1#0': the run no longer has the response"):
        ask(oracle, others)
    oracle.file.unlink()
    given, stop = ask(oracle, others)
    assert given == [] and stop.startswith("3 of 3")
    # The first run's answer is still there for the first run's response.
    assert ask(oracle, failures)[0] == [Correction("p0#0", RIGHT)]


def test_the_exported_file_is_one_for_the_oracle_import(queue: Queue, failures: list[Failure], tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    assert queue.export_open(file) == 3
    row = json.loads(file.read_text().splitlines()[0])
    assert list(row) == ["attempt_id", "meta", "response"]
    assert (row["meta"]["problem"], row["meta"]["answer"]) == ("What is 2 + 2?", "4")
    edit(file, p1={"response": RIGHT})
    given, _ = ask(ImportedOracle(file), failures)
    assert [correction.text for correction in given] == ["2 + 2 = 5, so \\boxed{5}", RIGHT, "2 + 2 = 5, so \\boxed{5}"]
    assert queue.submit_file(file, "anna") == 1 and list(queue.answers()) == ["p1#0"]
    assert queue.submit_file(file, "anna") == 1 and list(queue.answers()) == ["p1#0"]  # as after a kill


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"attempt_id": "p2#0", "response": ""}', "attempt 'p2#0': the correction is empty"),
        ('{"attempt_id": "p9#0", "response": "x"}', "attempt 'p9#0': no correction of it is wanted"),
        ('{"attempt_id": "p0#0", "response": "x"}', "attempt 'p0#0': its correction was already submitted by anna"),
        ('{"problem_id": "p0", "response": "x"}', "name what is corrected by its attempt_id"),
        ('{"attempt_id": "p2#0"', "not a JSON object"),
    ],
)
def test_a_bad_line_of_a_file_is_named_and_nothing_of_it_is_taken(
    queue: Queue, tmp_path: Path, line: str, told: str
) -> None:
    queue.submit("p0#0", RIGHT, "anna")
    file = tmp_path / "mine.jsonl"
    file.write_text(f'{{"attempt_id": "p1#0", "response": {json.dumps(RIGHT)}}}\n{line}\n')
    with pytest.raises(UserError, match=rf"mine\.jsonl:2: {told}"):
        queue.submit_file(file, "ben")
    assert list(queue.answers()) == ["p0#0"]


def test_a_file_that_is_no_queue_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"human\.sqlite: no queue of corrections; a run with rectify\.oracle=human"):
        Queue(tmp_path / "human.sqlite").open_corrections()
    (tmp_path / "human.sqlite").write_text("no database, whatever it is called\n" * 50)
    with pytest.raises(UserError, match=r"human\.sqlite: file is not a database"):
        Queue(tmp_path / "human.sqlite").open_corrections()


def test_two_processes_share_the_work_and_no_correction_is_anyones_twice(
    make_failure: MakeFailure, tmp_path: Path
) -> None:
    oracle, failures = HumanOracle(tmp_path / "human.sqlite"), [make_failure(number) for number in range(40)]
    ask(oracle, failures)
    work = (
        "for row in queue.open_corrections():\n"
        "    try:\n"
        "        mine = queue.claim(row.attempt_id, who)\n"
        "    except Exception:\n"
        "        continue\n"
        "    if mine:\n"
        "        queue.save_draft(row.attempt_id, 'half', who)\n"
        "        queue.submit(row.attempt_id, who + row.attempt_id, who)\n"
        "        print(row.attempt_id)\n"
    )
    workers = [other_process(oracle.queue, f"who = {who!r}\n{work}") for who in ("anna", "ben")]
    answered: dict[str, str | None] = {}
    while len(answered) < len(failures):  # the run, looking in all the while
        assert all(worker.poll() in (None, 0) for worker in workers)
        answered |= {correction.attempt_id: correction.text for correction in ask(oracle, failures)[0]}
    done = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert sorted(done[0] + done[1]) == sorted(failure.attempt.id for failure in failures)
    assert answered == {id: who + id for who, ids in zip(("anna", "ben"), done, strict=True) for id in ids}


def test_a_killed_process_loses_nothing_that_was_saved(queue: Queue) -> None:
    worker = other_process(queue, (
        "queue.submit('p0#0', 'sent', 'anna')\nqueue.save_draft('p1#0', 'half', 'anna')\n"
        "with queue._transaction() as database:\n"
        "    database.execute(\"UPDATE corrections SET draft = 'torn', text = 'torn'\")\n"
        "    print('now', flush=True)\n    sys.stdin.read()\n    import time; time.sleep(60)\n"
    ))  # fmt: skip
    assert worker.stdout is not None
    assert worker.stdout.readline() == "now\n"
    worker.kill()
    worker.wait()
    worker.stdout.close()
    assert queue.answers() == {"p0#0": ("sent", "")}
    assert [row.draft for row in queue.open_corrections()] == ["half", None]
