"""A model's chat template as the model reads it: the prompt, where an answer begins, what ends it, and on which day.

Sampling and training render through the same `Chat`, so that what is trained is what was, and will be, sampled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from spot.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
Day = date | Callable[[], date] | None
"""The day to print, or who keeps it, asked only where a template prints it; today where there is none."""

# Words that no template has in its own text.
QUESTION, ANSWER, NEXT = "spotquestion", "spotanswer", "spotfollowup"

# In place of transformers' function of this name, which reads the clock; it takes no function from outside. A dash is
# how C writes a number without its leading zero.
FIXED_DAY = (
    "{%- macro strftime_now(format) -%}{%- set text = namespace(value=format) -%}"
    "{%- for directive, value in spot_day.items() -%}"
    "{%- set text.value = text.value | replace(directive, value) -%}{%- endfor -%}"
    "{{- text.value -}}{%- endmacro +%}"
)
DIRECTIVES = [f"%-{letter}" for letter in "dmejyHIMS"] + [f"%{letter}" for letter in "aAbBcdeDFGgHhIjmMpSTuUVwWxXyYZ%"]


class NotRendered(ValueError):
    """Messages that this template cannot turn into a prompt; its text says why."""


@dataclass(frozen=True)
class Turn:
    """What a template writes around an answer.

    `opening` is markup after the generation prompt (a channel, an empty thought) and belongs to the prompt; `space` is
    white space there, which the model writes itself; `closing` ends the turn with the token `end_id`, which is the next
    turn's own where `borrowed`. `marks` are the ids of all special tokens in `closing`.
    """

    opening: str
    space: str
    closing: str
    end_id: int
    marks: frozenset[int]
    borrowed: bool


class Chat:
    """The chat template of `tokenizer`, printing `day` wherever it prints the date (`None` then, where it does not).

    `stop_ids` are the tokens that end the model's generation, where they are known; without them the tokenizer's eos
    token stands in. With `enable_thinking` a prompt ends where the template ends it: the model opens its answer itself.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        day: Day = None,
        *,
        enable_thinking: bool = False,
        stop_ids: frozenset[int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.enable_thinking = enable_thinking
        self.stop_ids = stop_ids
        self.name = tokenizer.name_or_path or "the tokenizer"
        self.day: date | None = None
        self._settings: dict[str, Any] = {"enable_thinking": enable_thinking}
        if self.prints_date:
            self.day = (day() if callable(day) else day) or date.today()
            template = FIXED_DAY + tokenizer.get_chat_template()
            spot_day = {directive: self.day.strftime(directive) for directive in DIRECTIVES}
            self._settings |= {"chat_template": template, "spot_day": spot_day}

    @property
    def prints_date(self) -> bool:
        """Whether what the template writes depends on the day."""
        return bool(self.tokenizer.chat_template) and "strftime_now" in self.tokenizer.get_chat_template()

    def render(self, messages: Messages, *, generate: bool) -> str:
        """What the template writes, the generation prompt behind it with `generate`; raises jinja's `TemplateError`."""
        chat = [dict(message) for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=generate, **self._settings
            )
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error  # a template's own slip
        assert isinstance(text, str)
        return text

    def check_sampling(self) -> None:
        """Raise `UserError` on a template that an answer cannot be sampled with."""
        special, bridge = self._special(), encode(self.tokenizer, [self._bridge])[0]
        if self.enable_thinking and any(index in special for index in bridge):
            raise UserError(
                f"{self.name}: its chat template keeps thoughts in a channel of their own, which would run into the "
                "answer; set student.enable_thinking=false"
            )

    def prompt(self, messages: Messages) -> str:
        """What the model reads before its answer; raises `NotRendered`, and `UserError` for a template of no use."""
        if messages[-1]["role"] == "assistant":
            raise NotRendered("the messages end with an assistant turn, which is not continued; end them with a user's")
        try:
            text = self.render(messages, generate=True)
        except TemplateError as error:
            raise NotRendered(f"the chat template refuses its messages ({_one_line(error)})") from error
        lines = [line.strip() for line in messages[-1]["content"].splitlines() if line.strip()]
        if not any(line in text for line in lines):
            raise NotRendered(f"the chat template leaves the {messages[-1]['role']} message's text out of the prompt")
        return text + self._around[0]

    def led(self, answer: str) -> str:
        """`answer` with the white space that the template writes before it, unless it brings that along."""
        space = self._around[1]
        return answer if answer.startswith(space) else space + answer

    def answered(self, answer: str) -> str:
        """`answer` as it follows the prompt, its turn ended."""
        closing = self.turn.closing
        space = closing[: len(closing) - len(closing.lstrip())]
        return self.led(answer) + (closing.removeprefix(space) if space and answer.endswith(space) else closing)

    @cached_property
    def turn(self) -> Turn:
        """How the template writes an answer. Raises `UserError` where it is not what follows the generation prompt, or
        ends with no special token, as nothing could be trained then that the model is asked for."""
        if not self.tokenizer.chat_template:
            raise UserError(
                f"{self.name}: no chat template; use an instruction-tuned model, or add chat_template.jinja to it"
            )
        try:
            prompt, before, after = self._probed()
            if not before.startswith(prompt):
                common = next(
                    (i for i, pair in enumerate(zip(prompt, before, strict=False)) if pair[0] != pair[1]), None
                )
                rest = prompt[len(before) if common is None else common :]
                raise UserError(
                    f"{self.name}: its chat template opens an answer with {rest!r}, which it does not write before a "
                    "finished one: what is trained would not be what is sampled; use a template that can answer "
                    "without thinking"
                )
            return self._ended(after)
        except TemplateError as error:
            raise UserError(f"{self.name}: the chat template refuses its messages ({_one_line(error)})") from error

    def answered_prompt(self, messages: Messages) -> str:
        """`prompt` of `messages`, after which an answer is certain to be written as `answered` writes it.

        Raises `NotRendered` where the template writes an answer to these messages in another way.
        """
        prompt = self.prompt(messages)
        try:
            whole = self.render([*messages, {"role": "assistant", "content": ANSWER}], generate=False)
        except TemplateError as error:
            raise NotRendered(f"the chat template refuses its messages ({_one_line(error)})") from error
        if not whole.startswith(prompt + (self.led(ANSWER) if self.turn.borrowed else self.answered(ANSWER))):
            raise NotRendered("the chat template writes other text around an answer than around the one to be sampled")
        return prompt

    def stops(self) -> bool:
        """Whether generation stops at the token that ends a turn, as far as is known."""
        return self.stop_ids is None or self.turn.end_id in self.stop_ids

    @cached_property
    def _bridge(self) -> str:
        """What the template writes between generation prompt and answer; empty where it does not write them alike, or
        cannot be probed (it may want other messages)."""
        try:
            prompt, before, _ = self._probed()
        except TemplateError:
            return ""
        return before[len(prompt) :] if before.startswith(prompt) else ""

    @cached_property
    def _around(self) -> tuple[str, str]:
        """`Turn.opening` and `Turn.space`; empty where the model is to open its answer itself."""
        if self.enable_thinking:
            return "", ""
        opening = self._bridge.rstrip(" ") if self._bridge.strip() else ""
        return opening, self._bridge.removeprefix(opening)

    def _probed(self) -> tuple[str, str, str]:
        """The generation prompt to a question, and what is written before and after its answer."""
        question = {"role": "user", "content": QUESTION}
        prompt = self.render([question], generate=True)
        whole = self.render([question, {"role": "assistant", "content": ANSWER}], generate=False)
        for probe, text, what in ((QUESTION, prompt, "the question"), (ANSWER, whole, "the answer")):
            if probe not in text:
                raise UserError(
                    f"{self.name}: its chat template leaves {what} out where its content is text (it may want a list "
                    "of parts); give it a template for text"
                )
        before, _, after = whole.rpartition(ANSWER)
        return prompt, before, after

    def _ended(self, after: str) -> Turn:
        special = self._special()
        marks, borrowed = self._marks(after, special), False
        if not marks:
            # Some write no end: the token that begins the next turn is what the model stops at.
            turns = {"user": QUESTION, "assistant": ANSWER}
            chat = [{"role": role, "content": content} for role, content in turns.items()]
            chat.append({"role": "user", "content": NEXT})
            after, borrowed = self.render(chat, generate=False).rpartition(ANSWER)[2], True
            marks = self._marks(after, special)[:1]
            if not marks or (self.stop_ids is not None and marks[0] not in self.stop_ids):
                raise UserError(
                    f"{self.name}: its chat template does not end an answer with a special token; fix the template"
                )
        eos: Any = self.tokenizer.eos_token_id
        stops = frozenset([eos]) if self.stop_ids is None else self.stop_ids
        last = next((place for place, mark in enumerate(marks) if mark in stops), 0)
        marks = marks[: last + 1]
        space = after[: len(after) - len(after.lstrip())]
        text = "".join(str(self.tokenizer.convert_ids_to_tokens(mark)) for mark in marks)
        opening, before = self._around
        return Turn(opening, before, space + text, marks[-1], frozenset(marks), borrowed)

    def _special(self) -> set[int]:
        tokens = self.tokenizer.added_tokens_decoder
        special = {index for index, token in tokens.items() if token.special}
        return special | set(self.tokenizer.all_special_ids) | (self.stop_ids or set())

    def _marks(self, after: str, special: set[int]) -> list[int]:
        """The special tokens that `after` begins with, white space before them aside."""
        found: list[int] = []
        for index in encode(self.tokenizer, [after.lstrip()])[0]:
            if index not in special:
                break
            found.append(index)
        return found


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """The ids of each of `texts`, to which nothing is added: a template has written the special tokens already."""
    # Not verbose: its warning of a long text comes before our line about it, and says less.
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []  # pyright: ignore[reportReturnType]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
