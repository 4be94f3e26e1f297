"""Every benchmark as a task of inspect_ai: `inspect eval spot/aime24 --model openai-api/host/name -T data_dir=data`.

inspect loads this module by its entry point. Questions, verifiers and seeds are those of `spot eval`, an epoch is a
repetition, and sampling is the paper's unless inspect's flags say otherwise (`--temperature`, `--max-tokens`,
`--epochs`, `--limit`, ...). `--seed` is the run's: inspect would send it unchanged with every epoch, here each
repetition of a question gets the one that `spot.stages.asking` derives.

In a log of inspect's own a sample's input and target are those of the first repetition, since inspect keeps one for all
epochs; the messages, and the known answer in the score's explanation, are of the repetition.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from spot.errors import UserError
from spot.evaluate.prompting import read_prompts
from spot.evaluate.registry import BENCHMARKS, LAB, LAB_QUESTIONS, find_tasks
from spot.evaluate.run import exam
from spot.evaluate.statistics import is_unanswered, majority, pass_at, share
from spot.evaluate.task import Task
from spot.schema import Attempt, FinishReason, Message, Problem, Prompt, Sampling, Verdict, as_messages, derived_seed
from spot.stages.asking import Variant
from spot.verify.resolve import resolve

try:
    import inspect_ai
    from anyio import to_thread
    from inspect_ai import Epochs
    from inspect_ai._util.error import PrerequisiteError  # inspect prints it as a line, any other with a traceback
    from inspect_ai._util.registry import registry_name
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
    from inspect_ai.model._generate_config import active_generate_config  # with flags, which a model's own may lack
    from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, accuracy, metric, scorer, stderr
    from inspect_ai.solver import Generate, Solver, TaskState, solver
except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is missing; pip install 'spot-posttraining[inspect]'") from None

PAPER_SAMPLING = Sampling(seed=1)  # the seed that `spot eval` derives others from (`evaluate.seed`)
SCORER = "verdict"

_CHAT = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
_FINISH: Mapping[str, FinishReason] = {"stop": "stop", "max_tokens": "length", "model_length": "length"}
# inspect's names for why a score is what it is; it takes others, too.
_REASONS = {"unanswered": "invalid_response_format", "unscored": "scoring_failed", "truncated": "truncated"}
# As spot.models.endpoint.model sends them: servers keep seeds in signed integers of 32 or 64 bits.
_SEED_BITS = 0x7FFFFFFF


class _Benchmark(inspect_ai.Task):
    """A task that does not say which file it is from.

    inspect takes what an editable install has for a loose script, runs it in the script's directory and puts that
    before Python's own modules, where `statistics.py` would be ours.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("__task_file__", "__task_run_dir__"):
            super().__setattr__(name, value)


def _named(name: str, of: Callable[..., Any]) -> str:
    """The name to register `of` by, so that it is `spot/name`: inspect adds the package except if it is editable."""
    return name if "/" in registry_name(of, name) else f"spot/{name}"


@contextmanager
def _inspect_errors() -> Generator[None]:
    """Turn an error that is the user's to fix into what inspect prints as a line, its flag called as inspect does."""
    try:
        yield
    except UserError as error:
        raise PrerequisiteError(escape(str(error).replace("--data_dir", "-T data_dir=DIRECTORY"))) from None


def inspect_task(task: Task, data_dir: str | None = None, prompts: str | None = None) -> inspect_ai.Task:
    """`task` with questions from files below `data_dir` or the hub, and the templates of the file `prompts`.

    Raises `UserError` if its rows cannot be read, or inspect cannot ask them.
    """
    if task.scored_by == "likelihood":
        raise UserError(
            f"{task.name} compares the log-probabilities of known choices, for which inspect has no request; "
            f"use spot eval --tasks {task.name}, with the model in process"
        )
    templates = read_prompts(Path(prompts), [task]) if prompts else {}
    problems = exam(task, Path(data_dir) if data_dir else None, templates.get(task.name), None).problems
    samples = [
        Sample(id=one.id, input=as_chat(one.prompt), target=one.answer, metadata=dict(one.meta)) for one in problems
    ]
    return _Benchmark(
        dataset=MemoryDataset(samples, name=task.name, location=data_dir or (task.source and task.source.hub)),
        solver=ask(task.name),
        scorer=verdict(task.name),
        epochs=Epochs(task.repeats, "mean"),
        config=generation(PAPER_SAMPLING),
        display_name=task.title,
    )


def generation(sampling: Sampling) -> GenerateConfig:
    """Our sampling as inspect's config."""
    return GenerateConfig(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
        seed=sampling.seed,
    )


def as_chat(prompt: Prompt) -> list[ChatMessage]:
    """A prompt as inspect's messages."""
    return [_CHAT[message.role](content=message.content) for message in as_messages(prompt)]


def _register(name: str) -> None:
    def make(data_dir: str | None = None, prompts: str | None = None) -> inspect_ai.Task:
        with _inspect_errors():
            return inspect_task(find_tasks([name])[0], data_dir, prompts)

    inspect_ai.task(name=_named(name, make))(make)


def _register_lab(name: str) -> None:
    def make(world: str = "default", lab_seed: int = 1, lab_questions: int = LAB_QUESTIONS) -> inspect_ai.Task:
        with _inspect_errors():
            return inspect_task(
                find_tasks([name], options={"world": world}, lab_seed=lab_seed, lab_questions=lab_questions)[0]
            )

    inspect_ai.task(name=_named(name, make))(make)


