"""The student's tokenizer as the filter uses it: text to ids, no special tokens, loaded without torch."""

from spot.errors import UserError
from spot.pairs.filter import Encode


def load_encoder(student: str) -> Encode:
    """The tokenizer of the model at `student` (a directory or a hub name)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(student)
    except (OSError, ValueError) as error:
        raise UserError(f"{student}: no tokenizer can be loaded ({str(error).splitlines()[0]})") from None
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
