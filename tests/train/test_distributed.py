"""Two processes (gloo) give the losses and weights of one, under DDP and under FSDP2, and go on after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.commands.config.config_args import load_config_from_file
from peft import LoraConfig, PeftModel
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, TrainerCallback

from spot.errors import UserError
from spot.train.adapter import language_model
from spot.train.logps import pad, score
from spot.train.ranks import check_sharding, ranks_of
from spot.train.tokenize import tokenize_pairs
from spot.train.trainer import SpotConfig, SpotTrainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BETA = 0.05

CASES: dict[str, dict[str, Any]] = {
    "spot_bco": {},
    "sft": {"objective": "sft", "tied": False},
    "adapter": {"adapter": True, "tied": False},
    "bf16": {"bf16": True},
    "bf16 adapter": {"adapter": True, "tied": False, "bf16": True},
}


class Fsdp2Trainer(SpotTrainer):
    """Sharded on a CPU, where accelerate would take DDP: its state is told otherwise, the rest is its own FSDP2."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT"
        )
        if self.args.bf16:
            state.fsdp_plugin.set_mixed_precision("bf16")
        self.is_fsdp_enabled = True


class Kill(TrainerCallback):
    """Ends the second process, without a word to the first, after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    output: Path,
    pairs_per_process: int,
    *,
    sharded: bool = False,
    objective: str = "spot_bco",
    tied: bool = True,
    adapter: bool = False,
    bf16: bool = False,
    rounded: bool = False,
    killed_after: int | None = None,
    resumed_from: int | None = None,
) -> None:
    """What each process runs; also this file as a script."""
    torch.set_num_threads(1)
    args = SpotConfig(
        output_dir=str(output),
        metrics_path=str(output / "metrics.jsonl"),
        loss_type=[objective],
        learning_rate=1e-2 if adapter else 1e-3,
        adam_epsilon=1e-4 if bf16 or rounded else 1e-8,  # else Adam's first steps take the signs of what is rounding
        beta=BETA,
        per_device_train_batch_size=pairs_per_process,
        micro_batch_tokens=150,  # several rows a step, so that not all gradients are exchanged
        use_cpu=True,
        bf16=bf16,
        disable_tqdm=True,
        save_steps=2,
    )
    model: Any = make_model(tie_word_embeddings=tied)
    if bf16 or rounded:
        model = model.to(torch.bfloat16)
    trainer = (Fsdp2Trainer if sharded else SpotTrainer)(
        model,
        args,
        make_pairs(9),
        make_pairs(3) if adapter else None,
        make_tokenizer(),
        # The head, too: FSDP2 leaves it whole after a forward.
        LoraConfig(r=4, target_modules=["q_proj", "up_proj", "lm_head"]) if adapter else None,
        [] if killed_after is None else [Kill(killed_after)],
    )
    trainer.train(None if resumed_from is None else str(output / f"checkpoint-{resumed_from}"))
    if adapter:
        trainer.evaluate()
    trainer.save_model(str(output / "model"))
    wrapped: Any = trainer.model_wrapped
    if sharded:
        decoder: Any = language_model(wrapped).get_decoder()
        layer = decoder.layers[0]
        assert all(isinstance(module, FSDPModule) for module in (wrapped, layer))
        assert all(isinstance(parameter, DTensor) for parameter in wrapped.parameters())
        up = layer.mlp.up_proj.weight
        assert up.to_local().shape[0] * distributed.get_world_size() == up.shape[0]
    else:
        assert isinstance(wrapped, DistributedDataParallel) == ("RANK" in os.environ)


def logged(output: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: row[name] for name in row.keys() - {"tokens_per_second", "eval_runtime", "warnings"}} for row in rows
    ]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(output / "model").state_dict()


def assert_near(ones: list[dict[str, float]], others: list[dict[str, float]], rel: float, abs: float) -> None:
    assert len(ones) == len(others) >= 6
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=rel, abs=abs), (one["step"], name)


def launch(output: Path, runs: dict[str, dict[str, Any]], killed: bool = False) -> None:
    """Two processes that train each of `runs`, by its name, one after the other."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(output), json.dumps(runs)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ("SIGKILL" in done.stderr) if killed else done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes trained every case, and then, in `killed`, the first one again until one process was killed.

    One start for all: it takes far longer than what it trains.
    """
    directory = tmp_path_factory.mktemp(request.param)
    runs = CASES | {"killed": {"killed_after": 5}}
    sharded = request.param == "fsdp2"
    launch(directory, {name: settings | {"sharded": sharded} for name, settings in runs.items()}, killed=True)
    return directory


@pytest.mark.parametrize("case", ["spot_bco", "sft"])
def test_two_processes_give_the_losses_and_weights_of_one(case: str, two: Path, tmp_path: Path) -> None:
    train(tmp_path, 4, **CASES[case])
    assert_near(logged(tmp_path), logged(two / case), rel=1e-4, abs=1e-5)
    trained = weights(two / case)
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-5)


def test_an_adapter_is_trained_and_saved_as_by_one_process(two: Path, tmp_path: Path) -> None:
    train(tmp_path, 4, **CASES["adapter"])
    rows = logged(two / "adapter")
    assert_near(logged(tmp_path), rows, rel=1e-4, abs=1e-5)
    pairs, _ = tokenize_pairs(make_pairs(3), make_tokenizer(), 512)
    batch = pad([pair.prompt_ids for pair in pairs], [pair.chosen_ids for pair in pairs])
    for saved in ("model", "checkpoint-6"):
        adapted = PeftModel.from_pretrained(make_model(tie_word_embeddings=False), str(two / "adapter" / saved))
        with torch.no_grad():
            logps = float(score(language_model(adapted), batch).sum()) / 3
            with adapted.disable_adapter():
                assert abs(float(score(language_model(adapted), batch).sum()) / 3 - logps) > 0.1
        assert logps == pytest.approx(rows[-1]["eval_logps/chosen"], abs=1e-4)


@pytest.mark.parametrize("case", ["bf16", "bf16 adapter"])
def test_in_bf16_they_are_as_near_to_fp32_as_one_process_is(case: str, two: Path, tmp_path: Path) -> None:
    """Rows are cut otherwise and FSDP2 holds norms in bf16, too: of 200 nats all were up to 0.38 away after 5 steps."""
    train(tmp_path / "one", 4, **CASES[case])
    settings: dict[str, Any] = CASES[case] | {"bf16": False, "rounded": True}
    train(tmp_path / "exact", 4, **settings)
    exact = logged(tmp_path / "exact")
    for output in (tmp_path / "one", two / case):
        rows = logged(output)
        assert len(rows) == len(exact) >= 6
        assert rows[0]["rewards/chosen"] == rows[0]["rewards/rejected"] == 0  # nothing has been trained
        for row, best in zip(rows, exact, strict=True):
            assert row.keys() == best.keys()
            for name, value in row.items():
                nats = 0.6 if "logps/" in name else 0.6 * BETA
                assert value == pytest.approx(best[name], rel=0, abs=nats), (output.name, row["step"], name)


def test_killed_runs_go_on_bit_for_bit(two: Path) -> None:
    """With an adapter from a checkpoint of a whole run: its later rows are written again."""
    sharded = two.name.startswith("fsdp2")
    whole = logged(two / "adapter")
    runs = {"killed": {}, "adapter": CASES["adapter"]}
    assert {path.name for path in (two / "killed").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    launch(two, {name: settings | {"sharded": sharded, "resumed_from": 4} for name, settings in runs.items()})
    assert logged(two / "killed") == logged(two / "spot_bco")
    resumed, uninterrupted = weights(two / "killed"), weights(two / "spot_bco")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())
    assert len(whole) == 7
    assert logged(two / "adapter") == whole


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
    assert not after.cast_forward_inputs


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
    for name, settings in json.loads(sys.argv[2]).items():
        train(Path(sys.argv[1]) / name, 2, **settings)
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads abort an ending interpreter now and then, when all is done
