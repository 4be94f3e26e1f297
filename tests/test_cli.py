"""Single commands over files: bad input is one line and exit code 2, nothing is left behind or lost silently."""

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors import SafetensorError
from tests.fake_server import Answer, FakeServer, Seen, completion, failure
from tests.tiny_student import make_tokenizer

from spot import __version__, cli
from spot.config import load_config
from spot.files.store import read_dropped, read_rows, write_rows
from spot.models.paid.ledger import Ledger
from spot.schema import Attempt, Pair, Problem, Rectification, Verdict
from spot.stages import doctor
from spot.stages.preflight import preflight

PROBLEM = '{"id": "a", "prompt": "What is 1 + 1?", "answer": "2"}\n'
WRONG = Attempt(
    id="a#0", problem_id="a", sample=0, response="It is \\boxed{3}", finish_reason="stop",
    verdict=Verdict(correct=False), model="m",
)  # fmt: skip
FIXED = Rectification(
    id="a#0~import.0", attempt_id="a#0", problem_id="a", oracle="import", mode="import", candidate=0,
    response="It is \\boxed{2}", verdict=Verdict(correct=True), accepted=True,
)  # fmt: skip
FILES = {
    "p.jsonl": PROBLEM,
    "a.jsonl": WRONG.model_dump_json() + "\n",
    "r.jsonl": FIXED.model_dump_json() + "\n",
    "c.jsonl": '{"attempt_id": "a#0", "response": "It is \\\\boxed{2}"}\n',
    "w.jsonl": '{"problem_id": "a", "response": "It is \\\\boxed{3}"}\n',
}
STAGES = {
    "elicit": "elicit --model lab --problems p.jsonl --output out/a.jsonl elicit.attempts=w.jsonl",
    "rectify": "rectify --problems p.jsonl --attempts a.jsonl --output out/r.jsonl rectify.oracle=import "
    "rectify.path=c.jsonl",
    "filter": "filter --model lab --problems p.jsonl --attempts a.jsonl --rectifications r.jsonl --output out/f.jsonl",
}

SpotHere = Callable[..., tuple[int, str]]
SHOWN: list[str] = []
"""The words that the last call printed."""


