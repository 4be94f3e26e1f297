"""Templates that print the date: a training that is resumed on another day trains on the same tokens."""

import datetime as real
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_student import make_model, make_pairs, make_tokenizer

from spot import chat_template as chat
from spot.errors import UserError
from spot.train import ready
from spot.train.config import SpotConfig
from spot.train.reference import read_reference
from spot.train.run import fit
from spot.train.trainer import SpotTrainer

DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') }}\n"


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock to a day of March 2025, for whoever asks."""

    def set_to(day: int) -> None:
        class Today(real.date):
            @classmethod
            def today(cls) -> "Today":
                return cls(2025, 3, day)

        for module in (chat, ready):
            monkeypatch.setattr(module, "date", Today)

    set_to(1)
    return set_to


def student(directory: Path) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = DATED + str(tokenizer.chat_template)
    make_model().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def config(output: Path, **more: Any) -> SpotConfig:
    settings: dict[str, Any] = {"output_dir": str(output), "per_device_train_batch_size": 2, "bf16": False}
    settings |= {"max_steps": 3, "save_steps": 1, "report_to": [], "learning_rate": 1e-3}
    return SpotConfig(**(settings | more))


def prompt(trainer: SpotTrainer) -> str:
    assert trainer.chat.tokenizer is not None
    return str(trainer.chat.tokenizer.decode(list(trainer.pairs[0].prompt_ids)))


def test_a_training_that_is_resumed_tomorrow_is_the_one_that_was_begun(tmp_path: Path, today: Any) -> None:
    model, pairs = student(tmp_path / "student"), make_pairs(6)
    fit(pairs, model, tmp_path / "whole", config(tmp_path / "one"))

    class Killed(Exception):
        pass

    def kill(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == 2:
            raise Killed

    with pytest.raises(Killed):
        fit(pairs, model, tmp_path / "model", config(tmp_path / "two"), kill)
    today(2)
    result = fit(pairs, model, tmp_path / "model", config(tmp_path / "two"))
    assert result.resumed_from == 1
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "model")]
    assert weights[0] == weights[1]
    assert json.loads((tmp_path / "two" / "checkpoint-3" / "spot_state.json").read_text())["day"] == "2025-03-01"


def test_a_reference_that_was_made_is_used_on_another_day(tmp_path: Path, today: Any) -> None:
    model, pairs, path = student(tmp_path / "student"), make_pairs(4), str(tmp_path / "shared.safetensors")
    fit(pairs, model, tmp_path / "a", config(tmp_path / "one", reference_path=path, max_steps=1))
    made = Path(path).read_bytes()
    today(2)
    fit(pairs, model, tmp_path / "b", config(tmp_path / "other", reference_path=path, max_steps=1))
    assert Path(path).read_bytes() == made and read_reference(Path(path)) is not None


def test_a_new_training_prints_its_own_day(tmp_path: Path, today: Any) -> None:
    model = student(tmp_path / "student")
    today(7)
    assert prompt(SpotTrainer(model, config(tmp_path / "one"), make_pairs(2))).startswith("Today: 07 Mar 2025<|im_")
    given = config(tmp_path / "two", template_date="2024-02-29")
    assert prompt(SpotTrainer(model, given, make_pairs(2))).startswith("Today: 29 Feb 2024<|im_")


def test_a_date_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="template_date must be written YYYY-MM-DD, got 'yesterday'"):
        config(tmp_path, template_date="yesterday")


def test_another_date_than_the_checkpoints_is_refused(tmp_path: Path, today: Any) -> None:
    model, pairs = student(tmp_path / "student"), make_pairs(4)
    fit(pairs, model, tmp_path / "model", config(tmp_path / "one", max_steps=1))
    with pytest.raises(UserError, match="max_length or template_date"):
        fit(pairs, model, tmp_path / "model", config(tmp_path / "one", template_date="2024-02-29", max_steps=1))
