"""`SpotTrainer`: transformers' Trainer with pairs for data and one loader item for an optimizer step.

A loader item is a whole step's pairs; `training_step` cuts it into micro-batches itself. That way no loss or gradient
depends on how a step is cut, and none of the Trainer's scaling for accumulated batches takes part. Every rank is given
the whole step and takes its share, so that all make equally many module calls.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
)

from spot.errors import RunFailed, UserError
from spot.objectives import update_shift
from spot.schema import derived_seed
from spot.train.adapter import add_adapter, language_model, without_adapter
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
    read_reference,
    reference_key,
    save_reference,
    tokens_hash,
)
from spot.train.step import StepResult, run_step
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


class StepSampler(Sampler[list[int]]):
    """Indices of each step's pairs, in an order derived from the seed and the epoch; the last step may be short."""

    def __init__(self, num_pairs: int, pairs_per_step: int, seed: int) -> None:
        self.num_pairs = num_pairs
        self.pairs_per_step = pairs_per_step
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose whose epoch's order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_pairs / self.pairs_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.steps(self.epoch))

    def steps(self, epoch: int) -> list[list[int]]:
        """The steps of `epoch`."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order of pairs", epoch))
        order: list[int] = torch.randperm(self.num_pairs, generator=generator).tolist()
        return [order[start : start + self.pairs_per_step] for start in range(0, self.num_pairs, self.pairs_per_step)]


class SpotTrainer(Trainer):
    """Train a causal language model on surgical pairs.

    `model` is a directory, a hub name or a loaded model (turned to fp32 in place); `train_dataset` are rows in TRL's
    preference format with explicit prompts, `eval_dataset` too. With `peft_config` a new adapter is trained, and under
    `bf16` the weights below it keep their own precision. The reference is the model as it is when training starts,
    without an adapter. `dropped` lists the pairs that are left out for their length; `not_shared` says why prefixes are
    not shared, `None` where they are. Raises `UserError` on data that cannot be trained on.
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
        if hasattr(model, "peft_config"):
            raise UserError("model has an adapter; merge it (model.merge_and_unload()), or give peft_config a new one")
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
        check_vocabulary(self.pairs, model)
        disable_dropout(model)
        self.source_form = take_master_weights(model)
        shortest = min(self.pairs, key=lambda pair: pair.length)
        super().__init__(
            model=model if peft_config is None else add_adapter(model, peft_config, shortest),
            args=args,
            processing_class=tokenizer,
            callbacks=callbacks,
            eval_dataset=range(self.num_train, len(self.pairs)) if eval_pairs else None,  # pyright: ignore[reportArgumentType]
        )
        self.args._n_gpu = min(self.args.n_gpu, 1)  # pyright: ignore[reportPrivateUsage] (no DataParallel)
        self._train_batch_size = args.per_device_train_batch_size
        check_sharding(self.accelerator, asked_for_fsdp=bool(args.fsdp))
        # Now, in fp32: accelerate wraps the model's own forward in autocast when training starts.
        check_head(shortest, model)
        self.not_shared = share_prefixes(model, shortest)
        check_budget(self.pairs, [self._scorer.cost(pair) for pair in self.pairs], args)
        if peft_config is not None and args.bf16:
            freeze_precision(model, self.source_form)
        accept_batches(model)
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler = StepSampler(self.num_train, args.pairs_per_step, seed)
        writes = args.metrics_path is not None and args.process_index == 0
        self.metrics_file = MetricsFile(Path(str(args.metrics_path))) if writes else None
        self.reference: Reference | None = None
        self.reference_seconds = 0.0
        self._delta = 0.0
        self._steps = 0
        self._key: str | None = None
        self._since_log = StepMeans()
        self._num_parameters = model.num_parameters(exclude_embeddings=True)
        self.add_callback(_Hooks(self))

    def get_train_dataloader(self) -> DataLoader[int]:
        """A loader whose items are lists of indices into `pairs`, one list a step."""
        return DataLoader(range(self.num_train), batch_sampler=self.sampler, collate_fn=list)  # pyright: ignore[reportArgumentType]

    def begin(self, step: int) -> None:
        """Make ready what a step needs, after the weights to go on from are in place: `step` steps are done."""
        if step == 0:
            self._delta, self._steps, self._key = 0.0, 0, None
        if self.metrics_file is not None:
            self.metrics_file.begin(step)
        self._since_log = StepMeans()
        started = time.perf_counter()
        if step > 0:
            assert self._key is not None, "a resumed run has loaded its state"
            self.reference = load_reference(self._reference_path, self._key)
        else:
            self.reference = self._starting_reference()
        self.reference_seconds = time.perf_counter() - started

    @property
    def _reference_path(self) -> Path:
        return Path(self.args.reference_path or Path(str(self.args.output_dir)) / "reference.safetensors")

    def _starting_reference(self) -> Reference:
        with without_adapter(self.model):
            return self._computed_reference()

    def _computed_reference(self) -> Reference:
        self._key = reference_key(self._language_model, self.pairs, self.args.precision)
        kept = read_reference(self._reference_path)
        has_it = kept is not None and kept.key == self._key
        # All ranks or none: with one reading and one computing, they would wait for each other for ever.
        if self._ranks.gather(torch.tensor(float(has_it))) == self._ranks.count and kept is not None:
            return kept
        reference = compute_reference(
            self._scorer,
            self.pairs,
            self._key,
            self.sampler.steps(0) + self._eval_steps(),
            micro_batch_tokens=self.args.micro_batch_tokens,
            ranks=self._ranks,
        )
        if self.args.process_index == 0:
            save_reference(self._reference_path, reference)
        return reference

    def _eval_steps(self) -> list[list[int]]:
        size = self.args.pairs_per_step
        return [
            list(range(start, min(start + size, len(self.pairs))))
            for start in range(self.num_train, len(self.pairs), size)
        ]

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:  # noqa: ARG002
        """Loss and metrics over the whole `eval_dataset` given at the start; the shift stands still.

        Raises `UserError` where there is none, or another is given: its reference would have to be known.
        """
        if self.num_train == len(self.pairs) or (eval_dataset is not None and eval_dataset is not self.eval_dataset):
            raise UserError("evaluation needs the pairs that SpotTrainer was given as eval_dataset")
        if self.reference is None:
            self.begin(0)
        assert self.reference is not None
        started = time.perf_counter()
        self._language_model.eval()
        totals: dict[str, float] = {}
        for step in self._eval_steps():
            result = run_step(
                self._scorer,
                self.pairs,
                step,
                self.reference,
                self.args.objective,
                delta=self._delta,
                micro_batch_tokens=self.args.micro_batch_tokens,
                backward=None,
                ranks=self._ranks,
            )
            row = step_metrics(result, self._delta) | {"loss": result.loss}
            for name, value in row.items():
                if not name.startswith("tether/"):
                    totals[name] = totals.get(name, 0.0) + value * len(step) / (len(self.pairs) - self.num_train)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in totals.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @property
    def _scorer(self) -> Scorer:
        model: Any = self.model_wrapped
        return Scorer(model, self.not_shared is None, self.args.bf16)

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
        assert self.reference is not None
        started = time.perf_counter()
        model.train()
        result = run_step(
            self._scorer,
            self.pairs,
            inputs,
            self.reference,
            self.args.objective,
            delta=self._delta,
            micro_batch_tokens=self.args.micro_batch_tokens,
            backward=self.accelerator.backward,
            ranks=self._ranks,
        )
        self._check_finite(result, inputs)
        self._since_log.add(step_metrics(result, self._delta), result.tokens, started)
        batch_mean = float((result.chosen_rewards + result.rejected_rewards).mean()) / 2  # eq. 10
        kind = self.args.shift_kind
        self._delta = update_shift(self._delta, batch_mean, self._steps, kind=kind, decay=self.args.shift_decay)
        self._steps += 1
        self.current_flos += 6 * self._num_parameters * result.tokens
        return torch.tensor(result.loss, device=self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """Nothing more: `training_step` has counted them."""
        return 0

    def _check_finite(self, result: StepResult, indices: list[int]) -> None:
        bad = [self.pairs[index].id for index, loss in zip(indices, result.losses, strict=True) if not loss.isfinite()]
        if bad:
            raise self._not_finite("loss", bad)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            step = list(self.sampler)[self.state.global_step % len(self.sampler)]
            raise self._not_finite("gradient", [self.pairs[index].id for index in step])
        return norm

    def _not_finite(self, what: str, pairs: list[str]) -> RunFailed:
        return RunFailed(
            f"step {self.state.global_step + 1}: the {what} is not finite in pairs {', '.join(pairs)}; lower the "
            "learning rate or remove them (training can go on from the last checkpoint)"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics to the Trainer's, and write them to `metrics_path`."""
        is_step = "loss" in logs
        if is_step:
            logs.update(self._since_log.logged())
            self._since_log = StepMeans()
        super().log(logs, start_time)
        if is_step and self.metrics_file is not None:
            self.metrics_file.append({"step": self.state.global_step, **logs})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model in the precision it came in, with tokenizer, chat template and generation config.

        An adapter is saved alone, in fp32. Checkpoints (`_internal_call`) keep the fp32 master weights. All processes
        have to call; the first one writes.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        weights = whole_weights(self.accelerator, self.model)  # pyright: ignore[reportArgumentType]
        if self.args.process_index == 0:
            directory = output_dir or str(self.args.output_dir)
            save_in_source_form(self.model, weights, self.source_form, directory)
            assert isinstance(self.processing_class, PreTrainedTokenizerBase)
            self.processing_class.save_pretrained(directory)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with saving(Path(str(self.args.output_dir))):
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        assert self._key is not None
        if self.args.should_save:
            TrainingState(self._delta, self._steps, self._key, self._settings()).save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = TrainingState.load(Path(checkpoint))
            state.check(self._settings(), Path(checkpoint))
            self._delta, self._steps, self._key = state.delta, state.steps, state.reference_key
        super()._load_optimizer_and_scheduler(checkpoint)

    def _settings(self) -> dict[str, Any]:
        return self.args.settings() | {"tokens": tokens_hash(self.pairs)}

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed at its very end in the middle of an epoch, the Trainer would take one more step.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)


class _Hooks(TrainerCallback):
    """The two moments that the Trainer tells only callbacks about."""

    def __init__(self, trainer: SpotTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.trainer.begin(state.global_step)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        # The Trainer sets a sampler's epoch only after a resume.
        self.trainer.sampler.set_epoch(state.global_step // len(self.trainer.sampler))