@pytest.fixture
def spot_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> SpotHere:
    """`spot` in this process and in `tmp_path`: exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["spot", *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as end:
            cli.main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        shown, errors = capfd.readouterr()
        SHOWN[:] = shown.split()
        return int(end.value.code or 0), errors

    return run


def write_files(place: Path, **others: bytes) -> None:
    for name, text in FILES.items():
        (place / name).write_bytes(text.encode() + others.get(name[0], b""))


@pytest.mark.parametrize(("stage", "read"), [("elicit", "p"), ("rectify", "pac"), ("filter", "par")])
@pytest.mark.parametrize(
    "row", [b"{oops\n", b"[1]\n", b'{"id": "b"}\n', b'{"id": 3}\n', b'{"id": "\xff"}\n', b"x" * (50 * 2**20)]
)
def test_a_bad_row_in_any_file_of_a_stage(
    spot_here: SpotHere, tmp_path: Path, stage: str, read: str, row: bytes
) -> None:
    for name in read:
        write_files(tmp_path, **{name: row})
        code, errors = spot_here(*STAGES[stage].split())
        assert code == 2 and errors.startswith(f"error: {name}.jsonl:2: ") and errors.count("\n") == 1, errors
        assert not (tmp_path / "out").exists()
    write_files(tmp_path, **dict.fromkeys(read, row))
    assert spot_here(*STAGES[stage].split(), "--on-bad-row", "skip") == (0, "")
    (record,) = (tmp_path / "out").glob("*.dropped.jsonl")
    assert [row.detail.partition(" ")[0] for row in read_dropped(record)] == [f"{name}.jsonl:2:" for name in read]
    write_files(tmp_path)
    assert spot_here(*STAGES[stage].split()) == (0, "")
    assert not record.exists()


@pytest.mark.parametrize(
    ("stage", "changed", "message"),
    [
        ("elicit", ["elict.samples=2"], "did you mean elicit?"),
        ("elicit", ["elicit.sample=2"], "did you mean 'samples'?"),
        ("elicit", ["--problems", "empty.jsonl"], "empty.jsonl: no problems"),
        ("elicit", ["--problems", "none.jsonl"], "none.jsonl: no such file"),
        ("elicit", ["--problems", "."], ".: not a file"),
        ("elicit", ["--output", "."], ".: a directory; --output names a file"),
        ("elicit", ["--output", "p.jsonl/a.jsonl"], "p.jsonl/a.jsonl: cannot write (File exists); fix the path"),
        ("elicit", ["student.base_url=http://127.0.0.1:9/v1", "elicit.attempts=null"], "127.0.0.1:9"),
        ("rectify", ["--attempts", "right.jsonl"], "no wrong attempts to learn from (1 correct)"),
        ("rectify", ["rectify.path=empty.jsonl"], "empty.jsonl: none of its 0 corrections is of a wrong attempt"),
        ("rectify", ["rectify.oracle=model", "rectify.model=m", "rectify.base_url=http://127.0.0.1:9/v1"], ":9/v1"),
        ("filter", ["--rectifications", "empty.jsonl"], "no pair is left of 0 accepted corrections (no corrections);"),
        ("filter", ["--rectifications", "refused.jsonl"], "does_not_verify); fix the Oracle and rectify again"),
        ("elicit", ["--problems", "blank.jsonl"], "blank.jsonl:1: field 'prompt': is empty"),
        ("filter", ["--rectifications", "astray.jsonl"], "rectification 'a#0~import.0': its problem or attempt"),
        ("filter", ["--model", "nowhere"], "nowhere: no such model directory"),
        ("filter", ["--on-bad-row", "drop"], "run.on_bad_row"),
    ],
)  # fmt: skip
def test_bad_use_of_a_stage_is_one_line_and_nothing_is_left(
    spot_here: SpotHere, tmp_path: Path, stage: str, changed: Sequence[str], message: str
) -> None:
    write_files(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    right = WRONG.model_copy(update={"verdict": Verdict(correct=True)})
    write_rows(tmp_path / "right.jsonl", [right])
    refused = FIXED.model_copy(update={"accepted": False, "reason": "does_not_verify"})
    write_rows(tmp_path / "refused.jsonl", [refused])
    (tmp_path / "blank.jsonl").write_text(PROBLEM.replace("What is 1 + 1?", ""))
    write_rows(tmp_path / "astray.jsonl", [FIXED.model_copy(update={"attempt_id": "a"})])
    code, errors = spot_here(*STAGES[stage].split(), *changed)
    assert code == 2 and errors.startswith("error: ") and message in errors and errors.count("\n") == 1, errors
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {"a.ledger.sqlite", "r.ledger.sqlite"}


@pytest.mark.parametrize("stage", ["elicit", "rectify"])
def test_a_refused_key_is_one_line_and_nothing_is_left(spot_here: SpotHere, tmp_path: Path, stage: str) -> None:
    write_files(tmp_path)
    with FakeServer(lambda seen: failure(401)) as server:
        settings = {
            "elicit": [f"student.base_url={server.url}", "elicit.attempts=null"],
            "rectify": ["rectify.oracle=model", "rectify.model=m", f"rectify.base_url={server.url}"],
        }
        code, errors = spot_here(*STAGES[stage].split(), *settings[stage])
    assert code == 2 and "requires a key (HTTP 401)" in errors and errors.count("\n") == 1
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {"a.ledger.sqlite", "r.ledger.sqlite"}


def test_a_full_disk_under_the_output_of_a_command_is_one_line(
    spot_here: SpotHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_files(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    for stage in STAGES.values():
        code, errors = spot_here(*stage.split())
        assert code == 2 and "(No space left on device); free some space" in errors and errors.count("\n") == 1
    assert not list(tmp_path.glob("out/*.tmp"))


RUN = """
run: {dir: run, stages: [elicit, rectify, filter]}
problems: {source: p.jsonl}
elicit: {attempts: w.jsonl}
rectify: {oracle: import, path: c.jsonl}
"""


def test_what_a_stage_stopped_over_can_be_mended(spot_here: SpotHere, tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "c.yaml").write_text(RUN)
    wrong = ["elicit.attempts=none.jsonl", "rectify.path=empty.jsonl", "filter.gamma=0"]
    (tmp_path / "empty.jsonl").touch()
    for told in ("none.jsonl: no such file", "none of its 0 corrections", "raise filter.gamma"):
        code, errors = spot_here("run", "c.yaml", *wrong)
        assert code == 2 and told in errors
        del wrong[0]
    assert spot_here("run", "c.yaml") == (0, "")
    code, errors = spot_here("run", "c.yaml", "filter.gamma=0.7")
    assert code == 2 and "another config (filter.gamma: 0.6 there, 0.7 here)" in errors


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["run.stages=[elicit, train]", "student.model=bare", "student.base_url=http://127.0.0.1:9/v1"], "no chat"),
        (["run.stages=[elicit, filter]", "student.model=empty"], "empty: no tokenizer"),
        (["run.stages=[elicit, train]", "train.save_steps=1.5"], "train: --save_steps must be an integer"),
    ],
)
def test_what_later_stages_cannot_use_shows_before_the_first(
    spot_here: SpotHere, tmp_path: Path, overrides: list[str], told: str
) -> None:
    write_files(tmp_path)
    (tmp_path / "c.yaml").write_text(RUN)
    (tmp_path / "empty").mkdir()
    bare = make_tokenizer()
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "bare")
    code, errors = spot_here("run", "c.yaml", *overrides)
    assert code == 2 and told in errors and errors.count("\n") == 1, errors
    assert not list((tmp_path / "run").glob("*.jsonl"))


def test_a_full_disk_under_a_students_weights_is_one_line(spot_here: SpotHere, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("spot.lab.recipe.train_student", full)
    code, errors = spot_here("lab", "train", "--output", "out", "--steps", "1")
    assert code == 2 and errors.startswith("error: out: cannot write") and errors.count("\n") == 1, errors


def test_a_count_of_nothing_is_refused(spot_here: SpotHere, tmp_path: Path) -> None:
    code, errors = spot_here("lab", "problems", "--output", "out/p.jsonl", "--count", "0")
    assert code == 2 and "--count" in errors and not (tmp_path / "out").exists()


def test_corrections_that_correct_nothing_are_recorded_and_counted(spot_here: SpotHere, tmp_path: Path) -> None:
    write_files(tmp_path, c=b'{"attempt_id": "typo", "response": "x"}\n')
    (tmp_path / "c.yaml").write_text(
        "run: {dir: run, stages: [elicit, rectify, report]}\nproblems: {source: p.jsonl}\n"
        "elicit: {attempts: w.jsonl}\nrectify: {oracle: import, path: c.jsonl}\n"
    )
    assert spot_here("run", "c.yaml") == (0, "")
    (row,) = read_dropped(tmp_path / "run/dropped.jsonl")
    assert (row.stage, row.id, row.reason) == ("rectify", "typo", "no_such_failure")
    assert json.loads((tmp_path / "run/summary.json").read_text())["counts"]["dropped"] == {"no_such_failure": 1}


def test_pairs_do_not_depend_on_the_order_in_which_replies_came(spot_here: SpotHere, tmp_path: Path) -> None:
    problems = [Problem(id=f"p{n}", prompt="What is 1 + 1?", answer="2") for n in range(4)]
    attempts = [WRONG.model_copy(update={"id": f"{row.id}#0", "problem_id": row.id}) for row in problems]
    fixes = [
        FIXED.model_copy(update={"id": f"{row.id}~import.0", "attempt_id": row.id, "problem_id": row.problem_id})
        for row in attempts
    ]
    write_rows(tmp_path / "p.jsonl", problems)
    for name, step in {"straight": 1, "reversed": -1}.items():
        write_rows(tmp_path / "a.jsonl", attempts[::step])
        write_rows(tmp_path / "r.jsonl", fixes[::step])
        assert spot_here(*STAGES["filter"].split(), "--output", name, "filter.max_pairs=3") == (0, "")
    pairs = read_rows(tmp_path / "straight", Pair)
    assert [pair.problem_id for pair in pairs] == ["p0", "p1", "p2"]
    assert read_rows(tmp_path / "reversed", Pair) == pairs


def test_the_version(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["spot", "--version"])
    with pytest.raises(SystemExit) as end:
        cli.app()
    assert (end.value.code, capfd.readouterr().out) == (0, f"spot {__version__}\n")


DOCTORED = {
    "problems.verifier=maths": "unknown verifier 'maths'",
    "problems.answer_pattern='('": "answer pattern",
    "problems.source=bad.jsonl": "bad.jsonl:2: not a JSON object",
    "problems.source=none.jsonl": "none.jsonl: no such file",
    "rectify.oracle=nobody": "unknown Oracle 'nobody'",
    "rectify.oracle=mine:absent": "module 'mine' has no 'absent'",
    "rectify.oracle=mine:broken": "ZeroDivisionError",
    "train.objective=bco": "train: unknown loss 'bco'",
    "train.objective=mine:absent": "module 'mine' has no 'absent'",
    "evaluate.tasks=[ifevall]": "unknown task 'ifevall'",
}


@pytest.mark.parametrize("override", DOCTORED)
def test_the_doctor_finds_what_a_run_refuses_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    write_files(tmp_path)
    (tmp_path / "bad.jsonl").write_text(PROBLEM + "{\n")
    (tmp_path / "mine.py").write_text("def broken(): return 1 / 0\n")
    (tmp_path / "c.yaml").write_text(RUN.replace("filter]", "filter, train, evaluate]"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    found = {}
    for overrides in ([], [override]):
        config = load_config(Path("c.yaml"), overrides)
        checks = doctor.checks(config.model_dump(mode="json"), preflight(config, config.run.stages, fetch=False))
        found[bool(overrides)] = [check for check in checks if check.status == "fail"]
    assert found[False] == []
    (check,) = found[True]
    assert DOCTORED[override] in check.found and check.fix


def test_an_output_is_never_one_of_the_inputs(spot_here: SpotHere, tmp_path: Path) -> None:
    write_files(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    for stage, names in {"elicit": "p", "rectify": "pa", "filter": "par"}.items():
        for name in names:
            code, errors = spot_here(*STAGES[stage].split(), "--output", f"./{name}.jsonl")
            assert code == 2 and f"{name}.jsonl: is read here" in errors, errors
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before


MODEL = "rectify.oracle=model rectify.model=m rectify.api_key_env=SPOT_TEST_KEY"


def test_what_is_on_record_is_not_in_the_estimate_and_an_export_replaces_nothing_else(
    spot_here: SpotHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOT_TEST_KEY", "sk-planted-31b7-0123")
    write_files(tmp_path)
    with FakeServer(lambda seen: completion(f"no, and {seen.headers['authorization']}")) as server:
        call = [*STAGES["rectify"].split(), *MODEL.split(), f"rectify.base_url={server.url}"]
        code, errors = spot_here(*call)
        assert code == 2 and "none of 1 corrections was accepted" in errors, errors
        assert "the reply held the endpoint's key; it is kept with the key taken out, and not used" in errors
        code, errors = spot_here(*call, "--dry_run")
    assert code == 0 and "0 requests about 1 wrong attempts (1 more are on record" in " ".join(SHOWN)
    ledger = "out/r.ledger.sqlite"
    for name in (ledger, "p.jsonl"):
        code, errors = spot_here("ledger", ledger, "--export", name)
        assert code == 2 and f"{name}: exists and is no export" in errors
    for _ in range(2):
        assert spot_here("ledger", ledger, "--export", "requests.jsonl") == (0, "")
    assert "key taken out" in (tmp_path / "requests.jsonl").read_text()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"sk-planted-31b7-0123" not in written


def test_a_refused_key_leaves_nothing_that_may_have_cost_something(
    spot_here: SpotHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOT_TEST_KEY", "sk-planted-31b7-0123")
    write_files(tmp_path)
    wrong = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text("".join(wrong.replace('#0"', f'#{n}"') for n in range(12)))

    def refuse(seen: Seen) -> Answer:
        time.sleep(0.05)
        return failure(401, "no such key")

    with FakeServer(refuse) as server:
        code, _ = spot_here(*STAGES["rectify"].split(), *MODEL.split(), f"rectify.base_url={server.url}")
    assert code == 2
    with Ledger(tmp_path / "out/r.ledger.sqlite") as ledger:
        assert {line.outcome for line in ledger.lines()} == {"refused"}
