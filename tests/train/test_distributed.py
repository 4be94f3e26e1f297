"""Two processes (gloo) give the losses and weights of one, under DDP and under FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from spot.train.trainer import SpotConfig, SpotTrainer

ROOT = Path(__file__).parents[2]


class Fsdp2Trainer(SpotTrainer):
    """Sharded on a CPU, where accelerate would take DDP: its state is told otherwise, the rest is its own FSDP2."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT"
        )
        self.is_fsdp_enabled = True


def train(output: Path, objective: str, pairs_per_process: int, sharded: bool = False, tied: bool = True) -> None:
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
        bf16=False,
        disable_tqdm=True,
        save_steps=2,
    )
    kind = Fsdp2Trainer if sharded else SpotTrainer
    trainer = kind(make_model(tie_word_embeddings=tied), args, make_pairs(9), processing_class=make_tokenizer())
    trainer.train()
    trainer.save_model(str(output / "model"))
    model: Any = trainer.model_wrapped
    if sharded:
        parameters = dict(model.named_parameters())
        assert all(isinstance(module, FSDPModule) for module in (model, model.get_decoder().layers[0]))
        assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
        up = parameters["model.layers.0.mlp.up_proj.weight"]
        assert up.to_local().shape[0] * distributed.get_world_size() == up.shape[0]
    else:
        name = type(model).__name__
        assert name == ("DistributedDataParallel" if "RANK" in os.environ else "Qwen3ForCausalLM"), name


def logged(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def launch(output: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(output), *arguments], check=False, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("objective", "kind", "tied"),
    [
        ("spot_bco", "ddp", True),
        ("sft", "ddp", True),
        ("spot_bco", "fsdp2", True),
        ("sft", "fsdp2", False),
    ],
)
def test_two_processes_give_the_losses_and_weights_of_one(
    objective: str, kind: str, tied: bool, tmp_path: Path
) -> None:
    train(tmp_path / "one", objective, 4, tied=tied)
    launch(tmp_path / "two", objective, kind, str(tied))
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert len(one) == len(two) == 6
    for alone, shared in zip(one, two, strict=True):
        for name in alone.keys() - {"tokens_per_second"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), name
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], 2, sys.argv[3] == "fsdp2", sys.argv[4] == "True")
