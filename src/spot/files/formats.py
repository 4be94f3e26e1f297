"""Rows in the forms that data really has: one reader for files, folders and tables, whatever the rows are for.

A row is its number (its line in a text file, blank lines counted, or its place in a table, from 1) and one JSON object
as text, which the schema of the rows checks. Only the columns that somebody reads are looked at, where the form has
columns.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

from spot.errors import UserError

MAX_LINE_BYTES = 16 * 2**20
TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLES = (".parquet", ".arrow", ".feather")
PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
WRITTEN = (".jsonl", ".parquet")

Columns = Collection[str] | None
"""The columns to read; all where it is `None`."""
Line = str | ValueError
"""A row as the text of a JSON object, or why it is none."""
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
MESSAGES = re.compile(r"""\s*\[\s*\{.*['"](?:role|content)['"]""", re.DOTALL)


def is_rows_file(name: str | Path) -> bool:
    """Whether `name` ends like a file of rows."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix in (*TEXTS, *TABLES)


def check_writable(path: Path) -> None:
    """Raise `UserError` where `path` ends like a form that is read, but not written."""
    if path.suffix in PACKED or (is_rows_file(path) and path.suffix not in (*WRITTEN, ".ndjson", ".json")):
        raise UserError(f"{path}: rows are written as JSON lines or Parquet; name a .jsonl or .parquet file")


def lines_of(path: Path, columns: Columns = None) -> Iterator[tuple[int, Line]]:
    """The rows at `path`: JSON lines, a JSON array, CSV or TSV, each also packed by gzip, bzip2 or xz; Parquet or
    Arrow; or a folder that `datasets` saved, of which the split `train` is read where there are several.

    Raises `UserError` where that cannot be read; a row that cannot be is given as its error.
    """
    if path.is_dir():
        yield from dict_lines(_from_folder(path, columns), columns)
        return
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    kind = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
    if kind in TABLES:
        if path.suffix in PACKED:
            raise UserError(
                f"{path}: a packed {kind} file is not read; unpack it ({kind[1:]} packs its columns itself)"
            )
        yield from _table_lines(path, columns)
        return
    try:
        with PACKED[path.suffix](path) if path.suffix in PACKED else path.open("rb") as file:
            if kind in (".csv", ".tsv"):
                yield from _csv_lines(file, path, columns, "\t" if kind == ".tsv" else ",")
            else:
                yield from _json_lines(file, path, kind)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); fetch or pack it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def dict_lines(rows: Iterable[Mapping[str, Any]], columns: Columns = None) -> Iterator[tuple[int, Line]]:
    """`rows` of Python objects as lines; what is missing (`None`, or a table's NaN) is no part of them."""
    for number, row in enumerate(rows, start=1):
        yield number, dict_line(row, columns)


def dict_line(row: Mapping[str, Any], columns: Columns = None) -> Line:
    """One of `dict_lines`."""
    wanted = ((str(name), value) for name, value in row.items() if columns is None or name in columns)
    try:
        return json.dumps({name: value for name, value in wanted if not _is_missing(value)}, default=_plain)
    except (TypeError, ValueError) as error:
        return ValueError(" ".join(str(error).split()))


def table_rows(name: str, rows: Any, columns: Columns = None) -> Any:
    """`rows` as an iterable of rows: a data frame (pandas, polars), an Arrow table or a data set of `datasets` by its
    columns, several splits by their `train`; anything else as it is. `name` is what errors call it."""
    if isinstance(rows, Mapping):
        return table_rows(name, _one_split(name, cast(Mapping[str, Any], rows)), columns)
    names: list[str] | None = getattr(rows, "column_names", None)  # of datasets, and of Arrow
    if isinstance(names, list):
        wanted = [one for one in names if columns is None or one in columns]
        if hasattr(rows, "with_format"):
            return rows.select_columns(wanted).with_format(None)
        return rows.select(wanted).to_pylist()
    if hasattr(rows, "to_dicts"):
        return rows.to_dicts()
    if hasattr(rows, "iterrows"):
        return rows[[one for one in rows.columns if columns is None or one in columns]].to_dict("records")
    return rows


def why_not_json(text: str, error: str) -> str:
    """What is wrong with a line that is no JSON object, in the user's terms."""
    if "hex escape" in error or "surrogate" in error or (HALF_PAIR.search(text) and "escape" in error):
        return "holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no text; replace or delete it"
    return f"not a JSON object ({error}); fix the line, or delete it"


def _json_lines(file: IO[bytes], path: Path, kind: str) -> Iterator[tuple[int, Line]]:
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        begin = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if begin.lstrip()[:1] == b"[" and number == 1:
            yield from dict_lines(_array(begin + file.read(), path))
            return
        if number == 1 and kind == ".json" and not _is_object(begin):
            raise UserError(f"{path}: not a list of JSON objects, and not one object a line")
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES)
            yield (
                number,
                ValueError(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; split the file or drop the row"),
            )
        elif begin.strip():
            yield number, _decoded(begin)


def _decoded(raw: bytes) -> Line:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 (byte {error.start + 1} of the line); convert the file to UTF-8")


def _is_object(line: bytes) -> bool:
    try:
        return bool(json.loads(line)) and line.lstrip()[:1] == b"{"
    except ValueError:
        return False


def _array(raw: bytes, path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start + 1}); convert the file to UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fix it, or write one object a line") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a list of JSON objects, this one is a {type(row).__name__}")
    return rows


def _csv_lines(file: IO[bytes], path: Path, columns: Columns, delimiter: str) -> Iterator[tuple[int, Line]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
        names = [name for name in reader.fieldnames or () if columns is None or name in columns]
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise UserError(f"{path}: has two columns {twice!r}; rename one or take it out")
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                yield (
                    number,
                    ValueError(f"has another number of cells than the header ({len(reader.fieldnames or ())})"),
                )
                continue
            cells = {name: cell for name, cell in row.items() if cell and (columns is None or name in columns)}
            if lost := next((name for name, cell in cells.items() if MESSAGES.match(cell)), None):
                why = "messages written as text; CSV holds text only, save the rows as JSON lines or Parquet"
                yield number, ValueError(f"field {lost!r}: {why}")
                continue
            yield number, json.dumps(cells)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; convert the file to UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}: not CSV ({error}); quote cells that hold quotes or line breaks") from None


def _table_lines(path: Path, columns: Columns) -> Iterator[tuple[int, Line]]:
    what = "a Parquet" if path.suffix == ".parquet" else "an Arrow"
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading {what.split()[1]} needs pyarrow; install it with: pip install pyarrow")
    import pyarrow

    done = 0
    try:
        for batch in _batches(path, columns):
            for number, line in dict_lines(batch.to_pylist(), columns):
                yield done + number, line
            done += batch.num_rows
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: holds text that is not UTF-8 after row {done} ({error.reason}); convert it") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: not {what} file that can be read ({reason})") from None


