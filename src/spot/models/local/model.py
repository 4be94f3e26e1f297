"""A transformers model in process: batched sampling with a KV cache, repeatable bit for bit after a kill.

Batches are cut from the whole list of requests, sorted by prompt length, whatever has been answered before; each row
draws from the generator of its own seed; a batch is answered, and committed, as a whole. So on the same machine, with
the same libraries, thread count and batch size, a resumed run writes the rows that an uninterrupted one writes.

A small model on a CPU answers as many batches at a time as torch has threads, each in a lane of its own: a thread, its
share of torch's threads, and its copy of the modules. Batches come out in their order, and none depends on another.
"""

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import logging

from spot.chat_template import Chat, Day, NotRendered, encode
from spot.errors import RunFailed, UserError
from spot.hub import load_model, load_tokenizer
from spot.models.base import Reply, Request
from spot.models.local.cache import can_join, growing_cache, joined
from spot.models.local.sampling import sample
from spot.schema import Message, Sampling, as_dicts

READ_TOKENS = 4096
"""How many tokens of prompts, padding included, go through the model at once, but never less than one prompt."""

SMALL = 100_000_000
"""A model with fewer parameters answers several batches at a time on a CPU: one alone does not keep its cores busy."""

LANES = 4
"""How many batches at most; each holds a cache of its own, and all share one Python."""

_ANCHOR = 8  # tokens of the beginning that a continuation is decoded after: enough for a character of several

SHRINK_AT = 0.75
"""Finished rows leave a batch once no more than this share of its rows is unfinished; leaving copies the cache."""


@dataclass(frozen=True)
class _Prompt:
    """One request ready for the model: its token ids, and how many new tokens it may get."""

    request: Request
    token_ids: list[int]
    budget: int


