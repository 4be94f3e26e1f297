"""A user's own code by name: what it raises is one line that names it and the place."""

from pathlib import Path

import pytest
import torch

from spot.errors import RunFailed, StoppedEarly, UserError
from spot.plugin import own_code
from spot.train.objective import Objective, Scores


@pytest.mark.parametrize("error", [UserError("a"), RunFailed("b"), StoppedEarly("c")])
def test_ways_to_end_go_through(error: Exception) -> None:
    with pytest.raises(type(error), match=f"^{error}$"), own_code("oracle", "mine:make"):
        raise error


def test_an_interrupt_is_no_failure_of_the_users_code() -> None:
    with pytest.raises(KeyboardInterrupt), own_code("oracle", "mine:make"):
        raise KeyboardInterrupt


def test_code_without_a_module_of_its_own_is_told_by_the_last_line() -> None:
    told = r"^oracle 'mine:make': ValueError: no \(test_plugin\.py:\d+\)$"
    with pytest.raises(RunFailed, match=told), own_code("oracle", "mine:make"):
        raise ValueError("no")


def test_a_users_loss_that_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spot_test_my_loss.py").write_text(
        "def mine(chosen, rejected, ref_chosen, ref_rejected, *, beta):\n    return chosen @ chosen[:, None, None]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    scores = Scores(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
    objective = Objective(("spot_test_my_loss:mine",))
    with pytest.raises(
        RunFailed, match=r"^loss 'spot_test_my_loss:mine': RuntimeError: .*\(spot_test_my_loss\.py:2\)$"
    ):
        objective.losses(scores, scores, delta=0.0, mean_tokens=3.0)
