"""SpotTrainer against TRL's DPOTrainer, in one run: pairs a second, memory, and how far from the machine's floor.

    python -m benchmarks.train_speed --gsm8k path/to/example_model_solutions.jsonl
    python -m benchmarks.train_speed --linear
    python -m benchmarks.train_speed --device cuda --shape qwen3-1.7b --answer-tokens 1500 --project

Both train `-s(r+) - s(-r-)` on the same token ids with the same optimizer: TRL as `bco_pair`, which has no shift from
0.29 on, spot as `spot_bco` with `reward_shift=none`. Every measurement is a process of its own; the two alternate and
the table gives medians. TRL first tries its settings (pairs a forward, recomputation; on a GPU also FlexAttention and,
where it is installed, Liger) and goes on with its fastest in training; its best reference pass may be of another one.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from platform import machine, processor
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.train_speed.contender import Setting
from benchmarks.train_speed.floor import PAPER_MINUTES, Projection, matrix_rate, work
from benchmarks.train_speed.workload import SHAPES, Workload

MIB = 2**20
Result = dict[str, Any]


def run(setting: Setting) -> Result:
    """One measurement; a result without times where it ran out of memory or failed."""
    with TemporaryDirectory() as directory:
        given, found = Path(directory) / "setting.json", Path(directory) / "result.json"
        given.write_text(json.dumps(asdict(setting)))
        command = [sys.executable, "-m", "benchmarks.train_speed.contender", str(given), str(found)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            result = json.loads(found.read_text())
        else:
            reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
            result = {"setting": asdict(setting), "failed": reason}
    print(f"- {describe(setting)}: {outcome(result)}", file=sys.stderr, flush=True)
    return result


def train_rate(result: Result) -> float:
    """Pairs a second in training; 0 where the measurement failed."""
    return 0.0 if "failed" in result else result["train_pairs"] / sum(result["train_seconds"])


def reference_rate(result: Result) -> float:
    """Pairs a second in the reference pass; 0 where the measurement failed."""
    return 0.0 if "failed" in result else result["reference_pairs"] / result["reference_seconds"]


def describe(setting: Setting) -> str:
    """A setting in a few words."""
    if setting.trainer == "spot":
        parts = [f"rows of {setting.micro_batch_tokens or 'the default number of'} tokens"]
    else:
        parts = [f"batch {setting.batch}", setting.attention]
    parts += [word for word, holds in (("liger", setting.liger), ("recomputation", setting.checkpointing)) if holds]
    return f"{setting.trainer} {setting.precision} ({', '.join(parts)})"


def outcome(result: Result) -> str:
    """A result in a few words."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    peak, above = result["memory_peak"], result["memory_peak"] - result["memory_before"]
    return (
        f"training {train_rate(result):.3g} pairs/s, reference {reference_rate(result):.3g} pairs/s, "
        f"peak {peak / MIB:.0f} MiB, {above / MIB:.0f} above the model"
    )


def search(start: Setting) -> list[Result]:
    """TRL's settings, the fastest in training first: more pairs a forward until that is slower, then the rest.

    The last one tried is its leanest, one pair a forward with recomputation. It may be the fastest, too: on a CPU, in
    bf16, it was (benchmarks/README.md, GSM8K).
    """
    results = climb(replace(start, liger=has_liger(start.device)))
    if start.device == "cuda":
        best = fastest(results)
        results.append(run(replace(best, attention="flex_attention")))
        if best.liger:
            results.append(run(replace(best, liger=False)))
        if best.batch < best.pairs_a_step:
            # Recomputation makes room for more pairs a forward.
            results += climb(replace(fastest(results), batch=2 * best.batch, checkpointing=True))
    results.append(run(lean(fastest(results))))
    return sorted(results, key=train_rate, reverse=True)


def lean(setting: Setting) -> Setting:
    """The setting of the least memory that is otherwise like `setting`."""
    return replace(setting, batch=1, checkpointing=True)