class LocalModel:
    """The causal language model at `path` (a directory, or a name on the hub), as a `Model`.

    Prompts go through the directory's chat template with `enable_thinking`, up to where the answer's own text begins
    (behind the markup of its channel, say); answers stop at the end-of-turn tokens of
    its generation config, whose other sampling settings are not used: `Sampling` is all there is. A prompt close to
    the end of the model's context gets as many new tokens as fit (`finish_reason` "length"); one that fills it, or
    that the template refuses, comes back as an error.

    `dtype` is "auto" (the checkpoint's) or torch's name of a type; `device` is "cpu", "cuda" or "cuda:N", by default
    CUDA where there is one; `name` is what rows call the model, by default `path` as given. With `loaded`, a model in
    evaluation mode on `device` and its tokenizer, nothing is loaded: its weights are shared, and `path` only names it.
    Products are in `autocast` where that is a type. A chat template that prints the date prints `day`, today unless
    given. Raises `UserError` where the directory holds no whole model with a tokenizer and a chat template for text,
    `RunFailed` on NaN or lack of memory.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 256,
        device: str | None = None,
        dtype: str = "auto",
        enable_thinking: bool = False,
        *,
        name: str | None = None,
        loaded: tuple[Any, Any] | None = None,
        autocast: torch.dtype | None = None,
        day: Day = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: must be at least 1")
        self.name = name or path
        self._path = path
        self._batch_size = batch_size
        self._autocast = autocast
        self._device = _device(device)
        if loaded is None:
            logging.disable_progress_bar()  # loading is quick where it matters, and its bar tears through ours
            self._tokenizer = _load_tokenizer(path)
            model = _load_model(path, _dtype(dtype), self._device)
        else:
            model, self._tokenizer = loaded
        small = self._device.type == "cpu" and sum(weight.numel() for weight in model.parameters()) < SMALL
        self._lanes = min(LANES, torch.get_num_threads()) if small else 1
        self._models = _replicas(model, self._lanes)
        self._context = _context(model.config)
        ends = model.generation_config.eos_token_id
        ends = self._tokenizer.eos_token_id if ends is None else ends
        if ends is None:
            raise UserError(f"{path}: no end-of-turn token; set eos_token_id in its generation_config.json")
        self._end_ids = frozenset([ends] if isinstance(ends, int) else ends)
        self.chat = Chat(self._tokenizer, day, enable_thinking=enable_thinking, stop_ids=self._end_ids)
        self.chat.check_sampling()

    async def generate(
        self, requests: Sequence[Request], sampling: Sampling, done: frozenset[str] = frozenset()
    ) -> AsyncIterator[list[Reply]]:
        """Answer `requests` batch by batch, the longest prompts first; one group is what a batch had missing.

        The work is done in threads, so the event loop stays free; it stops at the next token when this is cancelled.
        """
        stopped = threading.Event()
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self._lanes, "spot-model", torch.set_num_threads, (max(1, threads // self._lanes),))
        try:
            prompts, refused = await asyncio.to_thread(self._prepare, requests, sampling)
            if failures := [reply for reply in refused if reply.id not in done]:
                yield failures
            # The sort is stable: equal lengths stay in the order of the requests.
            prompts.sort(key=lambda prompt: -len(prompt.token_ids))
            cuts = [*range(0, len(prompts), self._batch_size), len(prompts)]
            if len(cuts) > 2:
                cuts[-2] = (cuts[-3] + cuts[-1] + 1) // 2  # the last two are even, so that lanes end together
            batches = [prompts[start:end] for start, end in pairwise(cuts)]
            batches = [batch for batch in batches if any(prompt.request.id not in done for prompt in batch)]
            # At once, so that every lane has work; awaited, and so yielded, in order.
            for answering in [pool.submit(self._answer, batch, sampling, stopped) for batch in batches]:
                replies = await asyncio.wrap_future(answering)
                yield [reply for reply in replies if reply.id not in done]
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            torch.set_num_threads(threads)  # what a thread sets for itself becomes the default of those that follow

    def close(self) -> None:
        """Free the model's memory; it cannot be used afterwards."""
        del self._models
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def borrowed(self) -> Generator[tuple[Any, Any, torch.device]]:
        """The model, its tokenizer and its device, for more than answers; one at a time."""
        model = self._models.get()
        try:
            with self._computing():
                yield model, self._tokenizer, self._device
        finally:
            self._models.put(model)

    def _computing(self) -> torch.autocast:
        # Entered by each thread for itself.
        return torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None)

    def _prepare(self, requests: Sequence[Request], sampling: Sampling) -> tuple[list[_Prompt], list[Reply]]:
        """Tokenize every request; those that cannot be sent come back as replies that say why."""
        rendered: dict[tuple[Message, ...], str | NotRendered] = {}
        for request in requests:
            if request.messages not in rendered:
                rendered[request.messages] = self.render(request.messages)
        texts = list(dict.fromkeys(text for text in rendered.values() if isinstance(text, str)))
        ids_of = dict(zip(texts, encode(self._tokenizer, texts), strict=True))
        ids_of_prefix = {
            prefix: encode(self._tokenizer, [self.chat.led(prefix) if prefix else ""])[0]
            for prefix in {request.prefix for request in requests}
        }

        prompts: list[_Prompt] = []
        refused: list[Reply] = []
        for request in requests:
            text = rendered[request.messages]
            if isinstance(text, NotRendered):
                refused.append(_error(request, str(text)))
                continue
            token_ids = [*ids_of[text], *ids_of_prefix[request.prefix]]
            room = sampling.max_new_tokens if self._context is None else self._context - len(token_ids)
            if not token_ids:
                refused.append(_error(request, "the chat template makes an empty prompt"))
            elif room < 1:
                reason = f"the prompt has {len(token_ids)} tokens and fills the model's context of {self._context}"
                refused.append(_error(request, reason))
            else:
                prompts.append(_Prompt(request, token_ids, min(room, sampling.max_new_tokens)))
        return prompts, refused

    def render(self, messages: tuple[Message, ...]) -> str | NotRendered:
        """The prompt as the model reads it, or why there is none."""
        try:
            return self.chat.prompt(as_dicts(list(messages)))
        except NotRendered as error:
            return error

    def _answer(self, batch: list[_Prompt], sampling: Sampling, stopped: threading.Event) -> list[Reply]:
        model = self._models.get()
        try:
            with self._computing():
                answers = self._decode(batch, model, sampling, stopped)
        except FloatingPointError as error:
            raise RunFailed(f"{self._path}: {error}; its weights are broken, or its dtype is too narrow") from error
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"{self._path}: out of memory on {self._device} with {len(batch)} answers at a time; "
                "lower the batch size"
            ) from error
        finally:
            self._models.put(model)
        ended = [ids[-1] in self._end_ids for ids in answers]
        bodies = [ids[:-1] if end else ids for ids, end in zip(answers, ended, strict=True)]
        texts = [
            decoded(self._tokenizer, body, prompt.token_ids[-_ANCHOR:] if prompt.request.prefix else [])
            for prompt, body in zip(batch, bodies, strict=True)
        ]
        return [
            Reply(prompt.request.id, text, "stop" if end else "length", tuple(ids))
            for prompt, text, end, ids in zip(batch, texts, ended, answers, strict=True)
        ]

    @torch.inference_mode()
    def _decode(
        self, batch: list[_Prompt], model: Any, sampling: Sampling, stopped: threading.Event
    ) -> list[list[int]]:
        """Sample one answer a prompt; the end-of-turn token is included where it was drawn.

        In the loop `rows` maps the rows still in the batch to those it began with; `tokens` and `uniforms` are
        `(steps, rows it began with)`. Rows that have finished but not left yet run on, and are not counted.
        """
        device = self._device
        uniforms = _uniforms(batch).to(device)
        budgets = torch.tensor([prompt.budget for prompt in batch], device=device)
        ends = torch.tensor(sorted(self._end_ids), device=device)
        tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        lengths = torch.zeros_like(budgets)
        rows = torch.arange(len(batch), device=device)
        unfinished = torch.ones_like(rows, dtype=torch.bool)

        input_ids, mask = (tensor.to(device) for tensor in _left_padded(batch))
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache, logits = _read(model, input_ids, mask, positions)
        for step in range(len(uniforms)):
            if stopped.is_set():
                raise asyncio.CancelledError
            if step:
                logits = _logits(model, input_ids, mask, positions, cache)
            drawn = sample(logits, uniforms[step, rows], temperature=sampling.temperature, top_p=sampling.top_p)
            tokens[step, rows] = drawn
            lengths[rows] += unfinished
            unfinished &= ~(torch.isin(drawn, ends) | (budgets[rows] == step + 1))
            num_unfinished = int(unfinished.sum())
            if num_unfinished == 0:
                break
            positions = positions[:, -1:] + 1
            if num_unfinished <= SHRINK_AT * len(rows):
                stay: Any = unfinished.nonzero().squeeze(1)
                cache.reorder_cache(stay)
                rows, drawn, mask, positions = rows[stay], drawn[stay], mask[stay], positions[stay]
                unfinished = unfinished[stay]
            if self._context is not None:
                # Only rows that have finished run into this; learned position tables end there.
                positions = positions.clamp(max=self._context - 1)
            input_ids = drawn.unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        by_row = tokens.T.tolist()
        return [ids[:length] for ids, length in zip(by_row, lengths.tolist(), strict=True)]


