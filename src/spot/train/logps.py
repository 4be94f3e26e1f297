"""Token log-probabilities of answers: every distinct token of a pair once, the head only where a token is scored.

Scoring goes through the model's own `forward` (with a `spot_batch`), so that whatever wraps the model (DDP, FSDP, an
adapter) takes part. A model whose attention cannot run packed rows is scored on plain padded sequences; that path is
also the packed one's slow twin.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spot.train.attention import SPOT_SHARED, UnsupportedAttention
from spot.train.head import Tile, head_logps
from spot.train.layers import exchange_layers
from spot.train.packing import Plan, plan_step
from spot.train.row import BOTH, Heads, PackedRow, Side, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spot.train.tokenize import TokenizedPair

TOLERANCE = 1e-3
"""Nats in fp32 by which the packed path may differ from the plain one, and that from the model's own logits."""


@dataclass(frozen=True)
class PaddedBatch:
    """Plain sequences padded on the right: `input_ids` and `scored` `(batch, T)`, `targets` flat, `mask` `(batch, C)`.

    No attention mask is passed: under causal attention no real token can see what follows it, so padding changes
    nothing, and the fast causal kernels stay in use.
    """

    input_ids: Tensor
    scored: Tensor
    targets: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "PaddedBatch":
        """The same batch on `device`."""
        return PaddedBatch(*(part.to(device) for part in (self.input_ids, self.scored, self.targets, self.mask)))


def pad(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> PaddedBatch:
    """Token ids as a batch; a token is predicted from the position before it, so a row's last one is no input."""
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
    return PaddedBatch(input_ids, scored, targets, torch.arange(int(sizes.max()))[None] < sizes)


def score(model: "PreTrainedModel", batch: PackedRow | PaddedBatch, *, tile: Tile | None = None) -> Tensor:
    """Log-probabilities, in nats, of the answers' tokens: `(answers, longest)`, fp32, 0 on padding.

    Gradients flow where they are enabled. Raises `UnsupportedAttention` where a packed row did not go through
    `spot.train.attention`.
    """
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal language model has a head"
    if isinstance(batch, PaddedBatch):
        hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        # `scored` and `mask` are true as often in each row, so row-major order lines them up.
        logps = head_logps(head, hidden[batch.scored], batch.targets, tile)
        return torch.zeros(batch.mask.shape, device=logps.device).masked_scatter(batch.mask, logps)
    hidden = model.base_model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        # transformers takes positions that restart for packed sequences and would make a mask; it leaves 4-D ones be.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device),
        use_cache=False,
        packed_row=batch,
    ).last_hidden_state
    if batch.num_calls != model.config.get_text_config().num_hidden_layers:
        raise UnsupportedAttention(f"{batch.num_calls} of its layers attend through it")
    logps = head_logps(head, hidden[0].index_select(0, batch.scored), batch.targets, tile)
    # -1, an answer's padding, is the zero at the end.
    return torch.cat([logps, logps.new_zeros(1)])[batch.answers]


_ACCEPTS = "_spot_accepts_batches"


def accept_batches(model: "PreTrainedModel") -> None:
    """Make `model(spot_batch=...)` return `score(model, batch)`; all other calls are as before.

    Under autocast hidden states are in its type from the embeddings on, as servers and sharded training have them:
    autocast by itself leaves the sums of layers in fp32 and moves twice the bytes, and is further from fp32 on most
    pairs (docs/method.md). Layers that can be faster are exchanged (`spot.train.layers`).
    """
    forward: Any = model.forward
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Module), "a causal language model has embeddings"
    embeddings.register_forward_hook(_in_autocast_type)
    exchange_layers(model.base_model)

    def scoring(*args: Any, spot_batch: PackedRow | PaddedBatch | None = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs) if spot_batch is None else score(model, spot_batch)

    model.forward = scoring
    setattr(model, _ACCEPTS, True)


def accepts_batches(model: nn.Module) -> bool:
    """Whether `accept_batches` has been applied to `model`, or to what it is a copy of."""
    return getattr(model, _ACCEPTS, False)


