"""Where a benchmark's rows come from: the hub, its revision pinned, or a file of the user's with the same rows."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spot.errors import UserError
from spot.plugin import described


@dataclass(frozen=True)
class Data:
    """Rows and where they were read, for messages; `examples` are rows that a prompt may show solved."""

    place: str
    rows: Sequence[dict[str, Any]]
    examples: "Data | None" = None

    def __iter__(self) -> Iterator["Record"]:
        return (Record(self.place, number, row) for number, row in enumerate(self.rows, start=1))


@dataclass(frozen=True)
class Record:
    """One row, which knows where it stands."""

    place: str
    number: int
    row: dict[str, Any]

    def get(self, *names: str) -> Any:
        """The first of these columns that the row has. Raises `UserError` where it has none."""
        for name in names:
            if self.row.get(name) is not None:
                return self.row[name]
        raise self.error(f"column {' or '.join(map(repr, names))} is missing; it has {', '.join(self.row) or 'none'}")

    def text(self, *names: str) -> str:
        """The same as text that is not empty."""
        found = self.get(*names)
        text = str(found).strip()
        if not text:
            raise self.error(f"column {names[0]!r} is empty")
        return text

    def error(self, what: str) -> UserError:
        """What is wrong with the row, as an error that names it."""
        return UserError(f"{self.place}, row {self.number}: {what}")


@dataclass(frozen=True)
class Source:
    """A data set on the hub, and the file below `--data_dir` that may take its place.

    `note` is what somebody must know who cannot have it (that it is gated, say).
    """

    file: str
    hub: str
    revision: str
    split: str = "test"
    config: str | None = None
    note: str = ""

    def read(self, data_dir: Path | None) -> Data:
        """All rows. Raises `UserError` naming the file to give where they cannot be had."""
        if data_dir is not None:
            path = data_dir / self.file
            if not path.is_file():
                note = f" ({self.note})" if self.note else ""
                raise UserError(
                    f"{path}: no such file; put the rows of {self.hub}{note} there, or name another --data_dir"
                )
            return Data(str(path), read_file(path))
        return Data(f"{self.hub}@{self.revision[:8]}", self._from_hub())

    def _from_hub(self) -> list[dict[str, Any]]:
        instead = f"give a directory that has {self.file} with --data_dir{f' ({self.note})' if self.note else ''}"
        if find_spec("datasets") is None:
            raise UserError(f"{self.hub}: reading it from the hub needs datasets; pip install datasets, or {instead}")
        import datasets

        try:
            loaded: Any = datasets.load_dataset(self.hub, self.config, split=self.split, revision=self.revision)
        except Exception as error:  # of the hub, of the network, of the files: many types
            raise UserError(f"{self.hub}: cannot be read from the hub ({described(error)}); {instead}") from error
        return [dict(row) for row in loaded]


def read_file(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL, JSON, CSV or Parquet file. Raises `UserError` naming file and line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        rows = _READERS.get(path.suffix, _jsonl)(path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"{path}:{number}: not JSON") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        rows.append(row)
    return rows


def _json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: not a list of JSON objects")
    return rows


def _csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def _parquet(path: Path) -> list[dict[str, Any]]:
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading Parquet needs pyarrow; install it with: pip install pyarrow")
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from None


_READERS = {".json": _json, ".csv": _csv, ".parquet": _parquet}
