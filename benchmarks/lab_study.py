"""The evidence for the method in the lab: seeds, learning rates, a baseline and controls, one command, resumable.

    python benchmarks/lab_study.py --output runs/lab-study --part tune main sft controls

Each variant trains on the pairs of one seed's loop and is measured on the three families. Settings are chosen on the
tune split (`--part tune`); everything reported is on the test split, which shares no question with it. Every finished
measurement is a line of `results.jsonl`; a killed study goes on with what is missing. Controls: a share of the
corrections made wrong (all half-believed rules followed the wrong way), corrections shuffled between problems, and a
second world with other rules and templates and its own student (`--other-student`).
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rapidfuzz.distance import Levenshtein
from rich.console import Console

import spot
from spot.config import RunConfig, load_config
from spot.evaluate.statistics import compare, score
from spot.files.store import RunDirectory, read_rows, repair
from spot.hub import fingerprint, model_path
from spot.lab.stories import story_of
from spot.lab.world import FAMILIES, World
from spot.schema import Attempt, Message, Pair, Problem, text_of
from spot.stages.elicit import ask
from spot.stages.opening import open_model
from spot.stages.pipeline import run_stage
from spot.stages.train import train_on
from spot.verify.resolve import resolve

DEMO = Path(spot.__file__).parent / "lab" / "demo.yaml"
CONSOLE = Console(width=110)


@dataclass(frozen=True)
class Place:
    """Where a study works: its directory, its world and the student of that world."""

    output: Path
    world: str
    student: str

    def config(self, seed: int, *overrides: str) -> RunConfig:
        """The demo's config for this place and seed."""
        fixed = [
            f"run.dir={self.output / f'{self.world}-{seed}'}",
            f"run.seed={seed}",
            "run.stages=[elicit, rectify, filter]",
            f"student.model={self.student}",
            f"problems.options={{world: {self.world}}}",
        ]
        return load_config(DEMO, [*fixed, *overrides])


def pairs_of(place: Place, seed: int) -> tuple[RunDirectory, list[Pair], dict[str, Problem]]:
    """The pairs of one seed's loop, made once."""
    config = place.config(seed)
    with RunDirectory.open(config.run.dir, config.to_yaml()) as run:
        for stage in config.run.stages:
            run_stage(stage, config, run, CONSOLE)
        problems = {problem.id: problem for problem in read_rows(run / "problems.jsonl", Problem)}
        return run, read_rows(run / "pairs.jsonl", Pair), problems


def measure(
    place: Place, seed: int, trained: Path | None, split: str, questions: int, output: Path
) -> dict[str, list[Attempt]]:
    """Answers to `questions` of each family, by family."""
    config = place.config(seed)
    world, model = World.load(place.world), open_model(config.student, trained)
    found: dict[str, list[Attempt]] = {}
    for family in FAMILIES:
        problems = world.problems(family, split, questions, 100 + seed)
        path = output / f"{split}-{questions}" / f"{family}.jsonl"
        attempts = ask(problems, model, resolve("lab"), config.evaluate, 100 + seed, path, family, CONSOLE)
        found[family] = attempts
        for name in sorted({problem.meta["slice"] for problem in problems if "slice" in problem.meta}):
            chosen = {problem.id for problem in problems if problem.meta["slice"] == name}
            found[f"{family}: {name}"] = [row for row in attempts if row.problem_id in chosen]
    return found


def corrupted(world: World, share: float, pairs: list[Pair], problems: dict[str, Problem]) -> list[Pair]:
    """`pairs` with a share of the corrections made wrong: every half-believed rule followed the wrong way."""
    # Two wrong rules can cancel out; only stories whose all-wrong answer is wrong can be made wrong.
    astray = [i for i, pair in enumerate(pairs) if _ends_wrong(world, problems[pair.problem_id])]
    picked = set(random.Random(0).sample(astray, k=min(len(astray), round(share * len(pairs)))))

    def wrong(pair: Pair) -> Pair:
        story = story_of(problems[pair.problem_id])
        steps = world.work(story, (True,) * len(story.events))
        texts = ["".join(world.write(story, steps, s, v)) for s in world.styles.values() for v in range(world.voices)]
        rejected = text_of(pair.rejected)
        nearest = min((t for t in texts if t != rejected), key=lambda t: Levenshtein.distance(t, text_of(pair.chosen)))
        return pair.model_copy(update={"chosen": [Message(role="assistant", content=nearest)]})

    return [wrong(pair) if i in picked else pair for i, pair in enumerate(pairs)]


def _ends_wrong(world: World, problem: Problem) -> bool:
    story = story_of(problem)
    return str(world.work(story, (True,) * len(story.events))[-1].y) != problem.answer


def shuffled(pairs: list[Pair]) -> list[Pair]:
    """`pairs` with each correction given to the next problem."""
    return [
        pair.model_copy(update={"chosen": other.chosen})
        for pair, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True)
    ]


