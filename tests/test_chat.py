"""What a chat template writes around an answer, and on which day; small templates in the manner of real ones."""

from datetime import date
from typing import Any

import pytest
from tests.tiny_student import SPECIAL, make_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from spot.chat_template import Chat, NotRendered
from spot.errors import UserError
from spot.schema import Message, Pair
from spot.train.tokenize import TokenizedPair, end_of_turn_id, tokenize_pairs

LOOP = "{% for m in messages %}{% if m.role == 'assistant' %}ANSWER{% else %}OTHER{% endif %}{% endfor %}"


def template(other: str, answer: str, generation: str) -> str:
    """How it writes other turns, an answer's, and what it writes for one to be generated."""
    loop = LOOP.replace("ANSWER", answer).replace("OTHER", other)
    return f"{loop}{{% if add_generation_prompt %}}{generation}{{% endif %}}"


USER = "<|user|>{{ m.content }}"
HARMONY = template(
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>",
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}",
    "<|start|>assistant",
)
ADDRESSED = template(
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>",
    "<|start|>assistant to=user<|message|>{{ m.content }}<|end|>",
    "<|start|>assistant",
)
THOUGHT = template(USER, "<|assistant|><think>\n\n</think>\n\n{{ m.content }}<|end|>\n", "<|assistant|><think>\n")
NEXT_TURN = template(
    "<|user|>\n{{ m.content }}",
    "<|assistant|>\n<think></think>\n{{ m.content.strip() }}",
    "<|assistant|>\n<think></think>",
)
SPACED = template("<s>[INST] {{ m.content }} [/INST]", " {{ m.content }} </s>", "")
TWO_ENDS = template(USER, "<|assistant|>{{ m.content }}<|end|><|return|>", "<|assistant|>")
MARKS = ("<|user|>", "<|assistant|>", "<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|return|>", "<s>", "</s>")

FORMS = {
    # template: opening, space, closing, the end's token, borrowed
    "harmony": (HARMONY, "<|channel|>final<|message|>", "", "<|return|>", "<|return|>", False),
    "addressed": (ADDRESSED, " to=user<|message|>", "", "<|end|>", "<|end|>", False),
    "thought": (THOUGHT, "\n</think>\n\n", "", "<|end|>", "<|end|>", False),
    "next turn": (NEXT_TURN, "", "\n", "<|user|>", "<|user|>", True),
    "spaced": (SPACED, "", " ", " </s>", "</s>", False),
    "two ends": (TWO_ENDS, "", "", "<|end|><|return|>", "<|return|>", False),
}
STOPS = ("<|return|>", "<|end|>", "<|user|>", "</s>")


def tokenizer_of(chat_template: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, *MARKS]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = chat_template
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> frozenset[int]:
    found: Any = tokenizer.convert_tokens_to_ids(list(tokens))
    return frozenset(found)


def chat_of(name: str) -> Chat:
    tokenizer = tokenizer_of(FORMS[name][0])
    stops = ids_of(tokenizer, *STOPS) - (ids_of(tokenizer, "<|end|>") if name == "two ends" else set())
    return Chat(tokenizer, stop_ids=stops)


def pair(chosen: str, rejected: str = "It is 6.", prompt: Any = "2 + 3?") -> Pair:
    row: dict[str, Any] = {"id": "p", "problem_id": "q", "change_ratio": 0.2, "oracle": "test"}
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, **row)


def trained(chat: Chat, row: Pair) -> TokenizedPair:
    [ids], _ = tokenize_pairs([row], chat.tokenizer, 512, chat)
    return ids


def text(chat: Chat, ids: Any) -> str:
    return str(chat.tokenizer.decode(list(ids)))


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_around_an_answer(name: str) -> None:
    chat, (_, opening, space, closing, end, borrowed) = chat_of(name), FORMS[name]
    turn = chat.turn
    assert (turn.opening, turn.space, turn.closing, turn.borrowed) == (opening, space, closing, borrowed)
    assert {turn.end_id} == ids_of(chat.tokenizer, end) and chat.stops()


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("name", FORMS)
def test_what_is_trained_is_what_the_template_renders_token_by_token(name: str, turns: int, system: bool) -> None:
    chat = chat_of(name)
    messages = [Message(role="system", content="Be brief.")] if system else []
    for _ in range(turns - 1):
        messages += [Message(role="user", content="Hello"), Message(role="assistant", content="Hi!")]
    messages.append(Message(role="user", content="2 + 3?"))
    ids = trained(chat, pair("It is 5.", prompt=messages))
    for answer, completion in (("It is 5.", ids.chosen_ids), ("It is 6.", ids.rejected_ids)):
        dicts = [message.model_dump() for message in messages] + [{"role": "assistant", "content": answer}]
        if chat.turn.borrowed:
            dicts.append({"role": "user", "content": ""})
        whole: Any = chat.tokenizer.apply_chat_template(dicts, enable_thinking=False, return_dict=False)
        ours = [*ids.prompt_ids, *completion]
        rest = text(chat, whole[len(ours) :])
        assert ours == whole[: len(ours)] and rest.strip() == ""
        assert completion[-1] == chat.turn.end_id and completion.count(completion[-1]) == 1


@pytest.mark.parametrize("name", FORMS)
def test_the_prompt_that_is_trained_is_the_prompt_that_is_sampled(name: str) -> None:
    chat = chat_of(name)
    prompt = chat.prompt([{"role": "user", "content": "2 + 3?"}])
    assert (
        list(trained(chat, pair("It is 5.")).prompt_ids)
        == chat.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    )
    assert prompt.endswith(FORMS[name][1])


