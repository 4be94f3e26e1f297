"""What the stages to come need, tried before anything is asked, paid for or trained."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from spot.chat_template import Chat
from spot.config import RunConfig, Stage
from spot.errors import UserError
from spot.evaluate.overlap import in_common
from spot.hub import check_model_name, load_tokenizer, model_path, stop_ids
from spot.stages.exams import choosing, exams, tasks_of
from spot.stages.opening import Asking, open_oracle, open_verifier
from spot.stages.place import load_problems


def preflight(
    config: RunConfig, ahead: Sequence[Stage], fetch: bool = True
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What the stages `ahead` need, by name, and how to try it; each raises `UserError` or `RunFailed` where it fails.

    Without `fetch` a student that is a name on the hub is not looked into, as that takes a network.
    """
    run, student, skip = config.run, model_path(config.student.model), config.run.on_bad_row
    if "train" in ahead:
        yield "student.enable_thinking", partial(_check_thinking, config)
    yield "student", partial(check_model_name, student)
    yield "problems.verifier", partial(open_verifier, config.problems)
    # A run keeps its questions from the first stage on; the lab's need no check.
    if "elicit" in ahead and config.problems.source != "lab" and not (run.dir / "problems.jsonl").exists():
        yield "problems.source", partial(load_problems, config, [])
    if "rectify" in ahead:
        yield "rectify.oracle", partial(open_oracle, config, Asking(on_bad_row=skip))
    during = "train" in ahead and config.train.eval_every is not None
    if during:
        yield "train.eval_every", partial(_check_tasks, config)
    if "train" in ahead and (config.train.load_best_model_at_end or config.train.eval_tasks):
        yield "train.load_best_model_at_end", partial(_check_best, config)
    if during and config.train.eval_tasks:
        yield "train.eval_tasks", partial(_check_disjoint, config, fetch or config.evaluate.data_dir is not None)
    if "evaluate" in ahead or during:
        # Rows of benchmarks come from a network, too.
        look = exams if fetch or config.evaluate.data_dir else tasks_of
        yield "evaluate.tasks", partial(look, config.evaluate, config.problems, skip, [])
    # Last, since these load torch.
    if "train" in ahead:
        from spot.stages.train import peft_config, train_args

        work, metrics = run.dir / "checkpoints", run.dir / "metrics.jsonl"
        yield "train", partial(train_args, config.train, run.seed, work, metrics)
        yield "train.lora_r", partial(peft_config, config.train)
    if ("train" in ahead or "filter" in ahead) and (fetch or Path(student).is_dir()):
        yield "student", partial(check_student, student, to_train="train" in ahead)


def _check_thinking(config: RunConfig) -> None:
    if config.student.enable_thinking:
        raise UserError("student.enable_thinking: training on thinking answers is not supported; set it to false")


def _check_tasks(config: RunConfig) -> None:
    if not (config.evaluate.tasks or config.train.eval_tasks):
        raise UserError(
            "train.eval_every: there is nothing to evaluate; name tasks in evaluate.tasks, or in train.eval_tasks"
        )


def _check_best(config: RunConfig) -> None:
    """What is chosen by a task must not be reported on by it."""
    train = config.train
    if train.eval_every is None:
        name = "load_best_model_at_end" if train.load_best_model_at_end else "eval_tasks"
        raise UserError(f"train.{name}: nothing is measured on the way; set train.eval_every")
    if train.load_best_model_at_end and not train.eval_tasks:
        raise UserError(
            "train.load_best_model_at_end: a checkpoint must not be chosen by what is reported on (evaluate.tasks); "
            "name others in train.eval_tasks (of the lab: in_domain_tune)"
        )
    if train.load_best_model_at_end and train.metric_for_best_model is None:
        names = ", ".join(f"eval_{task.name}" for task in tasks_of(choosing(config), config.problems, "skip", []))
        raise UserError(f"train.load_best_model_at_end: set train.metric_for_best_model, one of {names}")


def _check_disjoint(config: RunConfig, fetch: bool) -> None:
    """Raise `UserError` where tasks to choose by share questions with those reported on; names alone unless `fetch`."""
    both = [
        {task.name: task for task in tasks_of(section, config.problems, config.run.on_bad_row, [])}
        for section in (choosing(config), config.evaluate)
    ]
    shared = next((f"{name} is a task of evaluate, too" for name in both[0] if name in both[1]), "")
    if not shared and fetch:
        chosen_by, reported = (
            {name: exam.problems for name, exam in exams(section, config.problems, config.run.on_bad_row, []).items()}
            for section in (choosing(config), config.evaluate)
        )
        shared = in_common(chosen_by, reported)
    if shared:
        raise UserError(
            f"train.eval_tasks: {shared}; a checkpoint must not be chosen by what is reported on, name other questions "
            "(of the lab: in_domain_tune)"
        )


def check_student(student: str, to_train: bool) -> None:
    """Raise `UserError` unless the student's tokenizer loads and, `to_train`, its chat template can be trained with."""
    tokenizer = load_tokenizer(student)
    if to_train:
        _ = Chat(tokenizer, stop_ids=stop_ids(student)).turn
