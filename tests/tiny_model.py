"""A tiny randomly initialised Qwen3 model in the standard directory layout: word-level tokenizer and chat template."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END, START, OTHER_END = "<end>", "<start>", "<stop>"
END_IDS = (0, 2)
WORDS = tuple(f"w{number}" for number in range(40))
VOCABULARY = (END, START, OTHER_END, "user", "assistant", *WORDS)
CONTEXT = 128
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    f"{START} {{{{ message.role }}}} {{{{ message.content }}}} {END} "
    "{% endfor %}"
    f"{START} assistant"
    "{% if not enable_thinking %} w0{% endif %}"
)


def save_tiny_model(directory: Path, seed: int = 0, **config: Any) -> Path:
    """Write the model to `directory` in float64; the same seed gives the same weights. `config` goes to Qwen3Config."""
    settings: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        # Far from uniform predictions, so that a wrong position or mask changes what is drawn.
        "initializer_range": 0.6,
        "eos_token_id": END_IDS[0],
        "pad_token_id": END_IDS[0],
    }
    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM(Qwen3Config(**(settings | config))).double()
    model.generation_config = GenerationConfig(eos_token_id=list(END_IDS), pad_token_id=END_IDS[0])
    model.save_pretrained(directory)
    save_tokenizer(directory, TEMPLATE)
    return directory


def save_tokenizer(directory: Path, template: str | None) -> None:
    """Write the tokenizer, with `template` as its chat template if there is one."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, additional_special_tokens=[START])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
