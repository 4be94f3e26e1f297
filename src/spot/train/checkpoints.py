"""What a killed run resumes from: whole checkpoints, our own state in them, and the metrics up to them."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from spot.errors import RunFailed, UserError
from spot.files.disk import disk_errors, write_atomic

NOT_SETTINGS = {
    "student": "another student (other weights, or another adapter)",
    "tokens": "other pairs, or another tokenizer, max_length or template_date",
}
"""What else has to be the same, kept as hashes, and what it means where it is not."""

STATE_FILE = "spot_state.json"
TORCH_WRITES = ("inline_container.cc", "PytorchStreamWriter")
"""What torch's errors name where a file could not be written; they give the byte, but no cause."""


@contextmanager
def saving(path: Path) -> Generator[None]:
    """`disk_errors` for weights: torch and safetensors wrap the system's error in their own."""
    try:
        with disk_errors(path):
            yield
    except (SafetensorError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "no reason given")
        if isinstance(error, RuntimeError):
            if not any(name in reason for name in TORCH_WRITES):
                raise
            reason = "torch's file was cut short"
        raise UserError(
            f"{path}: cannot write ({reason}); free some room and run the same command again, it resumes from the last "
            "whole checkpoint"
        ) from error


def last_complete_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint in `directory` that was written to its end; `None` where there is none.

    Checkpoints are not atomic, but `trainer_state.json` is their last file: one that parses closes a whole checkpoint.
    """
    numbered = [(step_of(path), path) for path in directory.glob("checkpoint-*") if step_of(path) is not None]
    return next((path for _, path in sorted(numbered, reverse=True) if _is_whole(path)), None)


def nearest_checkpoint(directory: Path, step: int) -> Path | None:
    """The whole checkpoint in `directory` whose step is nearest to `step`, the earlier of two."""
    whole = [path for path in directory.glob("checkpoint-*") if step_of(path) is not None and _is_whole(path)]
    return min(whole, key=lambda path: (abs((step_of(path) or 0) - step), step_of(path)), default=None)


def step_of(checkpoint: Path) -> int | None:
    """The step in a checkpoint's name; `None` where it has none."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return (checkpoint / STATE_FILE).is_file()


@dataclass(frozen=True)
class TrainingState:
    """Our state beside the Trainer's.

    The shift and the steps behind it, the reference's key, the settings, and the metrics of steps since the last log;
    the day that prompts print, where they print one; and the watch's (older checkpoints have none).
    """

    delta: float
    steps: int
    reference_key: str
    settings: dict[str, Any]
    unlogged: list[dict[str, float]]
    day: str | None = None
    watch: dict[str, Any] = field(default_factory=dict[str, Any])

    def save(self, checkpoint: Path) -> None:
        """Write into `checkpoint`."""
        write_atomic(checkpoint / STATE_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, checkpoint: Path) -> "TrainingState":
        """Read from `checkpoint`; raises `RunFailed` where it is not one of ours."""
        try:
            return cls(**json.loads((checkpoint / STATE_FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise RunFailed(f"{checkpoint}: not a checkpoint of SpotTrainer ({STATE_FILE}: {error})") from error

    def check(self, settings: Mapping[str, Any], checkpoint: Path) -> None:
        """Raise `UserError` where the run at hand has other settings than the checkpoint."""
        for name, value in settings.items():
            if self.settings.get(name) != value and name in NOT_SETTINGS:
                raise UserError(f"{checkpoint}: made with {NOT_SETTINGS[name]}; start over in an empty directory")
            if self.settings.get(name) != value:
                raise UserError(
                    f"{checkpoint}: made with {name}={self.settings.get(name)}, this run has {name}={value}; "
                    "use the same settings, or start over in an empty directory"
                )


def is_of_tasks(row: Mapping[str, Any]) -> bool:
    """Whether a logged row has tasks' scores, which are measured behind the step's checkpoint."""
    return any(name.startswith("eval/") for name in row)


class MetricsFile:
    """`metrics.jsonl`: one line a logged step, each step once, also over kills and resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, step: int) -> None:
        """Keep the rows up to `step`, which training resumes from; those after it are computed again.

        So are tasks' scores at that step: they come after its checkpoint.
        """
        kept: list[str] = []
        if step > 0 and self.path.exists():
            # A torn last line lies after the last checkpoint, since each line is flushed before the next step.
            for line in self.path.read_text().splitlines(keepends=True):
                if not line.endswith("\n"):
                    break
                row = json.loads(line)
                if row["step"] > step or (row["step"] == step and is_of_tasks(row)):
                    break
                kept.append(line)
        write_atomic(self.path, "".join(kept))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line."""
        with disk_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
