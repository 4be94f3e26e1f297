"""Rows to train on in TRL's formats, preference or prompt-completion; what else a row holds is left alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from spot.errors import UserError
from spot.files.formats import dict_line, is_rows_file, table_rows
from spot.files.store import numbered_rows, parsed_row
from spot.hub import HUB_NAME
from spot.plugin import described
from spot.schema import Completion, Id, Prompt, Row
from spot.train.tokenize import Preference

COLUMNS = frozenset({"id", "prompt", "chosen", "rejected", "completion", "messages"})


class _Columns(Row):
    model_config = ConfigDict(extra="ignore")

    columns = COLUMNS

    id: Id | None = None
    prompt: Prompt
    chosen: Completion
    rejected: Completion | None

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        columns = {key: value for key, value in cast(dict[str, Any], row).items() if key in COLUMNS}
        if not {"chosen", "rejected"} & columns.keys():
            if "completion" not in columns and isinstance(columns.get("messages"), list) and "prompt" not in columns:
                columns["completion"] = columns["messages"]
            if "completion" in columns:
                columns |= {"chosen": columns["completion"], "rejected": None}
        return _apart(columns)


def _apart(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with the prompt apart from answers that are whole conversations, as in UltraFeedback."""
    sides = {side: row[side] for side in ("chosen", "rejected") if isinstance(row.get(side), list)}
    whole = {side: turns for side, turns in sides.items() if len(turns) > 1}
    if not whole:
        if "prompt" not in row and "chosen" in row:
            raise PydanticCustomError(
                "prompt",
                "the field 'prompt' is missing; call the column with the question 'prompt' (answers that hold the "
                "whole dialogue must be lists of messages, or be cut before the last answer)",
            )
        return row
    prompts = [_turns(turns[:-1]) for turns in whole.values()]
    if len(whole) < len(sides) or any(prompt != prompts[0] for prompt in prompts):
        raise PydanticCustomError(
            "prompt",
            "chosen and rejected are conversations that differ before their last turn, and a pair answers one prompt; "
            "cut both where they part, or drop the row",
        )
    given, told = row.get("prompt"), prompts[0]
    texts = {str(content).strip() for role, content in told if role == "user"}
    if not (
        given is None
        or (isinstance(given, str) and given.strip() in texts)
        or (
            isinstance(given, list)
            and _turns(cast(list[Any], given)) in (told, [one for one in told if one[0] != "system"])
        )
    ):
        raise PydanticCustomError(
            "prompt",
            "the answers are conversations that do not begin with the prompt; leave one answer in each, or take the "
            "prompt out of the row",
        )
    turns = next(iter(whole.values()))
    return {**row, "prompt": turns[:-1], **{side: turns[-1:] for side, turns in whole.items()}}


def _turns(messages: list[Any]) -> list[tuple[Any, Any]]:
    return [(one.get("role"), one.get("content")) if isinstance(one, dict) else (None, one) for one in messages]


@dataclass(frozen=True)
class PreferenceRow:
    """A row with its id; where it has none, its line in the file (blank lines count), or its row in a table, from 1.

    `rejected` is `None` in a row of prompt and completion, whose completion is `chosen`.
    """

    id: str
    prompt: Prompt
    chosen: Completion
    rejected: Completion | None


def read_preferences(path: Path) -> Sequence[Preference]:
    """Read a file or folder in any form that `spot.files.formats` knows.

    Columns are `prompt`, `chosen`, `rejected`, or `prompt`, `completion`; perhaps `id`. Where the answers
    are conversations, all but their last turn is the prompt. A row whose LaTeX lost a backslash is an error.

    A name on the hub (owner/name) is read by `datasets`, its split `train`. Raises `UserError` naming file and line;
    also where there is no row at all.
    """
    if _is_hub_name(path):
        rows = as_preferences(str(path), _from_hub(str(path)))
    else:
        seen: set[str] = set()
        rows = [_named(row, number, seen) for number, row in numbered_rows(path, _Columns, by_hand=True, unique=False)]
    if not rows:
        raise UserError(f"{path}: no rows; the file must hold prompt, chosen and rejected, or prompt and completion")
    return rows


def _is_hub_name(path: Path) -> bool:
    # `data/pairs.jsonl` looks like a name on the hub too: its ending, or a folder `data`, says that a file is meant.
    is_file = path.exists() or path.parent.is_dir() or is_rows_file(path)
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


def as_preferences(name: str, rows: Any) -> list[Preference]:
    """Rows as `Preference`s: a path or hub name, a data set or one of its splits, a data frame, an Arrow table, or any
    iterable of `Preference`s and of mappings, which are read by their columns.

    Raises `UserError` naming the data set, `name`, and the row where a column is missing or of the wrong type.
    """
    if isinstance(rows, str | Path):
        return list(read_preferences(Path(rows)))
    found: list[Preference] = []
    seen: set[str] = set()
    for number, row in enumerate(table_rows(name, rows, COLUMNS), start=1):
        if isinstance(row, Mapping):
            parsed = parsed_row(dict_line(cast(Mapping[str, Any], row), COLUMNS), _Columns)
            if isinstance(parsed, str):
                raise UserError(f"{name}, row {number}: {parsed}")
            found.append(_named(parsed, number, seen))
        elif all(hasattr(row, column) for column in ("id", "prompt", "chosen", "rejected")):
            found.append(row)
        else:
            raise UserError(
                f"{name}, row {number}: a {type(row).__name__}, not a mapping with prompt, chosen, rejected"
            )
    return found


def _named(row: _Columns, number: int, seen: set[str]) -> PreferenceRow:
    """The row under a name of its own: where its id is used again, its number is in the name."""
    name = row.id or str(number)
    name = f"{name} (row {number})" if name in seen else name
    seen.add(name)
    return PreferenceRow(name, row.prompt, row.chosen, row.rejected)
