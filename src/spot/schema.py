"""The rows that travel between stages, one JSON object a line.

Every row is frozen and checked when it is read: a missing field, an unknown field or a wrong type is an error that
names the file and the line (see `store.read_rows`). Ids are deterministic, so a stage that is run again can tell what
it already has.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class Row(BaseModel):
    """Base of all rows: immutable, no unknown fields, no coercion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    columns: ClassVar[frozenset[str] | None] = None
    """What is read of a table that has more columns; all of them where it is `None`."""


class Message(Row):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, message: Any) -> Any:
        # Tables give every message all keys of any: no tool calls are `tool_calls: null`, or an empty list.
        if not isinstance(message, dict):
            return message
        keys = cast(dict[str, Any], message)
        return {key: value for key, value in keys.items() if key in cls.model_fields or value not in (None, [], {}, "")}


def _whole_number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _meta_from_text(value: Any) -> Any:
    """A table has no column type for any JSON; there it is text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


# Many data sets number their rows; the text of a whole number is the same everywhere.
Id = Annotated[str, BeforeValidator(_whole_number_as_text)]
Meta = Annotated[dict[str, Any], BeforeValidator(_meta_from_text)]


def _has_messages(text: str | list[Message]) -> str | list[Message]:
    if text == []:
        raise PydanticCustomError("no_messages", "needs at least one message")
    return text


def _not_blank(prompt: str | list[Message]) -> str | list[Message]:
    if not text_of(prompt).strip():
        raise PydanticCustomError("blank", "is empty; write what is asked, or take the row out")
    return prompt


# A side of a pair may be empty (a student may have answered nothing); what is asked may not.
Completion = Annotated[str | list[Message], AfterValidator(_has_messages)]
Prompt = Annotated[str | list[Message], AfterValidator(_has_messages), AfterValidator(_not_blank)]


class Verdict(Row):
    """A verifier's judgement of one response.

    `correct` is `None` where the verifier could not judge: unscored is not wrong. `answer` is what was read out of the
    response, `None` where nothing could be read.
    """

    correct: bool | None
    answer: str | None = None
    reason: str = ""


class Sampling(Row):
    """How responses are drawn. `temperature` 0 is greedy; `seed` is the run's seed, each request derives its own."""

    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.8, gt=0, le=1)
    max_new_tokens: int = Field(default=32768, ge=1)
    seed: int = Field(default=0, ge=0)


class Problem(Row):
    """A question with a known answer. `meta` belongs to the data set (the lab keeps its family and steps there)."""

    id: Id = Field(min_length=1)
    prompt: Prompt
    answer: str
    source: str | None = None
    meta: Meta = Field(default_factory=dict)


FinishReason = Literal["stop", "length", "error"]
Mode = Literal["rewrite", "patch", "continue", "import"]


class Attempt(Row):
    """One answer of the student to one problem, judged. `id` is `{problem_id}#{sample}`."""

    id: Id
    problem_id: Id
    sample: int
    response: str
    finish_reason: FinishReason
    verdict: Verdict
    model: str
    sampling: Sampling | None = None
    token_ids: list[int] | None = None

    @property
    def outcome(self) -> Literal["correct", "wrong", "truncated", "unscored"]:
        """Which of the four bins this attempt falls into; only `wrong` ones are worth correcting."""
        if self.finish_reason == "length":
            return "truncated"
        if self.finish_reason == "error" or self.verdict.correct is None:
            return "unscored"
        return "correct" if self.verdict.correct else "wrong"


class Rectification(Row):
    """One correction of one wrong attempt by an Oracle. `id` is `{attempt_id}~{oracle}.{candidate}`.

    `asked` is a hash of all that the Oracle was given: the wrong answer, and for a model its prompt and sampling too.
    """

    id: Id
    attempt_id: Id
    problem_id: Id
    oracle: str
    mode: Mode
    candidate: int
    prompt_version: str | None = None
    ledger_key: str | None = None
    asked: str = ""
    response: str
    verdict: Verdict
    accepted: bool
    reason: str = ""


class Pair(Row):
    """A training pair in TRL's preference format; conversational prompts carry conversational answers."""

    id: Id
    problem_id: Id
    prompt: Prompt
    chosen: Completion
    rejected: Completion
    change_ratio: float
    oracle: str
    meta: Meta = Field(default_factory=dict)


class Dropped(Row):
    """Something that left the pipeline: what, where and why."""

    stage: str
    id: Id
    reason: str
    detail: str = ""


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt as chat messages; plain text is one user message."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def as_dicts(messages: list[Message]) -> list[dict[str, str]]:
    """Messages in the shape that chat templates and endpoints take."""
    return [{"role": message.role, "content": message.content} for message in messages]


def text_of(text: Prompt | Completion) -> str:
    """The text of a prompt or of a pair's side in either format."""
    return text if isinstance(text, str) else "".join(message.content for message in text)


def derived_seed(seed: int, *parts: Any) -> int:
    """A 63-bit seed that depends on `seed` and every part, the same on every machine and Python version."""
    import hashlib

    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


Counts = Mapping[str, int]
