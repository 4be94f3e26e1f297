"""A student made ready to be trained: refused where it cannot be, and set to score packed rows as fast as it can."""

from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from spot.chat import Chat
from spot.schema import Dropped
from spot.train.adapter import check_no_adapter
from spot.train.attention import varlen_refused
from spot.train.checkpoints import TrainingState, last_complete_checkpoint
from spot.train.checks import check_head, check_pairs, check_unused, check_vocabulary, tokenized
from spot.train.config import SpotConfig
from spot.train.liger import check_liger
from spot.train.logps import attention_heads, share_prefixes
from spot.train.reference import reference_day
from spot.train.tokenize import TokenizedPair
from spot.train.weights import disable_dropout, load_student

Rows = Iterable[Any] | Path | str
"""`Preference`s or mappings; a data set, data frame or table of them; or where a file of them is."""


def check_student(student: PreTrainedModel | str, args: SpotConfig) -> None:
    """Raise `UserError` on a student, loaded or a path, that cannot be trained as asked."""
    if isinstance(student, PreTrainedModel):
        check_unused(student)
    if args.use_liger_kernel:
        check_liger(student, args.liger_kernel_config or {}, args.device)


def read_pairs(
    train: Rows, held_out: Rows | None, chat: Chat, args: SpotConfig
) -> tuple[list[TokenizedPair], int, list[Dropped]]:
    """Pairs to train on with those to evaluate on behind them, how many the former are, and those that are too long."""
    pairs, dropped = tokenized("train_dataset", train, chat, args)
    held_out_pairs, held_out_dropped = tokenized("eval_dataset", [] if held_out is None else held_out, chat, args)
    check_pairs(len(pairs), pairs + held_out_pairs, args)
    return pairs + held_out_pairs, len(pairs), dropped + held_out_dropped


def begun_on(args: SpotConfig) -> date:
    """The day that prompts print: as `args` say, else that of the checkpoint to resume, or of the reference to be used,
    else today."""
    if args.template_date is not None:
        return date.fromisoformat(args.template_date)
    output, named = Path(str(args.output_dir)), args.resume_from_checkpoint
    named = None if named is None or named.lower() == "true" else Path(named)
    checkpoint = named or last_complete_checkpoint(output)
    day = TrainingState.load(checkpoint).day if checkpoint is not None else None
    day = day or reference_day(Path(args.reference_path or output / "reference.safetensors"))
    return date.fromisoformat(day) if day else date.today()


def loaded(student: PreTrainedModel | str, pairs: list[TokenizedPair]) -> PreTrainedModel:
    """The student in its own precision, without dropout; raises `UserError` where `pairs` are not for it."""
    if not isinstance(student, PreTrainedModel):
        student = load_student(student)
        check_no_adapter(student)  # a directory may hold one, too
    check_vocabulary(pairs, student)
    disable_dropout(student)
    return student


def set_scoring(student: PreTrainedModel, pair: TokenizedPair, args: SpotConfig) -> tuple[str | None, str | None]:
    """Have `student`, in fp32, score as fast as it can; why prefixes are not shared, and why attention is not one call.

    Raises `RunFailed` where it would be scored wrong.
    """
    if args.use_liger_kernel:
        # The Trainer does so too, but later: the checks and the reference must see what training runs.
        apply_liger_kernel(student, args.liger_kernel_config)
    check_head(pair, student)
    if not_shared := share_prefixes(student, pair):
        return not_shared, "prefixes are not shared"
    if not args.bf16:
        return None, "that kernel is for bf16"
    # On the device that it will be trained on: what shards a model moves it there when training starts.
    return None, varlen_refused(attention_heads(student, pair), args.device)
