"""A run of the lab as it is after its filter, made without asking anybody."""

import random
from pathlib import Path

import spot
from spot.config import parse_config
from spot.files.store import write_rows
from spot.lab.oracle import rewrite
from spot.lab.stories import story_of
from spot.lab.world import World
from spot.pairs.filter import make_pairs
from spot.pairs.tokens import load_encoder
from spot.schema import Attempt, Problem, Rectification, Verdict

COUNT = 24
WORLD = World.load()
STUDENT = str(Path(spot.__file__).parent / "lab" / "student")


def attempt(problem: Problem, response: str) -> Attempt:
    return Attempt(id=f"{problem.id}#0", problem_id=problem.id, sample=0, response=response, finish_reason="stop",
                   verdict=Verdict(correct=False), model="m")  # fmt: skip


def correction(problem: Problem, response: str) -> Rectification:
    return Rectification(id=f"{problem.id}#0~o.0", attempt_id=f"{problem.id}#0", problem_id=problem.id, oracle="o",
                         mode="rewrite", candidate=0, response=response, verdict=Verdict(correct=True),
                         accepted=True)  # fmt: skip


def make_run(run: Path, count: int = COUNT) -> Path:
    """A run of the lab's as it is after its filter: wrong answers by belief, corrected by the scripted Oracle."""
    run.mkdir(parents=True)
    problems = WORLD.problems("in_domain", "train", 4 * count, 0)
    attempts: list[Attempt] = []
    corrections: list[Rectification] = []
    for problem in problems:
        story, rng = story_of(problem), random.Random(problem.id)
        beliefs = [WORLD.rules[event.rule].wrong is not None for event in story.events]
        try:
            steps = WORLD.work(story, beliefs)
        except ArithmeticError:
            continue
        text = "".join(WORLD.write(story, steps, rng.choice(list(WORLD.styles.values())), 0))
        attempts.append(attempt(problem, text))
        corrections.append(correction(problem, rewrite(WORLD, problem, text)))
    pairs = make_pairs(problems, attempts, corrections, load_encoder(STUDENT), 0.9).pairs
    write_rows(run / "problems.jsonl", problems)
    write_rows(run / "pairs.jsonl", pairs[:count])
    (run / "eval" / "problems").mkdir(parents=True)
    write_rows(run / "eval" / "problems" / "in_domain.jsonl", WORLD.problems("in_domain", "test", 30, 1))
    config = {"student": {"model": "lab"}, "problems": {"source": "lab"}, "evaluate": {"tasks": ["in_domain"]}}
    (run / "config.yaml").write_text(parse_config(config, "test").to_yaml())
    return run
