"""Token log-probabilities of answers: every distinct token of a pair once, the head only where a token is scored.

Scoring goes through the model's own `forward` (with a `spot_batch`), so that whatever wraps the model (DDP, FSDP, an
adapter) takes part. A model whose attention cannot run packed rows is scored on plain padded sequences; that path is
also the packed one's slow twin.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spot.train.attention import SPOT_SHARED, UnsupportedAttention
from spot.train.experts import has_experts
from spot.train.head import Tile, head_logps
from spot.train.layers import exchange_layers
from spot.train.module_state import body, clear
from spot.train.packing import Plan, plan_step
from spot.train.row import BOTH, Heads, PackedRow, Side, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spot.train.tokenize import TokenizedPair

TOLERANCE = 1e-3
"""Nats in fp32 by which the packed path may differ from the plain one, and that from the model's own logits."""

ROUTED_OTHERWISE = 0.05
"""Share of an answer's tokens that may differ by more where there are experts: rounding decides between near equals."""


@dataclass(frozen=True)
class PaddedBatch:
    """Plain sequences padded on the right: `input_ids` and `scored` `(batch, T)`, `targets` flat, `mask` `(batch, C)`.

    No attention mask is passed: under causal attention no real token can see what follows it, so padding changes
    nothing, and the fast causal kernels stay in use. `alone` asks for a forward a sequence, without padding.
    """

    input_ids: Tensor
    scored: Tensor
    targets: Tensor
    mask: Tensor
    alone: bool = field(default=False)

    def to(self, device: torch.device) -> "PaddedBatch":
        """The same batch on `device`."""
        names = ("input_ids", "scored", "targets", "mask")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


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
        # `scored` and `mask` are true as often in each row, so row-major order lines them up.
        logps = head_logps(head, _scored_states(model, batch), batch.targets, tile)
        return torch.zeros(batch.mask.shape, device=logps.device).masked_scatter(batch.mask, logps)
    clear(model)
    batch.num_calls = 0
    hidden = body(model)(
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


def _scored_states(model: "PreTrainedModel", batch: PaddedBatch) -> Tensor:
    """The hidden states that `batch.targets` are predicted from, `(scores, width)`."""

    def states(input_ids: Tensor) -> Tensor:
        clear(model)
        return body(model)(input_ids=input_ids, use_cache=False).last_hidden_state

    if not batch.alone:
        return states(batch.input_ids)[batch.scored]
    places = [scored.nonzero()[:, 0] for scored in batch.scored]
    rows = zip(batch.input_ids, places, strict=True)
    return torch.cat([states(ids[None, : int(scored[-1]) + 1])[0, scored] for ids, scored in rows])


_ACCEPTS = "_spot_accepts_batches"
_FORWARD = "_spot_forward"
"""The forward that a model had before it was made to accept batches."""


def accept_batches(model: "PreTrainedModel") -> None:
    """Make `model(spot_batch=...)` return `score(model, batch)`; all other calls are as before.

    Under autocast hidden states are in its type from the embeddings on, as servers and sharded training have them:
    autocast by itself leaves the sums of layers in fp32 and moves twice the bytes, and is further from fp32 on most
    pairs (docs/method.md). Layers that can be faster are exchanged (`spot.train.layers`).
    """
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Module), "a causal language model has embeddings"
    embeddings.register_forward_hook(_in_autocast_type)
    exchange_layers(body(model))
    setattr(model, _FORWARD, model.forward)
    # A method, not a closure: a copy of the model is to run its own weights.
    model.forward = MethodType(_forward, model)
    setattr(model, _ACCEPTS, True)


def _forward(
    model: "PreTrainedModel", *args: Any, spot_batch: PackedRow | PaddedBatch | None = None, **kwargs: Any
) -> Any:
    if spot_batch is not None:
        return score(model, spot_batch)
    clear(model)
    return getattr(model, _FORWARD)(*args, **kwargs)


def accepts_batches(model: nn.Module) -> bool:
    """Whether `accept_batches` has been applied to `model`, or to what it is a copy of."""
    return getattr(model, _ACCEPTS, False)


def _in_autocast_type(_: nn.Module, __: Any, hidden: Tensor) -> Tensor:
    device = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden


