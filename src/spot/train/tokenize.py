"""Pairs to token ids: the prompt ends where generation starts, the answer ends with exactly one end-of-turn token."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from spot.chat_template import Chat, NotRendered, encode
from spot.errors import UserError
from spot.schema import Dropped, Prompt, as_dicts, as_messages, text_of
from spot.train.row import BOTH, Side

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ROWS_AT_ONCE = 1000
"""Rows tokenized together; what the tokenizer returns for them is many times their ids' size."""


class Preference(Protocol):
    """What training reads of a pair: `spot.schema.Pair`, or a row of TRL's preference format."""

    @property
    def id(self) -> str:
        """The row's name in messages and in `dropped.jsonl`."""
        ...

    @property
    def prompt(self) -> Prompt:
        """The question, plain or as chat messages."""
        ...

    @property
    def chosen(self) -> Prompt:
        """The corrected answer, plain or as one assistant message."""
        ...

    @property
    def rejected(self) -> Prompt | None:
        """The student's wrong answer, plain or as one assistant message; `None` in a row of prompt and completion."""
        ...


@dataclass(frozen=True)
class TokenizedPair:
    """One pair as token ids; `chosen_ids` and `rejected_ids` continue `prompt_ids` and end the turn.

    Where there is no rejected answer, `rejected_ids` is empty.
    """

    id: str
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens in the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def sides(self) -> Sequence[Side]:
        """The answers that there are."""
        return BOTH if self.rejected_ids else ("chosen",)

    def completion(self, side: Side) -> Sequence[int]:
        """The answer of `side`."""
        return self.chosen_ids if side == "chosen" else self.rejected_ids

    @cached_property
    def num_common(self) -> int:
        """Tokens that both answers begin with. Neither is a prefix of the other: each ends its turn exactly once."""
        both = zip(self.chosen_ids, self.rejected_ids, strict=False)
        return next(place for place, (chosen, rejected) in enumerate(both) if chosen != rejected)

    def num_plain(self, side: Side) -> int:
        """Tokens that `side` alone has to run: all but its last, which is only ever predicted."""
        return len(self.prompt_ids) + len(self.completion(side)) - 1

    @property
    def num_distinct(self) -> int:
        """Tokens that the pair has to run: prompt and common beginning once."""
        if not self.rejected_ids:
            return self.num_plain("chosen")
        return self.num_plain("chosen") + len(self.rejected_ids) - 1 - self.num_common


def tokenize_pairs(
    pairs: Iterable[Preference], tokenizer: "PreTrainedTokenizerBase", max_length: int, chat: Chat | None = None
) -> tuple[list[TokenizedPair], list[Dropped]]:
    """Tokenize `pairs`; those longer than `max_length` tokens are returned apart, nothing is ever truncated.

    The ids are in arrays of four bytes a token, since every process holds those of all pairs.

    The prompt is rendered by the tokenizer's chat template, as `chat` has it, in non-thinking mode. The answer's text
    follows it as it stands, not through the template, because templates strip and reparse answers, and it must be what
    the student wrote; what the template writes around an answer is around it. Raises `UserError` naming the row: empty
    answers, answers that are the same, an answer that holds a token that ends it, a prompt that the template refuses,
    that ends with an assistant turn or that is not a token prefix; and for a tokenizer without a usable chat template.
    """
    chat = chat or Chat(tokenizer)
    _ = chat.turn  # refused before any row
    kept: list[TokenizedPair] = []
    dropped: list[Dropped] = []
    rows = iter(pairs)
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        for pair in _tokenize(chunk, chat):
            if pair.length > max_length:
                detail = f"{pair.length} tokens, max_length is {max_length}"
                dropped.append(Dropped(stage="train", id=pair.id, reason="overlength", detail=detail))
            else:
                kept.append(pair)
    return kept, dropped


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase", stop_ids: frozenset[int] | None = None) -> int:
    """The token that ends an assistant's answer by the chat template (not always the tokenizer's eos token).

    Raises `UserError` where there is no chat template, or none that an answer can be trained with.
    """
    return Chat(tokenizer, stop_ids=stop_ids).turn.end_id


def _tokenize(rows: list[Preference], chat: Chat) -> Iterator[TokenizedPair]:
    prompts = [_prompt(row, chat) for row in rows]
    answers = [_answer(row.id, "chosen", row.chosen) for row in rows]
    wrong = [None if row.rejected is None else _answer(row.id, "rejected", row.rejected) for row in rows]
    right_texts = [prompt + chat.answered(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    wrong_texts = [
        "" if answer is None else prompt + chat.answered(answer) for prompt, answer in zip(prompts, wrong, strict=True)
    ]
    prompt_ids, chosen_ids, rejected_ids = (
        encode(chat.tokenizer, texts) for texts in (prompts, right_texts, wrong_texts)
    )
    for row, prompt, chosen, rejected in zip(rows, prompt_ids, chosen_ids, rejected_ids, strict=True):
        has_both = row.rejected is not None
        pair = TokenizedPair(
            id=row.id,
            prompt_ids=array("i", prompt),
            chosen_ids=_completion(row.id, "chosen", prompt, chosen, chat),
            rejected_ids=_completion(row.id, "rejected", prompt, rejected, chat) if has_both else array("i"),
        )
        if pair.chosen_ids == pair.rejected_ids:
            raise UserError(f"pair {row.id!r}: chosen and rejected are the same; remove the row")
        yield pair


def _prompt(row: Preference, chat: Chat) -> str:
    messages = as_dicts(as_messages(row.prompt))
    for message in messages:
        _check_text(row.id, "prompt", message["content"])
    try:
        return chat.answered_prompt(messages)
    except NotRendered as error:
        raise UserError(f"pair {row.id!r}: {error}") from error


def _answer(row: str, side: str, answer: Prompt) -> str:
    if not isinstance(answer, str) and (len(answer) != 1 or answer[0].role != "assistant"):
        raise UserError(f"pair {row!r}: {side} must be text or a single assistant message")
    text = text_of(answer)
    if not text.strip():
        raise UserError(f"pair {row!r}: {side} is empty; remove the row")
    _check_text(row, side, text)
    return text


def _check_text(row: str, field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair (\\u{ord(text[error.start]):x})"
        raise UserError(f"pair {row!r}: {field} holds {half}, which is no text; replace or delete it") from None


def _completion(row: str, side: str, prompt: list[int], whole: list[int], chat: Chat) -> "array[int]":
    if whole[: len(prompt)] != prompt:
        raise UserError(
            f"pair {row!r}: the prompt's tokens are not a prefix of prompt + {side} (the tokenizer merges across the "
            "boundary); remove leading spaces or newlines from the answer, or fix the chat template"
        )
    completion = whole[len(prompt) :]
    marks = chat.turn.marks
    if completion[-1] != chat.turn.end_id or sum(index in marks for index in completion) != len(marks):
        raise UserError(f"pair {row!r}: {side} contains the end-of-turn token; remove it from the text")
    return array("i", completion)
