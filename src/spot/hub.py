"""Telling a model directory from a name on the hub, before anything is asked over the network."""

import re
from pathlib import Path

from spot.errors import UserError

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def check_model_name(path: str) -> None:
    """Raise `UserError` unless `path` is a directory or may be a name on the hub (owner/name)."""
    # `runs/model` looks like a hub name too; where there is a folder `runs`, a directory is meant.
    if not Path(path).is_dir() and (Path(path).parent.is_dir() or not HUB_NAME.fullmatch(path)):
        raise UserError(f"{path}: no such model directory, and not a hub name (owner/name) either")
