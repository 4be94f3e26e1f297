"""How long it takes to make pairs of long answers: tokenizing, the change ratio and the filter; and the LCS alone.

    python -m benchmarks.pairs_speed
    python -m benchmarks.pairs_speed --tokenizer path/to/model --count 4000 --tokens 2000

The answers are made of the lab's sentences. A correction keeps its answer up to a place drawn evenly and has from there
on about half of its sentences exchanged. Prints Markdown: seconds of wall time and of CPU time (all threads), the
median of `--repeats`; on a shared machine the second is the one to compare.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from spot.hub import model_path
from spot.lab.world import World
from spot.pairs.change import edit_distance, lcs_length
from spot.pairs.filter import make_pairs
from spot.pairs.tokens import load_encoder
from spot.schema import Attempt, Problem, Rectification, Verdict

SEED = 0
GAMMA = 0.6


def sentences(rng: random.Random) -> Iterator[str]:
    """Sentences of the lab's questions and answers, without end."""
    world = World.load()
    while True:
        problem, answer = world.problem("in_domain", "pretrain", SEED, rng.randrange(10**9))
        yield f"{problem.prompt} {answer}\n"


def make_answers(count: int, tokens: int, length: Callable[[str], int]) -> list[tuple[str, str]]:
    """`count` wrong answers of about `tokens` tokens with their corrections."""
    rng = random.Random(SEED)
    source = sentences(rng)
    stock = [(text, length(text)) for text in (next(source) for _ in range(2000))]
    made: list[tuple[str, str]] = []
    for _ in range(count):
        parts: list[str] = []
        total = 0
        while total < tokens:
            text, size = rng.choice(stock)
            parts.append(text)
            total += size
        start = rng.randrange(len(parts))
        other = [rng.choice(stock)[0] if place >= start and rng.random() < 0.5 else part
                 for place, part in enumerate(parts)]  # fmt: skip
        other[-1] = "It is \\boxed{1}.\n"
        made.append(("".join(parts), "".join(other)))
    return made


def rows(answers: list[tuple[str, str]]) -> tuple[list[Problem], list[Attempt], list[Rectification]]:
    """The rows that the filter reads."""
    problems: list[Problem] = []
    attempts: list[Attempt] = []
    rectifications: list[Rectification] = []
    for number, (rejected, chosen) in enumerate(answers):
        name = f"p{number}"
        common: dict[str, Any] = {"problem_id": name}
        problems.append(Problem(id=name, prompt="How many?", answer="1"))
        attempts.append(
            Attempt(id=f"{name}#0", sample=0, response=rejected, finish_reason="stop", model="made",
                    verdict=Verdict(correct=False), **common)
        )  # fmt: skip
        rectifications.append(
            Rectification(id=f"{name}#0~made.0", attempt_id=f"{name}#0", oracle="made", mode="rewrite", candidate=0,
                          response=chosen, verdict=Verdict(correct=True), accepted=True, **common)
        )  # fmt: skip
    return problems, attempts, rectifications


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of `work`, medians."""
    found: list[tuple[float, float]] = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return median(wall for wall, _ in found), median(cpu for _, cpu in found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokenizer", default=model_path("lab"), help="a model directory or a hub name")
    parser.add_argument("--count", type=int, default=4000, help="pairs")
    parser.add_argument("--tokens", type=int, default=2000, help="about how many an answer has")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    encode = load_encoder(options.tokenizer)
    answers = make_answers(options.count, options.tokens, lambda text: len(encode(text)))
    given = rows(answers)
    filtered = make_pairs(*given, encode, GAMMA)
    ids = [tuple(encode.batch(pair)) for pair in answers]
    size = sum(len(rejected) + len(chosen) for rejected, chosen in ids) / (2 * len(ids))
    steps: dict[str, Callable[[], object]] = {
        "tokenize, ratio and filter": lambda: make_pairs(*given, encode, GAMMA),
        "tokenize alone, a pair at a time": lambda: [encode.batch(pair) for pair in answers],
        "LCS alone": lambda: [lcs_length(*pair) for pair in ids],
        "Levenshtein alone": lambda: [edit_distance(*pair) for pair in ids],
    }
    print(f"{len(ids):,} pairs, {size:,.0f} tokens an answer, tokenizer {Path(options.tokenizer).name}, ", end="")
    print(f"median change ratio {median(filtered.ratios):.2f}, {len(filtered.pairs):,} kept\n")
    print("| | wall, s | CPU, s |\n| --- | --- | --- |")
    for name, work in steps.items():
        wall, cpu = timed(work, options.repeats)
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
