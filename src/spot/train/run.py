"""The training stage: pairs and a student in, a trained student out, resumable at any moment."""

import shutil
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from spot.errors import Interrupted, UserError
from spot.files.disk import disk_errors
from spot.schema import Dropped
from spot.train import best
from spot.train.checkpoints import last_complete_checkpoint, saving
from spot.train.config import SpotConfig
from spot.train.experts import balance_notice
from spot.train.ready import Rows
from spot.train.trainer import SpotTrainer
from spot.train.upload import upload

CONFIGS = ("config.json", "adapter_config.json")
"""Of a model and of an adapter; the one in a directory says what the rest of it is."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each logged step, and each evaluation of pairs or tasks, with the step, the number of
steps, and its metrics."""

ReferenceProgress = Callable[[int, int], None]
"""Called while the reference is computed, with how many pairs are scored, and of how many."""


@dataclass(frozen=True)
class TrainResult:
    """What training did. `seconds` is this call's wall time, `reference_seconds` the part for the reference.

    `not_shared` says why prefixes were not shared, `not_varlen` why a row's attention took two calls a pair and not one
    in all; both are `None` where it was so. `kept` says in a few words which step's weights these are, where they are
    not simply the last.
    """

    steps: int
    num_pairs: int
    dropped: list[Dropped]
    seconds: float
    reference_seconds: float
    resumed_from: int
    not_shared: str | None
    not_varlen: str | None
    kept: str = ""


def fit(
    pairs: Rows,
    student: str | Path,
    output_dir: Path,
    args: SpotConfig,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    eval_pairs: Rows | None = None,
    peft_config: Any = None,
    callbacks: Sequence[TrainerCallback] | None = None,
    reference_progress: ReferenceProgress | None = None,
) -> TrainResult:
    """Train `student` on `pairs` and save it to `output_dir`, which appears whole or not at all.

    `notify` is told what a user would not expect; `callbacks` are the trainer's. Checkpoints
    lie in `args.output_dir`; training resumes from the last whole one there. One line a step is written to
    `args.metrics_path`. Raises `UserError` on pairs that cannot be trained on, before any weight is loaded, and
    `RunFailed` where the loss is not finite or the reference of a resumed run is missing.
    """
    started = time.perf_counter()
    with quiet():
        checkpoint = _checkpoint_to_resume(args)
        with needed_packages(), disk_errors(Path(str(args.output_dir))):  # it makes that directory
            trainer = SpotTrainer(
                student, args, pairs, eval_pairs, peft_config=peft_config, callbacks=list(callbacks or [])
            )
        if notify is not None:
            for notice in notices(trainer, args):
                notify(notice)
            trainer.notify = notify
        trainer.remove_callback(PrinterCallback)
        if progress is not None:
            trainer.add_callback(_Progress(progress))
        if reference_progress is not None:
            trainer.reference_progress = reference_progress
        if checkpoint is not None and notify is not None:
            notify(f"going on from {checkpoint.name}")
        with _telling_where(args):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        with saving(output_dir):
            _publish(trainer, output_dir)
        if args.push_to_hub:
            upload(trainer, str(output_dir))
    return TrainResult(
        steps=trainer.state.global_step,
        num_pairs=trainer.num_train,
        dropped=trainer.dropped,
        seconds=time.perf_counter() - started,
        reference_seconds=trainer.reference_seconds,
        resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        not_shared=trainer.not_shared,
        not_varlen=trainer.not_varlen,
        kept=best.kept_weights(args, trainer.state),
    )


@contextmanager
def needed_packages() -> Generator[None]:
    """Turn what transformers raises where a setting needs a package that is not there into one line."""
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if not isinstance(error, ImportError) and "install" not in str(error):
            raise
        raise UserError(f"a setting needs a package that is not installed: {' '.join(str(error).split())}") from error


@contextmanager
def _telling_where(args: SpotConfig) -> Generator[None]:
    """An interrupt says which checkpoint the same command resumes from."""
    try:
        yield
    except Interrupted:
        last = last_complete_checkpoint(Path(str(args.output_dir)))
        if args.save_only_model:
            where = "the same command trains from step 0 (save_only_model keeps the weights alone)"
        elif last:
            where = f"the same command resumes at {last.name} (save_steps says how often there is one)"
        else:
            where = "no checkpoint yet: training starts again (save_steps says how often there is one)"
        raise Interrupted(where) from None


def notices(trainer: SpotTrainer, args: SpotConfig) -> list[str]:
    """What is dropped, or slower than it could be, a line each."""
    lines: list[str] = []
    if trainer.dropped:
        lines.append(f"{len(trainer.dropped)} pairs longer than max_length={args.max_length} are dropped")
    if not trainer.chat.stops():
        end = trainer.chat.turn.end_id
        stops = ", ".join(map(str, sorted(trainer.chat.stop_ids or ())))
        lines.append(
            f"answers end with the token {trainer.chat.tokenizer.convert_ids_to_tokens(end)!r} ({end}), at which the "
            f"model's generation config does not stop (eos_token_id {stops}); add it there, or answers will run on"
        )
    if trainer.not_batched:
        lines.append(f"each sequence runs by itself, which is slower but exact: {trainer.not_batched}")
    elif trainer.not_shared:
        lines.append(f"prefixes are not shared, which is slower but as exact: {trainer.not_shared}")
    elif trainer.not_varlen and args.device.type != "cpu":
        lines.append(f"attention takes two calls a pair, which is slower but as exact: {trainer.not_varlen}")
    if notice := balance_notice(trainer.source_form.config):
        lines.append(notice)
    if args.save_only_model and args.save_strategy != SaveStrategy.NO:
        lines.append("save_only_model: checkpoints hold the weights alone, so a run that is stopped starts from step 0")
    return lines


def _checkpoint_to_resume(args: SpotConfig) -> Path | None:
    """The checkpoint named by `resume_from_checkpoint`, else the last whole one; `None` to start at step 0."""
    named = args.resume_from_checkpoint
    if named is None or named.lower() == "true":
        return last_complete_checkpoint(Path(str(args.output_dir)))
    if not (Path(named) / "trainer_state.json").is_file():
        raise UserError(f"{named}: not a whole checkpoint (it has no trainer_state.json)")
    return Path(named)


def _publish(trainer: SpotTrainer, output_dir: Path) -> None:
    """Save the model beside `output_dir` and move it there, its config last: without that, nothing loads it."""
    temporary = output_dir.with_name(output_dir.name + ".tmp")
    writes = trainer.args.process_index == 0
    if writes:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        if temporary.is_symlink():
            temporary.unlink()  # what it leads to is not ours
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.write_model(str(temporary))
    if not writes:
        return
    if not output_dir.exists():
        temporary.rename(output_dir)
        return
    for name in CONFIGS:
        (output_dir / name).unlink(missing_ok=True)
    for file in sorted(temporary.iterdir(), key=lambda file: file.name in CONFIGS):
        file.replace(output_dir / file.name)
    temporary.rmdir()


class _Progress(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if logs and ("loss" in logs or "eval_loss" in logs or task_scores(logs)):
            self.progress(state.global_step, state.max_steps, dict(logs))


def task_scores(metrics: Mapping[str, float]) -> str:
    """The tasks' scores in `metrics` in a few words, in percent; empty where there are none."""
    scores = {name.removeprefix("eval/"): value for name, value in metrics.items() if name.startswith("eval/")}
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())


@contextmanager
def quiet() -> Generator[None]:
    """Keep transformers' progress bars and warnings off the terminal; errors stay, and the old settings come back."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