def _replicas(model: Any, count: int) -> SimpleQueue[Any]:
    """One a lane: `model`, and copies over the same weights, as some modules (rotary embeddings) change when run."""
    replicas: SimpleQueue[Any] = SimpleQueue()
    replicas.put(model)
    for _ in range(count - 1):
        replicas.put(copy.deepcopy(model, {id(weight): weight for weight in model.parameters()}))
    return replicas


def _read(model: Any, input_ids: Tensor, mask: Tensor, positions: Tensor) -> tuple[DynamicCache, Tensor]:
    """Put `(batch, longest)` prompts through the model; return its cache and the `(batch, vocab)` logits after them.

    They go through some rows at a time where the cache can be put together again: what the layers make of a whole
    batch is far larger than a processor's cache, and on a GPU can need more memory than all the answers.
    """
    batch, longest = input_ids.shape
    rows = max(1, READ_TOKENS // longest) if can_join(growing_cache(model.config)) else batch
    parts: list[DynamicCache] = []
    logits: list[Tensor] = []
    for start in range(0, batch, rows):
        some = slice(start, start + rows)
        parts.append(growing_cache(model.config))
        logits.append(_logits(model, input_ids[some], mask[some], positions[some], parts[-1]))
    return joined(parts, model.config), torch.cat(logits)


def _logits(model: Any, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """The `(batch, vocab)` logits after the last of the `(batch, new)` tokens, which go into `cache`."""
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def _left_padded(batch: list[_Prompt]) -> tuple[Tensor, Tensor]:
    """Prompt ids and their attention mask, both `(batch, longest)` int64; masked places hold id 0."""
    longest = max(len(prompt.token_ids) for prompt in batch)
    padding = [longest - len(prompt.token_ids) for prompt in batch]
    ids = [[0] * pad + prompt.token_ids for pad, prompt in zip(padding, batch, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    return torch.tensor(ids), torch.tensor(mask)


def _uniforms(batch: list[_Prompt]) -> Tensor:
    """`(steps, batch)` float64 in [0, 1): each column from its request's seed, whatever else is in the batch."""
    drawn = np.zeros((max(prompt.budget for prompt in batch), len(batch)))
    for column, prompt in enumerate(batch):
        drawn[: prompt.budget, column] = np.random.Generator(np.random.Philox(prompt.request.seed)).random(
            prompt.budget
        )
    return torch.from_numpy(drawn)


def decoded(tokenizer: Any, ids: list[int], before: Sequence[int] = ()) -> str:
    """The text of `ids`, special tokens aside, as it stands after the tokens `before`.

    Many tokenizers take the space off the first word of what they decode: there it would be lost.
    """

    def text(of: list[int]) -> str:
        return tokenizer.decode(of, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return text([*before, *ids])[len(text(list(before))) :]


def _error(request: Request, reason: str) -> Reply:
    return Reply(request.id, "", "error", error=" ".join(reason.split()))


def _load_tokenizer(path: str) -> Any:
    tokenizer: Any = load_tokenizer(path)
    if not tokenizer.chat_template:
        raise UserError(
            f"{path}: no chat template; a student must be an instruction-tuned model: add its chat_template.jinja"
        )
    return tokenizer


def _load_model(path: str, dtype: Any, device: torch.device) -> Any:
    model: Any = load_model(path, dtype)
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"{path}: the model does not fit into the memory of {device}") from error


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r}: not a device; use cpu, cuda or cuda:N") from None
    if parsed.type not in ("cpu", "cuda"):
        raise UserError(f"device {device!r}: sampling needs float64 and runs on cpu or cuda")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    return parsed


def _dtype(name: str) -> Any:
    if name == "auto":
        return "auto"
    dtype: object = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"dtype {name!r}: use auto, float32, bfloat16 or float16")
    return dtype


def _context(config: Any) -> int | None:
    """The model's context in tokens, `None` where its config states none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
