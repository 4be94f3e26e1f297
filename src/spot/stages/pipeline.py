"""A run: the stages in their order, each once, in one directory; a killed run goes on where it was."""

import gc
import json
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.text import Text

from spot import __version__
from spot.config import NOT_IDENTITY, EvaluateSection, RunConfig, Stage, with_new_keys
from spot.errors import StoppedEarly, UserError
from spot.evaluate.overlap import in_common, overlap_note, without_overlap
from spot.files.disk import write_atomic
from spot.files.store import RunDirectory, read_dropped, read_rows, write_rows
from spot.hub import check_model_name, model_path
from spot.rectify.run import objections
from spot.schema import Attempt, Dropped, Pair, Problem, Rectification
from spot.stages import steps as stages
from spot.stages.opening import Asking, open_ledger, open_model, open_oracle, open_verifier
from spot.terminal import say
from spot.verify.pool import shared_process_ids

if TYPE_CHECKING:
    from spot.evaluate.run import Exam
    from spot.models.paid.ledger import Ledger
    from spot.stages.evaluate_tasks import EvaluateTasks

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "openai", "math-verify", "rapidfuzz")
# ru_maxrss is in KiB on Linux and in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024

# What a section of the config has gone into. Before there is any of it the section may change: a stage that stopped
# over a mistake goes on with the mended config. The reference that training keeps knows by itself what it belongs to.
MADE_WITH = {
    "student": ("attempts.jsonl",),
    "elicit": ("attempts.jsonl",),
    "rectify": ("rectifications.jsonl",),
    "filter": ("pairs.jsonl",),
    "train": ("checkpoints/checkpoint-*", "model"),
    "evaluate": ("eval",),
}


def run(config: RunConfig, console: Console, overwrite: bool = False, command: str = "spot run") -> Path:
    """Run the stages of `config` that are not complete; returns the run directory.

    `command` is how the user started this run; the report prints it under "how to reproduce".
    """
    free = {section for section, made in MADE_WITH.items() if not any(any(config.run.dir.glob(name)) for name in made)}
    if not RunDirectory(config.run.dir).is_complete("rectify"):
        free |= {"rectify.target_pairs", "rectify.max_samples"}  # how far to go may change on the way
    directory = RunDirectory.open(config.run.dir, config.to_yaml(), overwrite, NOT_IDENTITY | free, with_new_keys)
    with directory:
        pipeline = Pipeline(config, directory, console, command)
        pipeline.check()
        pipeline.describe()
        for stage in config.run.stages:
            pipeline.stage(stage)
    return directory.path


