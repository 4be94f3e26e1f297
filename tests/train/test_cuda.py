"""What only a GPU runs: one FlashAttention call a row, large head tiles, DeepSpeed. Skipped where there is none."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from torch import Tensor

from spot.files.store import write_rows
from spot.schema import Pair
from spot.train.attention import SPOT_SHARED, varlen_refused
from spot.train.head import head_logps
from spot.train.logps import Scorer, accept_batches, attention_heads
from spot.train.tokenize import TokenizedPair, tokenize_pairs
from spot.train.trainer import SpotConfig, SpotTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

HEADS: list[dict[str, Any]] = [{}, {"num_key_value_heads": 1}, {"head_dim": 128, "num_key_value_heads": 2}]


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(**overrides: Any) -> Any:
    model: Any = make_model(**overrides)
    return model.cuda()


def tokenized(count: int = 12) -> list[TokenizedPair]:
    return tokenize_pairs(make_pairs(count), make_tokenizer(), 512)[0]


def scores(model: Any, scorer: Scorer, pairs: list[TokenizedPair]) -> tuple[Tensor, dict[str, Tensor]]:
    model.set_attn_implementation(SPOT_SHARED if scorer.shared else "sdpa")
    model.zero_grad()
    token_logps, mask = scorer(pairs)
    weights = torch.rand(token_logps.shape, generator=torch.Generator().manual_seed(1)).to(token_logps.device) - 0.5
    (token_logps * weights).sum().backward()
    return token_logps.detach()[mask], {name: p.grad.clone() for name, p in model.named_parameters()}


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    norms = [(float((left[name] - right[name]).norm() ** 2), float(right[name].norm() ** 2)) for name in right]
    return (sum(difference for difference, _ in norms) / sum(norm for _, norm in norms)) ** 0.5


@pytest.mark.parametrize("heads", HEADS)
def test_packed_rows_are_plain_sequences_in_fp32(heads: dict[str, Any]) -> None:
    model = on_gpu(**heads)
    accept_batches(model)
    plain, plain_gradients = scores(model, Scorer(model, False, bf16=False), tokenized())
    shared, gradients = scores(model, Scorer(model, True, bf16=False), tokenized())
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-5)
    assert distance(gradients, plain_gradients) < 1e-5


@pytest.mark.parametrize("heads", HEADS)
def test_one_call_a_row_in_bf16_is_as_near_to_fp32_as_plain_sequences_are(
    heads: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    model = on_gpu(**heads)
    accept_batches(model)
    model.set_attn_implementation(SPOT_SHARED)
    assert varlen_refused(attention_heads(model, tokenized()[0]), torch.device("cuda")) is None
    exact, exact_gradients = scores(model, Scorer(model, False, bf16=False), tokenized())
    errors: list[tuple[float, float]] = []
    for shared, varlen in [(False, False), (True, True)]:
        values, gradients = scores(model, Scorer(model, shared, bf16=True, varlen=varlen), tokenized())
        errors.append((float((values - exact).norm() / exact.norm()), distance(gradients, exact_gradients)))
    (plain, plain_gradient), (row, row_gradient) = errors
    record_property("errors", errors)
    assert row < 1.5 * plain and row_gradient < 1.5 * plain_gradient


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("vocabulary", [40_000, 33])
@pytest.mark.parametrize("certain", [False, True])
def test_the_head_in_tiles_is_the_head(bf16: bool, vocabulary: int, certain: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    head = torch.nn.Linear(256, vocabulary, bias=False, device="cuda")
    hidden = torch.randn(5000, 256, device="cuda", generator=generator, requires_grad=True)
    targets = torch.randint(vocabulary, (5000,), device="cuda", generator=generator)
    weights = torch.randn(5000, device="cuda", generator=generator)
    weights[::7] = 0.0  # as the shared span's before the first step
    with torch.no_grad():
        head.weight.mul_(10)
        if certain:  # as a student is of most tokens: of probabilities from 0.5 or so to 0.9999
            margins = math.log(vocabulary) + torch.linspace(2, 12, 5000, device="cuda")[:, None]
            rows = head.weight[targets]
            hidden.add_(margins * rows / rows.square().sum(1, keepdim=True))

    def gradients(logps: Tensor) -> list[Tensor]:
        return [logps.detach(), *torch.autograd.grad((logps * weights).sum(), [hidden, head.weight])]

    exact = gradients(head(hidden).double().log_softmax(-1).gather(-1, targets[:, None])[:, 0].float())
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        ours = gradients(head_logps(head, hidden, targets))
        naive = gradients(torch.nn.Linear.forward(head, hidden).float().log_softmax(-1)[range(5000), targets])
    assert float(ours[0].max()) < 1e-6
    for left, right, other in zip(ours, exact, naive, strict=True):
        error, least = (float((one - right).norm() / right.norm()) for one in (left, other))
        assert error < (1.05 * least if bf16 else 3e-5 if certain else 1e-5)


def config(directory: Path, **overrides: Any) -> SpotConfig:
    settings: dict[str, Any] = {
        "output_dir": str(directory),
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 12,
        "max_length": 512,
        "max_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
    }
    return SpotConfig(**settings | overrides)


@pytest.mark.parametrize("bf16", [False, True])
def test_rewards_start_at_0_and_training_moves_them(bf16: bool, tmp_path: Path) -> None:
    trainer = SpotTrainer(make_model(), config(tmp_path, bf16=bf16), make_pairs(12), processing_class=make_tokenizer())
    assert trainer.not_shared is None
    assert (trainer.not_varlen is None) == bf16
    trainer.train()
    first, second = [row for row in trainer.state.log_history if "loss" in row][:2]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert second["rewards/margins"] != 0


def test_rewards_of_pairs_packed_otherwise_are_near_0(record_property: Callable[[str, object], None]) -> None:
    model = on_gpu(head_dim=128)
    accept_batches(model)
    model.set_attn_implementation(SPOT_SHARED)
    pairs = tokenized()
    for scorer, bound in [(Scorer(model, True, False), 1e-4), (Scorer(model, True, True, varlen=True), 5e-2)]:
        with torch.no_grad():
            together = scorer(pairs)[0].sum(1)
            alone = torch.stack([scorer([pair])[0].sum(1) for pair in pairs], 1).flatten()
        difference = float((together - alone).abs().max())
        record_property(f"difference, bf16 {scorer.bf16}", difference)
        assert difference < bound


def test_zero2_gives_the_losses_of_one_process(
    tmp_path: Path, save_student: Callable[..., Path], pairs: list[Pair]
) -> None:
    pytest.importorskip("deepspeed")
    student, data = save_student(), tmp_path / "pairs.jsonl"
    write_rows(data, pairs)
    losses: list[list[float]] = []
    for name, launcher in [
        ("one", [sys.executable]),
        (
            "zero2",
            [
                *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--config_file"),
                "configs/accelerate/zero2.yaml",
            ],
        ),
    ]:
        rest = ["--model_name_or_path", str(student), "--dataset_name", str(data), "--output_dir", str(tmp_path / name)]
        rest += ["--max_steps", "3", "--learning_rate", "1e-3", "--per_device_train_batch_size", "10"]
        rest += ["--bf16", "false"]
        done = subprocess.run(
            [*launcher, "-m", "spot", "train", *rest], capture_output=True, text=True, check=False, timeout=250
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
