"""Two processes (gloo, DDP) give the losses and weights of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from transformers import AutoModelForCausalLM

from spot.train.trainer import SpotConfig, SpotTrainer

ROOT = Path(__file__).parents[2]


def train(output: Path, objective: str, pairs_per_process: int) -> None:
    """What each process runs; also this file as a script."""
    torch.set_num_threads(1)
    args = SpotConfig(
        output_dir=str(output),
        metrics_path=str(output / "metrics.jsonl"),
        loss_type=[objective],
        learning_rate=1e-3,
        beta=0.05,
        per_device_train_batch_size=pairs_per_process,
        micro_batch_tokens=150,  # several rows a step, so that not all gradients are exchanged
        use_cpu=True,
        disable_tqdm=True,
        save_steps=2,
    )
    trainer = SpotTrainer(make_model(), args, make_pairs(9), processing_class=make_tokenizer())
    trainer.train()
    kind = type(trainer.model_wrapped).__name__
    assert kind == ("DistributedDataParallel" if "RANK" in os.environ else "Qwen3ForCausalLM"), kind


def logged(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["spot_bco", "sft"])
def test_two_processes_give_the_losses_and_weights_of_one(objective: str, tmp_path: Path) -> None:
    train(tmp_path / "one", objective, 4)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(tmp_path / "two"), objective],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert len(one) == len(two) == 6
    for alone, shared in zip(one, two, strict=True):
        for name in alone.keys() - {"tokens_per_second"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), name
    weights = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "checkpoint-6").state_dict() for name in ("one", "two")
    ]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], 2)
