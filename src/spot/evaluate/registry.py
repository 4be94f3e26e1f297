"""Benchmarks by name: ours, the lab's families, a file of problems, or a user's own as `module:function`."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from spot.errors import UserError
from spot.evaluate.source import Data
from spot.evaluate.task import Group, Task
from spot.files.formats import PACKED, is_rows_file
from spot.files.store import OnBadRow, read_problems
from spot.plugin import call
from spot.schema import Dropped, Problem

_PLACES = {
    "aime24": "mathematics:AIME24",
    "aime25": "mathematics:AIME25",
    "amc23": "mathematics:AMC23",
    "math500": "mathematics:MATH500",
    "minerva": "mathematics:MINERVA",
    "olympiadbench": "mathematics:OLYMPIADBENCH",
    "gpqa": "choices:GPQA",
    "connect4": "connect4:CONNECT4",
    "ifeval": "ifeval:IFEVAL",
    "truthfulqa": "choices:TRUTHFULQA",
    "mmlu_pro": "choices:MMLU_PRO",
}
BENCHMARKS = tuple(_PLACES)
PAPER = BENCHMARKS[:9]
"""The nine of the paper's Table 1, in its order."""

LAB: dict[str, Group] = {"in_domain": "in_domain", "ood": "ood", "instructions": "general"}
LAB_TUNE: dict[str, str] = {f"{family}_tune": family for family in LAB}
"""The same families for choosing settings and checkpoints: questions that are neither trained nor reported on."""
LAB_QUESTIONS = 400


def benchmark(name: str) -> Task:
    """One of ours. Raises `KeyError` for another name."""
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(f"spot.evaluate.benchmarks.{module}"), attribute)


def find_tasks(
    names: Sequence[str],
    *,
    options: Mapping[str, Any] | None = None,
    lab_seed: int = 1,
    lab_questions: int | None = None,
    on_bad_row: OnBadRow = "error",
    dropped: list[Dropped] | None = None,
) -> list[Task]:
    """The tasks called `names` in their order; `paper` stands for its nine.

    Of each of the lab's families there are `lab_questions`, drawn with `lab_seed` and the lab's `options`; those of
    `FAMILY_tune` share none with training or with `FAMILY`. A file of problems names no verifier; its bad rows go to
    `dropped` if they are skipped. Raises `UserError` for an unknown name, with the nearest known one, and for two tasks
    of one name.
    """
    tasks: list[Task] = []
    for name in (one for given in names for one in (PAPER if given == "paper" else (given,))):
        if name in _PLACES:
            tasks.append(benchmark(name))
        elif name in LAB or name in LAB_TUNE:
            tasks.append(
                call("task", name, name, seed=lab_seed, count=lab_questions or LAB_QUESTIONS, **(options or {}))
            )
        elif is_rows_file(name):
            tasks.append(_file(Path(name), on_bad_row, dropped))
        elif ":" in name:
            tasks.append(_own(name))
        else:
            raise _unknown(name)
    counts = Counter(task.name for task in tasks)
    if twice := next((name for name, count in counts.items() if count > 1), None):
        raise UserError(f"two tasks are called {twice!r}; name each once (a file of problems is called by its stem)")
    return tasks


def _unknown(name: str) -> UserError:
    known = ["paper", *_PLACES, *LAB, *LAB_TUNE]
    near = difflib.get_close_matches(name.lower().replace("-", ""), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(
        f"unknown task {name!r}: {hint}known are {', '.join(known)}, a file of problems (.jsonl, .parquet, ...), and "
        "your own module:function"
    )


def _file(path: Path, on_bad_row: OnBadRow, dropped: list[Dropped] | None) -> Task:
    def build(data: Data, prompt: str) -> list[Problem]:
        del data, prompt
        rows = read_problems(path, on_bad_row, dropped)
        if not rows:
            raise UserError(f"{path}: no problems")
        return rows

    name = (path.with_suffix("") if path.suffix in PACKED else path).stem
    return Task(name, name, "other", None, build, "{question}", verifier="", repeats=1)


def _own(name: str) -> Task:
    """The task that the user's function returns."""
    task = call("task", name)
    if not isinstance(task, Task):
        raise UserError(f"task {name!r} returned {type(task).__name__}, not a spot.evaluate.task.Task")
    return task