@pytest.mark.parametrize("name", ["next turn", "spaced"])
def test_white_space_that_the_model_wrote_itself_is_not_doubled(name: str) -> None:
    chat, (_, _, space, closing, _, _) = chat_of(name), FORMS[name]
    after = closing[: len(closing) - len(closing.lstrip())]
    assert trained(chat, pair("It is 5.")).chosen_ids == trained(chat, pair(f"{space}It is 5.{after}")).chosen_ids


def test_an_answer_that_holds_a_token_of_the_end_is_refused() -> None:
    for end in ("<|end|>", "<|return|>"):
        with pytest.raises(UserError, match=r"pair 'p': chosen contains the end-of-turn token"):
            trained(chat_of("two ends"), pair(f"It {end} is 5."))


def test_without_a_generation_config_the_eos_token_stands_in() -> None:
    tokenizer = tokenizer_of(TWO_ENDS)
    assert {end_of_turn_id(tokenizer)} == ids_of(tokenizer, "<|end|>")
    tokenizer.eos_token = "<|return|>"
    assert {end_of_turn_id(tokenizer)} == ids_of(tokenizer, "<|return|>")


def test_an_end_at_which_generation_does_not_stop_is_known() -> None:
    tokenizer = tokenizer_of(HARMONY)
    assert not Chat(tokenizer, stop_ids=ids_of(tokenizer, "<|end|>")).stops()
    with pytest.raises(UserError, match="does not end an answer"):  # it may not borrow what nothing stops at
        _ = Chat(tokenizer_of(NEXT_TURN), stop_ids=ids_of(tokenizer, "</s>")).turn


PARTS = "{% for m in messages %}<|user|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>{% endfor %}"
REFUSED = {
    "parts": (PARTS, "leaves the question out"),
    "only answers in parts": (
        template(USER, "<|assistant|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>", "<|assistant|>"),
        "leaves the answer out",
    ),
    "opens a thought": (
        template(USER, "<|assistant|>{{ m.content.split('</think>')[-1] }}<|end|>", "<|assistant|><think>\n"),
        r"opens an answer with '<think>\\n', which it does not write",
    ),
    "no end": (template("\nUser: {{ m.content }}", "\nBot: {{ m.content }}", "\nBot:"), "does not end an answer"),
    "slips": (template("<|user|>{{ m.content + 3 }}", "", ""), r"refuses its messages \(TypeError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rendered_is_refused_before_any_row(name: str) -> None:
    chat_template, why = REFUSED[name]
    with pytest.raises(UserError, match=why) as caught:
        tokenize_pairs([], tokenizer_of(chat_template), 512)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_ends_with_an_answer_is_refused() -> None:
    turns = [Message(role="user", content="2 + 3?"), Message(role="assistant", content="It is")]
    with pytest.raises(UserError, match=r"pair 'p': the messages end with an assistant turn"):
        trained(chat_of("harmony"), pair("5.", prompt=turns))


def test_a_template_that_rewrites_earlier_turns_for_an_answer_is_refused() -> None:
    # Here a system message is printed only until somebody has answered.
    system = (
        "{% if m.role == 'system' and messages[-1].role == 'assistant' %}{% else %}<|user|>{{ m.content }}{% endif %}"
    )
    chat = Chat(tokenizer_of(template(system, "<|assistant|>{{ m.content }}<|end|>", "<|assistant|>")))
    trained(chat, pair("It is 5."))
    messages = [Message(role="system", content="Be brief."), Message(role="user", content="2 + 3?")]
    with pytest.raises(UserError, match=r"pair 'p': the chat template writes other text around an answer"):
        trained(chat, pair("It is 5.", prompt=messages))


def test_a_message_that_the_template_leaves_out_is_refused() -> None:
    long = "{% if m.content | length < 20 %}{{ m.content }}{% endif %}"
    chat = Chat(tokenizer_of(template(f"<|user|>{long}", "<|assistant|>{{ m.content }}<|end|>", "<|assistant|>")))
    with pytest.raises(NotRendered, match="leaves the user message's text out"):
        chat.prompt([{"role": "user", "content": "What is 2 + 3, please?"}])


DATED = "Today: {{ strftime_now('%d %b %Y (%A, day %j)') }}{% if strftime_now is defined %}.{% endif %}"


def test_a_template_that_prints_the_date_prints_the_day_it_is_given() -> None:
    chat = Chat(tokenizer_of(DATED + HARMONY), date(2024, 2, 29))
    assert chat.prints_date and chat.day == date(2024, 2, 29)
    prompt = chat.prompt([{"role": "user", "content": "2 + 3?"}])
    assert prompt.startswith("Today: 29 Feb 2024 (Thursday, day 060).<|start|>user")
    trained(chat, pair("It is 5."))


def test_the_day_changes_nothing_else_of_a_template() -> None:
    for begin in ("\n  ", "", "{{- bos_token }}", "{# #}\n"):
        source = begin + HARMONY + "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
        tokenizer, messages = tokenizer_of(source), [{"role": "user", "content": "2 + 3?"}]
        plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert Chat(tokenizer, date(2024, 2, 29)).render(messages, generate=True) == plain


def test_who_keeps_the_day_is_asked_only_where_it_is_printed() -> None:
    asked: list[str] = []

    def kept() -> date:
        asked.append("day")
        return date(2024, 2, 29)

    assert Chat(tokenizer_of(HARMONY), kept).day is None and not asked
    assert Chat(tokenizer_of(DATED + HARMONY), kept).day == date(2024, 2, 29) and asked


def test_thinking_in_a_channel_of_its_own_is_refused_for_sampling() -> None:
    with pytest.raises(UserError, match="thoughts in a channel of their own"):
        Chat(tokenizer_of(HARMONY), enable_thinking=True).check_sampling()
    Chat(tokenizer_of(THOUGHT), enable_thinking=True).check_sampling()
    Chat(tokenizer_of(HARMONY)).check_sampling()
