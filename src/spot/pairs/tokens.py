"""The student's tokenizer as the filter uses it: text to ids, no special tokens."""

from collections.abc import Callable, Sequence
from typing import Any

from spot.hub import load_tokenizer

Encode = Callable[[str], list[int]]
"""Text to token ids."""

TEXTS_AT_ONCE = 256
"""Texts to encode together: enough to keep all cores busy, few enough for their ids to be small."""


class Encoder:
    """A tokenizer of transformers as an `Encode`, and for many texts at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Through the library below: without offsets and masks, which nobody reads, it takes half the time.
        self._fast: Any = getattr(tokenizer, "backend_tokenizer", None)

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each of `texts`, on all cores where the tokenizer is a fast one."""
        if not texts:
            return []
        if self._fast is None:
            return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [found.ids for found in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]


def load_encoder(student: str) -> Encoder:
    """The tokenizer of the model at `student` (a directory or a hub name)."""
    return Encoder(load_tokenizer(student))


def encode_all(encode: Encode, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each of `texts`, together where `encode` can."""
    return encode.batch(texts) if isinstance(encode, Encoder) else [encode(text) for text in texts]