def preflight(
    config: RunConfig, ahead: Sequence[Stage], fetch: bool = True
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What the stages `ahead` need, by name, and how to try it; each raises `UserError` or `RunFailed` where it fails.

    Without `fetch` a student that is a name on the hub is not looked into, as that takes a network.
    """
    run, student, skip = config.run, model_path(config.student.model), config.run.on_bad_row
    if "train" in ahead:
        yield "student.enable_thinking", partial(_check_thinking, config)
    yield "student", partial(check_model_name, student)
    yield "problems.verifier", partial(open_verifier, config.problems)
    # A run keeps its questions from the first go on; the lab's need no look.
    if "elicit" in ahead and config.problems.source != "lab" and not (run.dir / "problems.jsonl").exists():
        yield "problems.source", partial(stages.load_problems, config.problems, run.seed, skip, [])
    if "rectify" in ahead:
        yield "rectify.oracle", partial(open_oracle, config, Asking(on_bad_row=skip))
    during = "train" in ahead and config.train.eval_every is not None
    if during:
        yield "train.eval_every", partial(_check_tasks, config)
    if "train" in ahead and (config.train.load_best_model_at_end or config.train.eval_tasks):
        yield "train.load_best_model_at_end", partial(_check_best, config)
    if during and config.train.eval_tasks:
        yield "train.eval_tasks", partial(_check_disjoint, config, fetch or config.evaluate.data_dir is not None)
    if "evaluate" in ahead or during:
        # Rows of benchmarks come from a network, too.
        look = stages.exams if fetch or config.evaluate.data_dir else stages.tasks_of
        yield "evaluate.tasks", partial(look, config.evaluate, config.problems, skip, [])
    # Last, since these load torch.
    if "train" in ahead:
        work, metrics = run.dir / "checkpoints", run.dir / "metrics.jsonl"
        yield "train", partial(stages.train_args, config.train, run.seed, work, metrics)
        yield "train.lora_r", partial(stages.peft_config, config.train)
    if ("train" in ahead or "filter" in ahead) and (fetch or Path(student).is_dir()):
        yield "student", partial(stages.check_student, student, to_train="train" in ahead)


def _check_thinking(config: RunConfig) -> None:
    if config.student.enable_thinking:
        raise UserError("student.enable_thinking: training on thinking answers is not supported; set it to false")


def _check_tasks(config: RunConfig) -> None:
    if not (config.evaluate.tasks or config.train.eval_tasks):
        raise UserError(
            "train.eval_every: there is nothing to evaluate; name tasks in evaluate.tasks, or in train.eval_tasks"
        )


def _check_best(config: RunConfig) -> None:
    """What is chosen by a task must not be reported on by it."""
    train = config.train
    if train.eval_every is None:
        name = "load_best_model_at_end" if train.load_best_model_at_end else "eval_tasks"
        raise UserError(f"train.{name}: nothing is measured on the way; set train.eval_every")
    if train.load_best_model_at_end and not train.eval_tasks:
        raise UserError(
            "train.load_best_model_at_end: a checkpoint must not be chosen by what is reported on (evaluate.tasks); "
            "name others in train.eval_tasks (of the lab: in_domain_tune)"
        )
    if train.load_best_model_at_end and train.metric_for_best_model is None:
        names = ", ".join(
            f"eval_{task.name}" for task in stages.tasks_of(choosing(config), config.problems, "skip", [])
        )
        raise UserError(f"train.load_best_model_at_end: set train.metric_for_best_model, one of {names}")


def _check_disjoint(config: RunConfig, fetch: bool) -> None:
    """Raise `UserError` where tasks to choose by share questions with those reported on; names alone unless `fetch`."""
    both = [
        {task.name: task for task in stages.tasks_of(section, config.problems, config.run.on_bad_row, [])}
        for section in (choosing(config), config.evaluate)
    ]
    shared = next((f"{name} is a task of evaluate, too" for name in both[0] if name in both[1]), "")
    if not shared and fetch:
        chosen_by, reported = (
            {
                name: exam.problems
                for name, exam in stages.exams(section, config.problems, config.run.on_bad_row, []).items()
            }
            for section in (choosing(config), config.evaluate)
        )
        shared = in_common(chosen_by, reported)
    if shared:
        raise UserError(
            f"train.eval_tasks: {shared}; a checkpoint must not be chosen by what is reported on, name other questions "
            "(of the lab: in_domain_tune)"
        )


def choosing(config: RunConfig) -> EvaluateSection:
    """How the tasks are asked that a checkpoint is chosen by: as those of `evaluate` are."""
    return config.evaluate.model_copy(update={"tasks": config.train.eval_tasks})


class Pipeline:
    """The stages over one run directory. Each method reads the files of those before it and writes its own."""

    def __init__(self, config: RunConfig, directory: RunDirectory, console: Console, command: str) -> None:
        self.config = config
        self.run = directory
        self.console = console
        self.command = command

    def check(self) -> None:
        """Open what the stages to come will need, so that a mistake shows before anything is asked or paid for."""
        ahead: list[Stage] = [stage for stage in self.config.run.stages if not self.run.is_complete(stage)]
        for _, step in preflight(self.config, ahead):
            step()

    def describe(self) -> None:
        """Record versions and the commit that this run was made with."""
        if "versions" in self.run.manifest:
            return
        self.run.update_manifest(versions=versions(), commit=commit(), command=self.command)
        self.run.day()  # kept there from now on

    def stage(self, name: Stage) -> None:
        """Run a stage unless it is complete."""
        if self.run.is_complete(name) and name != "report":
            self._done(name, "", "already complete")
            return
        work: dict[Stage, Callable[[], str]] = {
            "elicit": self.elicit,
            "rectify": self.rectify,
            "filter": self.filter,
            "train": self.train,
            "evaluate": self.evaluate,
            "report": self.report,
        }
        started = time.monotonic()
        goes = self.run.manifest.get("goes", {})
        self.run.update_manifest(goes=goes | {name: goes.get(name, 0) + 1})
        outcome = work[name]()
        seconds = time.monotonic() - started
        self.run.complete(name, seconds, peak_memory_bytes=peak_memory())
        self._done(name, f"{outcome} ", f"({seconds:.1f} s)")

    def _done(self, name: Stage, outcome: str, note: str) -> None:
        self.console.print(Text.assemble(("✓", "green"), f" {name:<9} {outcome}", (note, "dim")))

    def problems(self) -> list[Problem]:
        """The run's questions, kept in its directory from the first stage on."""
        path = self.run / "problems.jsonl"
        if not path.exists():
            config = self.config
            bad_rows: list[Dropped] = []
            rows = stages.load_problems(config.problems, config.run.seed, config.run.on_bad_row, bad_rows)
            self._drop("read", bad_rows)  # first: once the problems are there, this is not read again
            write_rows(path, rows)
        return read_rows(path, Problem)

    def _ledger(self) -> "Ledger":
        return open_ledger(self.run / "ledger.sqlite")

    def elicit(self) -> str:
        """Ask the student."""
        return stages.tally(self._elicit(self.config.elicit.samples))

    def _elicit(self, samples: int) -> list[Attempt]:
        """The student's attempts, `samples` a problem unless they are imported."""
        config = self.config
        bad_rows: list[Dropped] = []
        asked = config.elicit.attempts is None
        with self._ledger() if asked and config.student.base_url else nullcontext() as ledger:
            attempts = stages.elicit(
                self.problems(),
                open_model(config.student, ledger=ledger, day=self.run.day) if asked else None,
                config.elicit.model_copy(update={"samples": samples}),
                open_verifier(config.problems),
                config.run.seed,
                self.run / "attempts.jsonl",
                self.console,
                config.run.on_bad_row,
                bad_rows,
            )
        useless = [attempt for attempt in attempts if attempt.outcome in ("truncated", "unscored")]
        self._drop(
            "elicit",
            bad_rows
            + [Dropped(stage="elicit", id=row.id, reason=row.outcome, detail=row.verdict.reason) for row in useless],
        )
        return attempts

    def rectify(self) -> str:
        """Ask the Oracle."""
        unused: list[Dropped] = []
        target = stages.open_target(self.config.rectify)
        with self._ledger() as ledger:
            asking = Asking(
                ledger,
                target,
                self.problems(),
                self.run / "human.sqlite",
                partial(self.console.print, highlight=False, soft_wrap=True),
                self.config.run.on_bad_row,
                unused,
                self.run.day,
            )
            rows = self._rectified(asking, self._attempts())
            while target is not None and target.missing and (more := self._more_attempts()):
                unused.clear()
                rows = self._rectified(asking, more)
        self._drop(
            "rectify",
            unused
            + [
                Dropped(stage="rectify", id=row.id, reason=row.reason, detail=row.verdict.reason)
                for row in rows
                if not row.accepted
            ],
        )
        accepted = sum(row.accepted for row in rows)
        if not accepted:
            self._none_accepted(rows)
        if target is not None and target.missing:
            mend = "raise rectify.max_samples, or be content with fewer (rectify.target_pairs)"
            raise StoppedEarly(f"{stages.missing(target)}; {mend}, and run the same command again")
        return stages.told(rows)

    def _rectified(self, asking: Asking, attempts: list[Attempt]) -> list[Rectification]:
        return stages.rectify(
            self.problems(),
            attempts,
            open_oracle(self.config, asking),
            open_verifier(self.config.problems),
            self.run / "rectifications.jsonl",
            self.console,
            asking.dropped,
            stages.within_gamma(self.config) if asking.target is not None else None,
        )

    def _more_attempts(self) -> list[Attempt]:
        """All attempts after one more sample a problem, or none where there may be no more."""
        attempts = self._attempts()
        samples = 1 + max(attempt.sample for attempt in attempts)
        if self.config.elicit.attempts is not None:
            return []
        if len(attempts) < samples * len(self.problems()):
            return self._elicit(samples)  # a kill had cut the last go short
        return self._elicit(samples + 1) if samples < self.config.rectify.max_samples else []

    def _none_accepted(self, rows: list[Rectification]) -> NoReturn:
        """Stop here, where the mend is: nothing that follows can do without a correction."""
        # Kept, they would be taken for done, and the config that they were made with for settled.
        made = [str(self.run / name) for name in MADE_WITH["rectify"] if (self.run / name).exists()]
        raise UserError(
            f"none of {len(rows):,} corrections was accepted ({objections(rows)}); see {made[-1]}; mend the Oracle "
            f"(the section rectify), delete {' and '.join(made)}, and run the same command again"
        )

    def filter(self) -> str:
        """Make the pairs."""
        rows = read_rows(self._needs("rectifications.jsonl", "rectify"), Rectification)
        filtered = stages.make_pairs(
            self.problems(),
            self._attempts(),
            rows,
            model_path(self.config.student.model),
            self.config.filter,
            self.config.rectify.target_pairs,
        )
        write_rows(self.run / "pairs.jsonl", filtered.pairs)
        write_atomic(self.run / "change_ratios.json", json.dumps([round(ratio, 6) for ratio in filtered.ratios]))
        self._drop("filter", filtered.dropped)
        return f"{len(filtered.pairs):,} pairs within gamma {self.config.filter.gamma:g}"

    def train(self) -> str:
        """Train the student on the pairs."""
        pairs, overlapping = self._without_overlap(read_rows(self._needs("pairs.jsonl", "filter"), Pair))
        result = stages.train(
            pairs,
            model_path(self.config.student.model),
            self.config.train,
            self.config.run.seed,
            self.run / "checkpoints",
            self.run / "model",
            self.run / "metrics.jsonl",
            self.console,
            self._evaluation(pairs),
            self.run.day().isoformat(),
        )
        self._drop("train", overlapping + list(result.dropped))
        gc.collect()  # the trainer and its callbacks hold each other, with weights and optimizer state
        plain = f", prefixes not shared: {result.not_shared}" if result.not_shared else ""
        kept = f", {result.kept}" if result.kept else ""
        return f"{result.steps:,} steps of {' + '.join(self.config.train.objectives)}{kept}{plain}"

    def _without_overlap(self, pairs: list[Pair]) -> tuple[list[Pair], list[Dropped]]:
        """What to train on, and what is left out; says which questions of the evaluation are among the pairs."""
        exams = self._exams([]) if self.config.evaluate.tasks else {}
        if not exams:
            say("note", "evaluate.tasks names none, so the pairs were not compared with any benchmark")
        questions = {task: exam.problems for task, exam in exams.items()}
        kept, dropped, notes = without_overlap(questions, pairs, self.config.train.drop_overlap)
        for note in notes:
            say("warning", note)
        if notes and not dropped:
            say("note", "train.drop_overlap=true leaves these pairs out")
        return kept, dropped

    def _evaluation(self, pairs: list[Pair]) -> "EvaluateTasks | None":
        """What is measured during training."""
        every, config = self.config.train.eval_every, self.config
        if every is None:
            return None
        from spot.stages.evaluate_tasks import EvaluateTasks

        size = config.student.batch_size
        if not config.train.eval_tasks:
            return EvaluateTasks(self._exams([]), every, config.evaluate, self.run / "eval", size, self.console)
        section = choosing(config)
        tasks = stages.exams(section, config.problems, config.run.on_bad_row, [])
        for note in filter(None, (overlap_note(name, exam.problems, pairs) for name, exam in tasks.items())):
            say("warning", f"train.eval_tasks: {note}")
        return EvaluateTasks(tasks, every, section, self.run / "checkpoints" / "eval", size, self.console)

    def _exams(self, bad_rows: list[Dropped]) -> "dict[str, Exam]":
        """What is measured, with the questions that the run keeps."""
        config = self.config
        tasks = stages.exams(config.evaluate, config.problems, config.run.on_bad_row, bad_rows)
        for task, exam in tasks.items():
            # Kept from the first go on, like the run's problems: what was asked must not change under its answers.
            path = self.run / "eval" / "problems" / f"{task}.jsonl"
            if not path.exists():
                write_rows(path, exam.problems)
            tasks[task] = replace(exam, problems=read_rows(path, Problem))
        return tasks

    def evaluate(self) -> str:
        """Measure the student before and after."""
        from spot.evaluate.run import remarks

        config = self.config
        bad_rows: list[Dropped] = []
        tasks = self._exams(bad_rows)
        if not tasks:
            return "no tasks, nothing measured"
        for line in (line for task, exam in tasks.items() for line in remarks(task, exam.problems)):
            say("warning", line)
        if "train" not in config.run.stages and (self.run / "pairs.jsonl").exists():
            pairs = read_rows(self.run / "pairs.jsonl", Pair)
            for note in filter(None, (overlap_note(task, tasks[task].problems, pairs) for task in tasks)):
                say("warning", note)
        trained = self._needs("model", "train")
        for side, weights in {"before": None, "after": trained}.items():
            # Both in process, so that nothing but the weights differs.
            model = open_model(config.student.model_copy(update={"base_url": None}), weights, day=self.run.day)
            stages.evaluate(tasks, model, config.evaluate, self.run / "eval" / side, side, self.console)
            del model
            gc.collect()  # one model at a time in memory
        self._drop("evaluate", bad_rows)
        return f"{sum(len(exam.problems) for exam in tasks.values()):,} questions, before and after"

    def report(self) -> str:
        """Sum up in `summary.json` and `report.html`."""
        from spot.report.build import build_report
        from spot.report.collect import collect

        summary = collect(self.run, self.config)
        write_atomic(self.run / "summary.json", summary.model_dump_json(indent=2) + "\n")
        path = build_report(self.run.path, self.run.manifest.get("command", self.command))
        return path.name

    def _attempts(self) -> list[Attempt]:
        return read_rows(self._needs("attempts.jsonl", "elicit"), Attempt)

    def _needs(self, name: str, stage: Stage) -> Path:
        path = self.run / name
        if not path.exists():
            raise UserError(f"{path}: not there yet; the stage {stage!r} makes it, add it to run.stages")
        return path

    def _drop(self, stage: str, rows: list[Dropped]) -> None:
        """Record what a stage dropped, in place of what an earlier go of it recorded."""
        path = self.run / "dropped.jsonl"
        others = [row for row in read_dropped(path) if row.stage != stage]
        write_rows(path, others + [row.model_copy(update={"stage": stage}) for row in rows])


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"spot": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the code that runs, where it runs from a git checkout."""
    source = Path(__file__).resolve()
    # A package installed inside somebody else's checkout must not be taken for that.
    if not (source.parents[3] / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(source.parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def peak_memory() -> int:
    """Peak resident memory so far, in bytes: this process's, plus that of each answer-checking worker that runs now.

    An upper bound for these processes, since their peaks need not fall together and pages they share count in each.
    Not counted: a GPU's own memory, workers that have ended (a hung one is replaced), and workers where the system has
    no /proc. The system's own sum of ended children will not do: a child counts there from its parent's size on.
    """
    own = _peak_of("self") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    return own + sum(_peak_of(worker) for worker in shared_process_ids())


def _peak_of(process: int | str) -> int:
    """Peak resident bytes of a process; 0 where there is none any more, or no way to tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*([0-9]+) kB", status)
    return int(found[1]) * 1024 if found else 0
