"""Synthetic run directories: a student that takes "doubles" for "plus two", corrected, trained and evaluated."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spot.files.store import write_rows
from spot.report.evaluation import evaluated
from spot.report.summary import Summary
from spot.schema import Attempt, Pair, Problem, Rectification, Verdict

NAMES = ("Mia", "Omar", "Lena", "Tariq", "Yuki", "Rosa")
THINGS = ("shells", "marbles", "pears", "stamps", "coins")


def solved(rng: random.Random) -> tuple[str, str, str, int, int]:
    """A question, a wrong and a right solution, and their answers."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    first, second = rng.randint(3, 40), rng.randint(2, 20)
    question = (
        f"{name} has {first} {thing}. A friend gives {name} {second} more, and then the number of {thing} doubles. "
        f"How many {thing} does {name} have now?"
    )
    total = first + second
    opening = rng.choice(
        (
            f"Let's go step by step. {name} starts with {first} {thing}.\n",
            f"At first there are {first} {thing}.\n",
            "",
        )
    )
    shared = f"{opening}After the gift: {first} + {second} = {total}.\n"
    wrong = f"{shared}Doubling {total} means {total} + 2 = {total + 2}.\nSo the answer is $\\boxed{{{total + 2}}}$."
    right = f"{shared}Doubling {total} means 2 * {total} = {2 * total}.\nSo the answer is $\\boxed{{{2 * total}}}$."
    return question, wrong, right, total + 2, 2 * total


def attempt(problem_id: str, response: str, answer: int | None, correct: bool | None, sample: int = 0) -> Attempt:
    return Attempt(
        id=f"{problem_id}#{sample}",
        problem_id=problem_id,
        sample=sample,
        response=response,
        finish_reason="stop",
        verdict=Verdict(correct=correct, answer=None if answer is None else str(answer)),
        model="lab-student",
    )


def answered(rng: random.Random, task: str, number: int, before: float, after: float) -> tuple[list[Any], ...]:
    """Problems of a task and their attempts before and after; `before` and `after` are chances of a right answer."""
    problems: list[Problem] = []
    sides: tuple[list[Attempt], list[Attempt]] = ([], [])
    for index in range(number):
        question, wrong, right, said, known = solved(rng)
        problem_id = f"{task}-{index:04d}"
        problems.append(Problem(id=problem_id, prompt=question, answer=str(known)))
        draw = rng.random()
        for side, chance in zip(sides, (before, after), strict=True):
            # Mostly the same questions are right on both sides: the draw is shared but for one case in ten.
            is_right = (draw if rng.random() < 0.93 else rng.random()) < chance
            side.append(attempt(problem_id, right if is_right else wrong, known if is_right else said, is_right))
    return problems, *sides


def metric_rows(steps: int) -> list[dict[str, float]]:
    rng = random.Random(1)
    rows: list[dict[str, float]] = []
    chosen = rejected = shift = 0.0
    for step in range(1, steps + 1):
        chosen += 0.032 + rng.gauss(0, 0.06)
        rejected += -0.075 + rng.gauss(0, 0.08)
        shift += 0.1 * ((chosen + rejected) / 2 - shift)
        rows.append(
            {
                "step": step,
                "loss": 1.386 * 2.7 ** (-step / 60) + abs(rng.gauss(0, 0.035)),
                "rewards/chosen": chosen,
                "rewards/rejected": rejected,
                "rewards/margins": chosen - rejected,
                "rewards/delta": shift,
                "learning_rate": 1e-4 * (1 - step / (steps + 1)),
                "grad_norm": 0.6 + abs(rng.gauss(0, 0.1)),
            }
        )
    return rows


