"""A finished evaluation as a log of inspect_ai, for its viewer: `inspect view start --log-dir DIRECTORY`.

The log is what inspect would have written of the same answers (`inspect_tasks`) but for times and events, which an
answer of ours does not keep, and for input and known answer, which here are those of each repetition.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import spot
from spot.evaluate.inspect_tasks import BENCHMARKS, SCORER, as_chat, as_score, further, generation
from spot.evaluate.registry import LAB
from spot.evaluate.results import TaskScore, task_score
from spot.evaluate.statistics import question_means
from spot.evaluate.task import Task
from spot.files.disk import disk_errors, replacing
from spot.schema import Attempt, FinishReason, Problem

# Second, since it is inspect_tasks that says what to install where inspect_ai is missing.
# isort: split
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalPlan,
    EvalPlanStep,
    EvalResults,
    EvalSample,
    EvalSampleReductions,
    EvalSampleScore,
    EvalScore,
    EvalSpec,
    EvalStats,
    write_eval_log,
)
from inspect_ai.model import GenerateConfig, ModelOutput, StopReason
from inspect_ai.scorer import SampleScore

_STOPS: Mapping[FinishReason, StopReason] = {"stop": "stop", "length": "max_tokens", "error": "unknown"}


def write_logs(
    task: Task, problems: Sequence[Problem], attempts: Sequence[Attempt], model: str, directory: Path
) -> Path:
    """Write `{task}.eval` into `directory`, in place of one that is there, and return its path.

    `attempts` answer each of `problems` equally often. Raises `UserError` where the file cannot be written.
    """
    samples = _samples(task, problems, attempts, model)
    scores = [
        SampleScore(score=score, sample_id=sample.id) for sample in samples for score in (sample.scores or {}).values()
    ]
    found = task_score(task, problems, attempts)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    log = EvalLog(
        status="success",
        eval=_spec(task, problems, found, model, now),
        plan=EvalPlan(
            steps=[EvalPlanStep(solver="spot/ask", params={"benchmark": task.name})], config=_config(attempts)
        ),
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=_eval_scores(task, found, further(scores)),
            metadata=found.model_dump(mode="json"),
        ),
        stats=EvalStats(started_at=now, completed_at=now),
        samples=samples,
    )
    # Afterwards: given with the rest, EvalLog takes them for the reductions of an old version's log.
    means = [EvalSampleScore(value=mean, sample_id=name) for name, mean in question_means(attempts).items()]
    log.reductions = [EvalSampleReductions(scorer=SCORER, reducer="mean", samples=means)]
    path = directory / f"{task.name}.eval"
    with disk_errors(path), replacing(path) as temporary:
        write_eval_log(log, temporary, format="eval")
    return path


def _samples(task: Task, problems: Sequence[Problem], attempts: Sequence[Attempt], model: str) -> list[EvalSample]:
    problem_of = {problem.id: problem for problem in problems}
    samples: list[EvalSample] = []
    for attempt in attempts:
        problem = problem_of[attempt.problem_id]
        asked = task.variant(problem, attempt.sample) if task.variant else problem
        chat = as_chat(asked.prompt)
        output = ModelOutput.from_content(
            model,
            attempt.response,
            _STOPS[attempt.finish_reason],
            error=attempt.verdict.reason if attempt.finish_reason == "error" else None,
        )
        samples.append(
            EvalSample(
                id=problem.id,
                epoch=attempt.sample + 1,
                input=chat,
                target=asked.answer,
                messages=[*chat, output.message],
                output=output,
                scores={SCORER: as_score(task, attempt, asked)},
                metadata=dict(asked.meta),
            )
        )
    return samples


def _spec(task: Task, problems: Sequence[Problem], found: TaskScore, model: str, now: str) -> EvalSpec:
    source = task.source
    return EvalSpec(
        created=now,
        task=f"spot/{task.name}" if task.name in (*BENCHMARKS, *LAB) else task.name,
        task_display_name=task.title,
        dataset=EvalDataset(
            name=task.name,
            location=source and source.hub,
            samples=found.n,
            sample_ids=[problem.id for problem in problems],
            shuffled=False,
        ),
        model=model,
        config=EvalConfig(epochs=found.repeats, epochs_reducer=["mean"]),
        packages={"inspect_ai": version("inspect_ai"), "spot-posttraining": spot.__version__},
    )


def _config(attempts: Sequence[Attempt]) -> GenerateConfig:
    sampling = attempts[0].sampling
    return generation(sampling) if sampling else GenerateConfig()


def _eval_scores(task: Task, found: TaskScore, beside: Mapping[str, float]) -> list[EvalScore]:
    """Accuracy and its standard error, and what there is beside them: inspect lists the two apart."""
    main = {"accuracy": found.mean, "stderr": found.stderr or 0.0}  # inspect has 0 for a single question, too
    params = {"benchmark": task.name}
    return [
        EvalScore(
            name=SCORER,
            scorer=SCORER,
            reducer="mean",
            params=params,
            scored_samples=found.n,
            unscored_samples=0,
            metrics={name: EvalMetric(name=name, value=value) for name, value in main.items()},
        ),
        EvalScore(
            name=SCORER,
            scorer=SCORER,
            params=params,
            scored_samples=found.samples,
            unscored_samples=0,
            metrics={name: EvalMetric(name=name, value=value, group="measures") for name, value in beside.items()},
        ),
    ]
