"""How likely both answers are under the student, token by token, and how far training moved the student along y+.

What is measured, over the tokens that training runs (the answer after the rendered prompt, its end-of-turn token
included), all in nats:

- The negative log-likelihood of every token of y+ and of y- under the student before training, each given the prompt
  and that answer up to there. Their difference, a token, is the pair's `divergence`. After the first edit the two
  answers are different contexts of different lengths, so no next-token distribution of one has a counterpart in the
  other: there is no KL between the two answers.
- Where a trained model is at hand: KL(trained || student) between the two models' next-token distributions over the
  whole vocabulary, at every place of y+, both given the prompt and y+ up to there.

Both are split at the first edit, the first token in which the two answers differ. Logits are computed for a block of
places at a time and never kept, so memory does not grow with the data.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spot.audit.profile import Profile
from spot.audit.summary import Answer, AnswerSummary, Divergence, Likelihood, LikelihoodSummary, spread
from spot.errors import RunFailed
from spot.train.checks import check_vocabulary
from spot.train.logps import TOLERANCE, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spot.train.row import Side
    from spot.train.tokenize import TokenizedPair

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 32768}
"""Tokens that go through a model at once, padding included, but never less than one answer."""

LOGITS_AT_ONCE = {"cpu": 2**24, "cuda": 2**27}
"""Logits of one model that are held at once: 64 MiB of fp32 on a CPU, 512 MiB on a GPU."""


class LikelihoodAudit:
    """Scores pairs under the student and, where there is one, the trained model; remembers what sums up.

    Both are causal language models on one device, in evaluation mode. Raises `RunFailed` where a model's logits are
    not those of its output embeddings, or not finite; `UserError` where tokens are not the model's.
    """

    def __init__(self, student: "PreTrainedModel", trained: "PreTrainedModel | None") -> None:
        self._student, self._trained = student, trained
        self._device = next(student.parameters()).device
        self._profile = Profile()
        self._rows: list[Likelihood] = []
        self._sums = {"before": 0.0, "kl_before": 0.0, "kl_from_edit": 0.0}

    @torch.inference_mode()
    def score(self, pairs: "Sequence[TokenizedPair]") -> Iterator[tuple[int, Likelihood]]:
        """Each pair's place in `pairs` with what was measured on it, the longest first."""
        if not pairs:
            return
        for model in filter(None, (self._student, self._trained)):
            check_vocabulary(list(pairs), model)
            check_logits(model, min(pairs, key=lambda pair: pair.length))
        for places in batches([pair.length for pair in pairs], TOKENS_AT_ONCE.get(self._device.type, 4096)):
            rows = [pairs[place] for place in places]
            chosen, kl = self._answers(rows, "chosen", self._trained)
            rejected, _ = self._answers(rows, "rejected", None)
            for number, place in enumerate(places):
                found = self._likelihood(
                    rows[number], chosen[number], rejected[number], None if kl is None else kl[number]
                )
                self._rows.append(found)
                yield place, found

    def _answers(
        self, pairs: "Sequence[TokenizedPair]", side: "Side", trained: "PreTrainedModel | None"
    ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Of each answer the negative log-likelihood, and KL(trained || student), a token, `(tokens,)` fp64 each."""
        completions = [pair.completion(side) for pair in pairs]
        batch = pad([pair.prompt_ids for pair in pairs], completions).to(self._device)
        models = [self._student] if trained is None else [self._student, trained]
        states = [model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[batch.scored]
                  for model in models]  # fmt: skip
        heads = [model.get_output_embeddings() for model in models]
        cuts = np.cumsum([len(completion) for completion in completions])[:-1].tolist()
        nll, kl = token_scores(heads, states, batch.targets)
        if not (torch.isfinite(nll).all() and (kl is None or torch.isfinite(kl).all())):
            raise RunFailed("log-likelihoods of the pairs are not finite; the model's weights are damaged")
        return np.split(_array(nll), cuts), None if kl is None else np.split(_array(kl), cuts)

    def _likelihood(
        self, pair: "TokenizedPair", chosen: np.ndarray, rejected: np.ndarray, kl: np.ndarray | None
    ) -> Likelihood:
        """One pair's row; its tokens go into the profile."""
        edit = pair.num_common
        self._profile.add("chosen", chosen, edit)
        self._profile.add("rejected", rejected, edit)
        self._sums["before"] += float(chosen[:edit].sum())
        if kl is not None:
            self._profile.add("kl", kl, edit)
            self._sums["kl_before"] += float(kl[:edit].sum())
            self._sums["kl_from_edit"] += float(kl[edit:].sum())
        return Likelihood(
            shared_tokens=edit,
            chosen=_answer(chosen, edit),
            rejected=_answer(rejected, edit),
            divergence=float(chosen.mean() - rejected.mean()),
            divergence_from_edit=float(chosen[edit:].mean() - rejected[edit:].mean()),
            kl=None if kl is None else _divergence(float(kl[:edit].sum()), edit, float(kl[edit:].sum()), len(kl)),
        )

    def summary(self, student: str, trained: str | None) -> LikelihoodSummary:
        """All pairs so far together, one at least; `student` and `trained` are what the models are called."""
        before = sum(row.shared_tokens for row in self._rows)
        sums = self._sums
        tokens = sum(row.chosen.tokens for row in self._rows)
        kl = None if self._trained is None else _divergence(sums["kl_before"], before, sums["kl_from_edit"], tokens)
        return LikelihoodSummary(
            student=student,
            trained=trained,
            precision=str(self._student.dtype).removeprefix("torch."),
            pairs=len(self._rows),
            chosen=_summed([row.chosen for row in self._rows], before),
            rejected=_summed([row.rejected for row in self._rows], before),
            perplexity_before=_perplexity(sums["before"], before) if before else None,
            divergence=spread([row.divergence for row in self._rows]),
            kl=kl,
            profile=self._profile.bins(),
        )


def check_logits(model: "PreTrainedModel", pair: "TokenizedPair") -> None:
    """Raise `RunFailed` where the model's logits are not its output embeddings applied to its hidden states.

    Some architectures scale or cap logits after the head; for those all that is measured here would be wrong.
    """
    ids = torch.tensor([[*pair.prompt_ids, *pair.chosen_ids]], device=model.device)
    head: Any = model.get_output_embeddings()
    ours = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    theirs = model(input_ids=ids, use_cache=False).logits
    difference = float((ours.float().log_softmax(-1) - theirs.float().log_softmax(-1)).abs().max())
    if not difference <= TOLERANCE:
        raise RunFailed(
            f"{type(model).__name__}: its logits are not its output embeddings applied to its hidden states, or not "
            f"finite (log-probabilities differ by {difference:.3g}); leave the likelihoods out with --skip_models"
        )


def token_scores(heads: Sequence[Any], states: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """The first model's negative log-likelihoods of `targets`, and KL(second || first) where there are two.

    `states` are `(places, width)` of each model, the input of its head in `heads`; `targets` is `(places,)` int64; both
    results are `(places,)` fp32, in nats. A block of places at a time, logits in fp32.
    """
    vocabulary = next(iter(heads[0].parameters())).shape[0]
    block = max(1, LOGITS_AT_ONCE.get(targets.device.type, 2**24) // vocabulary)
    nll: list[Tensor] = []
    kl: list[Tensor] = []
    for part in torch.arange(len(targets), device=targets.device).split(block):
        logps = [head(state[part]).float().log_softmax(-1) for head, state in zip(heads, states, strict=True)]
        nll.append(-logps[0].gather(-1, targets[part, None])[:, 0])
        if len(logps) == 2:
            kl.append((logps[1].exp() * (logps[1] - logps[0])).sum(-1))
    return torch.cat(nll), torch.cat(kl) if len(heads) == 2 else None


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of `lengths`, the longest first, in batches of at most `budget` tokens with their padding, but one."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _answer(nll: np.ndarray, edit: int) -> Answer:
    total, rest = float(nll.sum()), float(nll[edit:].sum())
    return Answer(
        tokens=len(nll),
        logp=-total,
        perplexity=_perplexity(total, len(nll)),
        logp_from_edit=-rest,
        perplexity_from_edit=_perplexity(rest, len(nll) - edit),
    )


def _perplexity(nll: float, tokens: int) -> float:
    return math.exp(nll / tokens)


def _divergence(before: float, tokens_before: int, rest: float, tokens: int) -> Divergence:
    return Divergence(
        mean=(before + rest) / tokens,
        before=before / tokens_before if tokens_before else None,
        from_edit=rest / (tokens - tokens_before),
    )


def _summed(answers: Sequence[Answer], before: int) -> AnswerSummary:
    tokens = sum(answer.tokens for answer in answers)
    return AnswerSummary(
        tokens=tokens,
        perplexity=_perplexity(-sum(answer.logp for answer in answers), tokens),
        mean_perplexity=float(np.mean([answer.perplexity for answer in answers])),
        perplexity_from_edit=_perplexity(-sum(answer.logp_from_edit for answer in answers), tokens - before),
    )
