"""Where a benchmark's rows come from: the hub at a pinned revision, or the user's file with the same rows."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spot.errors import UserError
from spot.files.formats import lines_of, why_not_json
from spot.plugin import described


@dataclass(frozen=True)
class Data:
    """Rows, and where they are from (for messages); `examples` are rows that a prompt shows solved."""

    place: str
    rows: Sequence[dict[str, Any]]
    examples: "Data | None" = None

    def __iter__(self) -> Iterator["Record"]:
        return (Record(self.place, number, row) for number, row in enumerate(self.rows, start=1))


@dataclass(frozen=True)
class Record:
    """One row and its place."""

    place: str
    number: int
    row: dict[str, Any]

    def get(self, *names: str) -> Any:
        """The first of these columns that the row has. Raises `UserError` if it has none."""
        for name in names:
            if self.row.get(name) is not None:
                return self.row[name]
        raise self.error(f"column {' or '.join(map(repr, names))} is missing; it has {', '.join(self.row) or 'none'}")

    def text(self, *names: str) -> str:
        """`get` as text, stripped. Raises `UserError` if that is empty."""
        found = self.get(*names)
        text = str(found).strip()
        if not text:
            raise self.error(f"column {names[0]!r} is empty")
        return text

    def error(self, what: str) -> UserError:
        """An error that names the row."""
        return UserError(f"{self.place}, row {self.number}: {what}")


@dataclass(frozen=True)
class Source:
    """A data set on the hub, and the file below `--data_dir` that may take its place.

    `note` is part of the message where it cannot be read: that it is gated, say.
    """

    file: str
    hub: str
    revision: str
    split: str = "test"
    config: str | None = None
    note: str = ""

    def read(self, data_dir: Path | None) -> Data:
        """All rows. Raises `UserError` naming the file to provide if they cannot be read."""
        if data_dir is not None:
            path = data_dir / self.file
            if not path.is_file():
                note = f" ({self.note})" if self.note else ""
                raise UserError(
                    f"{path}: no such file; put the rows of {self.hub}{note} there, or choose another --data_dir"
                )
            return Data(str(path), read_file(path))
        return Data(f"{self.hub}@{self.revision[:8]}", self._from_hub())

    def _from_hub(self) -> list[dict[str, Any]]:
        instead = f"set --data_dir to a directory with {self.file}{f' ({self.note})' if self.note else ''}"
        if find_spec("datasets") is None:
            raise UserError(f"{self.hub}: reading it from the hub needs datasets; pip install datasets, or {instead}")
        import datasets

        try:
            loaded: Any = datasets.load_dataset(self.hub, self.config, split=self.split, revision=self.revision)
        except Exception as error:  # of the hub, of the network, of the files: many types
            raise UserError(f"{self.hub}: cannot be read from the hub ({described(error)}); {instead}") from error
        return [dict(row) for row in loaded]


def read_file(path: Path) -> list[dict[str, Any]]:
    """Rows of a file in any form that `spot.files.formats` knows. Raises `UserError` naming file and line."""
    rows: list[dict[str, Any]] = []
    for number, line in lines_of(path):
        if isinstance(line, ValueError):
            raise UserError(f"{path}:{number}: {line}")
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {why_not_json(line, str(error))}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows
