"""The lab's whole evaluation: 3 x 400 questions, one sample, and how much of it is the model's own time.

`python -m benchmarks.lab_eval [--repeats N]`; loading and the checking workers' start are counted apart. The model's
time is what its answers take when nothing else is done with them.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from spot.config import parse_config
from spot.evaluate.run import Exam
from spot.models.base import Request
from spot.models.local.model import LocalModel
from spot.schema import Sampling, as_messages, derived_seed
from spot.stages.evaluate import answer_tasks
from spot.stages.exams import exams
from spot.stages.opening import open_model

CONFIG = {
    "student": {"model": "lab"},
    "evaluate": {"tasks": ["in_domain", "ood", "instructions"], "max_new_tokens": 160},
}


async def answer_alone(model: LocalModel, exams: Mapping[str, Exam], seed: int, sampling: Sampling) -> None:
    """The same requests, their replies thrown away."""
    for exam in exams.values():
        requests = [
            Request(f"{one.id}#0", tuple(as_messages(one.prompt)), derived_seed(seed, one.id, 0))
            for one in exam.problems
        ]
        async for _ in model.generate(requests, sampling):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    config = parse_config(CONFIG, "benchmark")
    started = time.perf_counter()
    tasks = exams(config.evaluate, config.problems, "error", [])
    model = open_model(config.student)
    loaded = time.perf_counter() - started
    assert isinstance(model, LocalModel)
    whole, alone = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            answer_tasks(tasks, model, config.evaluate, Path(folder), "eval", Console(quiet=True))
            whole.append(time.perf_counter() - started)
        started = time.perf_counter()
        asyncio.run(answer_alone(model, tasks, config.evaluate.seed, config.evaluate.sampling(config.evaluate.seed)))
        alone.append(time.perf_counter() - started)
    total, model_time = statistics.median(whole), statistics.median(alone)
    print(f"loading {loaded:.1f} s; evaluation {total:.2f} s, the model alone {model_time:.2f} s")
    for name, seconds in (("evaluation", whole), ("model alone", alone)):
        print(f"{name}: {', '.join(f'{one:.2f}' for one in seconds)}")


if __name__ == "__main__":
    main()
