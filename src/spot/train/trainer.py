"""`SpotTrainer`: transformers' Trainer with pairs for data and one loader item for an optimizer step.

A loader item is a whole step's pairs; `training_step` cuts it into micro-batches itself. That way no loss or gradient
depends on how a step is cut, and none of the Trainer's scaling for accumulated batches takes part. Every rank is given
the whole step and takes its share, so that all make equally many module calls.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)

from spot.chat_template import Chat
from spot.errors import RunFailed, UserError
from spot.hub import model_path, stop_ids
from spot.objectives import update_shift
from spot.train import best
from spot.train.adapter import adapter_settings, add_adapter, check_no_adapter, language_model, without_adapter
from spot.train.checkpoints import MetricsFile, TrainingState, is_of_tasks, nearest_checkpoint, saving
from spot.train.checks import check_budget
from spot.train.config import SpotConfig
from spot.train.liger import liger_kind
from spot.train.logps import Scorer, accept_batches
from spot.train.measuring import StepMeasure, Student, answering, check_whole, kept_random, student_name
from spot.train.metrics import StepMeans, step_metrics
from spot.train.ranks import Ranks, check_sharding, ranks_of, whole_weights
from spot.train.ready import Rows, begun_on, check_student, loaded, read_pairs, set_scoring
from spot.train.reference import (
    Reference,
    compute_reference,
    load_reference,
    reference_key,
    starting_reference,
    student_hash,
    tokens_hash,
)
from spot.train.sampler import StepSampler, in_steps
from spot.train.step import StepResult, mean_chosen_tokens, run_step
from spot.train.upload import upload
from spot.train.watch import Bound, Watch, advice
from spot.train.weights import freeze_precision, load_tokenizer, save_in_source_form, take_master_weights

__all__ = ["SpotConfig", "SpotTrainer"]


class SpotTrainer(Trainer):
    """Train a causal language model on surgical pairs.

    `model` is a directory, a hub name, `lab` or a loaded model (turned to fp32 in place, and of no other use after);
    `train_dataset` are rows in TRL's preference format, or of prompt and completion where the objective sees no
    rejected answers, in any form that `as_preferences` reads (a path, too); `eval_dataset` too. With `peft_config` a
    new adapter is trained, and under
    `bf16` the weights below it keep their own precision. The reference is the model as it is given, without an adapter.
    `reference_progress`, where it is set, is called with how many pairs the reference has scored, of how many, and
    `notify` with a line on what beta can do before the first step, and where training undoes itself (`Watch`).
    A callback that is a `StepMeasure` measures the student on the way; losses and weights are those without it.
    `dropped` lists the pairs that are dropped for their length; `not_shared` says why prefixes are not shared,
    `not_varlen` why a row's attention takes two calls a pair and not one in all, `not_batched` why no two sequences
    share a forward; all are `None` where all is as fast as can be. Raises `UserError` on data that cannot be trained
    on.
    """

    args: SpotConfig

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        args: SpotConfig,
        train_dataset: Rows,
        eval_dataset: Rows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        set_seed(args.seed)  # the Trainer does so too, but after the student has been loaded
        check_no_adapter(model)
        student = model if isinstance(model, PreTrainedModel) else model_path(str(model))
        source = student.name_or_path if isinstance(student, PreTrainedModel) else student
        tokenizer = processing_class or load_tokenizer(source or "")
        check_student(student, args)
        self.chat = Chat(tokenizer, partial(begun_on, args), stop_ids=stop_ids(student))
        # Pairs to evaluate on stand behind those to train on, so that one reference serves both.
        self.pairs, self.num_train, self.dropped = read_pairs(train_dataset, eval_dataset, self.chat, args)
        if not self.pairs[0].rejected_ids:
            args.score_rejected = False  # there are none
        student = loaded(student, self.pairs)
        self.source_form = take_master_weights(student)
        self._student = student_hash(student)
        shortest = min(self.pairs, key=lambda pair: pair.length)
        super().__init__(
            model=student if peft_config is None else add_adapter(student, peft_config, shortest, args.seed),
            args=args,
            processing_class=tokenizer,
            callbacks=callbacks,
            eval_dataset=range(self.num_train, len(self.pairs)) if self.num_train < len(self.pairs) else None,  # pyright: ignore[reportArgumentType]
        )
        self._adapter = None if peft_config is None else adapter_settings(peft_config)
        self.args._n_gpu = min(self.args.n_gpu, 1)  # pyright: ignore[reportPrivateUsage] (no DataParallel)
        self._train_batch_size = args.per_device_train_batch_size
        check_sharding(self.accelerator, asked_for_fsdp=bool(args.fsdp))
        # Now, in fp32: accelerate wraps the model's own forward in autocast when training starts.
        scoring = set_scoring(student, self.pairs, args)
        self.not_shared, self.not_varlen = scoring.not_shared, scoring.not_varlen
        self.not_batched = scoring.not_batched
        check_budget(self.pairs, [self._scorer.num_slots(pair, pair.sides) for pair in self.pairs], args)
        if peft_config is not None and args.bf16:
            freeze_precision(student, self.source_form)
        accept_batches(student)
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler = StepSampler(self.num_train, args.pairs_per_step, seed)
        self._eval_steps = in_steps(range(self.num_train, len(self.pairs)), args.pairs_per_step)
        writes = args.metrics_path is not None and args.process_index == 0
        self.metrics_file = MetricsFile(Path(str(args.metrics_path))) if writes else None
        self.reference: Reference | None = None
        self.reference_seconds = 0.0
        self.reference_progress: Callable[[int, int], None] = lambda _, __: None
        self._delta = 0.0
        self._steps = 0
        self._measured = -1
        self._saved = -1
        self._key = ""
        self._since_log = StepMeans()
        self._taken: tuple[StepResult, list[int], float] | None = None
        self._watch = Watch()
        self._nats = torch.zeros(0, dtype=torch.float64)
        self._bound = Bound(0.0, 0.0, args.beta)
        self.notify: Callable[[str], None] = lambda _: None
        self._num_parameters = student.num_parameters(exclude_embeddings=True)
        self.add_callback(_Hooks(self))

    def get_train_dataloader(self) -> DataLoader[int]:
        """A loader whose items are lists of indices into `pairs`, one list a step."""
        return DataLoader(range(self.num_train), batch_sampler=self.sampler, collate_fn=list)  # pyright: ignore[reportArgumentType]

    def begin(self, step: int) -> None:
        """Make ready what a step needs, after the weights to go on from are in place: `step` steps are done."""
        if step == 0 and self._steps:
            raise UserError("train() has been called before; make a new SpotTrainer to start over")
        best.check_metric(self.args, self._tasks, self.eval_dataset is not None)
        if self._measures:
            check_whole(self.accelerator)
        if step == 0:
            self._ready_reference()
        else:
            self.reference = load_reference(self._reference_path, self._key, self._ranks)
        if self.metrics_file is not None:
            self.metrics_file.begin(step)
        assert self.reference is not None
        self._nats = self.reference.nats(self.num_train)
        self._bound = Bound.of(self._nats, self.args.beta)
        if self.args.objective.has_rewards:
            self._tell_bound(step)
        # As in that file: a checkpoint that was written for being the best knows of scores that are measured again.
        again = [row for row in self.state.log_history if row["step"] == step and is_of_tasks(row)]
        self.state.log_history = [row for row in self.state.log_history if row not in again]
        self._saved = step
        self._measure()

    @property
    def _precision(self) -> str:
        """What a token's log-probability is rounded by: a reference of another kind is not exactly 0 away."""
        liger = liger_kind(self.args.liger_kernel_config or {}) if self.args.use_liger_kernel else ""
        kinds = {"shared": not self.not_shared, "varlen": not self.not_varlen, "adapter": self._adapter, liger: liger}
        return "-".join([self.args.precision, *(name for name, holds in kinds.items() if holds)])

    def _ready_reference(self) -> None:
        if self.reference is not None:
            return
        started = time.perf_counter()
        self._key = reference_key(self._student, self.pairs, self._precision)
        compute = partial(
            compute_reference,
            self._scorer,
            self.pairs,
            self._key,
            self.sampler.steps(0) + self._eval_steps,
            micro_batch_tokens=self.args.micro_batch_tokens,
            ranks=self._ranks,
            progress=self.reference_progress,
        )
        shared_file = self.args.reference_path is not None
        with without_adapter(self.model):
            self.reference = starting_reference(
                self._reference_path,
                shared_file=shared_file,
                key=self._key,
                compute=compute,
                ranks=self._ranks,
                day=self.chat.day,
            )
        self.reference_seconds = time.perf_counter() - started

    @property
    def _reference_path(self) -> Path:
        return Path(self.args.reference_path or Path(str(self.args.output_dir)) / "reference.safetensors")

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:  # noqa: ARG002
        """Loss and metrics over the whole `eval_dataset` given at the start; the shift stands still.

        Raises `UserError` where there is none, or another is given: its reference would have to be known, and
        `RunFailed` where a loss is not finite.
        """
        if self.num_train == len(self.pairs) or (eval_dataset is not None and eval_dataset is not self.eval_dataset):
            raise UserError("evaluation needs the pairs that SpotTrainer was given as eval_dataset")
        self._ready_reference()
        started = time.perf_counter()
        self._language_model.eval()
        mean_tokens = mean_chosen_tokens(self.pairs[self.num_train :])
        totals: dict[str, float] = {}
        for step in self._eval_steps:
            result = self._run_step(step, None, mean_tokens)
            if found := self._not_finite(result, step):
                what, pairs = found
                done = self.state.global_step
                raise RunFailed(f"evaluation after step {done}: the {what} is not finite in pairs {', '.join(pairs)}")
            for name, value in self._metrics(result).items():
                if not name.startswith("tether/"):
                    totals[name] = totals.get(name, 0.0) + value * len(step) / (len(self.pairs) - self.num_train)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in totals.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def _measures(self) -> list[StepMeasure]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, StepMeasure)]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._measure()  # behind the checkpoint: a training resumed from it measures what is missing

    def _measure(self) -> None:
        """Have those measure whose step this is, and log the scores."""
        step = self.state.global_step
        ends = step == self.state.max_steps or self.control.should_training_stop
        due = [measure for measure in self._measures if ends or step % measure.steps == 0]
        if not due or step == self._measured:
            return
        self._measured = step
        started = time.perf_counter()
        scores = torch.zeros(sum(len(measure.names) for measure in due), dtype=torch.float64)
        if self.args.process_index == 0:
            with kept_random(self.args.device):
                student = self._answering()
                measured = [score for measure in due for score in measure.measure(student)]
            scores[:] = torch.tensor(measured, dtype=scores.dtype)
        names = [name for measure in due for name in measure.names]
        by_name = dict(zip(names, self._ranks.gather(scores).tolist(), strict=True))
        self.log({f"eval/{name}": score for name, score in by_name.items()})
        self._rank(by_name)
        self._since_log.leave_out(time.perf_counter() - started)

    @property
    def _tasks(self) -> list[str]:
        return [name for measure in self._measures for name in measure.names]

    def _rank(self, scores: Mapping[str, float]) -> None:
        """Have this step's checkpoint be the best where its score is; it is written where there is none."""
        score, state = scores.get(best.metric_of(self.args) or ""), self.state
        if score is None or not best.is_best(score, state, self.args):
            return
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{state.global_step}"
        state.best_metric, state.best_global_step = score, state.global_step
        state.best_model_checkpoint = str(checkpoint)
        if self._saved != state.global_step:
            self._save_checkpoint(self.model, None)
        elif self.args.should_save:
            best.mark_best(checkpoint, state)
            best.drop_surplus(self.args, state)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # Of pairs; tasks are measured behind the checkpoint.
        ranks_tasks = best.metric_of(self.args) in self._tasks
        return False if ranks_tasks else super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        """Take the best checkpoint's weights, and the shift that belongs to them."""
        super()._load_best_model()
        state = TrainingState.load(Path(str(self.state.best_model_checkpoint)))
        self._delta, self._steps = state.delta, state.steps

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # With a limit of 1 the Trainer would delete the last checkpoint here, which the same command resumes from.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _answering(self) -> Student:
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        step = self.state.global_step
        return Student(
            answering(self.model, self.source_form),
            self.processing_class,
            torch.bfloat16 if self.args.bf16 else None,
            student_name(step, self._settings()),
            step,
            Path(str(self.args.output_dir)),
            self.chat.day,
        )

    def _run_step(
        self, indices: list[int], backward: Callable[[Tensor], None] | None, mean_tokens: float | None = None
    ) -> StepResult:
        assert self.reference is not None
        return run_step(
            self._scorer,
            self.pairs,
            indices,
            self.reference,
            self.args.objective,
            delta=self._delta,
            micro_batch_tokens=self.args.micro_batch_tokens,
            backward=backward,
            ranks=self._ranks,
            mean_tokens=mean_tokens,
        )

    @property
    def _scorer(self) -> Scorer:
        model: Any = self.model_wrapped
        alone = self.not_batched is not None
        return Scorer(model, self.not_shared is None, bool(self.args.bf16), self.not_varlen is None, alone)

    @property
    def _ranks(self) -> Ranks:
        model: Any = self.model_wrapped
        return ranks_of(self.accelerator, model)

    @property
    def _language_model(self) -> PreTrainedModel:
        return language_model(self.model)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:  # noqa: ARG002
        """Gradient of the mean loss over the step's pairs (`inputs`, indices); returns that loss.

        Raises `RunFailed` naming the pairs where a loss is not finite; the weights have not been touched then.
        """
        started = time.perf_counter()
        model.train()
        result = self._run_step(inputs, self.accelerator.backward)
        if found := self._not_finite(result, inputs):
            self._stop(*found)
        self._taken = result, list(inputs), started
        return torch.tensor(result.loss, device=self.args.device)

    def end_step(self) -> None:
        """Count the step in, after the weights have been updated: a checkpoint before has nothing of it."""
        assert self._taken is not None
        result, indices, started = self._taken
        row = self._metrics(result) | {"rewards/bound": self.args.beta * float(self._nats[indices].mean())}
        self._since_log.add(row, result.tokens, started)
        self._look_out(row)
        batch_mean = float((result.chosen_rewards + result.rejected_rewards).mean()) / 2  # eq. 10
        kind = self.args.shift_kind
        self._delta = update_shift(self._delta, batch_mean, self._steps, kind=kind, decay=self.args.shift_decay)
        self._steps += 1
        # The Trainer sums what each process counted.
        self.current_flos += 6 * self._num_parameters * result.tokens / self.args.world_size

    def _tell_bound(self, step: int) -> None:
        warning = self._bound.warning
        self.notify(f"warning: {warning}" if warning else self._bound.summary)
        if warning and step == 0:
            self._watch.untold.append(warning)

    def _look_out(self, row: Mapping[str, float]) -> None:
        """Say what the watch has seen in the step that ends, and keep the checkpoint that it points back to."""
        shifted = self.args.shift_kind != "none"
        step = self.state.global_step
        shift = self._delta if shifted else 0.0
        rejected = row["rewards/rejected"] if self.args.loss_type == ["dpo"] else None
        found = self._watch.see(step, row["rewards/chosen"], shift, self._bound.mean, rejected)
        if found is None:
            return
        what, since = found
        before = nearest_checkpoint(Path(str(self.args.output_dir)), since)
        if self.args.metric_for_best_model is None and self.state.best_model_checkpoint is None and before is not None:
            self.state.best_model_checkpoint = str(before)  # so that save_total_limit does not delete it
        ways = advice(self.args.loss_type, shifted, self._bound, before and before.name)
        line = f"step {step}: {what}, since about step {since}; {ways}"
        self._watch.untold.append(line)
        self.notify(f"warning: {line}")

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Nothing more: `end_step` counts them."""
        return 0

    def predict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Not here: raises `UserError`."""
        raise UserError(
            "SpotTrainer predicts nothing; evaluate() gives losses and metrics, spot eval answers questions"
        )

    def _metrics(self, result: StepResult) -> dict[str, float]:
        return step_metrics(result, self._delta, self.args.objective.scores_rejected)

    def _not_finite(self, result: StepResult, indices: list[int]) -> tuple[str, list[str]] | None:
        """What of `result` is not finite, and in which pairs; rejected answers that are only logged count, too."""
        columns = {"loss": result.losses}
        if self.args.objective.scores_rejected:
            columns["rejected answers' log-probability"] = result.rejected_logps
        for what, column in columns.items():
            if bad := [
                self.pairs[index].id for index, value in zip(indices, column, strict=True) if not value.isfinite()
            ]:
                return what, bad
        return None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            step = list(self.sampler)[self.state.global_step % len(self.sampler)]
            self._stop("gradient", [self.pairs[index].id for index in step])
        return norm

    def _stop(self, what: str, pairs: list[str]) -> NoReturn:
        """Raise `RunFailed`, with a checkpoint of the steps before: this one has not touched the weights.

        (DeepSpeed's has: it steps inside backward.)
        """
        done = self.state.global_step
        kept = "no step was taken"
        if done and not self.is_deepspeed_enabled:
            self._save_checkpoint(self.model, None)
            kept = f"checkpoint-{done} has the steps before"
        raise RunFailed(
            f"step {done + 1}: the {what} is not finite in pairs {', '.join(pairs)} ({kept}); look at them, and start "
            "over without them or with a lower learning_rate"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics to the Trainer's, and write them to `metrics_path`."""
        is_step = "loss" in logs
        if is_step:
            logs.update(self._since_log.logged())  # its loss too, which a resumed Trainer would only know in part
            self._since_log = StepMeans()
        super().log(logs, start_time)
        warnings = {"warnings": self._watch.untold} if is_step and self._watch.untold else {}
        if is_step:
            self._watch.untold = []
        if (is_step or any(name.startswith(("eval_", "eval/")) for name in logs)) and self.metrics_file is not None:
            self.metrics_file.append({"step": self.state.global_step, **logs, **warnings})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model in the precision it came in, with tokenizer, chat template and generation config.

        An adapter is saved alone, in fp32. Checkpoints (`_internal_call`) keep the fp32 master weights. Under DeepSpeed
        in bf16 the model is the bf16 copy of masters that DeepSpeed keeps to itself; that copy is what is saved. All
        processes have to call; the first one writes.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        directory = output_dir or str(self.args.output_dir)
        self.write_model(directory)
        if self.args.push_to_hub:
            upload(self, directory, "Model save")

    def write_model(self, directory: str) -> None:
        """`save_model` without the upload that `args.push_to_hub` asks for."""
        model: Any = self.model
        weights = whole_weights(self.accelerator, model)
        if self.args.process_index == 0:
            save_in_source_form(model, weights, self.source_form, directory)
            assert isinstance(self.processing_class, PreTrainedTokenizerBase)
            self.processing_class.save_pretrained(directory)

    def push_to_hub(self, commit_message: str | None = "End of training", *args: Any, **kwargs: Any) -> Any:
        """Save the model to `output_dir` as `save_model` does and upload that; further arguments as in `upload`."""
        self.write_model(str(self.args.output_dir))
        return upload(self, str(self.args.output_dir), commit_message, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with saving(Path(str(self.args.output_dir))):
            super()._save_checkpoint(model, trial)
        self._saved = self.state.global_step

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            day = None if self.chat.day is None else self.chat.day.isoformat()
            settings, unlogged = self._settings(), self._since_log.rows
            state = TrainingState(self._delta, self._steps, self._key, settings, unlogged, day, self._watch.state)
            state.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = TrainingState.load(Path(checkpoint))
            state.check(self._settings(), Path(checkpoint))
            self._delta, self._steps, self._key = state.delta, state.steps, state.reference_key
            self._since_log = StepMeans(state.unlogged)
            self._watch = Watch(**state.watch)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _settings(self) -> dict[str, Any]:
        return self.args.settings() | {
            "student": self._student,
            "adapter": self._adapter,
            "tokens": tokens_hash(self.pairs),
            "precision": self._precision,
        }

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed at its very end in the middle of an epoch, the Trainer would take one more step.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)


class _Hooks(TrainerCallback):
    """The moments that the Trainer tells only callbacks about."""

    def __init__(self, trainer: SpotTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.trainer.begin(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.trainer.end_step()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        # The Trainer sets a sampler's epoch only after a resume.
        self.trainer.sampler.set_epoch(state.global_step // len(self.trainer.sampler))
