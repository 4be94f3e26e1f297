"""The best checkpoint, kept beside the last: by what, where it lies, and how a resume knows of it.

Evaluated pairs are ranked by transformers' Trainer. Tasks are measured behind a step's checkpoint, so that a kill
while they are asked costs no training; a best score is then added to that checkpoint's state.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer_utils import rotate_checkpoints

from spot.errors import UserError
from spot.files.disk import write_atomic
from spot.train.config import SpotConfig
from spot.train.metrics import STEP_METRICS


def metric_of(args: SpotConfig) -> str | None:
    """The metric that ranks checkpoints, without the `eval_` before it; `None` where none does."""
    name = args.metric_for_best_model
    return None if name is None else name.removeprefix("eval_")


def check_metric(args: SpotConfig, tasks: Collection[str], has_pairs: bool) -> None:
    """Raise `UserError` where nothing measures the metric that ranks checkpoints: the Trainer says so hours later."""
    name = metric_of(args)
    known = [*tasks, *(STEP_METRICS if has_pairs else ())]
    if name is None or name in known or (has_pairs and name == "runtime"):
        return
    if not known:
        raise UserError(
            f"metric_for_best_model={name}: nothing is evaluated during training; name tasks (--eval_tasks), or pairs "
            "(--eval_dataset_name with --eval_strategy)"
        )
    raise UserError(f"metric_for_best_model={name}: not measured here; choose one of {', '.join(known)}")


def is_best(score: float, state: TrainerState, args: SpotConfig) -> bool:
    """Whether `score` beats those of all steps before; that of the student before training does not count."""
    best: float | None = state.best_metric
    return bool(state.global_step) and (best is None or (score > best if args.greater_is_better else score < best))


def mark_best(checkpoint: Path, state: TrainerState) -> None:
    """Have the state in `checkpoint` tell a resume what `state` knows of the best one; nothing else in it changes."""
    path = checkpoint / "trainer_state.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
    ours = {name: getattr(state, name) for name in ("best_metric", "best_global_step", "best_model_checkpoint")}
    write_atomic(path, json.dumps(kept | ours, indent=2, sort_keys=True) + "\n")


def drop_surplus(args: SpotConfig, state: TrainerState) -> None:
    """Delete checkpoints above `save_total_limit`, but neither the best nor the last."""
    rotate_checkpoints(
        output_dir=str(args.output_dir),
        save_total_limit=args.save_total_limit,
        best_model_checkpoint=state.best_model_checkpoint,
        use_mtime=True,
    )


def kept_weights(args: SpotConfig, state: TrainerState) -> str:
    """Which step's weights training ends with, in a few words; empty where the last step's were not chosen."""
    name = metric_of(args)
    if not args.load_best_model_at_end or name is None:
        return ""
    if state.best_global_step is None:
        return f"no step was ranked by {name}, so these are the last step's weights"
    before = next(
        (row[f"eval/{name}"] for row in state.log_history if row["step"] == 0 and f"eval/{name}" in row), None
    )
    best: float = state.best_metric or 0.0
    worse = before is not None and (best <= before if args.greater_is_better else best >= before)
    base = f"; before training it was {before:.4g}, so no step improved it" if worse else ""
    return f"best of all steps by {name}: step {state.best_global_step} ({best:.4g}){base}"
