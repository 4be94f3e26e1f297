"""The watch over rewards and shift: silent where training keeps what it learns, heard in time where it does not."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from torch import tensor

from spot.train.trainer import SpotConfig, SpotTrainer
from spot.train.watch import Bound, Watch, advice

pytestmark = pytest.mark.slow


def heard(chosen: list[float], shift: list[float] | None = None, bound: float = 70.0) -> list[tuple[int, str, int]]:
    """What the watch says of a training: at which step, what, since when."""
    watch, told = Watch(), list[tuple[int, str, int]]()
    for step, reward in enumerate(chosen, start=1):
        found = watch.see(step, reward, shift[step - 1] if shift else 0.0, bound)
        if found is not None:
            told.append((step, *found))
    return told


def noisy(means: list[float], noise: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [mean + rng.gauss(0, noise) for mean in means]


def rising(steps: int, top: float) -> list[float]:
    """What a tethered training's chosen reward does: it rises and settles."""
    return [top * (1 - math.exp(-4 * step / steps)) for step in range(steps)]


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("steps", [30, 126, 3000])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_it_is_silent_while_the_chosen_reward_rises_and_settles(scale: float, steps: int, noise: float) -> None:
    for seed in range(5):
        assert heard(noisy(rising(steps, 1.5 * scale), noise * scale, seed), bound=4 * scale) == []


def test_noise_around_zero_is_no_fall() -> None:
    for seed in range(20):
        assert heard(noisy([0.0] * 500, 0.5, seed), bound=4.0) == []


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_turn_is_heard_with_its_step_whatever_the_scale(scale: float) -> None:
    means = rising(100, 1.3) + [1.3 - 0.02 * step for step in range(100)]
    ((step, what, since),) = heard(noisy([scale * mean for mean in means], 0.1 * scale), bound=4 * scale)
    assert 80 <= since <= 115 and since < step < 140  # before half of it is lost, at 165
    assert "has fallen from" in what and "unlearned" in what


def test_corrections_that_become_unlikely_are_heard_though_there_was_no_peak() -> None:
    ((step, what, _),) = heard(noisy([-0.05 * step for step in range(100)], 0.1), bound=10.0)
    assert "less likely than before training" in what and step < 40


def test_the_shift_that_closes_the_tether_is_heard_before_the_chosen_reward_falls() -> None:
    chosen = rising(60, 1.3) + [1.3] * 60
    shift = [-max(0.0, 0.05 * (step - 30)) for step in range(120)]
    ((step, what, since),) = heard(noisy(chosen, 0.1), shift, bound=3.8)
    assert since == 32 and shift[step - 1] == pytest.approx(-1.8, abs=0.2)
    assert "the shift followed the rejected ones down" in what and "ranks" in what
    # The same shift closes nothing that learning has not closed: the paper's regime.
    assert heard([10 * reward for reward in chosen], shift) == []
    # Nor does a shift above 0, of corrections far from the student.
    assert heard(chosen, [-value for value in shift]) == []


def test_dpo_is_watched_by_the_mean_of_its_rewards() -> None:
    chosen = rising(60, 1.3) + [1.3] * 60
    falling = [-max(0.0, 0.1 * (step - 30)) for step in range(120)]

    def first(rejected: list[float]) -> str:
        watch = Watch()
        steps = enumerate(zip(chosen, rejected, strict=True), start=1)
        found = [watch.see(step, up, 0.0, 3.8, down) for step, (up, down) in steps]
        return next((what for what, _ in filter(None, found)), "")

    assert "rejected answers' fall" in first(falling)
    assert first([-reward for reward in chosen]) == ""  # a margin that both sides make
    assert heard(chosen, bound=3.8) == []  # spot_bce keeps its tether, however far the rejected ones fall


def test_each_kind_is_said_once_also_over_a_resume() -> None:
    chosen = rising(60, 1.3) + [1.3 - 0.03 * step for step in range(100)]
    shift = [-max(0.0, 0.05 * (step - 30)) for step in range(160)]
    whole = heard(noisy(chosen, 0.05), shift, bound=3.8)
    assert ["the shift followed" in what for _, what, _ in whole] == [True, False]
    watch, told = Watch(), list[tuple[int, str, int]]()
    for step, reward in enumerate(noisy(chosen, 0.05), start=1):
        watch = Watch(**json.loads(json.dumps(watch.state)))
        if found := watch.see(step, reward, shift[step - 1], 3.8):
            told.append((step, *found))
    assert told == whole


