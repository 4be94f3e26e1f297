"""Pairs under the chat templates of real models, token by token.

The templates are the copies that TRL ships; the tokenizers are made here, with the models' special tokens and the ways
in which they cut text before merging (newlines together, digits by one or by three), so that what can go wrong at the
border between prompt and answer goes wrong here too.
"""

import re
from collections.abc import Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from spot.chat_template import Chat
from spot.errors import UserError
from spot.schema import Message, Pair
from spot.train.tokenize import TokenizedPair, end_of_turn_id, tokenize_pairs

CORPUS = (
    "What is 2 + 3? It is 5. It is 6. You are brief. 1234",
    *("system", "user", "assistant", "It", "You", "Hello", "Hi"),
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
)
NEWLINES = ("\n", "\n\n")


def template(name: str) -> str:
    """The template of a real model, from the installed TRL; it is not imported."""
    found = find_spec("trl")
    assert found is not None and found.submodule_search_locations
    file = Path(found.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja"
    return file.read_text("utf-8")


def make_tokenizer(
    special: Sequence[str], plain: Sequence[str], digits: str, newlines: Sequence[str], chat_template: str
) -> PreTrainedTokenizerFast:
    """Every word of the corpus is one token; of runs of newlines, those in `newlines` are."""
    backend: Any = Tokenizer(models.BPE())
    cut = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(cut), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*CORPUS, *(f"a{run}a" for run in newlines)] * 2, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    tokenizer.chat_template = chat_template
    return tokenizer


def qwen3(name: str = "qwen3", newlines: Sequence[str] = NEWLINES) -> PreTrainedTokenizerFast:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = make_tokenizer(special, ("<think>", "</think>"), r"\p{N}", newlines, template(name))
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def llama(name: str = "llama3_1", newlines: Sequence[str] = NEWLINES) -> PreTrainedTokenizerFast:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = make_tokenizer(special, (), r"\p{N}{1,3}", newlines, template(name))
    tokenizer.bos_token, tokenizer.eos_token = "<|begin_of_text|>", "<|eot_id|>"
    # As the real one does: it begins every text with the token that the template writes already.
    begin: Any = tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    return tokenizer


def pair(chosen: str = "It is 5.", rejected: str = "It is 6.", prompt: Any = "What is 2 + 3?") -> Pair:
    return Pair(
        id="p", problem_id="q", prompt=prompt, chosen=chosen, rejected=rejected, change_ratio=0.2, oracle="test"
    )


def tokenized(tokenizer: PreTrainedTokenizerFast, row: Pair) -> TokenizedPair:
    (kept,), dropped = tokenize_pairs([row], tokenizer, 512)
    assert not dropped
    return kept


