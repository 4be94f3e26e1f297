"""The tiny student and its pairs as fixtures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from spot.schema import Pair
from spot.train.tokenize import TokenizedPair, tokenize_pairs


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    return make_model()


@pytest.fixture
def pairs() -> list[Pair]:
    return make_pairs(10)


@pytest.fixture
def tokenized(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair]) -> list[TokenizedPair]:
    kept, dropped = tokenize_pairs(pairs, tokenizer, 512)
    assert not dropped
    return kept


@pytest.fixture
def save_student(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """Writes a student in Hugging Face's layout; keyword arguments go to `make_model`."""

    def save(dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
        student: Any = make_model(**overrides).to(dtype)  # pyright: ignore[reportArgumentType] (its decorator hides self)
        student.generation_config = GenerationConfig(eos_token_id=[258, 256], temperature=0.7, do_sample=True)
        student.save_pretrained(tmp_path / "student")
        tokenizer.save_pretrained(tmp_path / "student")
        return tmp_path / "student"

    return save