def has_liger(device: str) -> bool:
    """Whether Liger's kernels can be used; both trainers then are given them."""
    return device == "cuda" and find_spec("liger_kernel") is not None


def climb(start: Setting) -> list[Result]:
    """Measurements at doubled batches, up to the first that is slower or fails."""
    results = [run(start)]
    while train_rate(results[-1]) > max(map(train_rate, results[:-1]), default=0) and start.batch < start.pairs_a_step:
        start = replace(start, batch=2 * start.batch)
        results.append(run(start))
    return results


def fastest(results: Sequence[Result]) -> Setting:
    """The setting that trained fastest."""
    return setting_of(max(results, key=train_rate))


def compare(name: str, spot: Setting, repeats: int) -> Result:
    """Both trainers on one workload in one precision, alternating."""
    rates = [matrix_rate(spot.device, spot.precision)]
    without_liger = [run(spot)] if has_liger(spot.device) else []
    spot = replace(spot, liger=has_liger(spot.device))
    ours = [run(spot)]
    found = search(replace(spot, trainer="trl", batch=1))
    winner = setting_of(found[0])
    theirs = [found[0]]
    for _ in range(repeats - 1):
        rates.append(matrix_rate(spot.device, spot.precision))
        ours.append(run(spot))
        theirs.append(run(winner))
    # On a GPU the profiler's own work is long: of few pairs there.
    few = spot.workload.pairs if spot.device == "cpu" else 4
    seen = replace(spot, stages=True, workload=replace(spot.workload, pairs=few), pairs_a_step=few)
    profiled = run(seen)
    if any("failed" in result for result in [*ours, *theirs, profiled]):
        sys.exit(f"{name}, {spot.precision}: a measurement failed, see above")
    least = work(SHAPES[spot.workload.shape], ours[0]["tokens"])
    # The floor is that of the pairs trained on; steps over a part of an epoch take it in proportion.
    share = ours[0]["train_pairs"] / len(ours[0]["tokens"])
    flops = {stage: value * share for stage, value in asdict(least).items()}
    profiled_flops = asdict(work(SHAPES[spot.workload.shape], profiled["tokens"]))
    return {
        "name": name,
        "precision": spot.precision,
        "matrix_rate": median(rates),
        "spot": ours,
        "trl": theirs,
        "trl_search": found,
        "spot_without_liger": without_liger,
        "stages": profiled["stages"],
        "stages_floor_seconds": {stage: value / median(rates) for stage, value in profiled_flops.items()},
        "floor_seconds": {stage: value / median(rates) for stage, value in flops.items()},
        "same_tokens": ours[0]["ids"] == theirs[0]["ids"],
    }


def setting_of(result: Result) -> Setting:
    """The setting that gave a result."""
    return Setting(**result["setting"] | {"workload": Workload(**result["setting"]["workload"])})


def row(compared: Result) -> list[str]:
    """A comparison as cells of the main table."""
    ours, theirs = compared["spot"], compared["trl"]
    cells = [compared["name"], compared["precision"]]
    train = [median(map(train_rate, side)) for side in (ours, theirs)]
    reference = [median(map(reference_rate, ours)), max(map(reference_rate, compared["trl_search"] + theirs))]
    for left, right in (train, reference):
        cells += [f"{left:.3g}", f"{right:.3g}", f"**{left / right:.2f}x**"]
    above = [median(one["memory_peak"] - one["memory_before"] for one in side) / MIB for side in (ours, theirs)]
    peak = [median(one["memory_peak"] for one in side) / MIB for side in (ours, theirs)]
    for left, right in (above, peak):
        cells += [f"{left:,.0f}", f"{right:,.0f}", f"**{left / right:.2f}x**"]
    floor = sum(compared["floor_seconds"].values()) / ours[0]["train_pairs"]
    # The forward alone is a third of the operations.
    cells += [f"{floor * train[0]:.0%}", f"{floor / 3 * reference[0]:.0%}"]
    left, right = (side[0]["gradient_norms"][0] for side in (ours, theirs))
    return [*cells, f"{abs(left / right - 1):.0e}"]


