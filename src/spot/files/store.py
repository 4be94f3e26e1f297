"""A run directory: append-only JSONL, atomic files, a manifest, a lock, and resume after a kill at any moment.

Two promises hold everywhere. A file that appears under its final name is whole (`spot.files.disk`). A line that was
appended is whole or absent: a torn last line, all that a kill or a full disk can leave, is cut off when the file is
opened again (`Appender`).
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import yaml
from pydantic import ValidationError

from spot.errors import UserError
from spot.files import escapes
from spot.files.disk import disk_errors, lock, open_lock, write_atomic
from spot.files.formats import MAX_LINE_BYTES, TABLES, Line, check_writable, lines_of, why_not_json
from spot.schema import Dropped, Message, Problem, Row, as_messages

__all__ = [
    "MAX_LINE_BYTES",
    "RUN_FILES",
    "Appender",
    "OnBadRow",
    "RunDirectory",
    "numbered_rows",
    "parsed_row",
    "read_dropped",
    "read_problems",
    "read_rows",
    "repair",
    "write_rows",
]

MAX_MESSAGE = 500

RowType = TypeVar("RowType", bound=Row)
OnBadRow = Literal["error", "skip"]


class Appender:
    """Appends rows to a JSONL file, each group with one write and one fsync. Repairs a torn last line on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_writable(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._is_new = not path.exists()
            repair(path)
            # Unbuffered: what could not be written must not be tried again when the file is closed.
            self._file = path.open("ab", buffering=0)

    def append(self, rows: Iterable[Row]) -> None:
        """Commit `rows`: when this returns they are on the disk."""
        raw = _lines(self.path, rows)
        if not raw:
            return
        size = self._size()
        with disk_errors(self.path):
            try:
                rest = memoryview(raw)
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:
                with suppress(OSError):  # a kill leaves such a torn line too, and opening the file again cuts it off
                    self._file.truncate(size)
                raise

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file; a new one to which nothing was added is taken away again."""
        if self._is_new and not self._file.closed and self._size() == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _lines(path: Path, rows: Iterable[Row]) -> bytes:
    """Rows as JSON lines; what could not be read back is refused before it is written."""
    lines: list[bytes] = []
    for row in rows:
        lines.append(json_line(row))
        if len(lines[-1]) > MAX_LINE_BYTES:
            raise UserError(
                f"{path}: row {getattr(row, 'id', len(lines))!r} takes {len(lines[-1]) >> 20} MiB, more than the "
                f"{MAX_LINE_BYTES >> 20} MiB that a row may; shorten its texts, or drop it"
            )
    return b"".join(lines)


def repair(path: Path) -> None:
    """Cut off a last line that does not end: what a kill in the middle of a write leaves."""
    if not path.exists():
        return
    with disk_errors(path), path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def read_rows(
    path: Path,
    kind: type[RowType],
    on_bad_row: OnBadRow = "error",
    dropped: list[Dropped] | None = None,
    *,
    by_hand: bool = False,
) -> list[RowType]:
    """Read rows of one kind, ids unique, from any form that `spot.files.formats` knows, by the file's ending.

    With `on_bad_row="skip"` a bad row goes to `dropped`; otherwise the first one raises `UserError` naming file and
    line. In a file that a person may have written (`by_hand`) a row whose LaTeX lost a backslash is a bad one.
    """
    return [row for _, row in numbered_rows(path, kind, on_bad_row, dropped, by_hand=by_hand)]


def read_problems(path: Path, on_bad_row: OnBadRow, dropped: list[Dropped] | None) -> list[Problem]:
    """`read_rows` of problems that are to be asked, and may be written by hand.

    A prompt that ends with an assistant turn makes a bad row.
    """
    rows: list[Problem] = []
    for number, row in numbered_rows(path, Problem, on_bad_row, dropped, by_hand=True):
        if as_messages(row.prompt)[-1].role == "assistant":
            why = "the prompt ends with an assistant turn, which is not continued; end it with the user's question"
            _bad_row(f"{path}:{number}: {why}", row.id, on_bad_row, dropped)
        else:
            rows.append(row)
    return rows


def numbered_rows(
    path: Path,
    kind: type[RowType],
    on_bad_row: OnBadRow = "error",
    dropped: list[Dropped] | None = None,
    *,
    by_hand: bool = False,
    unique: bool = True,
) -> list[tuple[int, RowType]]:
    """`read_rows`, each with its line in the file (blank lines count), or its row in a table; one id may stand there
    several times unless `unique`."""
    rows: list[tuple[int, RowType]] = []
    seen: dict[str, int] = {}
    for number, row in _parsed(path, kind, on_bad_row, dropped, by_hand):
        identity: str | None = getattr(row, "id", None) if unique else None
        if identity is not None and identity in seen:
            problem = f"{path}:{number}: id {identity!r} was already used in line {seen[identity]}; ids must be unique"
            _bad_row(problem, f"line {number}", on_bad_row, dropped)
            continue
        if identity is not None:
            seen[identity] = number
        rows.append((number, row))
    return rows


def _parsed(
    path: Path, kind: type[RowType], on_bad_row: OnBadRow, dropped: list[Dropped] | None, by_hand: bool
) -> Iterator[tuple[int, RowType]]:
    # Only JSON has escapes that a person can get wrong.
    typed = by_hand and not path.is_dir() and not _is_csv(path) and path.suffix not in TABLES
    for number, line in lines_of(path, kind.columns):
        lost = escapes.slip(line) if typed and isinstance(line, str) else None
        row = lost or parsed_row(line, kind, strict=not _is_csv(path))
        if isinstance(row, str):
            _bad_row(f"{path}:{number}: {row}", f"line {number}", on_bad_row, dropped)
        else:
            yield number, row


def _is_csv(path: Path) -> bool:
    # A number in CSV is text, too.
    return any(suffix in (".csv", ".tsv") for suffix in path.suffixes[-2:])


def parsed_row(line: Line, kind: type[RowType], *, strict: bool = True) -> RowType | str:
    """A row of `kind`, or in one line why `line` is none."""
    if isinstance(line, ValueError):
        return str(line)
    try:
        return kind.model_validate_json(line, strict=strict)
    except ValidationError as error:
        return _one_line(error, kind, line)


def _one_line(error: ValidationError, kind: type[Row], line: str) -> str:
    errors = error.errors(include_url=False)
    # Where a field may be text or messages, each is tried; what got furthest knows what is wrong.
    first = max((one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]), key=lambda one: len(one["loc"]))
    if first["type"] == "json_invalid":
        # Without the place that it names, which is counted within this line of the file.
        why = first["msg"].removeprefix("Invalid JSON: ").partition(" at line")[0]
        if lost := escapes.unknown(line):
            return rf"not a JSON object ({why}); write \{lost}, with two backslashes, for {lost}"
        return why_not_json(line, why)
    names = [str(part) for part in first["loc"] if part not in ("str", "list[Message]")]
    where = ".".join(names)
    extra = "put extra data under 'meta'; " if "meta" in kind.model_fields else ""
    known = f"{extra}known here: {', '.join(kind.model_fields)}"
    if len(names) > 1:
        known = f"a message has {' and '.join(Message.model_fields)}; take {names[-1]!r} out"
    return {
        "missing": f"the field {where!r} is missing{_required(kind) if len(names) == 1 else ''}",
        "extra_forbidden": f"unknown field {where!r}; {known}",
    }.get(first["type"], f"field {where!r}: {first['msg'][0].lower()}{first['msg'][1:]}" if where else first["msg"])


def _required(kind: type[Row]) -> str:
    return f"; a row has {', '.join(name for name, field in kind.model_fields.items() if field.is_required())}"


def _bad_row(message: str, identity: str, on_bad_row: OnBadRow, dropped: list[Dropped] | None) -> None:
    message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."  # it may quote the row
    if on_bad_row == "error" or dropped is None:
        raise UserError(message)
    dropped.append(Dropped(stage="read", id=identity, reason="bad_row", detail=message))


def json_line(row: Row) -> bytes:
    """A row as it stands in a file: one line of JSON, in which nothing can be taken for a lost backslash."""
    return escapes.spelled_out(row.model_dump_json()).encode() + b"\n"


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a whole file of rows at once, atomically; Parquet by extension, JSONL otherwise."""
    check_writable(path)
    if path.suffix != ".parquet":
        write_atomic(path, _lines(path, rows))
        return
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: writing Parquet needs pyarrow; install it with: pip install pyarrow") from None
    sink = pyarrow.BufferOutputStream()
    # `meta` is any JSON, which has no column type: it is kept as text.
    dumps = [row.model_dump(mode="json") for row in rows]
    dumps = [dump | {"meta": json.dumps(dump["meta"])} if "meta" in dump else dump for dump in dumps]
    parquet.write_table(pyarrow.Table.from_pylist(dumps), sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def read_dropped(path: Path) -> list[Dropped]:
    """The rows of a `dropped.jsonl`. One id may stand there several times: a row can be dropped at several stages."""
    if not path.exists():
        return []
    return [Dropped.model_validate_json(line) for line in path.read_text("utf-8").split("\n") if line]


# What a run writes into its directory; `--overwrite` deletes these and nothing else. Not the ledger and what
# people have corrected: that is paid for, and is found again by what was asked.
RUN_FILES = (
    *("problems.jsonl", "attempts.jsonl", "rectifications.jsonl", "pairs.jsonl"),
    *("dropped.jsonl", "change_ratios.json", "metrics.jsonl", "summary.json", "report.html", "figures", "checkpoints"),
    *("model", "eval", "sets", "oracle_attempts.jsonl", "audit.jsonl", "audit.json", "config.yaml", "manifest.json"),
)


class RunDirectory:
    """One run's files. Open it with `RunDirectory.open`; use it as a context manager to hold its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        config_text: str,
        overwrite: bool = False,
        ignoring: frozenset[str] = frozenset(),
        today: Callable[[Any], Any] = lambda kept: kept,
    ) -> "RunDirectory":
        """Make a new run directory, or resume the one at `path` if it was made by the same config.

        `config_text` is the resolved configuration as YAML; keys in `ignoring` (`section.key`, or a whole section) may
        differ; `today` gives the kept config the keys it was made without. `overwrite` empties a run directory first,
        and nothing else. Raises `UserError` where `path` holds a run
        of another config, or something that is not a run at all.
        """
        run = cls(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: a file; run.dir names a directory")
        if path.exists() and not (path / "manifest.json").exists() and _holds_anything(path):
            raise UserError(f"{path}: not empty and not a run directory; choose another run.dir")
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        with run:
            if overwrite:
                run._clear()
            # A run that stopped before its first row has nothing that another config could contradict.
            if any((path / name).exists() for name in RUN_FILES if name not in ("config.yaml", "manifest.json")):
                kept = today(run._kept("config.yaml", yaml.safe_load))
                difference = _difference(kept, yaml.safe_load(config_text), ignoring)
                if difference:
                    raise UserError(
                        f"{path}: this run directory was made by another config ({difference}); "
                        "choose another run.dir, or start over with --overwrite"
                    )
            run.update_manifest()
            write_atomic(path / "config.yaml", config_text)
        return run

    def _clear(self) -> None:
        """Delete what a run makes, the config last, so that a kill in the middle leaves a run to be cleared again."""
        for name in sorted(RUN_FILES, key=lambda name: name in ("config.yaml", "manifest.json")):
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def __enter__(self) -> "RunDirectory":
        self._lock = open_lock(self.path / ".lock")
        lock(self._lock, self.path, "choose another run.dir")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands: `stages` maps a finished stage to its seconds and counts."""
        return self._kept("manifest.json", json.loads) if (self.path / "manifest.json").exists() else {"stages": {}}

    def _kept(self, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        """What the file `name` of the run holds, a mapping by `parse`."""
        file = self.path / name
        try:
            return dict(parse(file.read_text()))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise UserError(
                f"{file}: missing or damaged; bring it back, choose another run.dir, or start over with --overwrite"
            ) from None

    def update_manifest(self, **values: Any) -> None:
        """Merge `values` into the manifest, atomically."""
        write_atomic(self.path / "manifest.json", json.dumps(self.manifest | values, indent=2, sort_keys=True) + "\n")

    def day(self) -> date:
        """The day on which the run began, which chat templates print to its end."""
        if "day" not in self.manifest:
            self.update_manifest(day=date.today().isoformat())
        return date.fromisoformat(self.manifest["day"])

    def is_complete(self, stage: str) -> bool:
        """Whether `stage` has finished in this run."""
        return stage in self.manifest["stages"]

    def complete(self, stage: str, seconds: float, **facts: Any) -> None:
        """Record that `stage` has finished; it is not run again."""
        stages = self.manifest["stages"] | {
            stage: {"seconds": round(seconds, 3), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
        }
        self.update_manifest(stages=stages)


def _holds_anything(path: Path) -> bool:
    """Whether `path` holds more than what a kill right at the start of a run leaves."""
    names = (entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp"))
    return any(name != ".lock" and not name.startswith("ledger.sqlite") for name in names)


def _difference(old: Any, new: Any, ignoring: frozenset[str], prefix: str = "") -> str:
    """The first key in which two configs differ, as `key: old there, new here`; empty where they agree."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            name = f"{prefix}{key}"
            if name not in ignoring and (found := _difference(old.get(key), new.get(key), ignoring, f"{name}.")):
                return found
        return ""
    return "" if old == new else f"{prefix.rstrip('.')}: {old} there, {new} here"
