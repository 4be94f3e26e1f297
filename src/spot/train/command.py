"""`spot train`: transformers' and TRL's flag names, one stage of the pipeline."""

import difflib
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from torch import distributed
from transformers import HfArgumentParser, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from spot.errors import UserError
from spot.files.settings import read_yaml
from spot.files.store import write_rows
from spot.hub import model_path
from spot.progress import bar
from spot.schema import Dropped
from spot.terminal import new_console
from spot.train.adapter import make_lora
from spot.train.config import SpotConfig
from spot.train.rows import read_preferences
from spot.train.run import TrainResult, fit, needed_packages, task_scores
from spot.train.tokenize import Preference

EXAMPLE = """example:
  spot train --model_name_or_path Qwen/Qwen3-8B --dataset_name runs/math/pairs.jsonl --output_dir model \\
      --loss_type spot_bco --beta 0.1 --learning_rate 1e-6 --per_device_train_batch_size 32 --bf16

The same command again resumes from the last whole checkpoint in output_dir. All flags can stand in a YAML file:
--config train.yaml; flags on the command line win.
"""


OF_TRL = {
    "precompute_ref_log_probs": "the reference is always computed once, before training",
    "lora_dropout": "an adapter has no dropout here: the policy would differ from its reference",
    "truncation_mode": "nothing is ever truncated; see --overlength",
    "padding_free": "rows are packed by tokens; see --micro_batch_tokens",
    "max_prompt_length": "nothing is ever truncated; see --max_length and --overlength",
}
"""Flags of TRL that are not here, and why."""


@dataclass
class ScriptArguments:
    """What to train on what."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The student: a directory, a hub name, or lab (the bundled one). Required."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Rows of prompt, chosen, rejected (or prompt, completion: the sft family): JSON lines or an array, "
            "CSV, each also .gz, Parquet, Arrow, a folder that datasets saved, or a name on the hub. Required."
        },
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Pairs to evaluate on during training, with --eval_strategy."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter; needs peft."})
    lora_r: int | None = field(default=None, metadata={"help": "The adapter's rank; 16 unless set."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "The adapter's scale times its rank; 32 unless set."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get an adapter, by their names' ends; all-linear unless set."}
    )
    eval_tasks: str | None = field(
        default=None,
        metadata={
            "help": "Benchmarks to evaluate on during training, as in spot eval --tasks, with --eval_tasks_steps."
        },
    )
    eval_tasks_steps: int | None = field(
        default=None, metadata={"help": "Evaluate on them every so many steps, before the first and after the last."}
    )
    eval_tasks_questions: int | None = field(default=None, metadata={"help": "Only the first so many of each."})
    eval_tasks_samples: int | None = field(
        default=None, metadata={"help": "How often to ask each question; the task's own number unless set."}
    )
    eval_tasks_max_new_tokens: int | None = field(
        default=None, metadata={"help": "The longest answer, in tokens; 32768 unless set."}
    )
    eval_tasks_batch_size: int = field(default=256, metadata={"help": "Questions answered at a time."})
    overlap_tasks: str | None = field(
        default=None,
        metadata={"help": "Benchmarks whose questions are looked for among the pairs, beside those of --eval_tasks."},
    )
    drop_overlap: bool = field(default=False, metadata={"help": "Drop the pairs that hold such a question."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Files of the benchmarks in --eval_tasks and --overlap_tasks, in place of the hub."},
    )
    config: str | None = field(default=None, metadata={"help": "A YAML file with any of these flags as keys."})


Measuring = Callable[[ScriptArguments, Console], TrainerCallback | None]
"""Makes of the flags what evaluates the student on benchmarks during training."""

OverlapCheck = Callable[[ScriptArguments, Sequence[Preference], bool], tuple[Sequence[Preference], list[Dropped]]]
"""Says which pairs hold a question of a benchmark, unless it is to be quiet: what to train on, and what is dropped."""

_KEYS = [entry.name for kind in (ScriptArguments, SpotConfig) for entry in fields(kind) if entry.init]


class _Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the example's lines as they are."""


