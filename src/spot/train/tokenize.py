"""Pairs to token ids: the prompt ends where generation starts, the answer ends with exactly one end-of-turn token."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from jinja2 import TemplateError

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
    pairs: Iterable[Preference], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> tuple[list[TokenizedPair], list[Dropped]]:
    """Tokenize `pairs`; those longer than `max_length` tokens are returned apart, nothing is ever truncated.

    The ids are in arrays of four bytes a token, since every process holds those of all pairs.

    The prompt is rendered by the tokenizer's chat template in non-thinking mode. The answer's text follows it as it
    stands, not through the template, because templates strip and reparse answers, and it must be what the student
    wrote. Raises `UserError` naming the row: empty answers, answers that are the same, an answer that holds the
    end-of-turn token itself, a prompt that the template refuses or that is not a token prefix; and for a tokenizer
    without a usable chat template.
    """
    end_of_turn = end_of_turn_id(tokenizer)
    kept: list[TokenizedPair] = []
    dropped: list[Dropped] = []
    rows = iter(pairs)
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        for pair in _tokenize(chunk, tokenizer, end_of_turn):
            if pair.length > max_length:
                detail = f"{pair.length} tokens, max_length is {max_length}"
                dropped.append(Dropped(stage="train", id=pair.id, reason="overlength", detail=detail))
            else:
                kept.append(pair)
    return kept, dropped


def _tokenize(
    rows: list[Preference], tokenizer: "PreTrainedTokenizerBase", end_of_turn: int
) -> Iterator[TokenizedPair]:
    prompts = [_render(tokenizer, as_dicts(as_messages(row.prompt)), f"pair {row.id!r}", generate=True) for row in rows]
    answers = [_answer(row.id, "chosen", row.chosen) for row in rows]
    wrong = ["" if row.rejected is None else _answer(row.id, "rejected", row.rejected) for row in rows]
    prompt_ids = _encode(tokenizer, prompts)
    chosen_ids = _encode(tokenizer, list(map(str.__add__, prompts, answers)))
    rejected_ids = _encode(tokenizer, list(map(str.__add__, prompts, wrong)))
    for row, prompt, chosen, rejected in zip(rows, prompt_ids, chosen_ids, rejected_ids, strict=True):
        has_both = row.rejected is not None
        pair = TokenizedPair(
            id=row.id,
            prompt_ids=array("i", prompt),
            chosen_ids=_completion(row.id, "chosen", prompt, chosen, end_of_turn),
            rejected_ids=_completion(row.id, "rejected", prompt, rejected, end_of_turn) if has_both else array("i"),
        )
        if pair.chosen_ids == pair.rejected_ids:
            raise UserError(f"pair {row.id!r}: chosen and rejected are the same; remove the row")
        yield pair


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that the chat template writes after an assistant's answer (not always the tokenizer's eos token).

    Raises `UserError` where there is no chat template, or none that ends an answer with a special token.
    """
    name = tokenizer.name_or_path or "the tokenizer"
    if not tokenizer.chat_template:
        raise UserError(f"{name}: no chat template; use an instruction-tuned model, or add chat_template.jinja to it")
    probe = "probe"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": probe}]
    after = _render(tokenizer, messages, name, generate=False).rpartition(probe)[2]
    following = _encode(tokenizer, [after])[0]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    if not following or following[0] not in special:
        raise UserError(f"{name}: its chat template does not end an answer with a special token; mend the template")
    return following[0]


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], place: str, *, generate: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate, enable_thinking=False
        )
    except TemplateError as error:
        raise UserError(f"{place}: the chat template refuses its messages ({' '.join(str(error).split())})") from error
    assert isinstance(text, str)
    return text


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    # The template has written the special tokens (a BOS among them) already.
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []  # pyright: ignore[reportReturnType]


def _answer(row: str, side: str, answer: Prompt) -> str:
    if not isinstance(answer, str) and (len(answer) != 1 or answer[0].role != "assistant"):
        raise UserError(f"pair {row!r}: {side} must be text or a single assistant message")
    text = text_of(answer)
    if not text.strip():
        raise UserError(f"pair {row!r}: {side} is empty; remove the row")
    return text


def _completion(row: str, side: str, prompt: list[int], whole: list[int], end_of_turn: int) -> "array[int]":
    if whole[: len(prompt)] != prompt:
        raise UserError(
            f"pair {row!r}: the prompt's tokens are not a prefix of prompt + {side} (the tokenizer merges across the "
            "boundary); remove leading spaces or newlines from the answer, or mend the chat template"
        )
    completion = whole[len(prompt) :]
    if end_of_turn in completion:
        raise UserError(f"pair {row!r}: {side} contains the end-of-turn token; remove it from the text")
    return array("i", [*completion, end_of_turn])
