"""What a finished run says about itself: the shape of `summary.json`, and reading it and `metrics.jsonl`.

The pipeline builds a `Summary` and writes it; the page and the terminal only ever show what is in it. Accuracies and
their differences are fractions (0.5, not 50), times are seconds, memory is bytes.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from spot.errors import UserError
from spot.evaluate.comparison import MARGIN, Average, TaskResult
from spot.evaluate.results import Count, Fraction, Part

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Counts(Part):
    """How many rows each stage saw. `rectified` are the corrections that verified; `pairs` are those trained on."""

    problems: Count
    attempts: Count
    correct: Count
    wrong: Count
    unscored: Count
    truncated: Count
    rectified: Count
    pairs: Count
    dropped: dict[str, Count] = Field(default_factory=dict[str, Count])


class ChangeRatios(Part):
    """The change ratio of every verified correction, those above `gamma` included."""

    gamma: Fraction
    values: list[Fraction] = Field(default_factory=list[Fraction])


class Training(Part):
    """The first and last row of metrics; a metric that is not a number is `None`.

    `bound` is what chosen rewards can reach at most, a mean over the steps.
    """

    steps: Count
    bound: float | None = None
    first: dict[str, float | None] = Field(default_factory=dict[str, float | None])
    last: dict[str, float | None] = Field(default_factory=dict[str, float | None])


class Summary(Part):
    """All that a report shows of a run, as `summary.json` holds it. `notes` are what a reader must know.

    `evaluation` stands in the paper's order; `averages` are of its groups, and of `all` tasks; `margin` is what may be
    lost and still count as kept. `not_paired` are tasks that are not answered whole on both sides. `unfinished` says
    where a run stopped whose stages have not all finished; it is empty for a whole run.
    """

    name: str
    student: str
    oracle: str
    objective: str
    counts: Counts
    evaluation: dict[str, TaskResult] = Field(default_factory=dict[str, TaskResult])
    averages: dict[str, Average] = Field(default_factory=dict[str, Average])
    margin: Fraction = MARGIN
    not_paired: list[str] = Field(default_factory=list[str])
    change_ratio: ChangeRatios
    training: Training
    seconds: dict[str, Seconds] = Field(default_factory=dict[str, Seconds])
    peak_memory_bytes: Count = 0
    versions: dict[str, str] = Field(default_factory=dict[str, str])
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    notes: list[str] = Field(default_factory=list[str])
    unfinished: str = ""


def read_summary(path: Path) -> Summary:
    """Read `summary.json`. Raises `UserError` where it is missing or damaged."""
    try:
        return Summary.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a report needs a finished run, finish it with spot run") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Invalid JSON: ")
        raise UserError(
            f"{path}: {f'field {where!r}: ' if where else 'not a JSON summary: '}{message}; "
            "the file is damaged or of another version, run the report stage again"
        ) from None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl` in order of their `step`, numbers only; NaN and infinities are kept.

    Rows of the same step are merged and the later one wins: a resumed run repeats the steps since its last checkpoint.
    Raises `UserError` where the file is missing or a line is not a JSON object with a step.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a report needs the metrics of the training stage") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    by_step: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = row["step"]
            if not _is_number(step) or not math.isfinite(step):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}:{number}: not a JSON object with a number as 'step'; the line is damaged"
            ) from None
        numbers = {key: float(value) for key, value in row.items() if _is_number(value)}
        by_step.setdefault(int(step), {}).update(numbers)
    return [by_step[step] for step in sorted(by_step)]


def read_warnings(path: Path) -> list[str]:
    """What was said while training went on, in the order of the steps, from rows that `read_metrics` has read."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [str(warning) for row in rows for warning in row.get("warnings", ())]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
