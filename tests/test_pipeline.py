"""The whole loop and its stages through the real command; what kills do to it is in `test_kill.py`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.warm import warm_process

from spot.files.store import read_rows
from spot.schema import Attempt, Pair, Rectification
from spot.stages.provenance import peak_memory
from spot.verify import ifeval
from spot.verify.pool import SHARED

pytestmark = pytest.mark.slow

SMALL = [
    "problems.count=48", "elicit.max_new_tokens=120", "student.batch_size=16", "evaluate.questions=16",
    "evaluate.max_new_tokens=120", "train.pairs_per_step=8", "train.save_steps=2", "train.num_train_epochs=3",
]  # fmt: skip
TASKS = ("in_domain", "ood", "instructions")
ROWS = ["problems.jsonl", "attempts.jsonl", "rectifications.jsonl", "pairs.jsonl", "dropped.jsonl"] + [
    f"eval/{side}/{task}.jsonl" for side in ("before", "after") for task in TASKS
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "spot", *arguments]


WARM: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    with warm_process() as python:
        WARM[:] = [*python, "spot"]
        yield


def spot(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WARM, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | environment,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted small run."""
    place = tmp_path_factory.mktemp("whole")
    done = spot("demo", "run.dir=run", *SMALL, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "run/report.html" in done.stdout
    return place / "run"


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_finished_run_is_not_run_again(whole: Path) -> None:
    before = {name: (whole / name).stat().st_mtime_ns for name in [*ROWS, "model/model.safetensors"]}
    again = spot("demo", "run.dir=run", *SMALL, cwd=whole.parent)
    assert again.returncode == 0
    assert again.stdout.count("already complete") == 5
    assert before == {name: (whole / name).stat().st_mtime_ns for name in before}


def test_summary_agrees_with_the_rows(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    attempts = read_rows(whole / "attempts.jsonl", Attempt)
    corrections = read_rows(whole / "rectifications.jsonl", Rectification)
    counts = summary["counts"]
    assert counts["problems"] == counts["attempts"] == 48
    assert counts["wrong"] == sum(a.outcome == "wrong" for a in attempts) == len(corrections)
    assert counts["rectified"] == sum(row.accepted for row in corrections)
    assert counts["pairs"] == len(read_rows(whole / "pairs.jsonl", Pair))
    filtered = sum(counts["dropped"].get(reason, 0) for reason in ("over_gamma", "unchanged"))
    assert counts["rectified"] - counts["pairs"] == filtered
    after = read_rows(whole / "eval/after/ood.jsonl", Attempt)
    assert summary["evaluation"]["ood"]["after"]["mean"] == sum(a.outcome == "correct" for a in after) / 16
    assert set(summary["evaluation"]["in_domain"]["slices"]) == {"seen templates", "unseen templates"}


def test_trained_model_loads_and_pairs_load_as_trl_expects(whole: Path) -> None:
    from transformers import AutoModelForCausalLM

    from spot.lab.student import STUDENT_DIR

    trained = AutoModelForCausalLM.from_pretrained(whole / "model")
    base = AutoModelForCausalLM.from_pretrained(STUDENT_DIR)
    assert trained.dtype == base.dtype
    assert any(not a.equal(b) for a, b in zip(trained.parameters(), base.parameters(), strict=True))
    row = json.loads((whole / "pairs.jsonl").read_text().splitlines()[0])
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant"


def test_each_stage_is_a_command_with_files(whole: Path, tmp_path: Path) -> None:
    small = ["elicit.max_new_tokens=120", "student.batch_size=16"]
    make = spot("lab", "problems", "--count", "48", "--output", "p.jsonl", cwd=tmp_path)
    assert make.returncode == 0, make.stderr
    calls = [
        ["elicit", "--model", "lab", "--problems", "p.jsonl", "--output", "a.jsonl", *small],
        ["rectify", "--problems", "p.jsonl", "--attempts", "a.jsonl", "--output", "r.jsonl", "rectify.oracle=scripted"],
        ["filter", "--model", "lab", "--problems", "p.jsonl", "--attempts", "a.jsonl", "--rectifications", "r.jsonl",
         "--output", "pairs.jsonl"],
    ]  # fmt: skip
    for call in calls:
        done = spot(*call, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    # The same questions, seeds and settings give the rows of the run directory.
    names = {"a.jsonl": "attempts.jsonl", "r.jsonl": "rectifications.jsonl", "pairs.jsonl": "pairs.jsonl"}
    for ours, theirs in names.items():
        assert (tmp_path / ours).read_bytes() == (whole / theirs).read_bytes()
    done = spot("report", str(whole), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


PROBLEM = '{"id": "a", "prompt": "What is 1 + 1?", "answer": "2"}\n'
BAD_INPUT = {
    "missing config": (["run", "nowhere.yaml"], r"nowhere.yaml: cannot be read"),
    "missing problems": (["run", "c.yaml", "problems.source=none.jsonl"], "none.jsonl: no such file"),
    "unknown key": (["run", "c.yaml", "train.bta=1"], "did you mean 'beta'?"),
    "empty config": (["run", "empty.yaml"], "empty.yaml: empty config"),
    "bad row": (["run", "c.yaml", "problems.source=bad.jsonl"], "bad.jsonl:2: "),
    "no such model": (["run", "c.yaml", "student.model=./nowhere"], "./nowhere"),
    "unknown verifier": (["run", "c.yaml", "problems.verifier=maths"], "math"),
    "unknown oracle": (["run", "c.yaml", "rectify.oracle=nobody"], "nobody"),
    "unset oracle": (["run", "c.yaml", "rectify.oracle=model"], "rectify.model is not set"),
    "no failures": (["run", "c.yaml", "elicit.attempts=right.jsonl"], "no wrong attempts to learn from (1 correct)"),
    "no pair left": (
        ["run", "c.yaml", "elicit.attempts=wrong.jsonl", "rectify.oracle=import", "rectify.path=fix.jsonl",
         "filter.gamma=0"],
        "no pair is left of 1 accepted corrections (1 over_gamma); raise filter.gamma",
    ),
    "no correction accepted": (
        ["run", "c.yaml", "run.dir=out", "elicit.attempts=wrong.jsonl", "rectify.oracle=import",
         "rectify.path=wrong.jsonl"],
        "none of 1 corrections was accepted (same_as_rejected 1; the first is a#0: same_as_rejected, it answers '3'); "
        "see out/rectifications.jsonl; fix the Oracle (the section rectify), delete out/rectifications.jsonl, and run",
    ),
    "key not set": (
        ["run", "c.yaml", "student.base_url=http://127.0.0.1:9/v1", "student.api_key_env=NO_KEY"], "NO_KEY",
    ),
    "task twice": (["run", "c.yaml", "evaluate.tasks=[ood, ood.jsonl]"], "two tasks are called 'ood'"),
    "unknown task": (["run", "c.yaml", "evaluate.tasks=[ifevall]"], "unknown task 'ifevall'"),
    "unknown objective": (["run", "c.yaml", "train.objective=bco"], "train: unknown loss 'bco'"),
    "idle override": (
        ["filter", "--model", "lab", "--problems", "p.jsonl", "--attempts", "a", "--rectifications", "r",
         "--output", "o.jsonl", "train.beta=1"],
        "does not read that setting",
    ),
    "not a run": (["report", "."], "not a run directory"),
    "other config": (["run", "c.yaml", "run.dir=taken"], "was made by another config"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_clear_line_and_exit_code_2(name: str, tmp_path: Path) -> None:
    arguments, message = BAD_INPUT[name]
    (tmp_path / "c.yaml").write_text(
        "problems: {source: p.jsonl}\nelicit: {max_new_tokens: 8}\nrectify: {oracle: scripted}\n"
    )
    (tmp_path / "p.jsonl").write_text(PROBLEM)
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "bad.jsonl").write_text(PROBLEM + "{\n")
    (tmp_path / "wrong.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{3}"}\n')
    (tmp_path / "right.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{2}"}\n')
    (tmp_path / "fix.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{2}"}\n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("run: {seed: 7}\n")
    (tmp_path / "taken" / "manifest.json").write_text('{"stages": {}}\n')
    (tmp_path / "taken" / "problems.jsonl").write_text(PROBLEM)
    (tmp_path / "ood.jsonl").write_text(PROBLEM)
    done = spot(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr


def test_mistakes_in_later_stages_show_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(PROBLEM)
    (tmp_path / "c.yaml").write_text("run: {dir: run}\nproblems: {source: p.jsonl}\nrectify: {oracle: nobody}\n")
    done = spot("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "nobody" in done.stderr
    assert not (tmp_path / "run/attempts.jsonl").exists()


def test_settings_of_stages_to_come_may_change_and_those_of_stages_begun_may_not(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(PROBLEM)
    (tmp_path / "wrong.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{3}"}\n')
    (tmp_path / "fix.jsonl").write_text('{"attempt_id": "a#0", "response": "It is \\\\boxed{2}"}\n')
    (tmp_path / "c.yaml").write_text(
        "run: {dir: run, stages: [elicit]}\nproblems: {source: p.jsonl}\nelicit: {attempts: wrong.jsonl}\n"
    )
    assert spot("run", "c.yaml", cwd=tmp_path).returncode == 0
    on = ["run.stages=[rectify]", "rectify.oracle=import", "rectify.path=fix.jsonl"]
    done = spot("run", "c.yaml", *on, cwd=tmp_path)
    assert done.returncode == 0 and "1 of 1 corrections verified" in done.stdout, done.stderr
    refused = spot("run", "c.yaml", *on, "rectify.with_answer=false", cwd=tmp_path)
    assert refused.returncode == 2 and "rectify.with_answer: True there, False here" in refused.stderr


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_exit_code_3_and_says_so(tmp_path: Path, ending: signal.Signals) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("demo", "run.dir=run", *SMALL),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while lines(run / "attempts.jsonl") < 16 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(ending)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 3
    assert errors.endswith("stopped: interrupted; what was done is kept; the same command resumes there\n")
    shown = spot("report", "run", cwd=tmp_path)
    assert shown.returncode == 0 and "\nunfinished: stopped in elicit\n" in shown.stdout, shown.stderr
    assert "Unfinished: stopped in elicit." in (run / "report.html").read_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("kind", ["answers", "instructions"])
def test_peak_memory_counts_the_workers_that_check_answers(kind: str) -> None:
    if kind == "instructions" and ifeval.missing():
        pytest.skip(ifeval.missing())
    pool, request = (SHARED, "1/2") if kind == "answers" else (ifeval.SHARED, '{"id": "no:such"}')
    pool.close()
    alone = peak_memory()
    pool.judge_many([(request, "0.5")] * 2)
    try:
        assert peak_memory() > alone + 2 * 20 * 2**20
    finally:
        pool.close()


def test_another_oracle_on_the_same_output_is_refused(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    output.write_bytes((whole / "rectifications.jsonl").read_bytes())
    wrong = next(row for row in read_rows(whole / "attempts.jsonl", Attempt) if row.outcome == "wrong")
    (tmp_path / "fix.jsonl").write_text(json.dumps({"attempt_id": wrong.id, "response": "x"}) + "\n")
    files = ["--problems", str(whole / "problems.jsonl"), "--attempts", str(whole / "attempts.jsonl")]
    done = spot(
        "rectify", *files, "--output", "r.jsonl", "rectify.oracle=import", "rectify.path=fix.jsonl", cwd=tmp_path
    )
    assert done.returncode == 2 and "by the Oracle 'scripted'" in done.stderr
    assert output.read_bytes() == (whole / "rectifications.jsonl").read_bytes()


def test_an_endpoint_that_refuses_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(PROBLEM)
    (tmp_path / "c.yaml").write_text(
        "problems: {source: p.jsonl}\nstudent: {base_url: 'http://127.0.0.1:9/v1'}\nrectify: {oracle: scripted}\n"
    )
    done = spot("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "127.0.0.1:9" in done.stderr and done.stderr.count("\n") == 1


def test_bad_rows_can_be_skipped_and_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(PROBLEM + "{\n")
    (tmp_path / "wrong.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{3}"}\n')
    (tmp_path / "c.yaml").write_text(
        "run: {dir: run, on_bad_row: skip, stages: [elicit]}\n"
        "problems: {source: p.jsonl}\n"
        "elicit: {attempts: wrong.jsonl}\nrectify: {oracle: scripted}\n"
    )
    done = spot("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dropped = [json.loads(line) for line in (tmp_path / "run/dropped.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["reason"]) for row in dropped] == [("read", "bad_row")]


def test_corrections_written_by_hand_are_rows_of_attempts(tmp_path: Path) -> None:
    """The way the README tells: elicit, correct a copy of the wrong rows, go on."""
    (tmp_path / "p.jsonl").write_text(PROBLEM)
    (tmp_path / "wrong.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{3}"}\n')
    (tmp_path / "c.yaml").write_text("run: {dir: run}\nproblems: {source: p.jsonl}\nelicit: {attempts: wrong.jsonl}\n")
    assert spot("run", "c.yaml", "run.stages=[elicit]", cwd=tmp_path).returncode == 0
    mine = (tmp_path / "run/attempts.jsonl").read_text().replace("boxed{3}", "boxed{2}")
    (tmp_path / "mine.jsonl").write_text(mine)
    on = ["run.stages=[rectify, filter]", "rectify.oracle=import", "rectify.path=mine.jsonl"]
    done = spot("run", "c.yaml", *on, cwd=tmp_path)
    assert done.returncode == 0 and "1 of 1 corrections verified" in done.stdout, done.stderr


def test_an_oracle_without_a_good_correction_can_be_mended(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(PROBLEM)
    (tmp_path / "wrong.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{3}"}\n')
    (tmp_path / "fix.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{2}"}\n')
    (tmp_path / "c.yaml").write_text(
        "run: {dir: run, stages: [elicit, rectify]}\nproblems: {source: p.jsonl}\nelicit: {attempts: wrong.jsonl}\n"
        "rectify: {oracle: import}\n"
    )
    stopped = spot("run", "c.yaml", "rectify.path=wrong.jsonl", cwd=tmp_path)
    assert stopped.returncode == 2 and "none of 1 corrections was accepted" in stopped.stderr
    dropped = [json.loads(line) for line in (tmp_path / "run/dropped.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["reason"]) for row in dropped] == [("rectify", "same_as_rejected")]
    (tmp_path / "run/rectifications.jsonl").unlink()
    done = spot("run", "c.yaml", "rectify.path=fix.jsonl", cwd=tmp_path)
    assert done.returncode == 0 and "1 of 1 corrections verified" in done.stdout, done.stderr


def test_too_few_pairs_stop_the_run_until_there_may_be_fewer(tmp_path: Path) -> None:
    arguments = ["demo", "run.dir=run", "run.stages=[elicit,rectify,filter]", "problems.count=30"]
    arguments += ["elicit.max_new_tokens=120", "rectify.max_samples=2"]
    stopped = spot(*arguments, "rectify.target_pairs=1000", cwd=tmp_path)
    assert stopped.returncode == 3 and "of 1,000 pairs" in stopped.stderr and "rectify.max_samples" in stopped.stderr
    samples = {json.loads(line)["sample"] for line in (tmp_path / "run/attempts.jsonl").read_text().splitlines()}
    assert samples == {0, 1}
    done = spot(*arguments, "rectify.target_pairs=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "run/pairs.jsonl") == 3


def test_an_oracle_of_ones_own_that_raises_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(PROBLEM)
    (tmp_path / "wrong.jsonl").write_text('{"problem_id": "a", "response": "It is \\\\boxed{3}"}\n')
    (tmp_path / "mine.py").write_text(
        "class Bad:\n    name, mode = 'bad', 'rewrite'\n"
        "    async def correct(self, failures):\n        raise RuntimeError('my oracle broke')\n        yield\n"
    )
    (tmp_path / "c.yaml").write_text(
        "run: {dir: run}\nproblems: {source: p.jsonl}\nelicit: {attempts: wrong.jsonl}\nrectify: {oracle: 'mine:Bad'}\n"
    )
    done = spot("run", "c.yaml", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "failed: oracle 'mine:Bad': RuntimeError: my oracle broke (mine.py:4)\n"


def test_questions_that_were_trained_on_are_told(tmp_path: Path) -> None:
    small = ["problems.count=24", "evaluate.tasks=[seen.jsonl]", *SMALL[1:3], *SMALL[4:6], "train.num_train_epochs=1"]
    first = spot("demo", "run.dir=run", *small, "run.stages=[elicit, rectify, filter]", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    asked = {problem["id"]: problem for problem in map(json.loads, (tmp_path / "run/problems.jsonl").open())}
    pairs = read_rows(tmp_path / "run/pairs.jsonl", Pair)
    seen = [asked[pairs[0].problem_id] | {"id": "other"}, {"id": "new", "prompt": "What is 1 + 1?", "answer": "2"}]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seen))
    done = spot("demo", "run.dir=run", *small, "run.stages=[train, evaluate, report]", cwd=tmp_path)
    told = "1 of 2 questions of seen are among the problems trained on (1 word for word); accuracy on these"
    assert done.returncode == 0 and done.stderr.startswith(f"warning: {told}") and "train.drop_overlap" in done.stderr
    assert told in json.loads((tmp_path / "run/summary.json").read_text())["notes"][-1]
