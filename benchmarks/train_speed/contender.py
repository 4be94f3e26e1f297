"""One measurement in a process of its own: one trainer at one setting, its times, its memory, what it computed.

    python -m benchmarks.train_speed.contender SETTING.json RESULT.json

A process of its own is the only honest way to read a peak. It is read above what the process holds when everything is
imported and the model is made, and absolutely.
"""

import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.train_speed.workload import Workload, make_data, make_model

BETA, RATE = 0.1, 1e-6


@dataclass(frozen=True)
class Setting:
    """What to measure. `batch` is TRL's pairs a forward; spot's rows are cut by `micro_batch_tokens` (0: its default).

    `steps` optimizer steps are made and timed after `warmup` steps that are not.
    """

    trainer: str
    workload: Workload
    precision: str
    device: str = "cpu"
    batch: int = 1
    micro_batch_tokens: int = 0
    checkpointing: bool = False
    attention: str = "sdpa"
    liger: bool = False
    pairs_a_step: int = 32
    max_length: int = 4096
    steps: int = 1
    warmup: int = 0
    stages: bool = False


def measure(setting: Setting, scratch: str) -> dict[str, Any]:
    """Train and say how it went."""
    import torch
    from transformers import TrainerCallback

    def now() -> float:
        if setting.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(now() - self.started)

    tokenizer, rows = make_data(setting.workload)
    model = make_model(setting.workload, setting.device, setting.attention)
    make = _spot if setting.trainer == "spot" else _trl
    prepare = make(setting, scratch)
    before = peak_memory(setting.device)
    clock = Clock()
    trainer, reference = prepare(model, tokenizer, rows, [clock], now)
    if setting.stages:
        from benchmarks.train_speed.stages import StageProfiler

        trainer.add_callback(StageProfiler(trainer, setting.warmup, setting.device))
    trainer.train()
    after = peak_memory(setting.device)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "setting": asdict(setting),
        "parameters": model.num_parameters(),
        "train_seconds": clock.seconds[setting.warmup :],
        "train_pairs": trained_pairs(setting, len(rows)),
        "reference_seconds": reference(),
        "reference_pairs": len(rows),
        "memory_before": before,
        "memory_peak": after,
        "losses": [row["loss"] for row in logged],
        "gradient_norms": [float(row["grad_norm"]) for row in logged],
        "stages": getattr(trainer, "stage_seconds", None),
        "tokens": lengths(token_ids(trainer, setting.trainer)),
        "ids": hashlib.sha256(json.dumps(token_ids(trainer, setting.trainer)).encode()).hexdigest(),
    }


def trained_pairs(setting: Setting, num_pairs: int) -> int:
    """Pairs in the timed steps; an epoch's last step may be short."""
    an_epoch = -(-num_pairs // setting.pairs_a_step)
    places = (step % an_epoch * setting.pairs_a_step for step in range(setting.warmup, setting.warmup + setting.steps))
    return sum(min(setting.pairs_a_step, num_pairs - place) for place in places)


def _arguments(setting: Setting, scratch: str) -> dict[str, Any]:
    """What both are told: the same optimizer, precision and number of steps."""
    return {
        "output_dir": scratch,
        "max_steps": setting.warmup + setting.steps,
        "learning_rate": RATE,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": setting.precision == "bf16",
        "use_cpu": setting.device == "cpu",
        "gradient_checkpointing": setting.checkpointing,
        "use_liger_kernel": setting.liger,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "beta": BETA,
        "max_length": setting.max_length,
    }


def _spot(setting: Setting, scratch: str) -> Any:
    from spot.train.trainer import SpotConfig, SpotTrainer

    def prepare(model: Any, tokenizer: Any, rows: Any, callbacks: Any, _: Any) -> Any:
        budget = {"micro_batch_tokens": setting.micro_batch_tokens} if setting.micro_batch_tokens else {}
        args = SpotConfig(
            loss_type=["spot_bco"],
            reward_shift="none",
            per_device_train_batch_size=setting.pairs_a_step,
            **budget,
            **_arguments(setting, scratch),
        )
        trainer = SpotTrainer(model, args, rows, processing_class=tokenizer, callbacks=callbacks)
        return trainer, lambda: trainer.reference_seconds

    return prepare


def _trl(setting: Setting, scratch: str) -> Any:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "HF_DATASETS_CACHE": scratch}
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()

    def prepare(model: Any, tokenizer: Any, rows: Any, callbacks: Any, now: Any) -> Any:
        seconds: list[float] = []

        class Timed(DPOTrainer):
            def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
                started = now()
                sums = super().compute_ref_log_probs(model, inputs)
                seconds.append(now() - started)
                return sums

        args = DPOConfig(
            loss_type=["bco_pair"],
            per_device_train_batch_size=setting.batch,
            gradient_accumulation_steps=setting.pairs_a_step // setting.batch,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=setting.batch,
            padding_free=False,
            pad_to_multiple_of=None,
            truncation_mode="keep_start",
            **_arguments(setting, scratch),
        )
        # As text with the template applied already: what TRL then tokenizes and ends is token by token what spot does.
        rendered = [
            row | {"prompt": tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)}
            for row in rows
            for question in [[{"role": "user", "content": row["prompt"]}]]
        ]
        data = Dataset.from_list(rendered)
        trainer = Timed(model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)
        return trainer, lambda: sum(seconds)

    return prepare


def token_ids(trainer: Any, name: str) -> list[list[list[int]]]:
    """Of each pair: prompt, chosen, rejected."""
    if name == "spot":
        return [[list(pair.prompt_ids), list(pair.chosen_ids), list(pair.rejected_ids)] for pair in trainer.pairs]
    return [[row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] for row in trainer.train_dataset]


def lengths(ids: list[list[list[int]]]) -> list[list[int]]:
    """Of each pair: tokens of prompt, chosen, rejected, and of the answers' common beginning."""
    found: list[list[int]] = []
    for prompt, chosen, rejected in ids:
        both = zip(chosen, rejected, strict=False)
        common = next(place for place, (left, right) in enumerate(both) if left != right)
        found.append([len(prompt), len(chosen), len(rejected), common])
    return found


def peak_memory(device: str) -> int:
    """The most bytes held so far: of the GPU's allocator there, else of the process."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    """Read a setting, write its result."""
    values = json.loads(Path(sys.argv[1]).read_text())
    setting = Setting(**values | {"workload": Workload(**values["workload"])})
    with TemporaryDirectory() as scratch:
        Path(sys.argv[2]).write_text(json.dumps(measure(setting, scratch)))


if __name__ == "__main__":
    main()
