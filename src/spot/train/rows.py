"""Preference rows from TRL's format: the three columns are enough, whatever else a row holds is left alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from spot.errors import UserError
from spot.schema import Prompt, Row
from spot.store import read_rows
from spot.train.tokenize import Preference


class _Columns(Row):
    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    prompt: Prompt
    chosen: Prompt
    rejected: Prompt


@dataclass(frozen=True)
class PreferenceRow:
    """A row with its id, the line number where the file gives none."""

    id: str
    prompt: Prompt
    chosen: Prompt
    rejected: Prompt


def read_preferences(path: Path) -> list[PreferenceRow]:
    """Read JSONL or Parquet with the columns `prompt`, `chosen`, `rejected` and perhaps `id`.

    Raises `UserError` naming file and line; also where there is no row at all.
    """
    rows = [_named(row, number) for number, row in enumerate(read_rows(path, _Columns), start=1)]
    if not rows:
        raise UserError(f"{path}: no rows; the file must hold pairs with prompt, chosen and rejected")
    return rows


def as_preferences(rows: Iterable[Preference | Mapping[str, Any]]) -> list[Preference]:
    """Rows as `Preference`s, mappings (a `datasets.Dataset` gives those) read by their columns.

    Raises `UserError` naming the row where a column is missing or of the wrong type.
    """
    return [_from_mapping(row, number) if isinstance(row, Mapping) else row for number, row in enumerate(rows, start=1)]


def _from_mapping(row: Mapping[str, Any], number: int) -> PreferenceRow:
    try:
        return _named(_Columns.model_validate(dict(row)), number)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        column = first["loc"][0] if first["loc"] else "row"
        raise UserError(f"train_dataset, row {number}: column {column!r}: {first['msg'].lower()}") from None


def _named(row: _Columns, number: int) -> PreferenceRow:
    return PreferenceRow(row.id or str(number), row.prompt, row.chosen, row.rejected)
