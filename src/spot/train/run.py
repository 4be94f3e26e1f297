"""The training stage: pairs and a student in, a trained student out, resumable at any moment."""

import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.utils import logging

from spot.errors import UserError
from spot.schema import Dropped
from spot.train.checkpoints import last_complete_checkpoint, saving
from spot.train.config import SpotConfig
from spot.train.tokenize import Preference
from spot.train.trainer import SpotTrainer

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each logged step with the step, the number of steps, and the step's metrics."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the defaults are the paper's for an 8B model. `save_steps` below 1 is a share of all steps."""

    objective: str = "spot_bco"
    beta: float = 0.1
    reward_shift: str = "ema"
    shift_decay: float = 0.9
    sft_reduction: str = "token_mean"
    score_rejected: bool = True
    learning_rate: float = 1e-6
    num_train_epochs: float = 2
    pairs_per_step: int = 32
    max_length: int = 8192
    micro_batch_tokens: int = 16384
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    warmup_ratio: float = 0.05
    lr_scheduler_type: str = "cosine"
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: str = "fp32"
    save_steps: float = 0.25

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision must be fp32 or bf16, got {self.precision!r}")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}")


@dataclass(frozen=True)
class TrainResult:
    """What training did. `seconds` is this call's wall time, `reference_seconds` the part for the reference."""

    steps: int
    num_pairs: int
    dropped: list[Dropped]
    seconds: float
    reference_seconds: float
    resumed_from: int


def train(
    pairs: Sequence[Preference],
    student: str | Path,
    output_dir: Path,
    checkpoints_dir: Path,
    metrics_path: Path,
    settings: TrainSettings,
    progress: Progress | None = None,
) -> TrainResult:
    """Train `student` on `pairs` and save it to `output_dir`, which appears whole or not at all.

    Goes on from the last whole checkpoint in `checkpoints_dir`. Writes one line a step to `metrics_path`. Raises
    `UserError` on settings or pairs that cannot be trained on, before any weight is loaded, and `RunFailed` where the
    loss is not finite or the reference of a resumed run is missing.
    """
    try:
        args = SpotConfig(
            output_dir=str(checkpoints_dir),
            loss_type=[settings.objective],
            beta=settings.beta,
            reward_shift=settings.reward_shift,
            shift_decay=settings.shift_decay,
            sft_reduction=settings.sft_reduction,
            score_rejected=settings.score_rejected,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.num_train_epochs,
            per_device_train_batch_size=settings.pairs_per_step,
            max_length=settings.max_length,
            micro_batch_tokens=settings.micro_batch_tokens,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            warmup_steps=settings.warmup_ratio,
            lr_scheduler_type=settings.lr_scheduler_type,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            bf16=settings.precision == "bf16",
            save_steps=settings.save_steps,
            save_total_limit=1,
            disable_tqdm=True,
            metrics_path=str(metrics_path),
        )
    except ValueError as error:
        raise UserError(f"training settings: {error}") from error
    return fit(pairs, student, output_dir, args, progress)


def fit(
    pairs: Iterable[Preference | Mapping[str, Any]],
    student: str | Path,
    output_dir: Path,
    args: SpotConfig,
    progress: Progress | None = None,
) -> TrainResult:
    """`train` with a `SpotConfig`; checkpoints lie in `args.output_dir`."""
    started = time.perf_counter()
    with quiet():
        checkpoint = _checkpoint_to_resume(args)
        trainer = SpotTrainer(student, args, pairs)
        trainer.remove_callback(PrinterCallback)
        if progress is not None:
            trainer.add_callback(_Progress(progress))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        with saving(output_dir):
            _publish(trainer, output_dir)
    return TrainResult(
        steps=trainer.state.global_step,
        num_pairs=len(trainer.pairs),
        dropped=trainer.dropped,
        seconds=time.perf_counter() - started,
        reference_seconds=trainer.reference_seconds,
        resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
    )


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
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = output_dir.with_name(output_dir.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    trainer.save_model(str(temporary))
    if not output_dir.exists():
        temporary.rename(output_dir)
        return
    (output_dir / "config.json").unlink(missing_ok=True)
    for file in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(output_dir / file.name)
    temporary.rmdir()


class _Progress(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            self.progress(state.global_step, state.max_steps, dict(logs))


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
