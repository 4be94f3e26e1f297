"""`SpotTrainer`: transformers' Trainer with pairs for data and one loader item for an optimizer step.

A loader item is a whole step's pairs; `training_step` cuts it into micro-batches itself. That way no loss or gradient
depends on how a step is cut, and none of the Trainer's scaling for accumulated batches takes part. Every rank is given
the whole step and takes its share, so that all make equally many module calls.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import upload_folder
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
)
from transformers.integrations.liger import apply_liger_kernel

from spot.errors import RunFailed, UserError
from spot.hub import model_path
from spot.objectives import update_shift
from spot.train.adapter import adapter_settings, add_adapter, check_no_adapter, language_model, without_adapter
from spot.train.attention import varlen_refused
from spot.train.checkpoints import MetricsFile, TrainingState, saving
from spot.train.checks import check_budget, check_head, check_pairs, check_vocabulary, tokenized
from spot.train.config import SpotConfig
from spot.train.logps import Scorer, accept_batches, share_prefixes
from spot.train.metrics import StepMeans, step_metrics
from spot.train.ranks import Ranks, check_sharding, ranks_of, whole_weights
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
from spot.train.tokenize import Preference
from spot.train.weights import (
    disable_dropout,
    freeze_precision,
    load_student,
    load_tokenizer,
    save_in_source_form,
    take_master_weights,
)

__all__ = ["SpotConfig", "SpotTrainer"]


class SpotTrainer(Trainer):
    """Train a causal language model on surgical pairs.

    `model` is a directory, a hub name, `lab` or a loaded model (turned to fp32 in place); `train_dataset` are rows in
    TRL's preference format with explicit prompts, `eval_dataset` too. With `peft_config` a new adapter is trained, and
    under `bf16` the weights below it keep their own precision. The reference is the model as it is given, without an
    adapter. `dropped` lists the pairs that are left out for their length; `not_shared` says why prefixes are not
    shared, `None` where they are. Raises `UserError` on data that cannot be trained on.
    """

    args: SpotConfig

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        args: SpotConfig,
        train_dataset: Iterable[Preference | Mapping[str, Any]],
        eval_dataset: Iterable[Preference | Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        check_no_adapter(model)
        if not isinstance(model, PreTrainedModel):
            model = model_path(str(model))
        source = model.name_or_path if isinstance(model, PreTrainedModel) else model
        tokenizer = processing_class or load_tokenizer(source or "")
        self.pairs, self.dropped = tokenized("train_dataset", train_dataset, tokenizer, args)
        eval_pairs, eval_dropped = tokenized("eval_dataset", eval_dataset or [], tokenizer, args)
        self.dropped += eval_dropped
        # Pairs to evaluate on stand behind those to train on, so that one reference serves both.
        self.num_train = len(self.pairs)
        self.pairs += eval_pairs
        check_pairs(self.num_train, self.pairs, args)
        if not isinstance(model, PreTrainedModel):
            model = load_student(model)
            check_no_adapter(model)  # a directory may hold one, too
        check_vocabulary(self.pairs, model)
        disable_dropout(model)
        self.source_form = take_master_weights(model)
        self._student = student_hash(model)
        shortest = min(self.pairs, key=lambda pair: pair.length)
        super().__init__(
            model=model if peft_config is None else add_adapter(model, peft_config, shortest),
            args=args,
            processing_class=tokenizer,
            callbacks=callbacks,
            eval_dataset=range(self.num_train, len(self.pairs)) if eval_pairs else None,  # pyright: ignore[reportArgumentType]
        )
        self._adapter = None if peft_config is None else adapter_settings(peft_config)
        self.args._n_gpu = min(self.args.n_gpu, 1)  # pyright: ignore[reportPrivateUsage] (no DataParallel)
        self._train_batch_size = args.per_device_train_batch_size
        check_sharding(self.accelerator, asked_for_fsdp=bool(args.fsdp))
        if args.use_liger_kernel:
            apply_liger_kernel(model, args.liger_kernel_config)
        # Now, in fp32: accelerate wraps the model's own forward in autocast when training starts.
        check_head(shortest, model)
        self.not_shared = share_prefixes(model, shortest)
        self.not_varlen = varlen_refused(model) if args.bf16 else "that kernel is for bf16"
        check_budget(self.pairs, [self._scorer.num_slots(pair) for pair in self.pairs], args)
        if peft_config is not None and args.bf16:
            freeze_precision(model, self.source_form)
        accept_batches(model)
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler = StepSampler(self.num_train, args.pairs_per_step, seed)
        self._eval_steps = in_steps(range(self.num_train, len(self.pairs)), args.pairs_per_step)
        writes = args.metrics_path is not None and args.process_index == 0
        self.metrics_file = MetricsFile(Path(str(args.metrics_path))) if writes else None
        self.reference: Reference | None = None
        self.reference_seconds = 0.0
        self._delta = 0.0
        self._steps = 0
        self._key = ""
        self._since_log = StepMeans()
        self._taken: tuple[StepResult, float] | None = None
        self._num_parameters = model.num_parameters(exclude_embeddings=True)
        self.add_callback(_Hooks(self))

    def get_train_dataloader(self) -> DataLoader[int]:
        """A loader whose items are lists of indices into `pairs`, one list a step."""
        return DataLoader(range(self.num_train), batch_sampler=self.sampler, collate_fn=list)  # pyright: ignore[reportArgumentType]

    def begin(self, step: int) -> None:
        """Make ready what a step needs, after the weights to go on from are in place: `step` steps are done."""
        if self.metrics_file is not None:
            self.metrics_file.begin(step)
        if step == 0:
            if self._steps:
                raise UserError("train() has been called before; make a new SpotTrainer to start over")
            self._ready_reference()
            return
        self.reference = load_reference(self._reference_path, self._key)

    def _ready_reference(self) -> None:
        if self.reference is not None:
            return
        started = time.perf_counter()
        # What a token's log-probability is rounded by, too: a reference of another kind is not exactly 0 away.
        kinds = {"shared": not self.not_shared, "varlen": not self.not_varlen, "adapter": self._adapter}
        kinds["liger"] = self.args.use_liger_kernel
        precision = "-".join([self.args.precision, *(name for name, holds in kinds.items() if holds)])
        self._key = reference_key(self._student, self.pairs, precision)
        compute = partial(
            compute_reference,
            self._scorer,
            self.pairs,
            self._key,
            self.sampler.steps(0) + self._eval_steps,
            micro_batch_tokens=self.args.micro_batch_tokens,
            ranks=self._ranks,
        )
        shared_file = self.args.reference_path is not None
        with without_adapter(self.model):
            self.reference = starting_reference(
                self._reference_path, shared_file=shared_file, key=self._key, compute=compute, ranks=self._ranks
            )
        self.reference_seconds = time.perf_counter() - started

    @property
    def _reference_path(self) -> Path:
        return Path(self.args.reference_path or Path(str(self.args.output_dir)) / "reference.safetensors")

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:  # noqa: ARG002
        """Loss and metrics over the whole `eval_dataset` given at the start; the shift stands still.

        Raises `UserError` where there is none, or another is given: its reference would have to be known.
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
            for name, value in step_metrics(result, self._delta).items():
                if not name.startswith("tether/"):
                    totals[name] = totals.get(name, 0.0) + value * len(step) / (len(self.pairs) - self.num_train)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in totals.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

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
        return Scorer(model, self.not_shared is None, bool(self.args.bf16), self.not_varlen is None)

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
        self._check_finite(result, inputs)
        self._taken = result, started
        return torch.tensor(result.loss, device=self.args.device)

    def end_step(self) -> None:
        """Count the step in, after the weights have been updated: a checkpoint before has nothing of it."""
        assert self._taken is not None
        result, started = self._taken
        self._since_log.add(step_metrics(result, self._delta), result.tokens, started)
        batch_mean = float((result.chosen_rewards + result.rejected_rewards).mean()) / 2  # eq. 10
        kind = self.args.shift_kind
        self._delta = update_shift(self._delta, batch_mean, self._steps, kind=kind, decay=self.args.shift_decay)
        self._steps += 1
        # The Trainer sums what each process counted.
        self.current_flos += 6 * self._num_parameters * result.tokens / self.args.world_size

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Nothing more: `end_step` counts them."""
        return 0

    def predict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Not here: raises `UserError`."""
        raise UserError(
            "SpotTrainer predicts nothing; evaluate() gives losses and metrics, spot eval answers questions"
        )

    def _check_finite(self, result: StepResult, indices: list[int]) -> None:
        bad = [self.pairs[index].id for index, loss in zip(indices, result.losses, strict=True) if not loss.isfinite()]
        if bad:
            self._stop("loss", bad)

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
        if (is_step or any(name.startswith("eval_") for name in logs)) and self.metrics_file is not None:
            self.metrics_file.append({"step": self.state.global_step, **logs})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model in the precision it came in, with tokenizer, chat template and generation config.

        An adapter is saved alone, in fp32. Checkpoints (`_internal_call`) keep the fp32 master weights. All processes
        have to call; the first one writes.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        directory = output_dir or str(self.args.output_dir)
        self.write_model(directory)
        if self.args.push_to_hub:
            self.upload(directory, "Model save")

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
        return self.upload(str(self.args.output_dir), commit_message, *args, **kwargs)

    def upload(
        self,
        directory: str,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Any:
        """Upload what `directory` holds of the model, no checkpoints, to `args.hub_model_id`; from the first process.

        The Trainer's own upload would take its checkpoints' fp32 masters.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return upload_folder(
            repo_id=str(self.hub_model_id),
            folder_path=directory,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=not blocking,
            ignore_patterns=["_*", "checkpoint-*", "*.jsonl", "reference.safetensors"],
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with saving(Path(str(self.args.output_dir))):
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = TrainingState(self._delta, self._steps, self._key, self._settings(), self._since_log.rows)
            state.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = TrainingState.load(Path(checkpoint))
            state.check(self._settings(), Path(checkpoint))
            self._delta, self._steps, self._key = state.delta, state.steps, state.reference_key
            self._since_log = StepMeans(state.unlogged)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _settings(self) -> dict[str, Any]:
        return self.args.settings() | {
            "student": self._student,
            "adapter": self._adapter,
            "tokens": tokens_hash(self.pairs),
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