def pieces(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[str]:
    """Each token's own text."""
    return [str(tokenizer.decode([token])) for token in ids]


QUESTION = ["What", " is", " ", "2", " +", " ", "3", "?"]
RIGHT, WRONG = (["It", " is", " ", digit, "."] for digit in "56")
CHAT = [Message(role="system", content="You are brief."), Message(role="user", content="What is 2 + 3?")]
TURNS = [
    Message(role="user", content="Hello"),
    Message(role="assistant", content="<think>\nHello\n</think>\n\nHi!"),
    Message(role="user", content="What is 2 + 3?"),
]


def test_qwen3_without_thinking() -> None:
    tokenizer = qwen3()
    ids = tokenized(tokenizer, pair())
    # The empty think block is where the student's own generation starts: it belongs to the prompt.
    assert pieces(tokenizer, list(ids.prompt_ids)) == [
        *("<|im_start|>", "user", "\n", *QUESTION, "<|im_end|>", "\n"),
        *("<|im_start|>", "assistant", "\n", "<think>", "\n\n", "</think>", "\n\n"),
    ]
    assert pieces(tokenizer, list(ids.chosen_ids)) == [*RIGHT, "<|im_end|>"]
    assert pieces(tokenizer, list(ids.rejected_ids)) == [*WRONG, "<|im_end|>"]
    assert ids.num_common == 3


def test_qwen3_with_a_system_message_and_earlier_turns() -> None:
    tokenizer = qwen3()
    ids = tokenized(tokenizer, pair(prompt=[CHAT[0], *TURNS]))
    assert pieces(tokenizer, list(ids.prompt_ids)) == [
        *("<|im_start|>", "system", "\n", "You", " are", " brief", ".", "<|im_end|>", "\n"),
        *("<|im_start|>", "user", "\n", "Hello", "<|im_end|>", "\n"),
        # The template takes the thoughts out of earlier turns.
        *("<|im_start|>", "assistant", "\n", "Hi", "!", "<|im_end|>", "\n"),
        *("<|im_start|>", "user", "\n", *QUESTION, "<|im_end|>", "\n"),
        *("<|im_start|>", "assistant", "\n", "<think>", "\n\n", "</think>", "\n\n"),
    ]
    assert pieces(tokenizer, list(ids.chosen_ids)) == [*RIGHT, "<|im_end|>"]


def test_llama_3_1() -> None:
    tokenizer = llama()
    ids = tokenized(tokenizer, pair())
    assert pieces(tokenizer, list(ids.prompt_ids)) == [
        *("<|begin_of_text|>", "<|start_header_id|>", "system", "<|end_header_id|>", "\n\n"),
        *("Cutting", " Knowledge", " Date", ":", " December", " ", "202", "3", "\n"),
        *("Today", " Date", ":", " ", "26", " Jul", " ", "202", "4", "\n\n", "<|eot_id|>"),
        *("<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", *QUESTION, "<|eot_id|>"),
        *("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
    ]
    assert pieces(tokenizer, list(ids.chosen_ids)) == [*RIGHT, "<|eot_id|>"]
    assert pieces(tokenizer, list(ids.rejected_ids)) == [*WRONG, "<|eot_id|>"]


FAMILIES = [
    *((qwen3, name) for name in ("qwen3", "qwen3_instruct_2507", "qwen2_5")),
    *((llama, name) for name in ("llama3", "llama3_1", "llama3_2")),
]


@pytest.mark.parametrize(("make", "name"), FAMILIES)
@pytest.mark.parametrize("prompt", ["What is 2 + 3?", CHAT, TURNS], ids=["text", "system", "turns"])
def test_prompt_and_answer_are_the_templates_whole_turn(make: Any, name: str, prompt: Any) -> None:
    tokenizer = make(name)
    ids = tokenized(tokenizer, pair(prompt=prompt))
    end = end_of_turn_id(tokenizer)
    messages = prompt if isinstance(prompt, list) else [Message(role="user", content=prompt)]
    chat = [message.model_dump() for message in messages]
    for answer, completion in (("It is 5.", list(ids.chosen_ids)), ("It is 6.", list(ids.rejected_ids))):
        whole: Any = tokenizer.apply_chat_template(
            [*chat, {"role": "assistant", "content": answer}], tokenize=False, enable_thinking=False
        )
        assert completion[-1] == end and completion.count(end) == 1
        # Some templates write a newline after the turn; it is nothing that the student generates.
        assert (
            list(ids.prompt_ids) + completion
            == tokenizer(whole.removesuffix("\n"), add_special_tokens=False)["input_ids"]
        )
    alone = tokenizer.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    assert list(ids.prompt_ids) == alone


@pytest.mark.parametrize("make", [qwen3, llama])
def test_an_answer_whose_first_newline_merges_with_the_prompts_last_is_refused(make: Any) -> None:
    # Both models' tokenizers have a token for three newlines: "\n\n" + "\n" becomes one that straddles the border.
    tokenizer = make(newlines=(*NEWLINES, "\n\n\n"))
    assert len(tokenizer("\n\n\n", add_special_tokens=False)["input_ids"]) == 1
    with pytest.raises(
        UserError, match=r"pair 'p': the prompt's tokens are not a prefix of prompt \+ chosen"
    ) as caught:
        tokenized(tokenizer, pair(chosen="\nIt is 5."))
    assert "\n" not in str(caught.value)
    assert pieces(tokenizer, tokenized(tokenizer, pair()).chosen_ids)[:-1] == RIGHT


@pytest.mark.parametrize("make", [qwen3, llama])
@pytest.mark.parametrize("start", ["\n", " ", "  ", "\n\n", "\t"])
def test_an_answer_that_starts_with_space_is_kept_whole_where_nothing_merges(make: Any, start: str) -> None:
    tokenizer = make()
    ids = tokenized(tokenizer, pair(chosen=f"{start}It is 5."))
    assert tokenizer.decode(ids.chosen_ids[:-1]) == f"{start}It is 5."
    assert ids.prompt_ids == tokenized(tokenizer, pair()).prompt_ids


def test_thoughts_in_an_answer_are_kept_where_the_template_would_rewrite_them() -> None:
    tokenizer = qwen3()
    ids = tokenized(tokenizer, pair(chosen="It is 5.</think>\n\nHi!"))
    assert pieces(tokenizer, list(ids.chosen_ids)) == [*RIGHT, "</think>", "\n\n", "Hi", "!", "<|im_end|>"]


# What a real template writes around an answer, with the tokens that the real model stops at.
OTHERS = {
    "cohere2": (["<|END_OF_TURN_TOKEN|>"], "", "", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "gemma": (["<end_of_turn>"], "", "", "<end_of_turn>"),
    "gemma4": (["<turn|>"], "", "", "<turn|>"),
    "glm4moe": (["<|endoftext|>", "<|user|>", "<|observation|>"], "", "\n", "<|user|>"),
    "gptoss": (["<|return|>", "<|call|>"], "<|channel|>final<|message|>", "", "<|return|>"),
    "lfm2": (["<|im_end|>"], "", "", "<|im_end|>"),
    "llama3_2": (["<|eot_id|>"], "", "", "<|eot_id|>"),
    "muse_glimmer": (["<|eot|>"], " to=user<|message|>", "", "<|eot|>"),
    "nemotron_3_nano": (["<|im_end|>"], "", "", "<|im_end|>"),
    "phi3": (["<|end|>", "<|endoftext|>"], "", "", "<|end|>"),
    "qwen3_8": (["<|im_end|>"], "", "", "<|im_end|>"),
}
REFUSED = {
    "deepseek_r1_distill": "opens an answer with",
    "idefics3": "leaves the question out",
    "llava_next": "refuses its messages",
    "smolvlm": "leaves the question out",
}
MARK = re.compile(r"<[|｜][^<>\s'\"|｜]+[|｜]>|<\|[a-z]+>|<[a-z]+\|>|<(?:start|end)_of_turn>|<end_of_utterance>")


def other(name: str, stops: Sequence[str]) -> Chat:
    """A tokenizer that knows the marks in the template `name`, and the template as the model with `stops` reads it."""
    source = template(name)
    marks = sorted({*MARK.findall(source), *stops, "<s>"})
    tokenizer = make_tokenizer(marks, ("<think>", "</think>"), r"\p{N}", NEWLINES, source)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", marks[0]
    ids: Any = tokenizer.convert_tokens_to_ids(list(stops))
    return Chat(tokenizer, date(2024, 2, 29), stop_ids=frozenset(ids))


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_are_trained_on_what_their_templates_render(name: str) -> None:
    stops, opening, space, closing = OTHERS[name]
    chat = other(name, stops)
    assert (chat.turn.opening, chat.turn.space, chat.turn.closing) == (opening, space, closing)
    assert chat.stops()
    for prompt in ([TURNS[0]], [TURNS[0], Message(role="assistant", content="Hi!"), TURNS[2]]):
        [ids], _ = tokenize_pairs([pair(prompt=prompt)], chat.tokenizer, 8192, chat)
        dicts = [message.model_dump() for message in prompt]
        assert list(ids.prompt_ids) == chat.tokenizer(chat.prompt(dicts), add_special_tokens=False)["input_ids"]
        whole = chat.render([*dicts, {"role": "assistant", "content": "It is 5."}], generate=False)
        whole += closing if chat.turn.borrowed else ""
        expected: Any = chat.tokenizer(whole, add_special_tokens=False)["input_ids"]
        ours = [*ids.prompt_ids, *ids.chosen_ids]
        assert ours == expected[: len(ours)]
        # Whatever follows the end is nothing that is sampled.
        assert ids.chosen_ids[-1] in (chat.stop_ids or ()) and not set(ids.chosen_ids[:-1]) & set(chat.stop_ids or ())


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_cannot_be_rendered_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        _ = other(name, []).turn


@pytest.mark.parametrize(
    ("name", "told"), [("gptoss", "Current date: 2024-02-29"), ("llama3_2", "Today Date: 29 Feb 2024")]
)
def test_families_that_print_the_date_print_the_day_of_the_run(name: str, told: str) -> None:
    chat = other(name, OTHERS[name][0])
    assert told in chat.prompt([{"role": "user", "content": "Hello"}])
