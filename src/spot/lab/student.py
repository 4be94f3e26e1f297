"""The bundled student's body: a tokenizer made for its world and a small Qwen3-architecture model, untrained.

The tokenizer is a unigram over bytes plus the world's own words, so that every word of the world is one token (names
are two halves, digits are single) and any other UTF-8 text still round-trips, byte by byte where it must.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spot.lab.world import FAMILIES, World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

STUDENT_DIR = Path(__file__).parent / "student"


def directory() -> str:
    """Where the bundled student is."""
    return str(STUDENT_DIR)


# How text is cut before tokens are chosen: a word or digit with the space before it, else single characters.
CUT = r"\n\n| ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s"
END_OF_TURN, END_OF_TEXT, START_OF_TURN = "<|im_end|>", "<|endoftext|>", "<|im_start|>"

# The same turns as Qwen3's template. This student never thinks aloud, so the empty think block is the default; it is
# left out only where thinking is asked for.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' and loop.last -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{{- message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if not (enable_thinking is defined and enable_thinking) -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""

# Samples per family from which the vocabulary is read; enough to see every word of a world many times.
VOCABULARY_SAMPLES = 4000


def world_words(world: World) -> list[str]:
    """Every piece of text (with its leading space) that the world writes, names as their two halves, sorted."""
    names = {name for names in world.names.values() for name in names}
    halves = {*world.raw["names"]["first"], *world.raw["names"]["last"]}
    pieces: set[str] = {"\n\n", "user", "assistant", "system"}
    for text in _sample_texts(world):
        for piece in re.findall(CUT, text):
            if piece.strip() not in names and piece.strip().capitalize() not in names:
                pieces.add(piece)
    for half in halves:
        pieces |= {half, half.upper()}
        pieces |= {" " + half, " " + half.upper()} if half in world.raw["names"]["first"] else set()
    return sorted(piece for piece in pieces if len(piece.encode()) > 1)


def _sample_texts(world: World) -> Iterable[str]:
    for family in FAMILIES:
        for split in ("pretrain", "test"):
            for index in range(VOCABULARY_SAMPLES):
                problem, text = world.problem(family, split, 0, index)
                yield str(problem.prompt)
                yield text


def build_tokenizer(world: World) -> "PreTrainedTokenizerFast":
    """The tokenizer of a world's student, chat template included."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(part for part, _ in byte_level.pre_tokenize_str(word)) for word in world_words(world)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A word scores better than any way to spell it: pieces are chosen by the highest sum.
    vocabulary = [(character, -10.0) for character in alphabet] + [
        (word, -1.0) for word in words if word not in alphabet
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=None, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(CUT), behavior="isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in (END_OF_TEXT, START_OF_TURN, END_OF_TURN)]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int, **shape: Any) -> "Qwen3ForCausalLM":
    """An untrained student in fp32; `shape` overrides fields of its `Qwen3Config`."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
        **shape,
    }
    config = Qwen3Config(**settings)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