HEADER = [
    *("pairs", "precision", "training, pairs/s: spot", "TRL", "", "reference, pairs/s: spot", "TRL", ""),
    *("peak above the model, MiB: spot", "TRL", "", "peak, MiB: spot", "TRL", ""),
    *("spot's training, of the floor", "its reference", "first gradient norms differ by"),
]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stage_table(compared: Result) -> str:
    """Stage by stage: measured, least, and how close."""
    seconds, least = compared["stages"], compared["stages_floor_seconds"]
    rows = [
        [stage, f"{value:.2f}", f"{value / sum(seconds.values()):.0%}"]
        + ([f"{least[stage]:.2f}", f"{least[stage] / value:.0%}"] if stage in least else ["", ""])
        for stage, value in seconds.items()
    ]
    rate = f"{compared['matrix_rate'] / 1e9:,.0f} GFLOP/s"
    title = f"{compared['name']}, {compared['precision']}; a large product of matrices runs at {rate}"
    return f"{title}\n\n{table(['stage', 'seconds', 'share', 'floor', 'of the floor'], rows)}"


def details(compared: Result) -> str:
    """What TRL tried, and whether both had the same tokens."""
    tokens = "the same token ids" if compared["same_tokens"] else "**TOKEN IDS THAT DIFFER**"
    spot = describe(setting_of(compared["spot"][0]))
    found = [*compared["spot_without_liger"], *compared["trl_search"]]
    tried = [f"- {describe(setting_of(one))}: {outcome(one)}" for one in found]
    return "\n".join([f"{compared['name']}: {tokens}; {spot}; tried", "", *tried])


def project(compared: Result) -> str:
    """The paper's run at the measured rate, with what is assumed."""
    ours = compared["spot"]
    seconds = median(sum(one["train_seconds"]) for one in ours)
    rate = sum(compared["floor_seconds"].values()) * compared["matrix_rate"] / seconds
    pairs = ours[0]["tokens"]
    each = {stage: value / len(pairs) for stage, value in asdict(work(SHAPES["qwen3-8b"], pairs)).items()}
    assumed = Projection()
    minutes = assumed.minutes(SHAPES["qwen3-8b"], type(work(SHAPES["qwen3-8b"], pairs))(**each), rate)
    parts = ", ".join(f"{part} {value:.1f}" for part, value in minutes.items() if part != "total")
    paper = ", ".join(f"{minutes} ({name})" for name, minutes in PAPER_MINUTES.items())
    return (
        f"The paper's run projected: **{minutes['total']:.1f} minutes** ({parts}); the paper needed {paper}. Assumed: "
        f"{assumed.pairs} pairs like these, {assumed.epochs} epochs, {assumed.pairs_a_step} pairs a step, Qwen3-8B on "
        f"{assumed.gpus} of these devices at the {rate / 1e12:.3g} TFLOP/s measured here, all layers run again in the "
        f"backward pass, {assumed.fill:.0%} of the time not spent waiting for the slowest rank, and "
        f"{assumed.bandwidth / 1e9:.0f} GB/s a device for exchanging gradients (fp32) and weights (bf16), not "
        "overlapped. Loading and saving are not counted."
    )


