"""Names and files of models: a directory told from a name on the hub, and one set of weights from another."""

import hashlib
import re
from pathlib import Path

from spot.errors import UserError

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def check_model_name(path: str) -> None:
    """Raise `UserError` unless `path` is a directory or may be a name on the hub (owner/name)."""
    # `runs/model` looks like a hub name too; where there is a folder `runs`, a directory is meant.
    if not Path(path).is_dir() and (Path(path).parent.is_dir() or not HUB_NAME.fullmatch(path)):
        raise UserError(f"{path}: no such model directory, and not a hub name (owner/name) either")


def fingerprint(model_dir: Path) -> str:
    """Eight hex digits that tell a model's files apart, so that answers of other weights are never taken for these.

    Large files count by their size, first and last MiB: enough to tell trainings apart, cheap on any model.
    """
    digest = hashlib.sha256()
    for path in sorted(model_dir.glob("*.safetensors")) + sorted(model_dir.glob("*.json*")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:8]
