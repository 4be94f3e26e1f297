"""What each stage does, from rows to rows, with files as its memory.

A stage function takes its own section of the config and the paths it writes, so the same function serves a run
directory (`pipeline`) and a single command (`cli`). Each can be killed at any moment and called again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from spot import interrupt
from spot.config import (
    DrawnSection,
    ElicitSection,
    EvaluateSection,
    FilterSection,
    ProblemsSection,
    RectifySection,
    RunConfig,
    TrainSection,
)
from spot.errors import UserError
from spot.files.store import Appender, OnBadRow, read_problems
from spot.hub import load_tokenizer, model_path, stop_ids
from spot.progress import bar
from spot.schema import Attempt, Counts, Dropped, Pair, Problem, Rectification
from spot.stages.opening import open_verifier
from spot.verify.base import Verifier

if TYPE_CHECKING:
    from spot.evaluate.results import Results
    from spot.evaluate.run import Exam
    from spot.evaluate.task import Task
    from spot.models.base import Model
    from spot.pairs.filter import Filtered
    from spot.rectify.base import Oracle
    from spot.rectify.run import Within
    from spot.rectify.target import Target
    from spot.stages.asking import Variant
    from spot.train.config import SpotConfig
    from spot.train.measuring import StepMeasure
    from spot.train.run import TrainResult


def load_problems(section: ProblemsSection, seed: int, on_bad_row: OnBadRow, dropped: list[Dropped]) -> list[Problem]:
    """The questions of a run: the lab's, or a file's first `count`. Raises `UserError` where there is none."""
    if section.source == "lab":
        from spot.lab.world import World

        return World.load(section.world).problems("in_domain", "train", section.count or 2000, seed)
    rows = read_problems(Path(section.source), on_bad_row, dropped)[: section.count]
    if not rows:
        raise UserError(f"{section.source}: no problems")
    return rows


def ask(
    problems: Sequence[Problem],
    model: "Model",
    verifier: Verifier,
    section: DrawnSection,
    seed: int,
    output: Path,
    title: str,
    console: Console,
    samples: int = 1,
    variant: "Variant | None" = None,
) -> list[Attempt]:
    """Ask, verify and store; the one machinery behind elicitation and evaluation."""
    from spot.stages.asking import answer

    with bar(console, title) as progress:

        def show(done: int, total: int, counts: Counts) -> None:
            progress.update(done, total, _note(counts))

        return interrupt.run(
            answer(
                problems,
                model,
                verifier,
                samples=samples,
                sampling=section.sampling(seed),
                path=output,
                variant=variant,
                on_progress=show,
            )
        )


def elicit(
    problems: Sequence[Problem],
    model: "Model | None",
    section: ElicitSection,
    verifier: Verifier,
    seed: int,
    output: Path,
    console: Console,
    on_bad_row: OnBadRow = "error",
    dropped: list[Dropped] | None = None,
) -> list[Attempt]:
    """The student's attempts at `problems`, asked for or imported; bad rows of an import go to `dropped` if skipped."""
    if section.attempts is not None:
        from spot.stages.asking import import_answers

        return import_answers(section.attempts, problems, verifier, output, on_bad_row, dropped)
    assert model is not None
    return ask(problems, model, verifier, section, seed, output, "elicit", console, section.samples)


def rectify(
    problems: Sequence[Problem],
    attempts: Sequence[Attempt],
    oracle: "Oracle",
    verifier: Verifier,
    output: Path,
    console: Console,
    dropped: list[Dropped],
    within: "Within | None" = None,
    on_bad_row: OnBadRow = "error",
) -> list[Rectification]:
    """Corrections of the wrong attempts, each verified; those of a file that correct none of them go to `dropped`.

    `within` says whether a verified correction, given with what it corrects, is near enough for a pair. Attempts at
    unknown problems, whose row may have been a bad one, go to `dropped` too with `on_bad_row="skip"`.
    """
    from spot.rectify.base import Failure
    from spot.rectify.imported import ImportedOracle
    from spot.rectify.run import rectify as run_rectify
    from spot.rectify.run import stored

    problem_of = {problem.id: problem for problem in problems}
    strays = [attempt for attempt in attempts if attempt.problem_id not in problem_of]
    if strays and on_bad_row == "error":
        raise UserError(
            f"attempt {strays[0].id!r} answers the unknown problem {strays[0].problem_id!r}; add it to the problems"
        )
    dropped += [Dropped(stage="rectify", id=attempt.id, reason="unknown_problem") for attempt in strays]
    attempts = [attempt for attempt in attempts if attempt.problem_id in problem_of]
    failures = [Failure(problem_of[attempt.problem_id], attempt) for attempt in attempts if attempt.outcome == "wrong"]
    if not failures:
        counts = Counter(attempt.outcome for attempt in attempts)
        found = ", ".join(f"{n} {what}" for what, n in counts.items()) or "no attempts"
        raise UserError(f"no wrong attempts to learn from ({found}); ask more or harder problems")
    if isinstance(oracle, ImportedOracle):
        dropped += oracle.unused(attempts)
    rows = stored(output, {failure.attempt.id: failure for failure in failures}, oracle)
    tally = Counter("accepted" if row.accepted else row.reason for row in rows)
    with bar(console, "rectify") as progress, Appender(output) as appender:

        def show(new: Sequence[Rectification]) -> None:
            rows.extend(new)
            tally.update("accepted" if row.accepted else row.reason for row in new)
            progress.update(len(rows), len(failures) * getattr(oracle, "candidates", 1), _note(tally))

        interrupt.run(run_rectify(failures, oracle, verifier, appender, stored=rows, within=within, on_progress=show))
    order = {failure.attempt.id: i for i, failure in enumerate(failures)}
    return sorted(rows, key=lambda row: (order[row.attempt_id], row.candidate))


