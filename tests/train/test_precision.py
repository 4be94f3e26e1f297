"""A whole model's gradient in bf16: on the bundled student, which is all but certain of most tokens."""

from typing import Any

import pytest
import torch
from benchmarks.train_speed.workload import Workload, make_data, make_model
from tests.arithmetic import ARITHMETICS, use_arithmetic
from torch import Tensor

from spot.train.logps import Scorer, accept_batches, share_prefixes
from spot.train.objective import Objective
from spot.train.reference import Reference, compute_reference
from spot.train.rows import as_preferences
from spot.train.step import run_step
from spot.train.tokenize import TokenizedPair, tokenize_pairs

pytestmark = pytest.mark.slow

LAB = Workload("lab", "lab", 16)


@pytest.fixture(scope="module")
def lab_pairs() -> list[TokenizedPair]:
    tokenizer, rows = make_data(LAB)
    return tokenize_pairs(as_preferences("lab", rows), tokenizer, 2048)[0]


def gradient(pairs: list[TokenizedPair], objective: str, bf16: bool) -> tuple[Tensor, Reference]:
    model: Any = make_model(LAB, "cpu")
    assert share_prefixes(model, pairs[0]) is None
    accept_batches(model)
    scorer, step = Scorer(model, True, bf16), range(len(pairs))
    reference = compute_reference(scorer, pairs, "key", [step], micro_batch_tokens=16384)
    run_step(
        *(scorer, pairs, step, reference, Objective((objective,))),
        delta=0.0,
        micro_batch_tokens=16384,
        backward=lambda loss: loss.backward(),
    )
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), reference


@pytest.mark.parametrize("objective", ["spot_bco", "reward_sft", "dft"])
def test_in_bf16_the_gradient_is_that_of_fp32(
    objective: str, lab_pairs: list[TokenizedPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, _ = gradient(lab_pairs, objective, bf16=False)
    for arithmetic in ARITHMETICS:
        use_arithmetic(arithmetic, monkeypatch)
        near, reference = gradient(lab_pairs, objective, bf16=True)
        # Autocast with the whole logits is 0.34 to 0.46% away.
        assert float((near - exact).norm() / exact.norm()) < 0.005, arithmetic
        assert float(reference.chosen_token_logps.max()) < 1e-6