def _batches(path: Path, columns: Columns) -> Iterator[Any]:
    import pyarrow
    from pyarrow import ipc, parquet

    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            yield from file.iter_batches(batch_size=1000, columns=names)
        return
    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = ipc.open_file(source)
            batches: Any = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            batches = ipc.open_stream(source)
        for batch in batches:
            yield batch.select([name for name in batch.schema.names if columns is None or name in columns])


def _from_folder(path: Path, columns: Columns) -> Any:
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise UserError(f"{path}: not a file, and not a folder that datasets' save_to_disk wrote; name a file in it")
    if find_spec("datasets") is None:
        raise UserError(f"{path}: reading a saved data set needs datasets; pip install datasets, or save it as Parquet")
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of its files: many types
        raise UserError(f"{path}: not a data set that can be read ({' '.join(str(error).split())[:200]})") from error
    return table_rows(str(path), loaded, columns)


def _one_split(name: str, splits: Mapping[str, Any]) -> Any:
    """The split `train`, or the only one."""
    if any(isinstance(rows, str) or not isinstance(rows, Iterable) for rows in splits.values()) or not splits:
        raise UserError(f"{name}: a single mapping, not rows; give a list of them")
    if any(isinstance(rows, list) for rows in splits.values()):
        raise UserError(
            f"{name}: a mapping of columns, not rows; make a data set of it with datasets.Dataset.from_dict"
        )
    if "train" in splits:
        return splits["train"]
    if len(splits) > 1:
        raise UserError(f"{name}: several splits and none is called train ({', '.join(splits)}); give one of them")
    return next(iter(splits.values()))


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def _plain(value: Any) -> Any:
    """What JSON has no form for, as it stands in one that it has; nothing is rounded."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("holds bytes that are no UTF-8 text; decode them, or leave the column out") from None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return value.tolist()
    return str(value)
