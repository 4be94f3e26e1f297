"""The Oracle that is a language model: any `Model`, prompted with or without the known answer.

Replies cost money. Each is on the disk before anything reads it, so a parser that fails, a kill or a changed check
never makes the same request twice: on a re-run what is recorded is parsed again for free.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spot.models.base import Model, Reply, Request
from spot.rectify.base import Correction, Failure
from spot.rectify.parse import Markers, extract_block, meta_phrase
from spot.rectify.prompting import load_prompt, problem_text
from spot.schema import FinishReason, Message, Mode, Row, Sampling, as_dicts, derived_seed
from spot.store import Appender, read_rows


class RawReply(Row):
    """One reply as it came, and under which key."""

    key: str
    attempt_id: str
    candidate: int
    model: str
    text: str
    finish_reason: FinishReason
    error: str = ""


@dataclass(frozen=True)
class _Ask:
    failure: Failure
    markers: Markers
    request: Request
    key: str


class ModelOracle:
    """Corrects by asking `model` once a failure; implements `spot.rectify.base.Oracle`.

    `prompt` is the name of a prompt of this package or the path of the user's own; `None` takes the package's for
    `with_answer`. Replies are kept in `raw_path` (JSONL), or not at all where it is `None`.

    Raises `UserError` for a prompt that does not exist or does not render.
    """

    mode: Mode = "rewrite"

    def __init__(
        self,
        model: Model,
        with_answer: bool,
        prompt: str | None = None,
        sampling: Sampling | None = None,
        *,
        raw_path: Path | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or f"model:{model.name}"
        self._model = model
        self._template = load_prompt(prompt, with_answer)
        self._sampling = sampling or Sampling()
        self._raw_path = raw_path

    async def correct(self, failures: Sequence[Failure]) -> AsyncIterator[list[Correction]]:
        """Corrections in groups: first all whose replies are on record, then the others as they come."""
        asks = {ask.request.id: ask for ask in map(self._ask, failures)}
        record = _Record(self._raw_path)
        try:
            known = {id: record[ask.key] for id, ask in asks.items() if ask.key in record}
            if known:
                yield [self._corrected(asks[id], reply) for id, reply in known.items()]
            # All requests are passed, because a local model forms its batches over the whole list.
            requests = [ask.request for ask in asks.values()]
            async for replies in self._model.generate(requests, self._sampling, frozenset(known)):
                record.commit(self._raw(asks[reply.id], reply) for reply in replies)
                yield [self._corrected(asks[reply.id], reply) for reply in replies]
        finally:
            record.close()

    def _ask(self, failure: Failure, candidate: int = 0) -> _Ask:
        attempt = failure.attempt
        salt = str(self._sampling.seed)
        markers = Markers.derive(attempt.id, salt, attempt.response, problem_text(failure.problem))
        message = Message(role="user", content=self._template.render(failure, markers))
        request = Request(
            id=f"{attempt.id}~{self.name}.{candidate}",
            messages=(message,),
            seed=derived_seed(self._sampling.seed, "rectify", attempt.id, candidate),
        )
        endpoint = str(getattr(self._model, "fingerprint", self._model.name))
        return _Ask(failure, markers, request, reply_key(endpoint, request, self._sampling, candidate))

    def _raw(self, ask: _Ask, reply: Reply) -> RawReply:
        return RawReply(
            key=ask.key,
            attempt_id=ask.failure.attempt.id,
            candidate=0,
            model=self._model.name,
            text=reply.text,
            finish_reason=reply.finish_reason,
            error=reply.error,
        )

    def _corrected(self, ask: _Ask, reply: Reply | RawReply) -> Correction:
        text, reason = _read(ask, reply)
        return Correction(
            attempt_id=ask.failure.attempt.id,
            text=text,
            reason=reason,
            prompt_version=self._template.version,
            ledger_key=ask.key,
        )


def _read(ask: _Ask, reply: Reply | RawReply) -> tuple[str | None, str]:
    """The corrected text and why it cannot be used; a text with a reason is kept to be looked at."""
    if reply.finish_reason == "error":
        return None, "no_reply"
    if reply.finish_reason == "length":
        return None, "truncated"
    parsed = extract_block(reply.text, ask.markers)
    if parsed.text is None:
        return None, parsed.reason
    failure = ask.failure
    leak = meta_phrase(parsed.text, failure.attempt.response, problem_text(failure.problem))
    return parsed.text, "meta_phrase" if leak else ""


def reply_key(endpoint: str, request: Request, sampling: Sampling, candidate: int) -> str:
    """Hash over all that decides a reply; nothing stale is ever reused."""
    parts: list[Any] = [endpoint, as_dicts(list(request.messages)), sampling.model_dump(), request.seed, candidate]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _Record:
    """Raw replies by key, append-only on disk; replies that were errors are kept for the account but asked again."""

    def __init__(self, path: Path | None) -> None:
        self._replies: Mapping[str, RawReply] = {}
        self._appender: Appender | None = None
        if path is not None:
            self._appender = Appender(path)  # first: it repairs a torn last line
            self._replies = {row.key: row for row in read_rows(path, RawReply) if row.finish_reason != "error"}

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> RawReply:
        return self._replies[key]

    def commit(self, rows: Iterable[RawReply]) -> None:
        """Put `rows` on the disk, where there is one."""
        if self._appender is not None:
            self._appender.append(rows)

    def close(self) -> None:
        """Close the file."""
        if self._appender is not None:
            self._appender.close()
