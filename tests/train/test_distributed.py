"""Two processes (gloo) give the losses and weights of one, under DDP and under FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.commands.config.config_args import load_config_from_file
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from spot.errors import UserError
from spot.train.ranks import check_sharding, ranks_of
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


def test_spot_train_in_two_processes_speaks_once(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f"{pair.model_dump_json()}\n" for pair in make_pairs(9)))
    flags = {"model_name_or_path": "lab", "dataset_name": pairs, "output_dir": tmp_path / "out", "max_steps": 2}
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "-m",
        "spot",
        "train",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *argv], check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("9 pairs, 2 steps of spot_bco") == 1
    assert len(logged(tmp_path / "out")) == 2


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2"])
def test_the_configs_to_start_from_are_accelerates(name: str) -> None:
    config: Any = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}
    assert config.distributed_type == kinds[name] and config.num_processes == 8
    assert config.fsdp_config.get("fsdp_version", 2) == 2 and config.deepspeed_config.get("zero_stage", 2) == 2


def test_what_accelerate_would_do_instead_is_refused() -> None:
    def accelerator(kind: DistributedType, **given: Any) -> Any:
        return SimpleNamespace(**({"distributed_type": kind, "deepspeed_plugin": None, "is_fsdp2": True} | given))

    with pytest.raises(UserError, match="FSDP was asked for, but accelerate runs MULTI_CPU"):
        check_sharding(accelerator(DistributedType.MULTI_CPU), asked_for_fsdp=True)
    with pytest.raises(UserError, match="FSDP1"):
        check_sharding(accelerator(DistributedType.FSDP, is_fsdp2=False), asked_for_fsdp=True)
    with pytest.raises(UserError, match="ZeRO-3"):
        plugin = SimpleNamespace(zero_stage=3)
        check_sharding(accelerator(DistributedType.DEEPSPEED, deepspeed_plugin=plugin), asked_for_fsdp=False)


def test_fsdp_rounds_neither_log_probabilities_nor_gradients() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    before: Any = plugin.mixed_precision_policy
    assert before.output_dtype == before.reduce_dtype == torch.bfloat16
    accelerator: Any = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        deepspeed_plugin=None,
        is_fsdp2=True,
        state=SimpleNamespace(fsdp_plugin=plugin),
    )
    check_sharding(accelerator, asked_for_fsdp=True)
    after: Any = plugin.mixed_precision_policy
    assert (after.param_dtype, after.reduce_dtype, after.output_dtype) == (torch.bfloat16, torch.float32, None)


def test_under_deepspeed_only_a_steps_last_row_steps() -> None:
    """accelerate's own flag, as its backward reads it; DeepSpeed itself needs a GPU."""
    state = Accelerator(cpu=True).gradient_state
    accelerator: Any = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, gradient_state=state, num_processes=1, process_index=0
    )
    ranks = ranks_of(accelerator, torch.nn.Linear(1, 1))
    seen: list[bool] = []
    for last in (False, False, True):
        with ranks.sync(last):
            seen.append(state.sync_gradients)
    assert seen == [False, False, True] and state.sync_gradients


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], 2, sys.argv[3] == "fsdp2", sys.argv[4] == "True")
    distributed.destroy_process_group()