def _in_autocast_type(_: nn.Module, __: Any, hidden: Tensor) -> Tensor:
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def share_prefixes(model: "PreTrainedModel", pair: "TokenizedPair") -> str | None:
    """Set `model` to attention over packed rows; where it cannot be, leave it and say why.

    It cannot be where `pair`, scored both ways, differs by more than `TOLERANCE`.
    """
    before = model.config._attn_implementation  # pyright: ignore[reportPrivateUsage] (the only way to ask)
    if before == SPOT_SHARED:  # left by a trainer that found something to refuse after this
        before = "sdpa"
        model.set_attn_implementation(before)
    if before != "sdpa":
        return f"its attention is {before}, not sdpa"
    windows = {kind for kind in getattr(model.config, "layer_types", None) or () if kind != "full_attention"}
    if windows:
        return f"its layers are of kind {', '.join(sorted(windows))}"
    device = next(model.parameters()).device
    with torch.no_grad():
        answers = [pair.completion(side) for side in pair.sides]
        plain = score(model, pad([pair.prompt_ids] * len(answers), answers).to(device))
        try:
            model.set_attn_implementation(SPOT_SHARED)
            shared = score(model, pack([pair], pair.sides).to(device))
        except torch.OutOfMemoryError:
            raise
            # An architecture may refuse in its own ways; the plain path is right for every one of them.
        except (UnsupportedAttention, TypeError, ValueError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
        else:
            difference = float((plain - shared).abs().max())
            if difference <= TOLERANCE:
                return None
            reason = f"its log-probabilities differ by {difference:.3g}"
    model.set_attn_implementation(before)
    return reason


@torch.no_grad()
def attention_heads(model: "PreTrainedModel", pair: "TokenizedPair") -> set[Heads]:
    """The kinds of attention calls that `model`, which shares prefixes, makes for `pair`."""
    row = pack([pair], pair.sides).to(next(model.parameters()).device)
    score(model, row)
    return row.heads


@dataclass(frozen=True)
class Scorer:
    """The one way, of reference and policy, to score answers: with `model`, wrapped or not.

    `shared` says whether packed rows are used; `bf16` that products are computed in autocast bf16, else in fp32;
    `varlen` that a row's attention is one call.
    """

    model: nn.Module
    shared: bool
    bf16: bool
    varlen: bool = False

    def num_tokens(self, pair: "TokenizedPair", sides: Sequence[Side] = BOTH) -> int:
        """Tokens that a pair runs."""
        if self.shared and len(sides) == 2:
            return pair.num_distinct
        return sum(pair.num_plain(side) for side in sides)

    def num_slots(self, pair: "TokenizedPair", sides: Sequence[Side] = BOTH) -> int:
        """The same with the padding of its shorter side, where sides are padded."""
        return self.num_tokens(pair, sides) if self.shared else len(sides) * max(map(pair.num_plain, sides))

    def plan(
        self, pairs: Sequence["TokenizedPair"], forwards: Sequence[Sequence[Side]], budget: int, num_ranks: int
    ) -> Plan:
        """The rows of a step, each of at most `budget` slots in each of its `forwards`."""
        slots = [max(self.num_slots(pair, sides) for sides in forwards) for pair in pairs]
        return plan_step(slots, budget, num_ranks, padded=not self.shared)

    def __call__(self, pairs: Sequence["TokenizedPair"], sides: Sequence[Side] = BOTH) -> tuple[Tensor, Tensor]:
        """Token log-probabilities and boolean mask: `(len(sides) * len(pairs), longest)`, a side after the other."""
        device = next(self.model.parameters()).device
        if self.shared:
            batch: Any = replace(pack(pairs, sides).to(device), varlen=self.varlen)
            mask = batch.answers >= 0
        else:
            prompts = [pair.prompt_ids for pair in pairs] * len(sides)
            batch = pad(prompts, [pair.completion(side) for side in sides for pair in pairs]).to(device)
            mask = batch.mask
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.model(spot_batch=batch), mask


@torch.no_grad()
def training_difference(model: "PreTrainedModel", prompt: Sequence[int], completion: Sequence[int]) -> float:
    """The largest difference that `model`'s training mode makes, in nats; it is left in the mode that it was in."""
    batch = pad([prompt], [completion]).to(next(model.parameters()).device)
    before = model.training
    both = [score(model.train(mode), batch) for mode in (False, True)]
    model.train(before)
    return float((both[0] - both[1]).abs().max())


@torch.no_grad()
def head_difference(model: "PreTrainedModel", prompt: Sequence[int], completion: Sequence[int]) -> float:
    """The largest difference between `score` and the model's own full forward, in nats.

    Some architectures scale or cap logits after the head; for those this module would be silently wrong, so training
    starts by looking.
    """
    device = next(model.parameters()).device
    fast = score(model, pad([prompt], [completion]).to(device))
    ids = torch.tensor([[*prompt, *completion]], device=device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    exact = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
    return float((fast[0] - exact).abs().max())
