"""Does the watch warn where training undoes what it learned, in time, and nowhere else? One command, resumable.

    python benchmarks/undo_study.py --output runs/undo --runs spot_bco:1:1e-4 spot_bce:1:1e-4 dpo:1:1e-4

A run is OBJECTIVE:BETA:RATE. Each seed has its own pairs (the demo's loop), order of pairs and questions: in-domain
ones, unseen templates too, none of them the demo's own. The bundled student trains on 1,000 pairs, 16 a step, 2 epochs
(126 steps; `--pairs` takes fewer), one thread. Every finished run is a line of `results.jsonl`; the table says where
in-domain accuracy was highest and ended, where half of the peak's gain was lost, and where the watch spoke.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import spot
from spot.config import EvaluateSection, RunConfig, load_config
from spot.evaluate.registry import find_tasks
from spot.evaluate.run import Exam
from spot.evaluate.wording import wording
from spot.files.store import RunDirectory, read_rows, repair
from spot.hub import model_path
from spot.lab.world import World
from spot.schema import Pair, Problem, text_of
from spot.stages.evaluate_tasks import EvaluateTasks
from spot.stages.pipeline import run_stage
from spot.stages.train import train_on
from spot.verify.resolve import resolve

DEMO = Path(spot.__file__).parent / "lab" / "demo.yaml"
CONSOLE = Console(width=160)


def pairs_of(output: Path, seed: int) -> tuple[RunConfig, list[Pair]]:
    """The demo's config and the pairs of one seed's loop, made once."""
    fixed = [f"run.dir={output / f'pairs-{seed}'}", f"run.seed={seed}", "run.stages=[elicit, rectify, filter]"]
    config = load_config(DEMO, fixed)
    with RunDirectory.open(config.run.dir, config.to_yaml()) as run:
        for stage in config.run.stages:
            run_stage(stage, config, run, CONSOLE)
        return config, read_rows(run / "pairs.jsonl", Pair)


def questions(count: int, seed: int) -> list[Problem]:
    """In-domain questions that the demo does not report on."""
    world = World.load("default")
    reported = {wording(text_of(row.prompt)).joined for row in world.problems("in_domain", "test", 400, 1)}
    drawn = world.problems("in_domain", "test", count, 1000 + seed)
    return [row for row in drawn if wording(text_of(row.prompt)).joined not in reported]


def train(output: Path, seed: int, setting: str, count: int, every: int, num_pairs: int) -> dict[str, Any]:
    """One run; its accuracies by step, and at which steps the watch spoke."""
    objective, beta, rate = setting.split(":")
    config, pairs = pairs_of(output, seed)
    pairs = pairs[:num_pairs]
    directory = output / f"{setting.replace(':', '-')}-seed{seed}"
    changed = {"objective": objective, "beta": float(beta), "learning_rate": float(rate), "pairs_per_step": 16}
    exam = Exam(find_tasks(["in_domain"])[0], questions(count, seed), resolve("lab"))
    section = EvaluateSection(tasks=["in_domain"], max_new_tokens=config.evaluate.max_new_tokens, seed=1000 + seed)
    metrics = directory / "metrics.jsonl"
    train_on(
        pairs,
        model_path(config.student.model),
        config.train.model_copy(update=changed),
        seed,
        directory / "checkpoints",
        directory / "model",
        metrics,
        CONSOLE,
        EvaluateTasks({"in_domain": exam}, every, section, directory / "eval"),
    )
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    accuracy = {str(row["step"]): row["eval/in_domain"] for row in rows if "eval/in_domain" in row}
    # The first row's is about beta, before any step.
    heard = [row["step"] for row in rows if "warnings" in row and row["step"] > 1]
    last = next(row for row in reversed(rows) if "loss" in row)
    rewards = {name: last[name] for name in ("rewards/chosen", "rewards/rejected", "rewards/delta")}
    return {"seed": seed, "run": setting, "accuracy": accuracy, "heard": heard, "questions": count, **rewards}


def table_row(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    accuracy = {int(step): 100 * value for step, value in row["accuracy"].items()}
    peak = max(accuracy, key=lambda step: accuracy[step])
    end = accuracy[max(accuracy)]
    half = next(_crossings(accuracy, peak, (accuracy[0] + accuracy[peak]) / 2), None)
    objective, beta, rate = row["run"].split(":")
    return (
        f"| {objective} | {beta} | {rate} | {row['seed']} | {accuracy[0]:.1f} | {accuracy[peak]:.1f} at {peak} "
        f"| {end:.1f} ({end - accuracy[peak]:+.1f}) | {'–' if half is None else round(half)} "
        f"| {', '.join(map(str, row['heard'])) or '–'} | {row['rewards/chosen']:.1f} | {row['rewards/delta']:.1f} |"
    )


def _crossings(accuracy: Mapping[int, float], start: int, level: float) -> Iterator[float]:
    """Steps behind `start` at which accuracy falls to `level`, between two measurements on a straight line."""
    steps = [step for step in accuracy if step >= start]
    for one, other in pairwise(steps):
        if accuracy[other] <= level < accuracy[one]:
            yield one + (other - one) * (accuracy[one] - level) / (accuracy[one] - accuracy[other])


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/undo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", nargs="+", default=["spot_bco:1:1e-4", "spot_bce:1:1e-4", "dpo:1:1e-4"])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=1000, help="pairs to train on; another number, another --output")
    parser.add_argument("--every", type=int, default=14, help="steps between measurements")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.output / "results.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    repair(file)
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    for seed in options.seeds:
        for setting in options.runs:
            if not any(row["seed"] == seed and row["run"] == setting for row in rows):
                rows.append(train(options.output, seed, setting, options.questions, options.every, options.pairs))
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
    head = "objective | beta | rate | seed | base | peak at step | end | half lost at | heard at | chosen | shift"
    CONSOLE.print(f"| {head} |\n{'| --- ' * 11}|\n" + "\n".join(map(table_row, rows)), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