def open_target(section: RectifySection) -> "Target | None":
    """Who counts the pairs that are wanted, where their number is set."""
    from spot.rectify.target import Target

    return None if section.target_pairs is None else Target(section.target_pairs)


def told(rows: Sequence[Rectification]) -> str:
    """How corrections came out in a few words, and why those that were not accepted were not."""
    from spot.rectify.run import objections

    accepted = sum(row.accepted for row in rows)
    why = f" ({objections(rows)})" if accepted < len(rows) else ""
    return f"{accepted:,} of {len(rows):,} corrections verified{why}"


def missing(target: "Target") -> str:
    """How far the corrections fall short of the pairs that were asked for."""
    return f"of {target.wanted:,} pairs {target.missing:,} are missing: all wrong attempts were asked about"


def within_gamma(config: RunConfig) -> "Within":
    """Whether a correction is near enough for a pair, by the student's tokenizer."""
    from spot.pairs.change import change_ratio
    from spot.pairs.tokens import load_encoder

    encode, gamma = load_encoder(model_path(config.student.model)), config.filter.gamma

    def within(rejected: str, chosen: str) -> bool:
        ids = encode(rejected), encode(chosen)
        return all(ids) and ids[0] != ids[1] and change_ratio(*ids) <= gamma

    return within


def make_pairs(
    problems: Sequence[Problem],
    attempts: Sequence[Attempt],
    rectifications: Sequence[Rectification],
    student: str,
    section: FilterSection,
    target_pairs: int | None = None,
) -> "Filtered":
    """Pairs within gamma, by the student's tokenizer, in the order of problems and samples; no more than wanted.

    Raises `UserError` where none is left.
    """
    place = {problem.id: number for number, problem in enumerate(problems)}
    attempt_of = {attempt.id: attempt for attempt in attempts}
    for row in rectifications:
        attempt = attempt_of.get(row.attempt_id)
        if attempt is None or attempt.problem_id != row.problem_id or row.problem_id not in place:
            raise UserError(f"rectification {row.id!r}: its problem or attempt is not in the files given with it")
    from spot.pairs.filter import make_pairs as run_filter
    from spot.pairs.tokens import load_encoder

    most = min(filter(None, (section.max_pairs, target_pairs)), default=None)
    # Replies of an endpoint come in any order; what is trained on, and in which order, must not hang on that.
    ordered = sorted(
        rectifications, key=lambda row: (place[row.problem_id], attempt_of[row.attempt_id].sample, row.candidate)
    )
    filtered = run_filter(problems, attempts, ordered, load_encoder(student), section.gamma, most)
    if not filtered.pairs:
        from spot.rectify.run import objections

        accepted = sum(row.accepted for row in rectifications)
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(row.reason for row in filtered.dropped).items())
        mend = "raise filter.gamma or correct more" if accepted else "mend the Oracle and rectify again"
        raise UserError(
            f"no pair is left of {accepted} accepted corrections ({why or objections(rectifications)}); {mend}"
        )
    return filtered


def train_args(section: TrainSection, seed: int, work_dir: Path, metrics: Path) -> "SpotConfig":
    """The Trainer's arguments; what a config calls by another name is renamed here, and nothing in it stays unread.

    Raises `UserError` where the section makes no sense, which only the Trainer can tell for some of it.
    """
    from spot.train.config import SpotConfig

    values = section.model_dump(
        exclude={
            *("objective", "eval_every", "eval_tasks", "drop_overlap"),
            *("lora_r", "lora_alpha", "lora_target_modules"),
        }
    )
    renamed = {
        "loss_type": section.objectives,
        "per_device_train_batch_size": values.pop("pairs_per_step"),
        "warmup_steps": values.pop("warmup_ratio"),
        "bf16": values.pop("precision") == "bf16",
    }
    try:
        return SpotConfig(
            output_dir=str(work_dir),
            metrics_path=str(metrics),
            seed=seed,
            save_total_limit=1,
            disable_tqdm=True,
            **renamed,
            **values,
        )
    except ValueError as error:
        raise UserError(f"train: {' '.join(str(error).split())}") from error


def peft_config(section: TrainSection) -> Any:
    """peft's config of the adapter to train, `None` where the whole model is trained; `UserError` without peft."""
    from spot.train.adapter import make_lora

    return section.lora_r and make_lora(section.lora_r, section.lora_alpha, section.lora_target_modules)


