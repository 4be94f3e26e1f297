"""Rows to train on in TRL's formats, preference or prompt-completion; what else a row holds is left alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, ValidationError, model_validator

from spot.errors import UserError
from spot.hub import HUB_NAME
from spot.plugin import described
from spot.schema import Completion, Prompt, Row
from spot.store import numbered_rows
from spot.train.tokenize import Preference


class _Columns(Row):
    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    prompt: Prompt
    chosen: Completion
    rejected: Completion | None

    @model_validator(mode="before")
    @classmethod
    def _completion_is_chosen(cls, row: Any) -> Any:
        if not isinstance(row, dict) or "completion" not in row or {"chosen", "rejected"} & row.keys():
            return row
        columns = cast(dict[str, Any], row)
        return {**columns, "chosen": columns["completion"], "rejected": None}


@dataclass(frozen=True)
class PreferenceRow:
    """A row with its id; where it has none, its line in the file (blank lines count), or its row in a table, from 1.

    `rejected` is `None` in a row of prompt and completion, whose completion is `chosen`.
    """

    id: str
    prompt: Prompt
    chosen: Completion
    rejected: Completion | None


def read_preferences(path: Path) -> list[PreferenceRow]:
    """Read JSONL or Parquet with the columns `prompt`, `chosen`, `rejected`, or `prompt`, `completion`; perhaps `id`.

    A name on the hub (owner/name) is read by `datasets`, its split `train`. Raises `UserError` naming file and line;
    also where there is no row at all.
    """
    if _is_hub_name(path):
        rows = [_from_mapping(str(path), row, number) for number, row in enumerate(_from_hub(str(path)), start=1)]
    else:
        rows = [_named(row, number) for number, row in numbered_rows(path, _Columns)]
    if not rows:
        raise UserError(f"{path}: no rows; the file must hold prompt, chosen and rejected, or prompt and completion")
    return rows


def _is_hub_name(path: Path) -> bool:
    # `data/pairs.jsonl` looks like a name on the hub too: its ending, or a folder `data`, says that a file is meant.
    is_file = path.exists() or path.parent.is_dir() or path.suffix in (".jsonl", ".parquet")
    return not is_file and HUB_NAME.fullmatch(str(path)) is not None


def _from_hub(name: str) -> Any:
    save = "or save it as JSONL and name the file"
    if find_spec("datasets") is None:
        raise UserError(f"{name}: no such file; to read it from the hub: pip install datasets, {save}")
    import datasets

    try:
        return datasets.load_dataset(name, split="train")
    except Exception as error:  # of the hub, of the network, of the files: many types
        raise UserError(f"{name}: no such file, and not read from the hub ({described(error)}); {save}") from error


def as_preferences(name: str, rows: Iterable[Preference | Mapping[str, Any]]) -> list[Preference]:
    """Rows as `Preference`s, mappings (a `datasets.Dataset` gives those) read by their columns.

    Raises `UserError` naming the data set, `name`, and the row where a column is missing or of the wrong type.
    """
    return [
        _from_mapping(name, row, number) if isinstance(row, Mapping) else row
        for number, row in enumerate(rows, start=1)
    ]


def _from_mapping(name: str, row: Mapping[str, Any], number: int) -> PreferenceRow:
    try:
        return _named(_Columns.model_validate(dict(row)), number)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        column = first["loc"][0] if first["loc"] else "row"
        raise UserError(f"{name}, row {number}: column {column!r}: {first['msg'].lower()}") from None


def _named(row: _Columns, number: int) -> PreferenceRow:
    return PreferenceRow(row.id or str(number), row.prompt, row.chosen, row.rejected)
