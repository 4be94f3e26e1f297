import pytest
from tests.tiny_student import make_pairs, make_tokenizer
from transformers import PreTrainedTokenizerFast

from spot.errors import UserError
from spot.schema import Message, Pair
from spot.train.tokenize import end_of_turn_id, tokenize_pairs


def with_sides(pair: Pair, chosen: str, rejected: str = "wrong") -> Pair:
    return pair.model_copy(update={"chosen": chosen, "rejected": rejected})


def test_ids_are_those_of_the_template_token_by_token(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> None:
    kept, _ = tokenize_pairs(pairs, tokenizer, 512)
    for pair, ids in zip(pairs, kept, strict=True):
        messages = [{"role": "user", "content": str(pair.prompt)}, {"role": "assistant", "content": str(pair.chosen)}]
        # Encoded apart from the code under test: text first, then cut where the turn ends.
        whole = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
        assert isinstance(whole, str)
        assert f"{tokenizer.decode([*ids.prompt_ids, *ids.chosen_ids])}\n" == whole
        assert [*ids.prompt_ids, *ids.chosen_ids] == tokenizer(whole.removesuffix("\n"))["input_ids"]


def test_the_prompt_ends_after_the_empty_think_block(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> None:
    kept, _ = tokenize_pairs(pairs, tokenizer, 512)
    assert all(
        str(tokenizer.decode(list(ids.prompt_ids))).endswith("assistant\n<think>\n\n</think>\n\n") for ids in kept
    )


def test_an_answer_ends_with_exactly_one_end_of_turn(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert isinstance(end, int)
    assert end_of_turn_id(tokenizer) == end != tokenizer.eos_token_id
    kept, _ = tokenize_pairs(pairs, tokenizer, 512)
    for ids in kept:
        for answer in (ids.chosen_ids, ids.rejected_ids):
            assert answer[-1] == end and answer.count(end) == 1


def test_the_students_own_words_are_kept(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> None:
    chosen = "\n wait </think> 5 \n"
    kept, _ = tokenize_pairs([with_sides(pairs[0], chosen)], tokenizer, 512)
    assert tokenizer.decode(list(kept[0].chosen_ids)) == chosen + "<|im_end|>"


def test_conversational_and_plain_pairs_are_the_same(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> None:
    plain = pairs[1]
    chat = plain.model_copy(
        update={
            "prompt": [Message(role="user", content=str(plain.prompt))],
            "chosen": [Message(role="assistant", content=str(plain.chosen))],
            "rejected": [Message(role="assistant", content=str(plain.rejected))],
        }
    )
    assert tokenize_pairs([plain], tokenizer, 512) == tokenize_pairs([chat], tokenizer, 512)


def test_overlong_pairs_are_left_out_never_cut(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> None:
    everything, _ = tokenize_pairs(pairs, tokenizer, 512)
    limit = sorted(ids.length for ids in everything)[5]
    kept, dropped = tokenize_pairs(pairs, tokenizer, limit)
    assert kept == [ids for ids in everything if ids.length <= limit]
    assert {row.id for row in dropped} == {ids.id for ids in everything if ids.length > limit} != set()
    assert {(row.stage, row.reason) for row in dropped} == {("train", "overlength")}


@pytest.mark.parametrize(
    ("chosen", "rejected", "problem"),
    [
        ("", "wrong", "chosen is empty"),
        ("right", " \n", "rejected is empty"),
        ("same", "same", "are the same"),
        ("right<|im_end|>", "wrong", "end-of-turn"),
    ],
)
def test_bad_pairs_are_named(tokenizer: PreTrainedTokenizerFast, chosen: str, rejected: str, problem: str) -> None:
    pairs = make_pairs(3)
    pairs[2] = with_sides(pairs[2], chosen, rejected)
    with pytest.raises(UserError, match=f"'pair-2'.*{problem}"):
        tokenize_pairs(pairs, tokenizer, 512)


def test_several_messages_for_an_answer_are_refused(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> None:
    turns = [Message(role="assistant", content="5"), Message(role="user", content="sure?")]
    with pytest.raises(UserError, match=r"'pair-0'.*single assistant message"):
        tokenize_pairs([pairs[0].model_copy(update={"chosen": turns})], tokenizer, 512)


def test_a_tokenizer_that_merges_across_the_boundary_is_noticed(pairs: list[Pair]) -> None:
    newline = "Ċ"  # how byte-level BPE writes it
    merging = make_tokenizer(merges=((newline, newline), (newline + newline, newline)))
    tokenize_pairs([with_sides(pairs[0], "right")], merging, 512)
    with pytest.raises(UserError, match=r"'pair-0'.*not a prefix"):
        tokenize_pairs([with_sides(pairs[0], "\nright")], merging, 512)


def test_a_tokenizer_without_a_usable_template_is_refused(pairs: list[Pair]) -> None:
    bare = make_tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        tokenize_pairs(pairs, bare, 512)
    bare.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    with pytest.raises(UserError, match="does not end an answer"):
        tokenize_pairs(pairs, bare, 512)
    bare.chat_template = "{{ raise_exception('not today') }}"
    with pytest.raises(UserError, match=r"the chat template refuses its messages \(not today\)"):
        tokenize_pairs(pairs, bare, 512)


def test_a_prompt_that_the_template_refuses_is_named(pairs: list[Pair]) -> None:
    picky = make_tokenizer()
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    picky.chat_template = refusal + str(picky.chat_template)
    pairs[1] = pairs[1].model_copy(update={"prompt": [Message(role="system", content="Be brief.")]})
    with pytest.raises(UserError, match=r"pair 'pair-1': the chat template refuses its messages \(no system\)"):
        tokenize_pairs(pairs, picky, 512)


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_half_of_a_surrogate_pair_is_named(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], field: str) -> None:
    pairs[1] = pairs[1].model_copy(update={field: "5\ud83d"})
    with pytest.raises(UserError, match=rf"'pair-1': {field} holds half of a surrogate pair \(\\ud83d\)") as caught:
        tokenize_pairs(pairs, tokenizer, 512)
    str(caught.value).encode()