def check_student(student: str, to_train: bool) -> None:
    """Raise `UserError` unless the student's tokenizer loads and, `to_train`, its chat template can be trained with."""
    from spot.chat_template import Chat

    tokenizer = load_tokenizer(student)
    if to_train:
        _ = Chat(tokenizer, stop_ids=stop_ids(student)).turn


def train(
    pairs: Sequence[Pair],
    student: str,
    section: TrainSection,
    seed: int,
    work_dir: Path,
    model_dir: Path,
    metrics: Path,
    console: Console,
    evaluation: "StepMeasure | None" = None,
    day: str | None = None,
) -> "TrainResult":
    """Train on `pairs` and save the model to `model_dir`; `evaluation` measures it on the way.

    Prompts whose template prints the date print `day`.
    """
    from spot.train.run import fit, task_scores

    args = train_args(section, seed, work_dir, metrics)
    args.template_date = day
    with bar(console, "train") as progress:
        scores = ""

        def show(step: int, total: int, row: dict[str, Any]) -> None:
            nonlocal scores
            if told := task_scores(row):
                progress.say(f"step {step}: {told}")
                scores = f"  {told}"
            else:
                margin = row.get("rewards/margins")
                progress.update(step, total, ("" if margin is None else f"margin {margin:.2f}") + scores)

        adapter, callbacks = peft_config(section), evaluation and [evaluation]
        return fit(
            pairs,
            student,
            model_dir,
            args,
            show,
            progress.say,
            peft_config=adapter,
            callbacks=callbacks,
            reference_progress=progress.reference,
        )


def tasks_of(
    section: EvaluateSection, problems: ProblemsSection, on_bad_row: OnBadRow, dropped: list[Dropped]
) -> "list[Task]":
    """What is to be measured; rows of benchmarks are not looked for yet."""
    from spot.evaluate.registry import find_tasks

    return find_tasks(
        section.tasks,
        world=problems.world,
        lab_seed=section.seed,
        lab_questions=section.questions,
        on_bad_row=on_bad_row,
        dropped=dropped,
    )


def exams(
    section: EvaluateSection, problems: ProblemsSection, on_bad_row: OnBadRow, dropped: list[Dropped]
) -> "dict[str, Exam]":
    """What is measured, by name: the questions and who judges them."""
    from spot.evaluate.prompting import read_prompts
    from spot.evaluate.run import Exam, exam

    tasks = tasks_of(section, problems, on_bad_row, dropped)
    prompts = {} if section.prompts is None else read_prompts(section.prompts, tasks)
    found = [exam(task, section.data_dir, prompts.get(task.name), section.questions) for task in tasks]
    # A file of the user's is judged as the run's problems are.
    own = open_verifier(problems) if any(one.task.verifier == "" for one in found) else None
    return {
        one.task.name: one if one.task.verifier or own is None else Exam(one.task, one.problems, own) for one in found
    }


def evaluate(
    tasks: "Mapping[str, Exam]",
    model: "Model",
    section: EvaluateSection,
    output_dir: Path,
    title: str,
    console: Console,
) -> "Results":
    """Answer every task with `model`, one file of attempts a task in `output_dir`, and `results.json` over all."""
    from spot.evaluate.results import forget, merged, write_results
    from spot.evaluate.run import results_of

    askers = {name: _asker(exam, model) for name, exam in tasks.items()}
    forget(output_dir, tasks)
    answers: dict[str, list[Attempt]] = {}
    for name, exam in tasks.items():
        answers[name] = ask(
            exam.problems,
            askers[name],
            exam.verifier,
            section,
            section.seed,
            output_dir / f"{name}.jsonl",
            f"{title} {name}",
            console,
            samples=section.samples or exam.task.repeats,
            variant=exam.task.variant,
        )
    results = merged(output_dir, results_of(model.name, section.sampling(section.seed), tasks, answers))
    write_results(output_dir, results)
    return results


def _asker(exam: "Exam", model: "Model") -> "Model":
    """Who answers: the model, or for a test of likelihoods one that scores the known choices with it."""
    if exam.task.scored_by == "answers":
        return model
    from spot.models.local.likelihood import LikelihoodModel
    from spot.models.local.model import LocalModel

    if not isinstance(model, LocalModel):
        raise UserError(
            f"{exam.task.name}: compares log-probabilities, which the model behind an endpoint does not give; name its "
            "weights, or leave the task out"
        )
    return LikelihoodModel(model, {problem.id: problem.meta["choices"] for problem in exam.problems})


def tally(attempts: Sequence[Attempt]) -> str:
    """How attempts came out in a few words; why, for the first one that could not be judged."""
    counts = Counter(attempt.outcome for attempt in attempts)
    told = ", ".join(
        f"{counts[what]:,} {what}" for what in ("correct", "wrong", "truncated", "unscored") if counts[what]
    )
    unscored = next((attempt for attempt in attempts if attempt.outcome == "unscored"), None)
    why = f" (the first, {unscored.id}: {unscored.verdict.reason})" if unscored else ""
    return f"{len(attempts):,} answers: {told or 'none'}{why}"


def _note(counts: Counts) -> str:
    return "  ".join(f"{count} {what}" for what, count in counts.items())