def test_a_bound_that_cannot_tether_is_named_with_the_beta_that_could() -> None:
    bound = Bound.of(tensor([2.0, 3.0, 4.0, 6.2]).double(), beta=1.0)
    assert bound.mean == pytest.approx(3.8) and bound.low == pytest.approx(2.3)
    assert bound.warning is not None and "beta 18 would give about 70" in bound.warning
    assert Bound.of(tensor([700.0]).double(), beta=0.1).warning is None
    assert Bound.of(tensor([0.0]).double(), beta=0.1).warning is not None  # a correction that is certain already


def test_the_advice_fits_the_objective() -> None:
    slack, tight = Bound(3.8, 2.0, 1.0), Bound(70.0, 50.0, 18.0)
    assert "go back to checkpoint-32" in advice(["spot_bco"], True, slack, "checkpoint-32")
    assert "spot_bce, which has no shift" in advice(["spot_bco"], True, tight, None)
    assert "raise beta" in advice(["spot_bco"], True, slack, None)
    assert "raise beta" not in advice(["spot_bco"], True, tight, None)
    assert "spot_bce, which has a tether" in advice(["dpo"], False, tight, None)
    assert "spot_bce" not in advice(["sft"], False, tight, None)


def trained(directory: Path, resume: bool = False, stop: int | None = None, **changes: Any) -> list[str]:
    """A training whose rate is far too high; returns what it told."""
    settings: dict[str, Any] = {
        "output_dir": str(directory),
        "metrics_path": str(directory / "m.jsonl"),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 12,
        "learning_rate": 3e-2,
        "lr_scheduler_type": "constant",
        "beta": 0.5,
        "save_steps": 5,
        "save_total_limit": 1,
        "bf16": False,
        "disable_tqdm": True,
    }
    args = SpotConfig(**(settings | changes))
    trainer = SpotTrainer(make_model(), args, make_pairs(10), None, make_tokenizer())
    told: list[str] = []
    trainer.notify = told.append
    if stop is not None:
        end: Any = trainer.end_step

        def end_step() -> None:
            if trainer.state.global_step > stop:
                raise KeyboardInterrupt
            end()

        trainer.end_step = end_step
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        return told
    trainer.train(resume_from_checkpoint=resume or None)
    return told


def rows(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "m.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in lines]


def test_a_training_says_it_where_it_happens_and_keeps_the_checkpoint_to_go_back_to(tmp_path: Path) -> None:
    told = trained(tmp_path / "whole")
    assert told[0].startswith("warning: with beta 0.5") or told[0].startswith("with beta 0.5")
    warnings = [line.removeprefix("warning: ") for line in told[1:]]
    assert warnings, told
    logged = rows(tmp_path / "whole")
    said = {row["step"]: row["warnings"] for row in logged if "warnings" in row and row["step"] > 1}
    assert [line for lines in said.values() for line in lines] == warnings
    (step, (first, *_)), *_ = said.items()
    assert first.startswith(f"step {step}: ") and "\n" not in first and "since about step" in first
    name = first.partition("go back to ")[2].partition(",")[0]
    kept = {path.name for path in (tmp_path / "whole").glob("checkpoint-*")}
    assert kept == {name, "checkpoint-36"} and step < 36
    # A kill behind the warning: nothing is said twice, nothing is lost.
    again = trained(tmp_path / "killed", stop=step + 1) + trained(tmp_path / "killed", resume=True)
    assert [line for line in again if "since about" in line] == [line for line in told if "since about" in line]
    assert rows(tmp_path / "killed") == logged
    assert {path.name for path in (tmp_path / "killed").glob("checkpoint-*")} == kept


@pytest.mark.parametrize("loss", ["sft", "dpo", "spot_bce"])
def test_what_has_no_shift_is_watched_by_its_chosen_reward(loss: str, tmp_path: Path) -> None:
    told = trained(tmp_path, loss_type=[loss], learning_rate=1e-3)
    # dpo ranks: on a student that knows nothing it makes corrections of common tokens less likely, and keeps on.
    heard = [line for line in told if "since about" in line]
    assert bool(heard) == (loss == "dpo")
    assert all("spot_bce, which has a tether" in line for line in heard)
    assert any("a chosen reward reaches at most" in line for line in told) == (loss != "sft")
