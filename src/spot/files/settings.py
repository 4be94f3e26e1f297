"""A YAML file of the user's: a config, templates of prompts, a world."""

import json
from pathlib import Path
from typing import Any

import yaml

from spot.errors import UserError
from spot.files.escapes import slip


def read_yaml(path: Path) -> Any:
    """What `path` says.

    Raises:
        UserError: the file cannot be read, is not YAML, or has LaTeX that lost a backslash.
    """
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter of bytes that are no UTF-8, and of dates like 2026-13-01
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if lost := slip(json.dumps(raw, default=str)):
        raise UserError(f"{path}: {lost}")
    return raw
