"""What must hold before training starts, each refusal one line."""

import math
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from spot.chat_template import Chat
from spot.errors import RunFailed, UserError
from spot.plugin import described
from spot.schema import Dropped
from spot.train.config import SpotConfig
from spot.train.logps import (
    TOLERANCE,
    accepts_batches,
    future_difference,
    head_difference,
    training_difference,
)
from spot.train.objective import CHOSEN_ONLY
from spot.train.rows import as_preferences
from spot.train.tokenize import TokenizedPair, tokenize_pairs
from spot.train.weights import random_settings

DEQUANTIZED = ("mxfp4",)
"""Quantized weights that transformers makes whole as it loads them, where their kernels are missing."""


def tokenized(
    name: str,
    rows: Any,
    chat: Chat,
    args: SpotConfig,
) -> tuple[list[TokenizedPair], list[Dropped]]:
    """The data set `name` as token ids, and the pairs that are too long for them; those may be refused."""
    pairs, dropped = tokenize_pairs(as_preferences(name, rows), chat.tokenizer, args.max_length, chat)
    if dropped and args.overlength == "error":
        raise UserError(
            f"{name}: {len(dropped)} pairs are too long, pair {dropped[0].id!r} among them ({dropped[0].detail}); "
            "raise max_length, or leave them out with overlength=drop"
        )
    if dropped and not pairs:
        raise UserError(f"{name}: no pair is left; all are longer than max_length={args.max_length}")
    return pairs, dropped


def check_pairs(num_train: int, pairs: list[TokenizedPair], args: SpotConfig) -> None:
    """Raise `UserError` where the `num_train` first pairs are none or fewer than the processes, one exceeds the token
    budget in any case, or one has no rejected answer where others have, or the objective needs it."""
    if not num_train:
        raise UserError("train_dataset: no pair came")
    if num_train < args.world_size:
        raise UserError(
            f"train_dataset: fewer pairs ({num_train}) than processes ({args.world_size}), some would only wait; start "
            f"at most {num_train}"
        )
    alone = next((pair for pair in pairs if not pair.rejected_ids), None)
    both = next((pair for pair in pairs if pair.rejected_ids), None)
    if alone is not None and both is not None:
        raise UserError(
            f"row {alone.id!r} has no rejected answer and row {both.id!r} has one; train on one kind of rows"
        )
    if alone is not None and args.objective.trains_rejected:
        raise UserError(
            f"row {alone.id!r} has no rejected answer, which loss_type {' '.join(args.loss_type)} needs; rows of "
            f"prompt and completion train with {', '.join(CHOSEN_ONLY)}"
        )
    check_budget(pairs, [pair.num_distinct for pair in pairs], args)


def check_budget(pairs: list[TokenizedPair], costs: list[int], args: SpotConfig) -> None:
    """Raise `UserError` where a pair, of `costs` tokens, does not fit into a micro-batch."""
    largest = max(costs)
    if largest > args.micro_batch_tokens:
        raise UserError(
            f"pair {pairs[costs.index(largest)].id!r}: {largest} tokens do not fit into micro_batch_tokens="
            f"{args.micro_batch_tokens}; set it to at least {largest}, or lower max_length"
        )


def check_vocabulary(pairs: list[TokenizedPair], model: PreTrainedModel) -> None:
    """Raise `UserError` where a pair has a token that `model` does not know."""
    embeddings: Any = model.get_input_embeddings()
    for pair in pairs:
        if max(*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids) >= embeddings.num_embeddings:
            raise UserError(
                f"pair {pair.id!r}: a token id is beyond the model's {embeddings.num_embeddings} embeddings; "
                "model and tokenizer do not belong together"
            )


def check_unused(model: PreTrainedModel) -> None:
    """Raise `UserError` where a `SpotTrainer` has been made of `model`: its forward is no longer its own."""
    if accepts_batches(model):
        raise UserError(
            "this model object has been given to a SpotTrainer before, which changed it; save_model, where it is to be "
            "trained further, and load it again with from_pretrained"
        )


def check_not_quantized(student: PreTrainedModel | str) -> None:
    """Raise `UserError` on a student, loaded or a path, whose weights are quantized; what is trained here is whole."""
    if isinstance(student, PreTrainedModel):
        name = student.name_or_path or type(student).__name__
        quantized: Any = getattr(student, "is_quantized", False) and getattr(student, "quantization_method", "weights")
    else:
        name = student
        try:
            settings: Any = AutoConfig.from_pretrained(student).to_dict().get("quantization_config") or {}
        except Exception:  # whatever is wrong with it is said where it is loaded
            return
        quantized = settings.get("quant_method")
        if quantized in DEQUANTIZED:
            return
    if quantized:
        raise UserError(
            f"{name}: its weights are quantized ({getattr(quantized, 'value', quantized)}), which cannot be trained "
            "here, nor under an adapter; train the model that they were made of"
        )


def check_head(pair: TokenizedPair, model: PreTrainedModel) -> None:
    """Raise `RunFailed` where `model`, scoring `pair` in fp32, is damaged, or cannot be trained through its head.

    It cannot be where its logits are not its head's, where tokens see what follows them, or where its training mode has
    something random in it.
    """
    name, ids = type(model).__name__, (pair.prompt_ids, pair.chosen_ids)
    try:
        random = training_difference(model, *ids)
        difference = head_difference(model, *ids)
        future = future_difference(model, *ids)
    except (torch.OutOfMemoryError, AssertionError):
        raise
    except Exception as error:  # an architecture fails in its own ways
        raise RunFailed(
            f"{name}: it cannot be run on text alone ({described(error)}); this architecture is not supported"
        ) from error
    if not math.isfinite(random + difference + future):
        raise RunFailed("the student's log-probabilities are not finite before training; its weights are damaged")
    if random > TOLERANCE:
        settings = [f"{key}={value}" for key, value in random_settings(model.config)]
        fix = f"set to 0 in its config.json: {', '.join(settings)}" if settings else "no dropout is left in its config"
        raise RunFailed(
            f"{name}: in training mode its log-probabilities differ by {random:.3g}, so the policy would differ from "
            f"its reference before any step; {fix}"
        )
    if difference > TOLERANCE:
        raise RunFailed(
            f"{name}: its logits are not its output embeddings applied to its hidden states "
            f"(log-probabilities differ by {difference:.3g}); this architecture is not supported"
        )
    if future > TOLERANCE:
        raise RunFailed(
            f"{name}: its tokens see what follows (a later token changes log-probabilities by {future:.3g}), so it "
            "is no causal language model; where its config has is_decoder, set it to true"
        )
