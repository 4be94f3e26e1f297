"""Benchmarks during training: the training is the same to the bit, and a kill costs no answer that was given."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from tests.tiny_student import make_model, make_pairs, make_tokenizer
from tests.train.test_distributed import Fsdp2Trainer
from torch import distributed
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from spot import interrupt
from spot.errors import Interrupted, UserError
from spot.evaluate.results import read_results
from spot.evaluate.run import Exam
from spot.evaluate.source import Data
from spot.evaluate.task import Task
from spot.files.store import read_rows, write_rows
from spot.models.local.model import LocalModel
from spot.schema import Attempt, Problem, Verdict
from spot.stages.evaluate_tasks import EvaluateTasks, of_flags
from spot.train.adapter import language_model
from spot.train.command import main
from spot.train.measuring import StepMeasure, Student, check_whole
from spot.train.run import fit
from spot.train.trainer import SpotConfig, SpotTrainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = [0, 2, 4, 6, 8, 9]
"""When a training of nine steps is measured every second one."""
ANSWERS: dict[str, Any] = {"max_new_tokens": 6}


def config(directory: Path, **changes: Any) -> SpotConfig:
    """10 pairs by 4 make nine steps in three epochs."""
    settings: dict[str, Any] = {
        "output_dir": str(directory / "work"),
        "metrics_path": str(directory / "m.jsonl"),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "beta": 0.05,
        "save_steps": 2,
        "bf16": False,
        "disable_tqdm": True,
    }
    return SpotConfig(**(settings | changes))


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "up_proj"])


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "own.jsonl"
    write_rows(path, [Problem(id=f"q{n}", prompt=f"What is {n}?", answer=str(n)) for n in range(5)])
    return str(path)


def rows(directory: Path, measured: bool) -> list[dict[str, float]]:
    """What was logged of tasks, or of all else."""
    lines = [json.loads(line) for line in (directory / "m.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if name != "tokens_per_second"}
        for row in lines
        if any(name.startswith("eval/") for name in row) == measured
    ]


def answers(directory: Path, step: int) -> list[str]:
    return [row.response for row in read_rows(directory / "work" / "eval" / f"step-{step}" / "own.jsonl", Attempt)]


class Watch(TrainerCallback):
    """Notes before each step what evaluation could have moved."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.trainer: SpotTrainer | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        model: Any = language_model(self.trainer.model)
        self.seen.append(
            (
                *(random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
                *(model.config._attn_implementation, model.config.use_cache, torch.get_num_threads()),
                {name: module.training for name, module in model.named_modules()},
                {name: buffer.sum().item() for name, buffer in model.named_buffers()},
                model.generation_config.eos_token_id,
            )
        )


class Noise(StepMeasure):
    """Draws random numbers, disturbs the student that it was given, and may fail."""

    names: Sequence[str] = ("noise",)

    def __init__(self, steps: int, fails_at: int | None = None) -> None:
        super().__init__(steps)
        self.fails_at = fails_at

    def measure(self, student: Student) -> list[float]:
        for draw in (random.random, np.random.random, lambda: torch.rand(3)):
            draw()
        torch.manual_seed(student.step)
        student.model.train()
        student.model.config.use_cache = True
        student.model.set_attn_implementation("eager")
        for buffer in student.model.buffers():
            buffer.zero_()
        if student.step == self.fails_at:
            raise OSError("no room")
        return [float(student.step)]


def trained(directory: Path, callbacks: list[TrainerCallback], adapter: bool = False, **changes: Any) -> SpotTrainer:
    watch = Watch()
    given: Any = {"peft_config": lora()} if adapter else {}
    model = make_model(tie_word_embeddings=False)
    tokenizer = make_tokenizer()
    args = config(directory, **changes)
    trainer = SpotTrainer(model, args, make_pairs(10), None, tokenizer, callbacks=[*callbacks, watch], **given)
    watch.trainer = trainer
    trainer.train()
    cast(Any, trainer).seen = watch.seen
    return trainer


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_losses_weights_and_random_state_are_those_without_it(
    adapter: bool, bf16: bool, questions: str, tmp_path: Path
) -> None:
    plain: Any = trained(tmp_path / "plain", [], adapter, bf16=bf16)
    callbacks: list[TrainerCallback] = [EvaluateTasks(questions, 2, ANSWERS), Noise(3)]
    evaluated: Any = trained(tmp_path / "evaluated", callbacks, adapter, bf16=bf16)
    assert rows(tmp_path / "plain", measured=False) == rows(tmp_path / "evaluated", measured=False)
    assert len(plain.seen) == 9 and plain.seen == evaluated.seen
    ones, others = plain.model.state_dict(), evaluated.model.state_dict()
    assert ones.keys() == others.keys() and all(torch.equal(ones[name], others[name]) for name in ones)
    logged = rows(tmp_path / "evaluated", measured=True)
    assert [row["step"] for row in logged] == [0, 2, 3, 4, 6, 8, 9]
    assert [set(row) - {"step", "epoch"} for row in logged[:3]] == [
        {"eval/own", "eval/noise"}, {"eval/own"}, {"eval/noise"},
    ]  # fmt: skip
    history = [row for row in evaluated.state.log_history if "eval/own" in row]
    assert [row["step"] for row in history] == STEPS


def test_where_it_fails_the_model_in_training_is_as_it_was(tmp_path: Path) -> None:
    watch, model = Watch(), make_model()
    args = config(tmp_path)
    trainer = SpotTrainer(model, args, make_pairs(10), None, make_tokenizer(), callbacks=[watch, Noise(2, fails_at=4)])
    watch.trainer = trainer
    with pytest.raises(OSError, match="no room"):
        trainer.train()
    watch.on_step_begin(args, trainer.state, trainer.control)
    *_, before, after = watch.seen
    assert before[3:] == after[3:]
    trained(tmp_path / "plain", [])
    # Its fourth step was whole, and had been saved before.
    assert [row["step"] for row in rows(tmp_path, measured=False)] == [1, 2, 3, 4]
    assert (tmp_path / "work" / "checkpoint-4" / "trainer_state.json").exists()


@pytest.mark.parametrize("adapter", [False, True])
def test_it_answers_as_the_model_that_is_saved(
    adapter: bool, save_student: Callable[..., Path], questions: str, tmp_path: Path
) -> None:
    student = save_student()
    callback = EvaluateTasks([questions], 2, ANSWERS)
    peft_config = lora() if adapter else None
    fit(make_pairs(10), student, tmp_path / "model", config(tmp_path), peft_config=peft_config, callbacks=[callback])
    for step, place in {0: student, 9: tmp_path / "model"}.items():
        asked = EvaluateTasks([questions], 2, ANSWERS, tmp_path / f"again-{step}")
        model = LocalModel(str(place), dtype="float32")
        with model.borrowed() as (weights, tokenizer, _):
            asked.measure(Student(weights, tokenizer, None, "saved", step, tmp_path))
        again = read_rows(tmp_path / f"again-{step}" / f"step-{step}" / "own.jsonl", Attempt)
        assert [row.response for row in again] == answers(tmp_path, step)
    assert answers(tmp_path, 0) != answers(tmp_path, 9)
    results = read_results(tmp_path / "work" / "eval" / "step-9")
    assert results.tasks["own"].mean == rows(tmp_path, measured=True)[-1]["eval/own"]


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each batch that is answered, as it is asked; and the kill that comes at the batch `kill_at`."""
    asked: list[int] = []
    decode: Any = LocalModel._decode  # pyright: ignore[reportPrivateUsage]

    def counted(self: LocalModel, batch: Any, *args: Any) -> Any:
        if asked and asked[0] == -len(asked):
            raise Killed
        asked.append(len(batch))
        return decode(self, batch, *args)

    monkeypatch.setattr(LocalModel, "_decode", counted)
    return asked


# Three batches of questions at each step: killed at the second of step 4, at the last of step 9, and at the first of 0.
@pytest.mark.parametrize(("kill_at", "resumed_from"), [(7, 4), (17, 9), (0, 0)])
def test_a_killed_evaluation_goes_on_from_its_answers(
    kill_at: int,
    resumed_from: int,
    batches: list[int],
    save_student: Callable[..., Path],
    questions: str,
    tmp_path: Path,
) -> None:
    student = save_student()

    def run(name: str) -> int:
        callbacks: list[TrainerCallback] = [EvaluateTasks(questions, 2, ANSWERS, batch_size=2)]
        directory = tmp_path / name
        args = config(directory, save_total_limit=1)
        return fit(make_pairs(10), student, directory / "model", args, callbacks=callbacks).resumed_from

    run("whole")
    assert len(batches) == 3 * len(STEPS)
    batches[:] = [-(kill_at + 1)]
    with pytest.raises(Killed):
        run("killed")
    assert len(batches) == kill_at + 1
    batches[0] = 0
    assert run("killed") == resumed_from
    # Each batch was answered once over both.
    assert len(batches) == 1 + 3 * len(STEPS)
    assert rows(tmp_path / "killed", measured=True) == rows(tmp_path / "whole", measured=True)
    assert rows(tmp_path / "killed", measured=False) == rows(tmp_path / "whole", measured=False)
    assert [answers(tmp_path / "killed", step) for step in STEPS] == [
        answers(tmp_path / "whole", step) for step in STEPS
    ]
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "model") for name in ("killed", "whole"))
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def test_ctrl_c_stops_it_and_says_where_it_goes_on(
    save_student: Callable[..., Path], questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode: Any = LocalModel._decode  # pyright: ignore[reportPrivateUsage]
    asked: list[int] = []

    def interrupted(self: LocalModel, batch: Any, *args: Any) -> Any:
        asked.append(len(batch))
        if len(asked) == 5:  # of three batches a step, the second of step 2
            first = tmp_path / "work" / "eval" / "step-2" / "own.jsonl"
            while not (first.exists() and first.stat().st_size):  # its lane is ahead of what is committed
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
        return decode(self, batch, *args)

    monkeypatch.setattr(LocalModel, "_decode", interrupted)
    handlers = {ending: signal.getsignal(ending) for ending in interrupt.ENDINGS}
    interrupt.install()
    try:
        callbacks = [EvaluateTasks(questions, 2, ANSWERS, batch_size=2)]
        with pytest.raises(Interrupted, match="the same command resumes at checkpoint-2"):
            fit(make_pairs(10), save_student(), tmp_path / "model", config(tmp_path), callbacks=callbacks)
    finally:
        for ending, handler in handlers.items():
            signal.signal(ending, handler)
    assert 0 < len(answers(tmp_path, 2)) < 5 and [row["step"] for row in rows(tmp_path, measured=True)] == [0]


def test_what_was_finished_before_a_kill_is_not_asked_again(
    batches: list[int], save_student: Callable[..., Path], questions: str, tmp_path: Path
) -> None:
    student = save_student()

    def run(stop_after: int | None, **changes: Any) -> None:
        def progress(step: int, total: int, row: dict[str, float]) -> None:
            if step == stop_after and "eval/own" not in row:
                raise Killed

        callbacks: list[TrainerCallback] = [EvaluateTasks(questions, 2, ANSWERS)]
        args = config(tmp_path, save_steps=4, **changes)
        fit(make_pairs(10), student, tmp_path / "model", args, progress, callbacks=callbacks)

    with pytest.raises(Killed):
        run(7)
    assert len(batches) == 4  # steps 0, 2, 4 and 6, of which 6 comes after the checkpoint
    batches.clear()
    run(None)
    assert len(batches) == 2
    assert [row["step"] for row in rows(tmp_path, measured=True)] == STEPS
    batches.clear()
    run(None)
    assert batches == [] and [row["step"] for row in rows(tmp_path, measured=True)] == STEPS


def test_answers_of_another_training_are_not_taken_for_its_own(questions: str, tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        trained(tmp_path, [EvaluateTasks(questions, 2, ANSWERS)], max_steps=1, save_strategy="no", **changes)

    run()
    run()
    with pytest.raises(UserError, match=r"step-0.own\.jsonl: row .* was answered by the model 'step-0@"):
        run(learning_rate=1e-3)
    write_rows(Path(questions), [Problem(id="q", prompt="?", answer="1")])
    with pytest.raises(UserError, match="are to other questions"):
        run()


def test_tests_of_likelihoods_are_scored_too(tmp_path: Path) -> None:
    problem = Problem(id="a", prompt="Is it?", answer="yes", meta={"choices": ["yes", "no"]})

    def build(data: Data, prompt: str) -> list[Problem]:
        raise AssertionError

    def judged(response: str, problem: Problem) -> Verdict:
        yes, no = json.loads(response)
        return Verdict(correct=yes > no)

    task = Task("choice", "Choice", "other", None, build, "{question}", repeats=1, scored_by="likelihood")
    trained(tmp_path, [EvaluateTasks({"choice": Exam(task, [problem], judged)}, 9)], bf16=True)
    assert [set(row) for row in rows(tmp_path, measured=True)] == [{"step", "epoch", "eval/choice"}] * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ifevall", 5), "unknown task 'ifevall': did you mean 'ifeval'"),
        (([], 5), "none is named"),
        (("in_domain", 0), "every 0 steps: must be at least 1"),
        (("in_domain", 5, {"question": 3}), "EvaluateTasks: unknown key 'evaluate.question'; did you mean 'questions'"),
        (("in_domain", 5, {"questions": 0}), "greater than or equal to 1"),
        (("in_domain", 5, {}, None, 0), "batch size 0"),
    ],
)
def test_wrong_use_is_one_line(arguments: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        EvaluateTasks(*arguments)
    assert "\n" not in str(caught.value)


def test_another_trainer_and_a_model_in_shards_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    other = Trainer(make_model(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=cast(Any, [{}]))
    other.add_callback(EvaluateTasks("in_domain", 5))
    with pytest.raises(UserError, match="EvaluateTasks is for SpotTrainer"):
        other.train()
    with pytest.raises(UserError, match="under FSDP2") as caught:
        check_whole(cast(Accelerator, SimpleNamespace(is_fsdp2=True)))
    assert "\n" not in str(caught.value)


@pytest.fixture
def argv(save_student: Callable[..., Path], tmp_path: Path) -> list[str]:
    pairs = tmp_path / "pairs.jsonl"
    write_rows(pairs, make_pairs(6))
    flags = {
        "model_name_or_path": save_student(),
        "dataset_name": pairs,
        "output_dir": tmp_path / "out",
        "max_steps": 3,
        "bf16": "false",
    }
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def test_spot_train_evaluates_and_shows_the_scores(
    argv: list[str], questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--eval_tasks {questions} --eval_tasks_steps 2 --eval_tasks_questions 3 --eval_tasks_max_new_tokens 4"
    main([*argv, *flags.split(), "--eval_tasks_samples", "2"], of_flags)
    shown = capsys.readouterr().err
    assert [f"step {step}: own " in shown for step in (0, 1, 2, 3)] == [True, False, True, True]
    assert len(read_rows(tmp_path / "out" / "eval" / "step-3" / "own.jsonl", Attempt)) == 6
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "eval/own" in row] == [0, 2, 3]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--eval_tasks in_domain", "--eval_tasks and --eval_tasks_steps need each other"),
        ("--eval_tasks_steps 5", "--eval_tasks and --eval_tasks_steps need each other"),
        ("--data_dir here", "data_dir needs --eval_tasks"),
        ("--eval_tasks nope --eval_tasks_steps 5", "--eval_tasks: unknown task 'nope'"),
        ("--eval_tasks in_domain --eval_tasks_steps -1", "every -1 steps"),
        ("--eval_tasks aime24 --eval_tasks_steps 5 --data_dir /nowhere", "--eval_tasks: .*nowhere"),
    ],
)
def test_wrong_flags_are_one_line_before_any_weight_is_loaded(
    flags: str, told: str, argv: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        main([*argv, *flags.split()], of_flags)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_spot_run_evaluates_on_the_way(tmp_path: Path) -> None:
    def spot(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "spot", "demo", "run.dir=run", "problems.count=40", "evaluate.questions=8"]
        command += ["elicit.max_new_tokens=120", "evaluate.max_new_tokens=120", "train.pairs_per_step=8"]
        return subprocess.run([*command, *overrides], cwd=tmp_path, capture_output=True, text=True, check=False)

    refused = spot("train.eval_every=2", "evaluate.tasks=[]")
    assert refused.returncode == 2 and "train.eval_every: there is nothing to evaluate" in refused.stderr
    done = spot("train.eval_every=2", "evaluate.tasks=[ood,instructions]")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in logged if "loss" in row]
    measured = [row for row in logged if "eval/ood" in row]
    last = losses[-1]["step"]
    assert [row["step"] for row in measured] == sorted({*range(0, last + 1, 2), last})
    summary = json.loads((run / "summary.json").read_text())
    assert summary["training"]["steps"] == len(losses) and "loss" in summary["training"]["first"]
    # The first and the last are what is measured before and after.
    for side, step in {"before": 0, "after": last}.items():
        for task in ("ood", "instructions"):
            both = [read_rows(run / "eval" / place / f"{task}.jsonl", Attempt) for place in (side, f"step-{step}")]
            assert [row.response for row in both[0]] == [row.response for row in both[1]]


def in_two_processes(directory: Path, questions: str) -> None:
    """What each process runs; this file as a script."""
    torch.set_num_threads(1)
    trained(directory / "plain", [], per_device_train_batch_size=2, use_cpu=True)
    evaluation = EvaluateTasks(questions, 2, ANSWERS)
    evaluated = trained(directory / "two", [evaluation, Noise(3)], per_device_train_batch_size=2, use_cpu=True)
    logged = [row["eval/noise"] for row in evaluated.state.log_history if "eval/noise" in row]
    assert logged == [0.0, 3.0, 6.0, 9.0]  # in both
    args = config(directory / "sharded", use_cpu=True)
    sharded = Fsdp2Trainer(make_model(), args, make_pairs(4), None, make_tokenizer(), callbacks=[Noise(2)])
    with pytest.raises(UserError, match="under FSDP2"):
        sharded.train()
    distributed.destroy_process_group()


def test_of_two_processes_the_first_one_asks(questions: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    call = [*command, str(tmp_path), questions]
    done = subprocess.run(call, check=False, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows(tmp_path / "plain", measured=False) == rows(tmp_path / "two", measured=False)
    assert [row["step"] for row in rows(tmp_path / "two", measured=True) if "eval/own" in row] == STEPS
    assert len(answers(tmp_path / "two", 9)) == 5


if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]), sys.argv[2])
