"""Benchmarks during training: `EvaluateTasks`, a callback of `SpotTrainer` that asks them every so many steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from spot.config import EvaluateSection, ProblemsSection, parse_config
from spot.errors import UserError
from spot.evaluate.overlap import read_questions, without_overlap
from spot.evaluate.registry import PAPER
from spot.evaluate.run import Exam, keep_questions
from spot.models.local.model import LocalModel
from spot.schema import Dropped
from spot.stages.evaluate import answer_tasks
from spot.stages.exams import exams
from spot.terminal import new_console, say
from spot.train.measuring import StepMeasure, Student
from spot.train.tokenize import Preference

if TYPE_CHECKING:
    from spot.train.command import ScriptArguments


class EvaluateTasks(StepMeasure):
    """Ask `tasks` before training, every `steps` steps and after the last one, without moving the training by a bit.

    `tasks` are names as `spot eval --tasks` takes them, one text with commas or several, or exams that are ready;
    `settings` are keys of a config's section `evaluate`. A step's answers and `results.json` go to
    `output_dir/step-N`, by default below the training's own output in `eval`; its scores are logged as `eval/TASK`.

    A resumed training keeps the answers that it has. They belong to the weights of their step, since a checkpoint
    gives the same ones again, bit for bit, on one machine: elsewhere, with another number of threads or processes, and
    by kernels that add up in any order (some of a GPU's do), the last digits may differ, and kept answers are those of
    the first go. Under DDP the first process asks while the others wait, for `ddp_timeout` seconds at most. Raises
    `UserError` on tasks that cannot be asked.
    """

    def __init__(
        self,
        tasks: str | Sequence[str] | Mapping[str, Exam],
        steps: int,
        settings: EvaluateSection | Mapping[str, Any] | None = None,
        output_dir: Path | str | None = None,
        batch_size: int = 256,
        console: Console | None = None,
    ) -> None:
        super().__init__(steps)
        names = tasks.split(",") if isinstance(tasks, str) else list(tasks)
        if not isinstance(settings, EvaluateSection):
            settings = parse_config({"evaluate": {**(settings or {}), "tasks": names}}, "EvaluateTasks").evaluate
        self.exams = tasks if isinstance(tasks, Mapping) else exams(settings, ProblemsSection(), "error", [])
        if not self.exams:
            raise UserError("tasks to evaluate during training: none is named")
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: must be at least 1")
        self.names = list(self.exams)
        self._settings = settings
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._batch_size = batch_size
        self._console = console or new_console(quiet=True)

    def measure(self, student: Student) -> list[float]:
        """The accuracies, in the order of `names`. What was answered at this step before is not asked again."""
        output = self._output_dir or student.output_dir / "eval"
        for name, exam in self.exams.items():
            keep_questions(output / "problems" / f"{name}.jsonl", exam.problems)
        model = LocalModel(
            student.name,
            self._batch_size,
            str(student.model.device),
            loaded=(student.model, student.tokenizer),
            autocast=student.autocast,
            day=student.day,
        )
        step = f"step-{student.step}"
        try:
            results = answer_tasks(self.exams, model, self._settings, output / step, step, self._console)
        finally:
            model.close()
        return [results.tasks[name].mean for name in self.names]


def of_flags(flags: "ScriptArguments", console: Console) -> EvaluateTasks | None:
    """What `spot train` was asked to evaluate; `None` where it was not."""
    values = {
        "data_dir": flags.data_dir,
        "questions": flags.eval_tasks_questions,
        "samples": flags.eval_tasks_samples,
        "max_new_tokens": flags.eval_tasks_max_new_tokens,
    }
    given = {name: value for name, value in values.items() if value is not None}
    if (flags.eval_tasks is None) != (flags.eval_tasks_steps is None):
        raise UserError("spot train: --eval_tasks and --eval_tasks_steps need each other")
    if flags.eval_tasks is None or flags.eval_tasks_steps is None:
        if flags.overlap_tasks is not None:
            given.pop("data_dir", None)
        if given:
            raise UserError(f"spot train: {', '.join(given)} needs --eval_tasks")
        return None
    try:
        return EvaluateTasks(
            flags.eval_tasks, flags.eval_tasks_steps, given, batch_size=flags.eval_tasks_batch_size, console=console
        )
    except UserError as error:
        raise UserError(f"spot train: --eval_tasks: {error}") from None


def check_overlap(
    flags: "ScriptArguments", pairs: Sequence[Preference], quiet: bool
) -> tuple[Sequence[Preference], list[Dropped]]:
    """What `spot train` trains on, and what it leaves out: pairs that hold a question of the tasks of its flags."""
    names = [name for given in (flags.overlap_tasks, flags.eval_tasks) if given for name in given.split(",")]
    if not names:
        if flags.drop_overlap:
            raise UserError("spot train: --drop_overlap needs benchmarks to compare with; name them in --overlap_tasks")
        return pairs, []
    data_dir = None if flags.data_dir is None else Path(flags.data_dir)
    names = list(
        dict.fromkeys(one for name in names for one in (PAPER if name.strip() == "paper" else (name.strip(),)))
    )
    questions, missing = read_questions(names, data_dir)
    kept, dropped, notes = without_overlap(questions, pairs, flags.drop_overlap)
    notes += [f"the pairs were not compared with {name}: {why}" for name, why in missing.items()]
    for note in [] if quiet else notes:
        say("warning", note)
    return kept, dropped
