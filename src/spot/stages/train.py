"""The stage `train`: pairs to a trained student."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from spot.config import RunConfig, TrainSection
from spot.errors import UserError
from spot.evaluate.overlap import overlap_note, without_overlap
from spot.hub import model_path
from spot.progress import bar
from spot.schema import Dropped, Pair
from spot.stages.evaluate_tasks import EvaluateTasks
from spot.stages.exams import choosing, exams, kept_exams
from spot.stages.place import Place
from spot.terminal import say
from spot.train.adapter import make_lora
from spot.train.config import SpotConfig
from spot.train.measuring import StepMeasure
from spot.train.run import TrainResult, fit, task_scores


def train(config: RunConfig, place: Place, console: Console) -> str:
    """Train the student on the pairs of a run; returns steps and objectives."""
    run = place.run
    assert run is not None  # beside its output, `spot train` runs `fit` with flags of its own
    pairs, overlapping = _without_overlap(config, place, place.read(place.pairs, Pair, "filter", config))
    result = train_on(
        pairs,
        model_path(config.student.model),
        config.train,
        config.run.seed,
        run / "checkpoints",
        run / "model",
        run / "metrics.jsonl",
        console,
        _evaluation(config, place, pairs, console),
        run.day().isoformat(),
    )
    place.drop("train", overlapping + list(result.dropped))
    gc.collect()  # the trainer and its callbacks hold each other, with weights and optimizer state
    plain = f", prefixes not shared: {result.not_shared}" if result.not_shared else ""
    kept = f", {result.kept}" if result.kept else ""
    return f"{result.steps:,} steps of {' + '.join(config.train.objectives)}{kept}{plain}"


def _without_overlap(config: RunConfig, place: Place, pairs: list[Pair]) -> tuple[list[Pair], list[Dropped]]:
    """What to train on, and what is dropped; warns of questions of the evaluation among the pairs."""
    tasks = kept_exams(config, place, []) if config.evaluate.tasks else {}
    if not tasks:
        say("note", "evaluate.tasks names none, so the pairs were not compared with any benchmark")
    questions = {name: exam.problems for name, exam in tasks.items()}
    kept, dropped, notes = without_overlap(questions, pairs, config.train.drop_overlap)
    for note in notes:
        say("warning", note)
    if notes and not dropped:
        say("note", "train.drop_overlap=true leaves these pairs out")
    return kept, dropped


def _evaluation(config: RunConfig, place: Place, pairs: Sequence[Pair], console: Console) -> EvaluateTasks | None:
    """What is measured during training."""
    every, size, run = config.train.eval_every, config.student.batch_size, place.run
    if every is None or run is None:
        return None
    if not config.train.eval_tasks:
        return EvaluateTasks(kept_exams(config, place, []), every, config.evaluate, run / "eval", size, console)
    section = choosing(config)
    tasks = exams(section, config.problems, config.run.on_bad_row, [])
    for note in filter(None, (overlap_note(name, exam.problems, pairs) for name, exam in tasks.items())):
        say("warning", f"train.eval_tasks: {note}")
    return EvaluateTasks(tasks, every, section, run / "checkpoints" / "eval", size, console)


def train_args(section: TrainSection, seed: int, work_dir: Path, metrics: Path) -> SpotConfig:
    """The Trainer's arguments; what a config calls by another name is renamed here, and nothing in it stays unread.

    Raises `UserError` where the section makes no sense, which only the Trainer can tell for some of it.
    """
    values = section.model_dump(
        exclude={
            *("objective", "eval_every", "eval_tasks", "drop_overlap"),
            *("lora_r", "lora_alpha", "lora_target_modules"),
        }
    )
    renamed = {
        "loss_type": section.objectives,
        "per_device_train_batch_size": values.pop("pairs_per_step"),
        "warmup_steps": values.pop("warmup_ratio"),
        "bf16": values.pop("precision") == "bf16",
    }
    try:
        return SpotConfig(
            output_dir=str(work_dir),
            metrics_path=str(metrics),
            seed=seed,
            save_total_limit=1,
            disable_tqdm=True,
            **renamed,
            **values,
        )
    except ValueError as error:
        raise UserError(f"train: {' '.join(str(error).split())}") from error


def peft_config(section: TrainSection) -> Any:
    """peft's config of the adapter to train, `None` where the whole model is trained; `UserError` without peft."""
    return section.lora_r and make_lora(section.lora_r, section.lora_alpha, section.lora_target_modules)


def train_on(
    pairs: Sequence[Pair],
    student: str,
    section: TrainSection,
    seed: int,
    work_dir: Path,
    model_dir: Path,
    metrics: Path,
    console: Console,
    evaluation: StepMeasure | None = None,
    day: str | None = None,
) -> TrainResult:
    """Train on `pairs` and save the model to `model_dir`; `evaluation` measures it on the way.

    Prompts whose template prints the date print `day`.
    """
    args = train_args(section, seed, work_dir, metrics)
    args.template_date = day
    with bar(console, "train") as progress:
        scores = ""

        def show(step: int, total: int, row: dict[str, Any]) -> None:
            nonlocal scores
            if line := task_scores(row):
                progress.say(f"step {step}: {line}")
                scores = f"  {line}"
            else:
                margin = row.get("rewards/margins")
                progress.update(step, total, ("" if margin is None else f"margin {margin:.2f}") + scores)

        adapter, callbacks = peft_config(section), evaluation and [evaluation]
        return fit(
            pairs,
            student,
            model_dir,
            args,
            show,
            progress.say,
            peft_config=adapter,
            callbacks=callbacks,
            reference_progress=progress.reference,
        )
