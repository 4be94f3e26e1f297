"""Known choices scored instead of an answer generated: what multiple-choice tests of likelihood need."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence

import torch

from spot.chat_template import NotRendered
from spot.errors import RunFailed
from spot.models.base import Reply, Request
from spot.models.local.model import LocalModel
from spot.schema import Sampling


class LikelihoodModel:
    """`model`, scoring the choices that `choices` has for a problem; implements `spot.models.base.Model`.

    A reply's text is a JSON list: for each choice the sum of its tokens' log-probabilities, in nats and fp32, as the
    assistant's whole text after the prompt; the end of the turn is not counted. Sampling plays no part.
    """

    def __init__(self, model: LocalModel, choices: Mapping[str, Sequence[str]]) -> None:
        self.name = model.name
        self._model = model
        self._choices = choices

    async def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,  # noqa: ARG002 (nothing is drawn)
        done: frozenset[str] = frozenset(),
    ) -> AsyncIterator[list[Reply]]:
        """Score one request after the other; an id is the problem's, `#`, and the sample."""
        for request in requests:
            if request.id not in done:
                choices = self._choices[request.id.rpartition("#")[0]]
                yield [await asyncio.to_thread(self._scored, request, choices)]

    def _scored(self, request: Request, choices: Sequence[str]) -> Reply:
        prompt = self._model.render(request.messages)
        if isinstance(prompt, NotRendered):
            return Reply(request.id, "", "error", error=str(prompt))
        with self._model.borrowed() as (model, tokenizer, device), torch.inference_mode():
            asked: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            start = len(asked)
            logps: list[float] = []
            for choice in choices:
                whole: list[int] = tokenizer(prompt + self._model.chat.led(choice), add_special_tokens=False)[
                    "input_ids"
                ]
                if whole[:start] != asked or len(whole) == start:
                    why = f"the choice {choice[:40]!r} does not follow the prompt token by token"
                    return Reply(request.id, "", "error", error=why)
                ids = torch.tensor(whole, device=device)
                logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0, start - 1 :]
                logps.append(float(logits.float().log_softmax(-1).gather(-1, ids[start:, None]).sum()))
        if not all(torch.isfinite(torch.tensor(logps))):
            raise RunFailed(f"{self.name}: log-probabilities are not finite; its weights are broken")
        return Reply(request.id, json.dumps(logps), "stop")
