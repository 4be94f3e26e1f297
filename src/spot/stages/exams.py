"""What a config has measured: its tasks, with their questions and who judges them."""

from dataclasses import replace

from spot.config import EvaluateSection, ProblemsSection, RunConfig
from spot.evaluate.prompting import read_prompts
from spot.evaluate.registry import find_tasks
from spot.evaluate.run import Exam, exam
from spot.evaluate.task import Task
from spot.files.store import OnBadRow, read_rows, write_rows
from spot.schema import Dropped, Problem
from spot.stages.opening import open_verifier
from spot.stages.place import Place


def tasks_of(
    section: EvaluateSection, problems: ProblemsSection, on_bad_row: OnBadRow, dropped: list[Dropped]
) -> list[Task]:
    """What is to be measured; rows of benchmarks are not looked for yet."""
    return find_tasks(
        section.tasks,
        options=problems.options,
        lab_seed=section.seed,
        lab_questions=section.questions,
        on_bad_row=on_bad_row,
        dropped=dropped,
    )


def exams(
    section: EvaluateSection, problems: ProblemsSection, on_bad_row: OnBadRow, dropped: list[Dropped]
) -> dict[str, Exam]:
    """What is measured, by name: the questions and who judges them."""
    tasks = tasks_of(section, problems, on_bad_row, dropped)
    prompts = {} if section.prompts is None else read_prompts(section.prompts, tasks)
    ready = [exam(task, section.data_dir, prompts.get(task.name), section.questions) for task in tasks]
    # A file of the user's is judged as the run's problems are.
    own = open_verifier(problems) if any(one.task.verifier == "" for one in ready) else None
    return {
        one.task.name: one if one.task.verifier or own is None else Exam(one.task, one.problems, own) for one in ready
    }


def kept_exams(config: RunConfig, place: Place, skipped: list[Dropped]) -> dict[str, Exam]:
    """What a run measures, with the questions that it keeps: what was asked must not change under its answers."""
    assert place.run is not None
    tasks = exams(config.evaluate, config.problems, config.run.on_bad_row, skipped)
    for name, task in tasks.items():
        path = place.run / "eval" / "problems" / f"{name}.jsonl"
        if not path.exists():
            write_rows(path, task.problems)
        tasks[name] = replace(task, problems=read_rows(path, Problem))
    return tasks


def choosing(config: RunConfig) -> EvaluateSection:
    """How the tasks are asked that a checkpoint is chosen by: as those of `evaluate` are."""
    return config.evaluate.model_copy(update={"tasks": config.train.eval_tasks})