def linear(options: argparse.Namespace) -> str:
    """Rate and memory against the number of pairs, on the bundled student."""
    rows: list[list[str]] = []
    kept: list[Result] = []
    for count in options.counts:
        workload = Workload("lab", "lab", count)
        steps = -(-count // options.pairs_a_step)
        setting = Setting("spot", workload, "fp32", options.device, steps=steps, max_length=512)
        result = run(replace(setting, micro_batch_tokens=options.micro_batch_tokens))
        if "failed" in result:
            sys.exit(f"{count} pairs: {result['failed']}")
        kept.append(result)
        above = (result["memory_peak"] - result["memory_before"]) / MIB
        rows.append([f"{count:,}", f"{train_rate(result):.1f}", f"{reference_rate(result):.1f}", f"{above:,.0f}"])
    options.json.write_text(json.dumps(kept))
    return table(["pairs", "training, pairs/s", "reference, pairs/s", "peak above the model, MiB"], rows)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_speed", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="30m", help="the model; weights are random")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], help="cpu: both, cuda: bf16")
    parser.add_argument("--answer-tokens", type=int, help="answers of 3/4 to 5/4 of this instead of 150 to 1,400")
    parser.add_argument("--gsm8k", type=Path, help="openai/grade-school-math's example_model_solutions.jsonl")
    parser.add_argument("--only-gsm8k", action="store_true", help="leave the made pairs out")
    parser.add_argument("--gsm8k-pairs", type=int, default=128, help="how many of its pairs, drawn from a seed")
    parser.add_argument("--pairs-a-step", type=int, default=32)
    parser.add_argument("--micro-batch-tokens", type=int, default=0, help="spot's; 0 is its default")
    parser.add_argument("--gsm8k-micro-batch-tokens", type=int, help="of GSM8K's pairs, where another number")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, help="steps before timing starts (cpu: 0, cuda: 1)")
    parser.add_argument("--project", action="store_true", help="project the time of the paper's run")
    parser.add_argument("--linear", action="store_true", help="instead: cost against the number of pairs")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000], help="of --linear")
    parser.add_argument("--json", type=Path, default=Path("runs/train_speed.json"))
    options = parser.parse_args()
    if options.only_gsm8k and not options.gsm8k:
        parser.error("--only-gsm8k needs --gsm8k")
    if options.gsm8k and not options.gsm8k.is_file():
        parser.error(f"{options.gsm8k}: no such file")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


def workloads(options: argparse.Namespace) -> Iterator[tuple[str, Workload, int, int]]:
    """Names, workloads, steps and tokens a row."""
    made = Workload("lengths", options.shape, options.pairs_a_step)
    if options.answer_tokens:
        made = replace(made, shortest=options.answer_tokens * 3 // 4, longest=options.answer_tokens * 5 // 4)
    if not options.only_gsm8k:
        name, steps = (
            f"{made.pairs} of {made.shortest:,} to {made.longest:,} tokens",
            1 if options.device == "cpu" else 2,
        )
        yield name, made, steps, options.micro_batch_tokens
    if options.gsm8k:
        yield (
            f"{options.gsm8k_pairs} of GSM8K",
            Workload(str(options.gsm8k), options.shape, options.gsm8k_pairs),
            options.gsm8k_pairs // options.pairs_a_step,
            options.gsm8k_micro_batch_tokens or options.micro_batch_tokens,
        )
    else:
        print("GSM8K's pairs are left out: give --gsm8k", file=sys.stderr)


def versions() -> str:
    """The machine and what is installed, in a line."""
    names = ("torch", "transformers", "accelerate", "trl", "liger-kernel")
    found: list[str] = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"{os.cpu_count()} cores of {processor() or machine()}; {', '.join(found)}"


def main() -> None:
    """Measure and print."""
    options = parse()
    print(f"{versions()}\n")
    if options.linear:
        print(linear(options))
        return
    warmup = options.warmup if options.warmup is not None else (0 if options.device == "cpu" else 1)
    longest = max(4096, 2 * (options.answer_tokens or 0))
    kept: list[Result] = []
    for name, workload, steps, budget in workloads(options):
        for precision in options.precisions or (["fp32", "bf16"] if options.device == "cpu" else ["bf16"]):
            setting = Setting(
                "spot",
                workload,
                precision,
                options.device,
                micro_batch_tokens=budget,
                pairs_a_step=options.pairs_a_step,
                max_length=longest,
                steps=steps,
                warmup=warmup,
            )
            kept.append(compare(name, setting, options.repeats))
            options.json.write_text(json.dumps({"versions": versions(), "results": kept}))
    print(table(HEADER, [row(compared) for compared in kept]) + "\n")
    for compared in kept:
        print(f"{stage_table(compared)}\n\n{details(compared)}\n")
    if options.project:
        print(project(kept[0]))


if __name__ == "__main__":
    main()
