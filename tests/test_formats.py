"""Rows in the forms that real data sets have: every form gives the same rows, and what cannot be read is one line."""

import bz2
import csv
import datetime
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from spot.errors import UserError
from spot.files.formats import check_writable, is_rows_file
from spot.files.store import Appender, numbered_rows, read_rows, write_rows
from spot.schema import Message, Problem
from spot.train.rows import as_preferences, read_preferences

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import ipc, parquet  # noqa: E402

ROWS: list[dict[str, Any]] = [
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    {"prompt": 'a "quoted",\nline', "chosen": "ü\u2028\\times", "rejected": "\U0001f600"},
]
CHATS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in ROWS
]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


FORMS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "x.jsonl": lambda path, rows: path.write_bytes(jsonl(rows)),
    "x.ndjson": lambda path, rows: path.write_bytes(b"\xef\xbb\xbf" + jsonl(rows)),
    "lines.json": lambda path, rows: path.write_bytes(jsonl(rows)),
    "array.json": lambda path, rows: path.write_text(json.dumps(rows, indent=2)),
    "array.jsonl": lambda path, rows: path.write_text(json.dumps(rows)),
    "x": lambda path, rows: path.write_bytes(jsonl(rows)),
    "x.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(jsonl(rows))),
    "array.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "x.jsonl.bz2": lambda path, rows: path.write_bytes(bz2.compress(jsonl(rows))),
    "x.jsonl.xz": lambda path, rows: path.write_bytes(lzma.compress(jsonl(rows))),
    "x.parquet": lambda path, rows: parquet.write_table(pyarrow.Table.from_pylist(rows), str(path)),
    "x.arrow": write_stream,
}
TEXT_FORMS = FORMS | {
    "x.csv": write_csv,
    "x.tsv": lambda path, rows: write_csv(path, rows, "\t"),
    "x.csv.gz": lambda path, rows: (
        write_csv(path.with_suffix(""), rows),
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes())),
    ),
}


def plain(rows: Any) -> list[tuple[Any, Any, Any]]:
    return [(row.prompt, row.chosen, row.rejected) for row in rows]


