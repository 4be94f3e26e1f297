"""The judge model over a whole run: a scripted judge behind a server, from labels to what is shown."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.audit.lab_run import COUNT, WORLD, make_run
from tests.fake_server import Answer, FakeServer, Seen, completion
from tests.judge_server import LabJudgeServer, read_prompt

from spot import cli
from spot.audit.agreement import LabelledAnswer
from spot.audit.labels import lab_verdicts
from spot.audit.run import audit, export_labels, kept_questions
from spot.audit.summary import AuditSummary, PairAudit
from spot.config import RunConfig, load_config, parse_config
from spot.errors import StoppedEarly, UserError
from spot.files.store import RunDirectory, read_rows, write_rows
from spot.lab.step_judge import LabJudge
from spot.models.paid.ledger import Ledger
from spot.report.audit import audit_view, facts, print_audit
from spot.schema import Pair, Problem, text_of

PRICES = {"input_price": 1.0, "output_price": 10.0, "max_new_tokens": 1000}


def broken(pair: Pair) -> Pair:
    """The pair with another number in the chosen answer's box than its steps come to."""
    text = text_of(pair.chosen)
    box = text.rindex("boxed{") + len("boxed{")
    return pair.model_copy(update={"chosen": f"{text[:box]}9{text[box:]}"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which the Oracle has broken the box of every third correction."""
    run = make_run(tmp_path_factory.mktemp("judged") / "run")
    pairs = read_rows(run / "pairs.jsonl", Pair)
    write_rows(run / "pairs.jsonl", [pair if n % 3 else broken(pair) for n, pair in enumerate(pairs)])
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def judge(run: Path) -> LabJudgeServer:
    return LabJudgeServer(read_rows(run / "problems.jsonl", Problem))


@pytest.fixture
def server(judge: LabJudgeServer) -> Iterator[FakeServer]:
    with FakeServer(judge) as running:
        yield running


def config_of(run: Path, url: str, **settings: Any) -> RunConfig:
    raw = load_config(run / "config.yaml").model_dump(mode="json")
    raw["judge"] = {"model": "big-judge", "base_url": url, **PRICES, **settings}
    return parse_config(raw, "test")


def audited(run: Path, url: str | None, labels: Path | None = None, **settings: Any) -> AuditSummary:
    config = load_config(run / "config.yaml") if url is None else config_of(run, url, **settings)
    with RunDirectory(run) as directory:
        return audit(directory, config, kept_questions(directory), Console(file=StringIO()), skip_models=True,
                     labels=labels)  # fmt: skip


def exported(run: Path) -> Path:
    path = run.parent / "labels.jsonl"
    with RunDirectory(run) as directory:
        told = export_labels(directory, load_config(run / "config.yaml"), path)
    assert told.endswith(f"the steps of {COUNT} of {COUNT} pairs, labelled by the lab's rules")
    return path


def told(summary: AuditSummary, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width)
    print_audit(summary, console)
    output: Any = console.file
    return output.getvalue()


def requests_of(run: Path) -> list[dict[str, Any]]:
    with Ledger(run / "ledger.sqlite") as ledger:
        return list(ledger.rows())


def test_a_perfect_judge_agrees_and_finds_what_the_exact_one_finds(run: Path, server: FakeServer) -> None:
    exact = audited(run, None)
    summary = audited(run, server.url, exported(run))
    assert summary.judge is not None and summary.judge.agreement is not None
    found = summary.judge.agreement
    assert found.accuracy.value == 1 and found.same_kind == 1 and found.differing == []
    for measured in (found.precision, found.recall, found.kappa):
        assert measured is not None and measured.value == 1 and measured.low < 1
    assert (found.rows, found.unjudged, summary.judge.pairs) == (COUNT, 0, COUNT)
    assert 0 < found.wrong < found.steps
    assert summary.steps is not None and exact.steps is not None
    for steps in (summary.steps, exact.steps):
        assert (steps.pairs, steps.new, steps.fixed, steps.left) == (
            exact.steps.pairs, exact.steps.new, exact.steps.fixed, exact.steps.left,
        )  # fmt: skip
    assert exact.steps.new == COUNT // 3
    (kind,), (same,) = summary.steps.kinds, exact.steps.kinds
    assert (same.kind, kind.kind, kind.examples) == ("answer", "carried-over", same.examples)
    assert (kind.before, kind.after) == (None, None)


def test_nothing_is_shown_until_the_judge_was_compared_with_labels(run: Path, server: FakeServer) -> None:
    summary = audited(run, server.url)
    assert summary.steps is None and summary.judge is not None and summary.judge.agreement is None
    assert "how far the judge big-judge agrees with labels is not known" in summary.not_measured["steps"]
    text = " ".join(told(summary).split())
    assert "errors newly introduced not measured how far the judge" in text and "carried-over" not in text
    # What it said is there to be looked at, pair by pair.
    rows = read_rows(run / "audit.jsonl", PairAudit)
    assert sum(step.outcome == "new" for row in rows for step in row.steps or ()) == COUNT // 3
    assert len(server.seen) == COUNT
    labels = exported(run)
    summary = audited(run, server.url, labels)
    assert summary.steps is not None and summary.steps.new == COUNT // 3
    assert "errors newly introduced" in told(summary) and "judge agrees with labels" in told(summary)
    assert len(server.seen) == COUNT  # the labelled pairs are the run's own, and on record
    assert audited(run, server.url) == summary  # the same judge, compared before
    others: list[dict[str, Any]] = [{"model": "other-judge"}, {"temperature": 0.5}]
    for changed in others:
        again = audited(run, server.url, **changed)
        assert again.steps is None and again.judge is not None and again.judge.agreement is None
        audited(run, server.url, labels)
    assert {row["stage"] for row in requests_of(run)} == {"judge"}


def test_a_judge_of_ones_own_words_is_another_judge(run: Path, server: FakeServer, tmp_path: Path) -> None:
    audited(run, server.url, exported(run))
    bundled = Path(cli.__file__).parents[1] / "audit" / "prompts" / "judge.v1.jinja"
    mine = tmp_path / "mine.jinja"
    mine.write_text(bundled.read_text() + "\nTake your time.\n")
    summary = audited(run, server.url, prompt=str(mine))
    assert summary.steps is None and summary.judge is not None
    assert summary.judge.prompt_version.startswith("mine@")
    assert len(server.seen) == 2 * COUNT


def test_a_judge_that_errs_has_the_precision_and_recall_it_errs_at(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 150)
    judge = LabJudgeServer(read_rows(run / "problems.jsonl", Problem), finds=0.8, invents=0.05)
    labels = tmp_path / "labels.jsonl"
    with RunDirectory(run) as directory, FakeServer(judge) as server:
        export_labels(directory, RunConfig(), labels)
        config = config_of(run, server.url)
        summary = audit(directory, config, {}, Console(file=StringIO()), skip_models=True, labels=labels)
    assert summary.judge is not None and summary.judge.agreement is not None
    found = summary.judge.agreement
    # Counted from what the server was asked and what it said, without the audit's own reading.
    exact, said = LabJudge(WORLD), Counter[tuple[bool, bool]]()
    problem_of = {text_of(problem.prompt): problem for problem in read_rows(run / "problems.jsonl", Problem)}
    for seen in server.seen:
        asked = read_prompt(seen.question)
        assert asked is not None
        problem = problem_of[asked.problem]
        kinds = {letter: lab_verdicts(exact, problem, steps) for letter, steps in asked.answers.items()}
        if None in kinds.values():
            continue  # has no label
        for number in asked.numbers:
            wrong = bool((kinds[number[0]] or [])[int(number[1:]) - 1])
            said[wrong, judge.verdict(problem, asked, number) != "right"] += 1
    assert found.rows == len(read_rows(labels, LabelledAnswer)) > 130
    assert found.steps == said.total()
    assert found.accuracy.value == pytest.approx((said[True, True] + said[False, False]) / said.total())
    assert found.precision and found.recall and found.kappa
    assert found.precision.value == pytest.approx(said[True, True] / (said[True, True] + said[False, True]))
    assert found.recall.value == pytest.approx(said[True, True] / (said[True, True] + said[True, False]))
    assert found.recall.low < 0.8 < found.recall.high
    assert found.false_alarms is not None and 0.03 < found.false_alarms.value < 0.08
    assert found.false_alarms.value == pytest.approx(said[False, True] / (said[False, True] + said[False, False]))
    # Nothing is broken here: the new errors are what the judge makes up, and the table says how many that would be.
    assert summary.steps is not None and summary.steps.new > 0
    [line] = [fact for fact in facts(summary) if fact.label == "errors newly introduced"]
    right = summary.steps.kept + summary.steps.new
    low, high = right * found.false_alarms.low, right * found.false_alarms.high
    assert low <= summary.steps.new <= high and not line.bad
    assert f"its mistakes alone would give about {right * found.false_alarms.value:.0f} " in line.detail
    assert found.kappa.low < found.kappa.value < found.kappa.high < 1
    assert len(found.differing) == 5 and "is labelled" in found.differing[0]


def test_an_unreadable_reply_leaves_its_pair_unjudged_and_counted(
    run: Path, server: FakeServer, judge: LabJudgeServer
) -> None:
    pairs = read_rows(run / "pairs.jsonl", Pair)
    judge.unreadable = {pair.problem_id for pair in pairs[:4]}
    summary = audited(run, server.url, exported(run))
    assert summary.judge is not None and summary.steps is not None and summary.judge.agreement is not None
    assert summary.judge.unjudged == {"no_block": 4} and summary.judge.pairs == summary.steps.pairs == COUNT - 4
    assert (summary.judge.agreement.rows, summary.judge.agreement.unjudged) == (COUNT - 4, 4)
    rows = read_rows(run / "audit.jsonl", PairAudit)
    assert [(row.steps, row.unjudged) for row in rows[:4]] == [(None, "no_block")] * 4
    assert all(row.steps is not None and row.unjudged is None for row in rows[4:])
    text = told(summary)
    assert max(map(len, told(summary, 80).splitlines())) <= 80
    assert "pairs not judged" in text and "no block 4" in text and "4 rows not judged" in " ".join(text.split())


def test_where_nothing_can_be_read_nothing_is_measured(run: Path, server: FakeServer, judge: LabJudgeServer) -> None:
    labels = exported(run)
    judge.unreadable = {problem.id for problem in read_rows(run / "problems.jsonl", Problem)}
    summary = audited(run, server.url, labels)
    assert summary.steps is None and summary.judge is not None and summary.judge.agreement is None
    assert summary.not_measured["steps"] == f"none of {COUNT} labelled rows could be judged ({COUNT} no_block)"


def test_a_limit_stops_early_and_the_same_command_goes_on(run: Path, server: FakeServer) -> None:
    labels = exported(run)
    with pytest.raises(StoppedEarly, match="max_cost"):
        audited(run, server.url, labels, max_cost=0.03)
    asked = len(server.seen)
    assert 0 < asked < COUNT and not (run / "audit.json").exists()
    with Ledger(run / "ledger.sqlite") as ledger:
        assert sum(ledger.spent()) <= 0.03
    summary = audited(run, server.url, labels, max_cost=5.0)
    assert summary.steps is not None and len(server.seen) == COUNT
    assert all(row["sends"] == row["replied"] == 1 for row in requests_of(run))


def test_the_oracles_limit_holds_for_a_judge_without_one(run: Path, server: FakeServer) -> None:
    config = config_of(run, server.url)
    raw = config.model_dump(mode="json")
    raw["rectify"] |= {"input_price": 1.0, "output_price": 1.0, "max_cost": 0.03}
    with RunDirectory(run) as directory, pytest.raises(StoppedEarly, match="max_cost"):
        audit(directory, parse_config(raw, "test"), {}, Console(file=StringIO()), skip_models=True)


def test_a_kill_pays_for_nothing_twice(run: Path, judge: LabJudgeServer) -> None:
    """Three goes killed in the middle; what was committed is never asked again, what was in flight is counted."""
    concurrency, asked, lock = 2, Counter[str](), threading.Lock()

    def slow(seen: Seen) -> Answer:
        with lock:
            asked[seen.question] += 1
        time.sleep(0.1)
        return judge(seen)

    with FakeServer(slow) as server:
        settings = [f"judge.{key}={value}" for key, value in {
            "model": "m", "base_url": server.url, "concurrency": concurrency, **PRICES,
        }.items()]  # fmt: skip
        call = [sys.executable, "-m", "spot", "audit", str(run), "--skip_models", *settings]
        for wanted in (4, 10, 16):
            process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while len(asked) < wanted and process.poll() is None:
                time.sleep(0.01)
            assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        committed = {json.loads(row["body"])["messages"][0]["content"] for row in requests_of(run) if row["replied"]}
        before = Counter(asked)
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(asked) == COUNT and committed
    assert all(asked[question] == before[question] for question in committed)
    rows = requests_of(run)
    assert all(row["replied"] == 1 for row in rows)
    unknown = sum(row["sends"] - row["replied"] - row["refused"] for row in rows)
    assert asked.total() - COUNT <= unknown <= 3 * concurrency
    assert sum(row.steps is not None for row in read_rows(run / "audit.jsonl", PairAudit)) == COUNT


def cut_off(times: int, judge: LabJudgeServer, then: int | None = None) -> Any:
    """A script that cuts off the first `times` replies to a question; afterwards it fails with the status `then`."""
    asked = Counter[str]()

    def script(seen: Seen) -> Answer:
        asked[seen.question] += 1
        if asked[seen.question] <= times:
            return completion("I think", "length")
        return judge(seen) if then is None else Answer(then, b'{"error": {"message": "too many tokens"}}')

    return script


@pytest.mark.parametrize(
    ("times", "then", "unjudged"),
    [(1, None, {}), (2, None, {"truncated": COUNT}), (1, 400, {"truncated": COUNT})],
)
def test_a_reply_that_is_cut_off_is_asked_for_once_more_with_twice_the_tokens(
    run: Path, judge: LabJudgeServer, times: int, then: int | None, unjudged: dict[str, int]
) -> None:
    with FakeServer(cut_off(times, judge, then)) as server:
        summary = audited(run, server.url)
    assert summary.judge is not None and summary.judge.unjudged == unjudged
    limits = Counter(seen.body["max_tokens"] for seen in server.seen)
    assert limits == {1000: COUNT, 2000: COUNT}


def test_other_problems_are_labelled_by_people(run: Path, server: FakeServer, judge: LabJudgeServer) -> None:
    problems = read_rows(run / "problems.jsonl", Problem)
    write_rows(run / "problems.jsonl", [problem.model_copy(update={"meta": {}}) for problem in problems])
    labels = run.parent / "labels.jsonl"
    with RunDirectory(run) as directory:
        assert "to be labelled" in export_labels(directory, RunConfig(), labels)
    rows = read_rows(labels, LabelledAnswer)
    assert len(rows) == COUNT and all(step.right is None for row in rows for step in (*row.steps, *row.other))
    with pytest.raises(UserError, match="no step is labelled right"):
        audited(run, server.url, labels)
    # A person labels the chosen answers of two rows.
    labelled: list[LabelledAnswer] = []
    for number, row in enumerate(rows[:2]):
        other = [step.model_copy(update={"right": bool(number)}) for step in row.other]
        labelled.append(row.model_copy(update={"other": other}))
    write_rows(labels, labelled)
    summary = audited(run, server.url, labels)
    assert summary.judge is not None and summary.judge.agreement is not None and summary.steps is not None
    assert summary.judge.agreement.rows == 2
    # Labels on nothing but what both answers begin with say nothing about a judge that is not asked about it.
    alike = [row.model_copy(update={"steps": row.other}) for row in labelled]
    write_rows(labels, alike)
    summary = audited(run, server.url, labels)
    assert summary.not_measured["steps"].startswith("no labelled step is among those")


def test_pairs_without_a_problem_are_told(run: Path, server: FakeServer) -> None:
    problems = read_rows(run / "problems.jsonl", Problem)
    gone = read_rows(run / "pairs.jsonl", Pair)[0].problem_id
    labels = exported(run)
    write_rows(run / "problems.jsonl", [problem for problem in problems if problem.id != gone])
    summary = audited(run, server.url, labels)
    assert summary.judge is not None and summary.judge.unjudged == {"no_problem": 1}
    assert read_rows(run / "audit.jsonl", PairAudit)[0].unjudged == "no_problem"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "judge.model is not set"),
        ({"base_url": None}, "judge.base_url is not set"),
        ({"api_key_env": "NO_SUCH_KEY_HERE"}, "NO_SUCH_KEY_HERE"),
        ({"prompt": "none.jinja"}, "judge.prompt: none.jinja: cannot read it"),
    ],
)
def test_a_judge_that_is_half_set_up_is_one_line(
    run: Path, server: FakeServer, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        audited(run, server.url, **settings)
    assert not server.seen


def test_labels_need_a_judge(run: Path) -> None:
    with pytest.raises(UserError, match="--judge_labels: there is no judge"):
        audited(run, None, exported(run))


def spot(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["spot", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_the_commands_and_the_report(
    run: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    labels = str(tmp_path / "labels.jsonl")
    settings = [f"judge.{key}={value}" for key, value in {"model": "big", "base_url": server.url, **PRICES}.items()]
    assert spot(monkeypatch, "audit", str(run), "--export_labels", labels) == 0
    assert f"the steps of {COUNT} of {COUNT} pairs" in " ".join(capfd.readouterr().out.split())
    assert not (run / "audit.json").exists()
    call = ["audit", str(run), "--skip_models", "--judge_labels", labels, *settings]
    assert spot(monkeypatch, *call, "--max_cost", "0.03") == 3
    assert "max_cost" in capfd.readouterr().err
    assert spot(monkeypatch, *call, "--max_cost", "5") == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "judge agrees with labels 100.0%" in text and "kappa 1.00" in text
    assert len(server.seen) == COUNT
    assert spot(monkeypatch, "report", str(run)) == 0
    page = (run / "report.html").read_text()
    assert "judge agrees with labels" in page and "pairs judged by big, prompt judge.v1@" in page
    assert '<th scope="row">carried-over</th>' in page
    assert spot(monkeypatch, "audit", str(run), "filter.gamma=0.5") == 2
    assert "does not read that setting" in capfd.readouterr().err
    view = audit_view(run)
    assert not isinstance(view, str) and view is not None
