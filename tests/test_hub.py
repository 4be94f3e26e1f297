"""The tokenizer of a model directory, and of an adapter as peft saves it."""

from pathlib import Path

import pytest

from spot.errors import UserError
from spot.hub import load_model, load_tokenizer
from tiny_model import save_tiny_model, save_tokenizer

peft = pytest.importorskip("peft")


def save_adapter(base: Path, directory: Path) -> None:
    model = load_model(base)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        directory
    )


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(tmp_path: Path) -> None:
    base, adapter = save_tiny_model(tmp_path / "base"), tmp_path / "adapter"
    save_adapter(base, adapter)
    assert not list(adapter.glob("tokenizer*"))
    found, expected = load_tokenizer(adapter), load_tokenizer(base)
    assert found.get_vocab() == expected.get_vocab() and found.chat_template == expected.chat_template
    save_tokenizer(adapter, "its own")
    assert load_tokenizer(adapter).chat_template == "its own"


def test_an_adapter_whose_base_is_gone_is_said(tmp_path: Path) -> None:
    base, adapter = save_tiny_model(tmp_path / "base"), tmp_path / "adapter"
    save_adapter(base, adapter)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"adapter without a tokenizer, and its base has none either: .*base"):
        load_tokenizer(adapter)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="no tokenizer that transformers can load"):
        load_tokenizer(broken)