def _ask(benchmark: str) -> Solver:
    """Ask a question as this epoch's repetition does: its own seed, and its own words where the benchmark varies them.

    The task's solver, `spot/ask`.
    """
    variant = find_tasks([benchmark])[0].variant

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        if variant is not None:
            state.messages = as_chat(_repetition(state, variant).prompt)
        seed = derived_seed(active_generate_config().seed or 0, str(state.sample_id), state.epoch - 1)
        return await generate(state, seed=seed & _SEED_BITS)

    return solve


def _measures() -> Metric:
    """`further` over all repetitions, as inspect's metric `spot/measures`."""

    def compute(scores: list[SampleScore]) -> Value:
        return further(scores)

    return compute


ask = solver(_named("ask", _ask))(_ask)
measures = metric(_named("measures", _measures), scores="unreduced")(_measures)


def _verdict(benchmark: str) -> Scorer:
    """Our verifier's judgement as inspect's score; the task's scorer, `spot/verdict`.

    Off the main thread, as some comparisons take seconds.
    """
    task = find_tasks([benchmark])[0]
    verifier = resolve(task.verifier)

    def judged(state: TaskState, problem: Problem) -> Score:
        response, ended = state.output.completion, state.output.stop_reason
        attempt = Attempt(
            id=f"{problem.id}#{state.epoch - 1}",
            problem_id=problem.id,
            sample=state.epoch - 1,
            response=response,
            finish_reason=_FINISH.get(ended, "error"),
            verdict=verifier(response, problem)
            if ended in _FINISH
            else Verdict(correct=None, reason=f"finish_reason {ended!r}"),
            model=str(state.model),
        )
        return as_score(task, attempt, problem)

    async def score(state: TaskState, target: Target) -> Score:
        del target  # the first repetition's
        return await to_thread.run_sync(partial(judged, state, _repetition(state, task.variant)))

    return score


verdict = scorer([accuracy(), stderr(), measures()], _named(SCORER, _verdict))(_verdict)


def _repetition(state: TaskState, variant: Variant | None) -> Problem:
    """The problem as this epoch asks it."""
    asked = state.input
    messages = [Message(role="user", content=asked)] if isinstance(asked, str) else [_message(one) for one in asked]
    problem = Problem(id=str(state.sample_id), prompt=messages, answer=state.target.text, meta=state.metadata)
    return variant(problem, state.epoch - 1) if variant else problem


def _message(message: ChatMessage) -> Message:
    assert message.role != "tool"  # no benchmark has any
    return Message(role=message.role, content=message.text)


def as_score(task: Task, attempt: Attempt, problem: Problem) -> Score:
    """An attempt's verdict as inspect's score; `problem` is as the repetition asked it.

    Correct is `C` (1); no answer `N`, and all else `I` (both 0), be it wrong, truncated or unscored. The metadata keep
    these apart, and have what the attempt has of the benchmark's own measures.
    """
    outcome = "unanswered" if is_unanswered(attempt) else attempt.outcome
    explained = [outcome, f"the known answer is {problem.answer}", *filter(None, [attempt.verdict.reason])]
    return Score(
        value={"correct": "C", "unanswered": "N"}.get(outcome, "I"),
        answer=attempt.verdict.answer,
        explanation="; ".join(explained),
        reason=_REASONS.get(outcome),
        metadata={"outcome": outcome, "measures": dict(task.measures(attempt, problem)) if task.measures else {}},
    )


def further(scores: Sequence[SampleScore]) -> dict[str, float]:
    """The measures beside accuracy, from `as_score`'s scores of all repetitions.

    The shares of truncated, unanswered and unscored answers; pass@k and maj@k, where each question has k > 1; and the
    benchmark's own measures with their standard errors.
    """
    if not scores:
        return {}
    attempts = [_attempt(one) for one in scores]
    outcomes = Counter(_metadata(one)["outcome"] for one in scores)
    found = {name: outcomes[name] / len(scores) for name in ("truncated", "unanswered", "unscored")}
    repeats = min(Counter(one.problem_id for one in attempts).values())
    if repeats > 1:
        found |= {f"pass@{repeats}": pass_at(repeats, attempts), f"maj@{repeats}": majority(attempts)}
    parts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in scores:
        for name, (got, whole) in _metadata(one)["measures"].items():
            parts.setdefault(name, {}).setdefault(str(one.sample_id), []).append((got, whole))
    for name, by_question in parts.items():
        if any(whole for some in by_question.values() for _, whole in some):
            mean, error = share(by_question)
            found |= {name: mean} | ({} if error is None else {f"{name} stderr": error})
    return found


def _metadata(one: SampleScore) -> dict[str, Any]:
    return one.score.metadata or {}


def _attempt(one: SampleScore) -> Attempt:
    """The attempt, as far as its score has it."""
    outcome: str = _metadata(one)["outcome"]
    return Attempt(
        id="",
        problem_id=str(one.sample_id),
        sample=0,
        response="",
        finish_reason="length" if outcome == "truncated" else "stop",
        verdict=Verdict(correct=None if outcome == "unscored" else outcome == "correct", answer=one.score.answer),
        model="",
    )


for _name in BENCHMARKS:
    _register(_name)
for _name in LAB:
    _register_lab(_name)
