"""The student's tokenizer and the recipe that raises it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spot.lab.recipe import Recipe, batches, train_student
from spot.lab.student import STUDENT_DIR, build_tokenizer
from spot.lab.world import World


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(STUDENT_DIR)


@given(text=st.text())
@example("Natalia sold 48 clips ▁ — «é» 日本 🎉\x00 \r\n\n\n  x")
@settings(max_examples=300, deadline=None)
def test_tokenizer_round_trips_any_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_bundled_tokenizer_is_what_its_world_makes(tokenizer: Any) -> None:
    assert tokenizer.get_vocab() == build_tokenizer(World.load()).get_vocab()


def test_words_and_digits_are_single_tokens(tokenizer: Any) -> None:
    assert tokenizer.tokenize(" doubles 128") == ["Ġdoubles", "Ġ1", "2", "8"]


def test_chat_template_opens_with_the_empty_think_block(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    full = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "yo"}], tokenize=False)
    assert full == prompt + "yo<|im_end|>\n"
    thinking = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert "<think>" not in thinking


def test_a_short_training_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    world = World.load()
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    recipe = Recipe(steps=60, questions_per_step=16, warmup_steps=10, checkpoint_every=30, shape=shape)
    losses: list[float] = []
    train_student(world, recipe, tmp_path / "whole", lambda _, __, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])

    class Killed(Exception):
        pass

    def kill(step: int, _: int, __: float) -> None:
        if step == 40:
            raise Killed

    with pytest.raises(Killed):
        train_student(world, recipe, tmp_path / "killed", kill)
    resumed: list[float] = []
    train_student(world, recipe, tmp_path / "killed", lambda _, __, loss: resumed.append(loss))
    assert resumed == losses[30:]


def test_batches_score_exactly_the_answers() -> None:
    tokenizer = build_tokenizer(World.load())
    ids, mask, scored = next(batches(World.load(), tokenizer, Recipe(steps=16, questions_per_step=4)))
    for row in range(4):
        text = str(tokenizer.decode(ids[row][scored[row]]))
        assert text.endswith("<|im_end|>") and text.count("<|im_end|>") == 1
        assert mask[row].sum() == mask[row][: int(mask[row].sum())].sum()
        assert str(tokenizer.decode(ids[row][~scored[row] & mask[row].bool()])).endswith("</think>\n\n")
