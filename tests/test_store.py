"""The run directory: whole lines or none, whole files or the old ones, clear words for bad rows."""

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spot.errors import UserError
from spot.files.store import MAX_LINE_BYTES, Appender, RunDirectory, read_dropped, read_rows, repair, write_rows
from spot.schema import Dropped, Problem

GOOD = '{"id": "a", "prompt": "q", "answer": "1"}\n'


def problems(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


BAD_ROWS = {
    "not json": (GOOD + "{oops\n", r"p.jsonl:2: not a JSON object"),
    "a list": (GOOD + "[1]\n", r"p.jsonl:2: .*object"),
    "missing field": (GOOD + '{"id": "b", "prompt": "q"}\n', r"p.jsonl:2: the field 'answer' is missing"),
    "wrong type": (GOOD + '{"id": "b", "prompt": "q", "answer": 3}\n', r"p.jsonl:2: field 'answer': .*string"),
    "unknown field": (
        GOOD + '{"id": "b", "prompt": "q", "answer": "3", "extra": 1}\n',
        r"p.jsonl:2: unknown field 'extra'; put extra data under 'meta'; known here: id, prompt, answer, source, meta",
    ),
    "wrong role": (
        GOOD + '{"id": "b", "prompt": [{"role": "tool", "content": "q"}], "answer": "3"}\n',
        r"p.jsonl:2: field 'prompt.0.role': input should be 'system'",
    ),
    "no messages": (
        GOOD + '{"id": "b", "prompt": [], "answer": "3"}\n',
        r"p.jsonl:2: field 'prompt': needs at least one message",
    ),
    "empty prompt": (GOOD + '{"id": "b", "prompt": "", "answer": "3"}\n', r"p.jsonl:2: field 'prompt': is empty"),
    "blank messages": (
        GOOD + '{"id": "b", "prompt": [{"role": "user", "content": " \\n"}], "answer": "3"}\n',
        r"p.jsonl:2: field 'prompt': is empty; write what is asked",
    ),
    "long unknown field": (GOOD + '{"id": "b", "prompt": "q", "answer": "3", "%s": 1}\n' % ("x" * 9999), r"\.\.\.$"),
    "repeated id": (GOOD + "\n" + GOOD, r"p.jsonl:3: id 'a' was already used in line 1"),
    "not utf-8": (GOOD.encode() + b'{"id": "\xff"}\n', r"p.jsonl:2: not UTF-8 \(byte 9"),
    "50 MB": (
        GOOD + '{"id": "' + "x" * (50 * 2**20) + '"}\n' + GOOD.replace('"a"', '"c"'),
        r"p.jsonl:2: the line is longer",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_name_file_and_line(tmp_path: Path, name: str) -> None:
    text, message = BAD_ROWS[name]
    path = problems(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(path, Problem)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    dropped: list[Dropped] = []
    rows = read_rows(path, Problem, "skip", dropped)
    assert rows[0].id == "a"
    assert len(dropped) == 1 and dropped[0].reason == "bad_row"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing.jsonl: no such file"):
        read_rows(tmp_path / "nothing.jsonl", Problem)
    with pytest.raises(UserError, match="not a file"):
        read_rows(tmp_path, Problem)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    assert read_rows(problems(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()), Problem)[0].id == "a"


def test_parquet_and_jsonl_hold_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [Problem(id=str(i), prompt="q", answer="1", meta={"n": i}) for i in range(3)]
    for name in ("r.jsonl", "r.parquet"):
        write_rows(tmp_path / name, rows)
        assert read_rows(tmp_path / name, Problem) == rows


@given(text=st.lists(st.text(min_size=1).filter(str.strip), max_size=5), cut=st.integers(0, 400))
@settings(deadline=None)
def test_a_torn_file_is_its_longest_whole_beginning(
    tmp_path_factory: pytest.TempPathFactory, text: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "p.jsonl"
    rows = [Problem(id=str(i), prompt=t, answer="1") for i, t in enumerate(text)]
    with Appender(path) as appender:
        appender.append(rows)
    raw = path.read_bytes()[:cut] if rows else b""
    path.write_bytes(raw)
    repair(path)
    assert path.read_bytes() == raw[: raw.rfind(b"\n") + 1]
    assert read_rows(path, Problem) == rows[: raw.count(b"\n")]


def test_a_file_to_which_nothing_was_added_is_not_left_behind(tmp_path: Path) -> None:
    with Appender(tmp_path / "p.jsonl"):
        pass
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        with Appender(tmp_path / "p.jsonl") as appender:
            appender.append([Problem(id="a", prompt="q", answer="1")] if not list(tmp_path.glob("*")) else [])
    (tmp_path / "p.jsonl").write_text("")
    with Appender(tmp_path / "p.jsonl"):
        pass
    assert (tmp_path / "p.jsonl").exists()


def test_another_config_is_refused_and_overwrite_starts_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunDirectory.open(run, "a: 1\nb: 2\n")
    assert RunDirectory.open(run, "a: 1\nb: 2\n").path == run
    (run / "attempts.jsonl").write_text("x")
    with pytest.raises(UserError, match=r"another config \(b: 2 there, 3 here\).*--overwrite"):
        RunDirectory.open(run, "a: 1\nb: 3\n")
    (run / "model").mkdir()
    (run / "my-notes.txt").write_text("mine")
    RunDirectory.open(run, "a: 1\nb: 3\n", overwrite=True)
    assert not (run / "attempts.jsonl").exists() and not (run / "model").exists()
    assert (run / "my-notes.txt").read_text() == "mine"


def test_a_directory_that_is_no_run_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "config.yaml").write_text("the user's own: 1\n")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and not a run"):
            RunDirectory.open(tmp_path, "a: 1\n", overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", "a: 1\n")
    with run, pytest.raises(UserError, match="in use"), RunDirectory(run.path):
        pass
    with run, pytest.raises(UserError, match="in use"):
        RunDirectory.open(run.path, "a: 2\n")
    assert (run / "config.yaml").read_text() == "a: 1\n"
    with run:
        pass


def test_manifest_records_finished_stages(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", "a: 1\n")
    assert not run.is_complete("train")
    run.complete("train", 1.5, steps=3)
    assert run.is_complete("train")
    assert json.loads((run / "manifest.json").read_text())["stages"]["train"]["steps"] == 3


def test_long_lines_up_to_the_limit_are_read(tmp_path: Path) -> None:
    long = GOOD.replace('"q"', f'"{"x" * (MAX_LINE_BYTES - 100)}"')
    assert len(read_rows(problems(tmp_path, long), Problem)) == 1


def test_keys_that_do_not_decide_rows_may_differ(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunDirectory.open(run, "run: {dir: a, seed: 1}\nreport: {notes: []}\n")
    (run / "attempts.jsonl").write_text("x")
    ignoring = frozenset({"run.dir", "report"})
    RunDirectory.open(run, "run: {dir: b, seed: 1}\nreport: {notes: [x]}\n", ignoring=ignoring)
    assert "dir: b" in (run / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"run.seed: 1 there, 2 here"):
        RunDirectory.open(run, "run: {dir: b, seed: 2}\n", ignoring=ignoring)


def test_a_kill_right_at_the_start_leaves_a_directory_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "manifest.json.tmp").write_text("{")
    (tmp_path / ".lock").write_text("")
    assert RunDirectory.open(tmp_path, "a: 1\n").path == tmp_path


def test_parquet_keeps_any_meta_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    metas: list[dict[str, object]] = [{}, {"events": [["add", 3], ["double", 0]]}, {"n": 1, "deep": {"a": [None, "b"]}}]
    rows = [Problem(id=str(i), prompt="q", answer="1", meta=meta) for i, meta in enumerate(metas)]
    write_rows(tmp_path / "r.parquet", rows)
    assert read_rows(tmp_path / "r.parquet", Problem) == rows
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match=r"bad.parquet: not a Parquet file"):
        read_rows(tmp_path / "bad.parquet", Problem)


def test_dropped_rows_may_hold_any_text(tmp_path: Path) -> None:
    rows = [Dropped(stage="read", id="a\u2028b\x85c", reason="bad_row")]
    write_rows(tmp_path / "d.jsonl", rows)
    assert read_dropped(tmp_path / "d.jsonl") == rows


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_clear_error_also_when_the_file_is_closed() -> None:
    rows = [Problem(id="a", prompt="q", answer="1")]
    with pytest.raises(UserError, match="No space left on device"), Appender(Path("/dev/full")) as appender:
        appender.append(rows)


def test_a_disk_that_fills_up_within_a_row_leaves_whole_rows(tmp_path: Path) -> None:
    rows = [Problem(id=str(number), prompt="q" * 100, answer="1") for number in range(3)]
    line = len(rows[0].model_dump_json()) + 1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Appender(tmp_path / "p.jsonl") as first:
        first.append(rows[:1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (line * 2 + 9, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write"), Appender(tmp_path / "p.jsonl") as appender:
            appender.append(rows[1:])
        with pytest.raises(UserError, match="cannot write"), Appender(tmp_path / "new.jsonl") as appender:
            appender.append(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "p.jsonl").stat().st_size == line and not (tmp_path / "new.jsonl").exists()


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
@pytest.mark.parametrize("damage", ["", "[", "3", None])
def test_a_damaged_run_directory_is_one_line_and_can_be_started_over(
    tmp_path: Path, name: str, damage: str | None
) -> None:
    run = tmp_path / "run"
    RunDirectory.open(run, "a: 1\n")
    (run / "attempts.jsonl").write_text("x")
    (run / name).unlink()
    if damage is not None:
        (run / name).write_text(damage)
    with pytest.raises(UserError, match=r"not a run directory" if (name, damage) == ("manifest.json", None) else name):
        RunDirectory.open(run, "a: 1\n")
    if (run / "manifest.json").exists():
        RunDirectory.open(run, "a: 1\n", overwrite=True)
        assert not (run / "attempts.jsonl").exists() and (run / "config.yaml").read_text() == "a: 1\n"


def test_a_run_without_rows_takes_the_mended_config(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", "a: 1\n")
    RunDirectory.open(tmp_path / "run", "a: 2\n")
    assert (tmp_path / "run" / "config.yaml").read_text() == "a: 2\n"


def test_a_row_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    good = Problem(id="a", prompt="q", answer="1")
    long = Problem(id="b", prompt="q" * MAX_LINE_BYTES, answer="1")
    with Appender(path) as file:
        file.append([good])
        with pytest.raises(UserError, match=r"problems.jsonl: row 'b' takes 16 MiB, more than the 16 MiB"):
            file.append([good, long])
    assert read_rows(path, Problem) == [good]
    with pytest.raises(UserError, match="row 'b'"):
        write_rows(path, [long])
    assert read_rows(path, Problem) == [good]
