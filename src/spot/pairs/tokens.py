"""The student's tokenizer as the filter uses it: text to ids, no special tokens."""

from typing import Any

from spot.hub import load_tokenizer
from spot.pairs.filter import Encode


def load_encoder(student: str) -> Encode:
    """The tokenizer of the model at `student` (a directory or a hub name)."""
    tokenizer: Any = load_tokenizer(student)
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
