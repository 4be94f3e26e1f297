"""What a finished run says about itself: the shape of `summary.json`, and reading it and `metrics.jsonl`.

The pipeline builds a `Summary` and writes it; the page and the terminal only ever show what is in it. Accuracies and
their differences are fractions (0.5, not 50), times are seconds, memory is bytes.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spot.errors import UserError
from spot.evaluate.comparison import MARGIN, Verdict
from spot.evaluate.task import Group

Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Signed = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class Part(BaseModel):
    """Base of the summary's parts: immutable, no unknown fields, no coercion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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
    dropped: dict[str, Count] = {}


class Accuracy(Part):
    """A mean over `n` questions; the fields of `spot.evaluate.statistics.Score`.

    Summaries of older versions have no interval.
    """

    mean: Fraction
    stderr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    low: Fraction | None = None
    high: Fraction | None = None
    n: Annotated[int, Field(ge=1)]
    samples: Count | None = None
    truncated: Count = 0
    unscored: Count = 0
    unanswered: Count = 0


class Change(Part):
    """A paired difference with its 95% interval, the fields of `spot.evaluate.comparison.Change`."""

    mean: Signed
    low: Signed
    high: Signed
    n: Annotated[int, Field(ge=1)]
    better: Count | None = None
    worse: Count | None = None
    gained: Count | None = None
    lost: Count | None = None


class Comparison(Part):
    """One set of questions before and after training, and what the difference says of retention."""

    before: Accuracy
    after: Accuracy
    difference: Change
    verdict: Verdict | None = None


class Measure(Part):
    """A score beside accuracy, and its standard error over questions where it has one."""

    mean: Fraction
    stderr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Measured(Part):
    """A score beside accuracy, before and after; `None` on a side where nothing could be judged."""

    before: Measure | None
    after: Measure | None


class TaskResult(Comparison):
    """A task, and parts of its questions that are shown apart (the lab: seen and unseen templates).

    `measures` are scores beside accuracy, `baselines` what answers score that look at nothing.
    """

    slices: dict[str, Comparison] = {}
    title: str = ""
    group: Group = "other"
    measures: dict[str, Measured] = {}
    baselines: dict[str, Fraction] = {}


class Average(Part):
    """The mean of some tasks' accuracies, before and after."""

    before: Fraction
    after: Fraction
    difference: Change
    verdict: Verdict | None = None


class ChangeRatios(Part):
    """The change ratio of every verified correction, those above `gamma` included."""

    gamma: Fraction
    values: list[Fraction] = []


class Training(Part):
    """The first and last row of metrics; a metric that is not a number is `None`.

    `bound` is what chosen rewards can reach at most, a mean over the steps.
    """

    steps: Count
    bound: float | None = None
    first: dict[str, float | None] = {}
    last: dict[str, float | None] = {}


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
    evaluation: dict[str, TaskResult] = {}
    averages: dict[str, Average] = {}
    margin: Fraction = MARGIN
    not_paired: list[str] = []
    change_ratio: ChangeRatios
    training: Training
    seconds: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    peak_memory_bytes: Count = 0
    versions: dict[str, str] = {}
    settings: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
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
