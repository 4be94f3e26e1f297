"""Token log-probabilities of completions: hidden states once, the head only where a token is scored.

Rows are padded on the right and no attention mask is passed: under causal attention no real token can see what
follows it, so padding changes nothing, and the fast causal kernels stay in use.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spot.train.tokenize import TokenizedPair

Side = Literal["chosen", "rejected"]

MAX_LOGITS = 2**26
"""The largest number of logits held at once (256 MiB in fp32); beyond it the head runs in recomputed chunks."""


def pair_logps(
    model: "PreTrainedModel",
    pairs: Sequence["TokenizedPair"],
    sides: Sequence[Side] = ("chosen", "rejected"),
    *,
    bf16: bool,
) -> tuple[Tensor, Tensor]:
    """Token log-probabilities and masks of the answers: `(len(sides) * len(pairs), longest)`, a side after the other.

    The one code path of reference and policy, in autocast bf16 or in fp32.
    """
    prompts = [pair.prompt_ids for pair in pairs] * len(sides)
    completions = [pair.chosen_ids if side == "chosen" else pair.rejected_ids for side in sides for pair in pairs]
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
        return completion_logps(model, prompts, completions)


def completion_logps(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    max_logits: int = MAX_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, in nats, of each completion's tokens after its prompt.

    Returns `token_logps` `(batch, longest completion)`, fp32, 0 on padding, and the boolean `completion_mask` of the
    same shape. Prompts and completions are token ids, none empty. Gradients flow where they are enabled.
    """
    device = next(model.parameters()).device
    input_ids, scored, targets, completion_mask = (tensor.to(device) for tensor in _padded(prompts, completions))
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal language model has a head"
    # `scored` and `completion_mask` are true as often in each row, so row-major order lines them up.
    logps = _head_logps(head, hidden[scored], targets, max_logits)
    token_logps = torch.zeros(completion_mask.shape, device=device).masked_scatter(completion_mask, logps)
    return token_logps, completion_mask


def _padded(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs `(batch, T)`, the scored positions in them, the flat targets, and the completion mask `(batch, C)`.

    A token is predicted from the position before it, so the last token of a row is never an input.
    """
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts])[:, None]
    sizes = torch.tensor([len(completion) for completion in completions])[:, None]
    assert int(starts.min()) >= 0 and int(sizes.min()) > 0, "prompts and completions must not be empty"
    width = int((starts + sizes).max())
    input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = [*prompt, *completion[:-1]]
        input_ids[row, : len(ids)] = torch.tensor(ids)
    positions = torch.arange(width)[None]
    scored = (positions >= starts) & (positions < starts + sizes)
    targets = torch.tensor([token for completion in completions for token in completion])
    completion_mask = torch.arange(int(sizes.max()))[None] < sizes
    return input_ids, scored, targets, completion_mask


def _head_logps(head: nn.Module, hidden: Tensor, targets: Tensor, max_logits: int) -> Tensor:
    """`(rows,)` fp32 log-probabilities of `targets` under `head(hidden)`, never more than `max_logits` logits held."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    rows = max(1, max_logits // len(weight))
    if len(hidden) <= rows:
        return _chunk_logps(head, hidden, targets)
    chunks = [
        checkpoint(_chunk_logps, head, part, target, use_reentrant=False)
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(chunks)


def _chunk_logps(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(head(hidden).float(), targets, reduction="none")


@torch.no_grad()
def head_difference(model: "PreTrainedModel", prompt: Sequence[int], completion: Sequence[int]) -> float:
    """The largest difference between `completion_logps` and the model's own full forward, in nats.

    Some architectures scale or cap logits after the head; for those this module would be silently wrong, so training
    starts by looking.
    """
    fast, _ = completion_logps(model, [prompt], [completion])
    ids = torch.tensor([[*prompt, *completion]], device=fast.device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    return float((fast[0] - _log_prob(logits, ids[0, len(prompt) :])).abs().max())


def _log_prob(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