def write_lines(path: Path, rows: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save(rows: list[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows)


def make_run(run: Path, questions: int = 400, num_pairs: int = 60, **changes: Any) -> Path:
    """Write a finished run into `run`; `changes` replace fields of its summary."""
    rng = random.Random(0)
    run.mkdir(parents=True, exist_ok=True)
    for task, before, after in (("in_domain", 0.15, 0.5), ("ood", 0.84, 0.835), ("instructions", 0.97, 0.965)):
        problems, old, new = answered(rng, task, questions, before, after)
        if task == "in_domain" and questions >= 3:
            problems = [
                problem.model_copy(
                    update={"meta": {"slice": f"{'unseen' if 3 * place < questions else 'seen'} templates"}}
                )
                for place, problem in enumerate(problems)
            ]
        save(problems, run / "eval" / "problems" / f"{task}.jsonl")
        save(old, run / "eval" / "before" / f"{task}.jsonl")
        save(new, run / "eval" / "after" / f"{task}.jsonl")
    evaluation = evaluated(run)
    attempts: list[Any] = []
    rectifications: list[Any] = []
    pairs: list[Any] = []
    for index in range(num_pairs):
        question, wrong, right, said, known = solved(rng)
        problem_id, ratio = f"train-{index:04d}", round(min(0.6, max(0.03, rng.gauss(0.16, 0.1))), 4)
        attempts.append(attempt(problem_id, wrong, said, False))
        rectifications.append(
            Rectification(
                id=f"{problem_id}#0~scripted.0",
                attempt_id=f"{problem_id}#0",
                problem_id=problem_id,
                oracle="scripted",
                mode="rewrite",
                candidate=0,
                response=right,
                verdict=Verdict(correct=True, answer=str(known)),
                accepted=True,
            )
        )
        pairs.append(
            Pair(
                id=f"{problem_id}#0~scripted.0",
                problem_id=problem_id,
                prompt=question,
                chosen=right,
                rejected=wrong,
                change_ratio=ratio,
                oracle="scripted",
            )
        )
    save(attempts, run / "attempts.jsonl")
    save(rectifications, run / "rectifications.jsonl")
    save(pairs, run / "pairs.jsonl")
    ratios = [rng.gauss(0.18, 0.12) + (rng.random() < 0.08) * 0.6 for _ in range(1368)]
    ratios = [round(min(1.0, max(0.0, ratio)), 4) for ratio in ratios]
    rows = metric_rows(80)
    write_lines(run / "metrics.jsonl", rows)
    summary: dict[str, Any] = {
        "name": "demo",
        "student": "lab-student",
        "oracle": "scripted",
        "objective": "spot_bco",
        "counts": {
            "problems": 2000, "attempts": 2000, "correct": 312, "wrong": 1641, "unscored": 12, "truncated": 35,
            "rectified": 1368, "pairs": 1280, "dropped": {"not_verified": 273, "change_ratio": 88},
        },
        "evaluation": {task: result.model_dump() for task, result in evaluation.tasks.items()},
        "averages": {group: average.model_dump() for group, average in evaluation.averages.items()},
        "change_ratio": {
            "gamma": 0.6,
            "values": ratios,
        },
        "training": {"steps": 80, "first": rows[0], "last": rows[-1]},
        "seconds": {"elicit": 14.2, "rectify": 1.9, "filter": 0.8, "train": 71.4, "evaluate": 31.0, "report": 2.6},
        "peak_memory_bytes": 1_234_567_890,
        "versions": {"spot": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
        "settings": {
            "run": {"dir": "runs/demo", "seed": 0},
            "elicit": {"temperature": 0.7, "top_p": 0.8, "max_new_tokens": 256},
            "filter": {"gamma": 0.6},
            "train": {"objective": "spot_bco", "beta": 1.0, "learning_rate": 1e-4, "epochs": 2, "batch_size": 32},
        },
        "notes": ["The student is a toy of 0.8M parameters: this shows that the method works, it is no benchmark."],
    }  # fmt: skip
    write_summary(run, summary | changes)
    return run


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    (run / "summary.json").write_text(Summary.model_validate(summary).model_dump_json(indent=1))


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run directory under a name; see `make_run` for the options."""

    def make(name: str = "run", **options: Any) -> Path:
        return make_run(tmp_path / name, **({"questions": 40, "num_pairs": 12} | options))

    return make