class _Parser(HfArgumentParser):
    """Errors are one line; argparse would print its usage, some hundred flags, first."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"spot train: {message} (all flags: spot train --help)")


def main(
    argv: list[str],
    measuring: Measuring = lambda _, __: None,
    check_overlap: OverlapCheck = lambda _, pairs, __: (pairs, []),
) -> None:
    """Run `spot train` with `argv`. Raises `UserError` on wrong use, before any weight is loaded."""
    script, args = parse(argv)
    for name in ("model_name_or_path", "dataset_name"):
        if not getattr(script, name):
            raise UserError(f"spot train: --{name} is required (see: spot train --help)")
    pairs = read_preferences(Path(str(script.dataset_name)))
    held_out = read_preferences(Path(script.eval_dataset_name)) if script.eval_dataset_name else None
    if (held_out is None) != (args.eval_strategy == IntervalStrategy.NO):
        raise UserError("spot train: --eval_dataset_name and --eval_strategy (steps or epoch) need each other")
    peft_config = lora_config(script)
    output_dir = Path(str(args.output_dir))
    args.metrics_path = args.metrics_path or str(output_dir / "metrics.jsonl")
    args.disable_tqdm = True
    first = args.process_index == 0
    console = new_console(stderr=True, quiet=not first)
    pairs, overlapping = check_overlap(script, pairs, not first)
    evaluation = measuring(script, console)
    with bar(console, "train") as progress:
        scores = ""

        def show(step: int, total: int, metrics: dict[str, float]) -> None:
            nonlocal scores
            if "loss" in metrics:
                progress.update(step, total, f"loss {metrics['loss']:.4f}{scores}")
            elif "eval_loss" in metrics:
                progress.say(f"step {step}: eval_loss {metrics['eval_loss']:.4f}")
            else:
                progress.say(f"step {step}: {task_scores(metrics)}")
                scores = f"  {task_scores(metrics)}"

        result = fit(
            pairs,
            model_path(str(script.model_name_or_path)),
            output_dir,
            args,
            show,
            progress.say,
            held_out,
            peft_config=peft_config,
            callbacks=evaluation and [evaluation],
            reference_progress=progress.reference,
        )
    if first:
        _report(result, overlapping, output_dir, args)
    if distributed.is_initialized():
        distributed.destroy_process_group()  # else its threads may abort the process as it ends


def parse(argv: list[str]) -> tuple[ScriptArguments, SpotConfig]:
    """Read flags, over the values of `--config` where there is one. Raises `UserError` on what makes no sense."""
    parser: Any = _Parser(
        [ScriptArguments, SpotConfig],  # pyright: ignore[reportArgumentType] (its stub takes one type)
        prog="spot train",
        description="Train a student on surgical pairs.",
        formatter_class=_Formatter,
        epilog=EXAMPLE,
        allow_abbrev=False,
    )
    (bf16,) = (action for action in parser._actions if action.dest == "bf16")
    bf16.nargs, bf16.const = "?", True  # bare, too, like the flags that are not on by themselves
    if path := _config_path(argv):
        parser.set_defaults(**_read_config(Path(path)))
    try:
        with needed_packages():
            script, args, rest = parser.parse_args_into_dataclasses(
                args=argv, look_for_args_file=False, return_remaining_strings=True
            )
    except ValueError as error:
        raise UserError(f"spot train: {' '.join(str(error).split())}") from error
    if rest:
        name = rest[0].partition("=")[0].removeprefix("--")
        hint = f"; {OF_TRL[name]}" if name in OF_TRL else _nearest(rest[0], "--")
        raise UserError(f"spot train: unknown argument {rest[0]}{hint} (all flags: spot train --help)")
    return script, args


def lora_config(script: ScriptArguments) -> Any:
    """peft's config of the flags; `None` where an adapter was not asked for."""
    given = [name for name in ("lora_r", "lora_alpha", "lora_target_modules") if getattr(script, name) is not None]
    if not script.use_peft:
        if given:
            raise UserError(f"spot train: --{given[0]} needs --use_peft")
        return None
    targets = script.lora_target_modules or ["all-linear"]
    return make_lora(script.lora_r or 16, script.lora_alpha or 32, targets)


def _config_path(argv: list[str]) -> str | None:
    for index, argument in enumerate(argv):
        if argument.startswith("--config="):
            return argument.partition("=")[2]
        if argument == "--config" and index + 1 < len(argv):
            return argv[index + 1]
    return None


def _read_config(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping from flags to values")
    for key in values:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key {key!r}{_nearest(str(key))}")
    # argparse reads strings the way it reads flags, so that 1e-6, which YAML takes for text, is a number here.
    return values


def _nearest(name: str, prefix: str = "") -> str:
    near = difflib.get_close_matches(name.partition("=")[0].removeprefix(prefix), _KEYS, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _report(result: TrainResult, overlapping: list[Dropped], output_dir: Path, args: SpotConfig) -> None:
    console = new_console()
    num_dropped = ""
    if dropped := [*overlapping, *result.dropped]:
        write_rows(output_dir / "dropped.jsonl", dropped)
        num_dropped = f", {len(dropped)} dropped (see dropped.jsonl)"
    objective = " + ".join(args.loss_type)
    taken = f"{result.steps - result.resumed_from} of " if result.resumed_from else ""
    steps = f"{taken}{result.steps} steps of {objective}"
    console.print(f"{result.num_pairs} pairs, {steps} in {result.seconds:.0f} s{num_dropped}")
    if result.kept:
        console.print(f"kept: {result.kept}", soft_wrap=True, highlight=False)
    console.print(f"model: {output_dir}\nmetrics: {args.metrics_path}", soft_wrap=True)