def share_prefixes(model: "PreTrainedModel", *pairs: "TokenizedPair") -> str | None:
    """Set `model` to attention over packed rows; where it cannot be, leave it and say why.

    It cannot be where answers of `pairs`, in one row, differ from what they are by themselves.
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
    exact, routed = _some_alone(model, pairs), has_experts(model.config)
    try:
        model.set_attn_implementation(SPOT_SHARED)
        reason = _unlike(exact, Scorer(model, shared=True, bf16=False), pairs, routed)
    except torch.OutOfMemoryError:
        raise
        # An architecture may refuse in its own ways; the plain path is right for every one of them.
    except (UnsupportedAttention, AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
    if reason is not None:
        model.set_attn_implementation(before)
    return reason


def not_batched(model: "PreTrainedModel", *pairs: "TokenizedPair") -> str | None:
    """Why answers of `pairs`, padded into one batch, are not what they are by themselves; `None` where they are."""
    together = Scorer(model, shared=False, bf16=False)
    return _unlike(_some_alone(model, pairs), together, pairs, has_experts(model.config))


def _some_alone(model: "PreTrainedModel", pairs: Sequence["TokenizedPair"]) -> dict[int, Tensor]:
    """The answers of the first two, the middle and the last of `pairs`, each scored in a forward of its own."""
    places = sorted({0, min(1, len(pairs) - 1), len(pairs) // 2, len(pairs) - 1})
    alone = Scorer(model, shared=False, bf16=False, alone=True)
    return {place: alone.plainly([pairs[place]], pairs[0].sides)[0] for place in places}


def _unlike(exact: dict[int, Tensor], scorer: "Scorer", pairs: Sequence["TokenizedPair"], routed: bool) -> str | None:
    """How answers of `pairs`, scored together, are not the `exact` ones, by the place of their pair."""
    sides = pairs[0].sides
    values, mask = (states.view(len(sides), len(pairs), -1) for states in scorer.plainly(pairs, sides))
    for place, answers in exact.items():
        width = answers.shape[1]
        real = mask[:, place, :width]
        differences = (values[:, place, :width] - answers).abs()[real]
        allowed = ROUTED_OTHERWISE if routed else 0.0
        if float((differences <= TOLERANCE).float().mean()) < 1 - allowed:  # in this form it is wrong for nan, too
            return f"log-probabilities of sequences that share a forward differ by {float(differences.max()):.3g}"
    return None


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
    `varlen` that a row's attention is one call; `alone` that no two sequences share a forward.
    """

    model: nn.Module
    shared: bool
    bf16: bool
    varlen: bool = False
    alone: bool = False

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
        if self.alone:  # a pair a row, or ranks would not run equally many forwards
            budget, slots = max(slots), [max(slots)] * len(slots)
        return plan_step(slots, budget, num_ranks, padded=not self.shared)

    def __call__(self, pairs: Sequence["TokenizedPair"], sides: Sequence[Side] = BOTH) -> tuple[Tensor, Tensor]:
        """Token log-probabilities and boolean mask: `(len(sides) * len(pairs), longest)`, a side after the other."""
        batch, mask = self._batch(pairs, sides)
        with torch.autocast(mask.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.model(spot_batch=batch), mask

    @torch.no_grad()
    def plainly(self, pairs: Sequence["TokenizedPair"], sides: Sequence[Side] = BOTH) -> tuple[Tensor, Tensor]:
        """The same without gradients, of a language model whose own forward does not accept batches yet."""
        batch, mask = self._batch(pairs, sides)
        model: Any = self.model
        return score(model, batch), mask

    def _batch(self, pairs: Sequence["TokenizedPair"], sides: Sequence[Side]) -> tuple[PackedRow | PaddedBatch, Tensor]:
        device = next(self.model.parameters()).device
        if self.shared:
            row = replace(pack(pairs, sides).to(device), varlen=self.varlen)
            return row, row.answers >= 0
        prompts = [pair.prompt_ids for pair in pairs] * len(sides)
        batch = pad(prompts, [pair.completion(side) for side in sides for pair in pairs]).to(device)
        return replace(batch, alone=self.alone), batch.mask


@torch.no_grad()
def training_difference(model: "PreTrainedModel", prompt: Sequence[int], completion: Sequence[int]) -> float:
    """The largest difference that `model`'s training mode makes, in nats; it is left in the mode that it was in."""
    batch = pad([prompt], [completion]).to(next(model.parameters()).device)
    before = model.training
    both = [score(model.train(mode), batch) for mode in (False, True)]
    model.train(before)
    return float((both[0] - both[1]).abs().max())


AMPLIFIED = 1000.0
"""By how much hidden states are scaled to see what small logits hide: a cap, or a scale of its own."""


@torch.no_grad()
def head_difference(model: "PreTrainedModel", prompt: Sequence[int], completion: Sequence[int]) -> float:
    """The largest difference between `score` and the model's own full forward, in nats, a logit's scale apart.

    Some architectures scale or cap logits after the head; for those this module would be silently wrong, so training
    starts by looking, also at hidden states so large that a cap shows in a model whose logits are small yet.
    """

    def difference() -> float:
        fast = score(model, pad([prompt], [completion]).to(ids.device))
        clear(model)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
        exact = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        return float((fast[0] - exact).abs().max())

    def amplified(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return given[0] * AMPLIFIED, *given[1:]

    ids = torch.tensor([[*prompt, *completion]], device=next(model.parameters()).device)
    plain = difference()
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal language model has a head"
    hook = head.register_forward_pre_hook(amplified)
    try:
        return max(plain, difference() / AMPLIFIED)
    finally:
        hook.remove()


@torch.no_grad()
def future_difference(model: "PreTrainedModel", prompt: Sequence[int], completion: Sequence[int]) -> float:
    """How much log-probabilities, in nats, change by another token after them; 0 in a causal language model."""
    *answer, last = completion
    if not answer:
        *prompt, begun = prompt
        answer = [begun]
    assert prompt, "a prompt and an answer have more than two tokens"
    device = next(model.parameters()).device
    one, other = (score(model, pad([prompt], [[*answer, end, last]]).to(device)) for end in (last, answer[0]))
    return float((one - other)[0, : len(answer)].abs().max())