EXPECTED = [(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS]
EXPECTED_CHATS = [
    tuple(
        [Message(role=role, content=text)] for role, text in zip(("user", "assistant", "assistant"), row, strict=True)
    )
    for row in EXPECTED
]


@pytest.mark.parametrize("name", TEXT_FORMS)
def test_every_form_gives_the_same_text(tmp_path: Path, name: str) -> None:
    TEXT_FORMS[name](tmp_path / name, ROWS)
    rows = read_preferences(tmp_path / name)
    assert plain(rows) == EXPECTED and [row.id for row in rows] == ["1", "2"]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_messages(tmp_path: Path, name: str) -> None:
    FORMS[name](tmp_path / name, CHATS)
    assert plain(read_preferences(tmp_path / name)) == EXPECTED_CHATS


@pytest.mark.parametrize("rows", [ROWS, CHATS])
def test_what_datasets_saved_and_holds(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    expected = EXPECTED if rows is ROWS else EXPECTED_CHATS
    one = datasets.Dataset.from_list([row | {"when": datetime.datetime(2024, 2, 29)} for row in rows])
    several = datasets.DatasetDict({"test": one.select([0]), "train": one})
    one.save_to_disk(str(tmp_path / "one"))
    several.save_to_disk(str(tmp_path / "several"))
    for form in (one, several, one.to_iterable_dataset(), one.to_pandas(), one.data.table, one.with_format("numpy")):
        assert plain(as_preferences("train_dataset", form)) == expected
    for place in ("one", "several", "several/train"):
        assert plain(read_preferences(tmp_path / place)) == expected
        assert plain(as_preferences("train_dataset", str(tmp_path / place))) == expected
    with pytest.raises(UserError, match=r"^d: several splits and none is called train \(a, b\)"):
        as_preferences("d", datasets.DatasetDict({"a": one, "b": one}))


def test_columns_that_nobody_reads_may_hold_anything(tmp_path: Path) -> None:
    odd = {
        "when": datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
        "raw": b"\xff\xfe",
        "price": Decimal("1.10"),
        "meta": "no JSON {",
        "nested": [{"at": datetime.date(2024, 2, 29)}],
    }
    table = pyarrow.Table.from_pylist([row | odd for row in ROWS])
    parquet.write_table(table, str(tmp_path / "x.parquet"))
    assert plain(read_preferences(tmp_path / "x.parquet")) == EXPECTED
    for form in (table, table.to_pandas(), table.to_pylist()):
        assert plain(as_preferences("train_dataset", form)) == EXPECTED


def test_columns_that_are_read_are_text_where_they_can_be(tmp_path: Path) -> None:
    rows = [
        {
            "id": 7,
            "prompt": b"What?",
            "answer": Decimal("0.50"),
            "meta": {"at": datetime.date(2024, 2, 29), "cost": Decimal("1.10")},
        }
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), str(tmp_path / "p.parquet"))
    meta = {"at": "2024-02-29", "cost": "1.10"}
    assert read_rows(tmp_path / "p.parquet", Problem) == [Problem(id="7", prompt="What?", answer="0.50", meta=meta)]
    (tmp_path / "p.csv").write_text('id,prompt,answer,meta\n7,What?,42,"{""level"": 3}"\n')
    assert read_rows(tmp_path / "p.csv", Problem) == [Problem(id="7", prompt="What?", answer="42", meta={"level": 3})]


def test_whole_numbers_are_ids_and_other_numbers_are_not(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": 7, "prompt": "a", "answer": "0"}')
    assert [(row.id, row.answer) for row in read_rows(path, Problem)] == [("7", "0")]
    for row in ('{"id": 7.5, "prompt": "a", "answer": "3"}', '{"id": true, "prompt": "a", "answer": "3"}'):
        path.write_text(row)
        with pytest.raises(UserError, match=r"p.jsonl:1: field 'id': input should be a valid string"):
            read_rows(path, Problem)


def test_an_id_that_is_used_again_is_named_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(jsonl([ROWS[0] | {"id": "a"}, ROWS[1] | {"id": "a"}, ROWS[1] | {"id": 3}, ROWS[0]]))
    names = ["a", "a (row 2)", "3", "4"]
    assert [row.id for row in read_preferences(path)] == names
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row.id for row in as_preferences("train_dataset", rows)] == names
    problems = [{"id": "a", "prompt": "p", "answer": "1"}] * 2
    path.write_bytes(jsonl(problems))
    with pytest.raises(UserError, match=r"x.jsonl:2: id 'a' was already used in line 1"):
        read_rows(path, Problem)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, RIGHT, WRONG = turn("user", "2 + 2?"), turn("assistant", "4"), turn("assistant", "5")
SYSTEM = turn("system", "Be brief.")
REPEATED = {
    "ultrafeedback": {"prompt": "2 + 2?", "prompt_id": "x", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "messages too": {"prompt": [USER], "chosen": [USER, RIGHT], "rejected": [USER, WRONG], "messages": [USER, RIGHT]},
    "no prompt": {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_prompt_that_the_answers_repeat_is_taken_out_of_them(name: str) -> None:
    [row] = as_preferences("train_dataset", [REPEATED[name]])
    assert plain([row]) == [tuple([Message(**one)] for one in (USER, RIGHT, WRONG))]


def test_a_conversation_before_the_answers_is_the_prompt() -> None:
    earlier = [SYSTEM, turn("user", "Hello"), turn("assistant", "Hi!"), USER]
    for prompt in ({}, {"prompt": "2 + 2?"}, {"prompt": "Hello"}, {"prompt": earlier}, {"prompt": earlier[1:]}):
        [row] = as_preferences("d", [{"chosen": [*earlier, RIGHT], "rejected": [*earlier, WRONG], **prompt}])
        assert row.prompt == [Message(**one) for one in earlier] and row.chosen == [Message(**RIGHT)]
    [row] = as_preferences("d", [{"messages": [*earlier, RIGHT], "score": 3}])
    assert row.prompt == [Message(**one) for one in earlier] and row.rejected is None


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": [USER, RIGHT], "rejected": [turn("user", "3?"), WRONG]}, "differ before their last turn"),
        ({"chosen": [USER, RIGHT, USER, RIGHT], "rejected": [USER, WRONG]}, "differ before their last turn"),
        ({"chosen": [USER, RIGHT], "rejected": [WRONG]}, "differ before their last turn"),
        ({"prompt": "3?", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, "do not begin with the prompt"),
        ({"prompt": [SYSTEM], "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, "do not begin with the prompt"),
        (
            {"chosen": "Human: 2 + 2?\n\nAssistant: 4", "rejected": "Human: 2 + 2?\n\nAssistant: 5"},
            "'prompt' is missing",
        ),
        ({"system": "", "question": "2 + 2?", "chosen": "4", "rejected": "5"}, "call the column with the question"),
        ({"prompt": "a\ud800", "chosen": "4", "rejected": "5"}, "half of a surrogate pair"),
        ({"prompt": b"\xff", "chosen": "4", "rejected": "5"}, "holds bytes that are no UTF-8 text"),
        ({"prompt": "a", "chosen": "4", "rejected": 5}, "field 'rejected'"),
        ({"prompt": [turn("tool", "x")], "chosen": "4", "rejected": "5"}, r"'prompt\.0\.role'.*'system', 'user'"),
        (
            {"prompt": [turn("user", "x", tool_calls=[{"id": 1}])], "chosen": "4", "rejected": "5"},
            "take 'tool_calls' out",
        ),
        (["a"], "a list, not a mapping"),
        ("abc", "a str, not a mapping"),
    ],
)
def test_a_row_that_cannot_be_read_is_one_line(row: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^d, row 2: .*{why}") as caught:
        as_preferences("d", [ROWS[0], row])
    assert "\n" not in str(caught.value)
    if isinstance(row, dict) and not isinstance(row.get("prompt"), bytes):
        (tmp_path / "d.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{json.dumps(row)}\n")
        with pytest.raises(UserError, match=rf"d\.jsonl:2: .*{why}"):
            read_preferences(tmp_path / "d.jsonl")


def test_what_a_message_does_not_have_may_be_written_as_nothing() -> None:
    empty: dict[str, Any] = {"tool_calls": None, "name": None, "tool_call_id": "", "images": []}
    [row] = as_preferences("d", [{"prompt": [USER | empty], "chosen": [RIGHT | empty], "rejected": [WRONG | empty]}])
    assert plain([row]) == [tuple([Message(**one)] for one in (USER, RIGHT, WRONG))]


BROKEN = {
    "half a pair": ("x.jsonl", jsonl([ROWS[0] | {"prompt": "\ud83d"}]), r"x.jsonl:1: holds half of a surrogate pair"),
    "half in an array": ("x.json", json.dumps([{"prompt": "\udc00"}]).encode(), "x.json:1: holds half of a surrogate"),
    "no array": ("x.json", b"[1, 2]", "x.json:1: not a list of JSON objects, this one is a int"),
    "torn array": ("x.json", b'[{"prompt": "a"', "x.json: not JSON"),
    "one object": (
        "x.json",
        b'{\n  "prompt": "a"\n}\n',
        "x.json: not a list of JSON objects, and not one object a line",
    ),
    "no gzip": ("x.jsonl.gz", jsonl(ROWS), "x.jsonl.gz: cannot be unpacked"),
    "torn gzip": ("x.jsonl.gz", gzip.compress(jsonl(ROWS * 50))[:-20], "x.jsonl.gz: cannot be unpacked"),
    "packed table": ("x.parquet.gz", b"", "a packed .parquet file is not read; unpack it"),
    "no xz": ("x.jsonl.xz", jsonl(ROWS), "x.jsonl.xz: cannot be unpacked"),
    "cells": ("x.csv", b"prompt,chosen,rejected\na,b,c,d\n", "x.csv:1: has another number of cells"),
    "few cells": ("x.csv", b"prompt,chosen,rejected\na,b,c\na,b\n", "x.csv:2: has another number of cells"),
    "quotes": ("x.csv", b'prompt,chosen,rejected\n"a" b,c,d\n', "x.csv: not CSV"),
    "two columns": ("x.csv", b"prompt,chosen,rejected,chosen\na,b,c,d\n", "x.csv: has two columns 'chosen'"),
    "latin": ("x.csv", b"prompt,chosen,rejected\na,b,\xff\n", "x.csv: not UTF-8"),
    "messages": (
        "x.csv",
        b"prompt,chosen,rejected\na,\"[{'content': 'b', 'role': 'assistant'}]\",c\n",
        "'chosen': messages",
    ),
    "arrow": ("x.arrow", b"no arrow", "x.arrow: not an Arrow file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    file, content, why = BROKEN[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        read_preferences(tmp_path / file)
    assert "\n" not in str(caught.value)


def test_a_text_meta_that_is_no_json_is_one_line_where_it_is_read(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "b", "answer": "c", "meta": "no JSON {"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), str(tmp_path / "p.parquet"))
    with pytest.raises(UserError, match=r"p.parquet:1: field 'meta': input should be an object"):
        read_rows(tmp_path / "p.parquet", Problem)


def test_a_folder_that_is_no_data_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a file, and not a folder that datasets' save_to_disk wrote"):
        read_preferences(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="not a data set that can be read"):
        read_preferences(tmp_path)


def test_many_rows_of_a_table_keep_their_numbers(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}", "chosen": "a", "rejected": "b"} for number in range(2500)]
    rows[2203]["prompt"] = " "
    parquet.write_table(pyarrow.Table.from_pylist(rows), str(tmp_path / "x.parquet"))
    with pytest.raises(UserError, match=r"x.parquet:2204: field 'prompt': is empty"):
        read_preferences(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl.gz", "x.arrow", "x.tsv"])
def test_a_form_that_is_only_read_is_not_written(tmp_path: Path, name: str) -> None:
    for write in (lambda path: write_rows(path, []), Appender, check_writable):  # pyright: ignore[reportUnknownLambdaType]
        with pytest.raises(UserError, match="name a .jsonl or .parquet file"):
            write(tmp_path / name)
    assert is_rows_file(name) and not list(tmp_path.iterdir())


def test_the_numbers_of_csv_are_numbers(tmp_path: Path) -> None:
    from spot.stages.asking import Answer

    (tmp_path / "a.csv").write_text("problem_id,response,sample\n1,yes,0\n1,no,1\n")
    assert [(row.id, row.sample) for _, row in numbered_rows(tmp_path / "a.csv", Answer)] == [
        ("problem 1, sample 0", 0),
        ("problem 1, sample 1", 1),
    ]


def test_problems_whose_prompt_ends_with_an_answer_are_refused_or_dropped(tmp_path: Path) -> None:
    from spot.config import parse_config
    from spot.schema import Dropped
    from spot.stages.place import load_problems

    path = tmp_path / "p.jsonl"
    rows = [{"id": name, "prompt": prompt, "answer": "4"} for name, prompt in (("a", [USER]), ("b", [USER, RIGHT]))]
    path.write_bytes(jsonl(rows))
    with pytest.raises(UserError, match=r"p.jsonl:2: the prompt ends with an assistant turn"):
        load_problems(parse_config({"problems": {"source": str(path)}}, "test"), [])
    dropped: list[Dropped] = []
    skipping = parse_config({"problems": {"source": str(path)}, "run": {"on_bad_row": "skip"}}, "test")
    assert [row.id for row in load_problems(skipping, dropped)] == ["a"]
    assert [(row.id, row.reason) for row in dropped] == [("b", "bad_row")]