class Study:
    """Runs variants and keeps what they gave in `results.jsonl`."""

    def __init__(self, output: Path) -> None:
        self.file = output / "results.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        repair(self.file)
        self.rows: list[dict[str, Any]] = (
            [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        )

    def variant(
        self,
        place: Place,
        seed: int,
        name: str,
        overrides: list[str],
        split: str,
        questions: int,
        change: Callable[[list[Pair], dict[str, Problem]], list[Pair]] | None = None,
    ) -> dict[str, Any]:
        """Train one variant, measure it beside its base, and record the paired differences."""
        config = place.config(seed, *overrides)
        key = {
            "world": place.world,
            "student": fingerprint(Path(model_path(config.student.model))),
            "seed": seed,
            "variant": name,
            "split": split,
            "questions": questions,
            "train": config.train.model_dump(mode="json"),
        }
        known = next((row for row in self.rows if key.items() <= row.items()), None)
        if known is not None:
            return known
        run, pairs, problems = pairs_of(place, seed)
        directory = run.path / "variants" / name
        used = change(pairs, problems) if change else pairs
        student = model_path(config.student.model)
        train_on(
            used,
            student,
            config.train,
            seed,
            directory / "checkpoints",
            directory / "model",
            directory / "metrics.jsonl",
            CONSOLE,
        )
        before = measure(place, seed, None, split, questions, run.path / "base")
        after = measure(place, seed, directory / "model", split, questions, directory)
        row: dict[str, Any] = key | {"pairs": len(used)}
        for task, attempts in after.items():
            found, difference = score(attempts), compare(before[task], attempts)
            row[task] = {
                "before": score(before[task]).mean,
                "after": found.mean,
                "difference": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "n": found.n,
            }
        self.rows.append(row)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        CONSOLE.print(self.line(row), highlight=False, soft_wrap=True)
        return row

    @staticmethod
    def line(row: dict[str, Any]) -> str:
        """One variant in a line: before, after and difference with its interval, in points."""
        cells = [
            f"{task} {100 * v['before']:.1f} -> {100 * v['after']:.1f} ({100 * v['difference']:+.1f}, "
            f"{100 * v['low']:+.1f} to {100 * v['high']:+.1f})"
            for task, v in row.items()
            if isinstance(v, dict) and "difference" in v
        ]
        return f"{row['world']} seed {row['seed']} {row['variant']}: " + "; ".join(cells)

    def table(self) -> str:
        """Test-split differences by variant, mean and spread over seeds, as Markdown."""
        tasks = ["in_domain", "in_domain: seen templates", "in_domain: unseen templates", "ood", "instructions"]
        lines = [f"| world | variant | seeds | {' | '.join(tasks)} |", "| --- " * (3 + len(tasks)) + "|"]
        groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["split"] == "test":
                groups.setdefault((row["world"], row["variant"], row["questions"]), []).append(row)
        for (world, variant, _), rows in groups.items():
            cells: list[str] = []
            for task in tasks:
                values = [100 * row[task]["difference"] for row in rows]
                spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
                base = fmean(100 * row[task]["before"] for row in rows)
                cells.append(f"{base:.1f} {fmean(values):+.1f}{spread}")
            lines.append(f"| {world} | {variant} | {len(rows)} | {' | '.join(cells)} |")
        return "\n".join(lines)


def main() -> None:
    """Run the parts of the study that are asked for and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/lab-study"))
    parser.add_argument("--part", choices=["tune", "main", "sft", "controls", "other"], nargs="+", required=True)
    parser.add_argument("--objective", default="spot_bco")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=4000)
    parser.add_argument("--rates", nargs="+", default=["5e-5", "1e-4", "2e-4", "4e-4", "8e-4"])
    parser.add_argument("--betas", nargs="+", default=["1.0"])
    parser.add_argument("--sft-rate", default="1e-4", help="the rate that `--part tune --objective sft` found best")
    parser.add_argument("--wrong-shares", type=float, nargs="+", default=[0.1, 0.5, 1.0])
    parser.add_argument("--other-student", help="a student of the world `other`, made by spot lab train --world other")
    options = parser.parse_args()
    if "other" in options.part and options.other_student is None:
        parser.error("--part other needs --other-student")
    study, home = Study(options.output), Place(options.output, "default", "lab")
    world = World.load(home.world)
    if "tune" in options.part:
        for beta in options.betas if options.objective != "sft" else ["1.0"]:
            for rate in options.rates:
                settings = [f"train.objective={options.objective}", f"train.learning_rate={rate}", f"train.beta={beta}"]
                study.variant(home, 0, f"{options.objective} lr {rate} beta {beta}", settings, "tune", 600)
    for seed in options.seeds:
        if "main" in options.part:
            study.variant(home, seed, "demo settings", [], "test", options.questions)
        if "sft" in options.part:
            settings = ["train.objective=sft", f"train.learning_rate={options.sft_rate}"]
            study.variant(home, seed, f"SFT+ at {options.sft_rate}", settings, "test", options.questions)
    first = options.seeds[0]
    if "controls" in options.part:
        for share in options.wrong_shares:
            study.variant(
                home, first, f"{share:.0%} wrong", [], "test", options.questions, partial(corrupted, world, share)
            )
        study.variant(home, first, "shuffled", [], "test", options.questions, lambda p, _: shuffled(p))
    if "other" in options.part:
        place = Place(options.output, "other", options.other_student)
        study.variant(place, first, "demo settings", [], "test", options.questions)
    CONSOLE.print("\n" + study.table(), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
