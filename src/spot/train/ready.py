"""A student made ready to be trained: refused where it cannot be, and set to score packed rows as fast as it can."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from spot.chat_template import Chat
from spot.errors import UserError
from spot.plugin import described
from spot.schema import Dropped
from spot.train.adapter import check_no_adapter
from spot.train.attention import varlen_refused
from spot.train.checkpoints import TrainingState, last_complete_checkpoint
from spot.train.checks import (
    check_head,
    check_not_quantized,
    check_pairs,
    check_unused,
    check_vocabulary,
    tokenized,
)
from spot.train.config import SpotConfig
from spot.train.liger import check_liger
from spot.train.logps import attention_heads, not_batched, share_prefixes
from spot.train.module_state import kept_by_length
from spot.train.reference import reference_day
from spot.train.tokenize import TokenizedPair
from spot.train.weights import disable_dropout, load_student

Rows = Iterable[Any] | Path | str
"""`Preference`s or mappings; a data set, data frame or table of them; or where a file of them is."""


def check_student(student: PreTrainedModel | str, args: SpotConfig) -> None:
    """Raise `UserError` on a student, loaded or a path, that cannot be trained as asked."""
    if isinstance(student, PreTrainedModel):
        check_unused(student)
    check_not_quantized(student)
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
        check_not_quantized(student)
    check_vocabulary(pairs, student)
    disable_dropout(student)
    return student


OFF_DEVICE_TOKENS = 1024
"""How many tokens of a row are tried where a student is not yet on the device that it will be trained on."""


@dataclass(frozen=True)
class Scoring:
    """How a student scores, as reasons for what it does not do; `None` where it does.

    Whether prefixes are shared, whether a row's attention is one call, and whether sequences share a forward at all.
    """

    not_shared: str | None
    not_varlen: str | None
    not_batched: str | None = None


def set_scoring(student: PreTrainedModel, pairs: Sequence[TokenizedPair], args: SpotConfig) -> Scoring:
    """Have `student`, in fp32, score `pairs` as fast as it can, each as if it were alone.

    Raises `RunFailed` where it would be scored wrong.
    """
    if args.use_liger_kernel:
        # The Trainer does so too, but later: the checks and the reference must see what training runs.
        apply_liger_kernel(student, args.liger_kernel_config)
    shortest, longest = (extreme(pairs, key=lambda pair: pair.length) for extreme in (min, max))
    lengths = [min(shortest.num_plain(side) for side in shortest.sides), longest.length - 1]
    try:
        kept = kept_by_length(student, *lengths)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an architecture fails in its own ways
        check_head(shortest, student)  # which says so where it fails on this one, too
        raise UserError(
            f"pair {longest.id!r}: the student cannot run its {lengths[1]} tokens ({described(error)}); lower "
            "max_length to what its config has positions for"
        ) from error
    check_head(shortest, student)
    if kept:
        by_itself = f"the longest sequence of a forward decides how all are computed ({kept})"
        return Scoring(by_itself, "prefixes are not shared", by_itself)
    row = fullest_row(pairs, args, next(student.parameters()).device.type == args.device.type)
    if not_shared := share_prefixes(student, *row):
        longest_slots = len(longest.sides) * max(pair.length for pair in row)
        in_a_batch = max(1, args.micro_batch_tokens // longest_slots)
        batch = row if in_a_batch >= len(row) else [*row[: in_a_batch - 1], row[-1]]
        return Scoring(not_shared, "prefixes are not shared", not_batched(student, *batch))
    if not args.bf16:
        return Scoring(None, "that kernel is for bf16")
    # On the device that it will be trained on: what shards a model moves it there when training starts.
    return Scoring(None, varlen_refused(attention_heads(student, row[-1]), args.device))


def fullest_row(pairs: Sequence[TokenizedPair], args: SpotConfig, on_device: bool) -> list[TokenizedPair]:
    """Pairs to try a row with, as a row of a step may hold: the longest that fits, others, the shortest."""
    budget = args.micro_batch_tokens if on_device else min(OFF_DEVICE_TOKENS, args.micro_batch_tokens)
    shortest, *others = sorted(pairs, key=lambda pair: pair.num_distinct)
    row, room = [shortest], budget - shortest.num_distinct
    for pair in reversed(others):
        if pair.num_distinct <= room and len(row) < args.pairs_per_step:
            row.insert(len(row) - 1, pair)
            room -= pair.num_distinct
    return row
