"""`SpotTrainer`: transformers' Trainer with pairs for data and one loader item for an optimizer step.

A loader item is a whole step's pairs; `training_step` cuts it into micro-batches itself. That way no loss or gradient
depends on how a step is cut, and none of the Trainer's scaling for accumulated batches takes part. Every rank is given
the whole step and takes its share, so that all make equally many module calls.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
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
from spot.schema import Dropped, derived_seed
from spot.train.checkpoints import MetricsFile, TrainingState, saving
from spot.train.config import SpotConfig
from spot.train.logps import TOLERANCE, Scorer, accept_batches, head_difference, share_prefixes
from spot.train.ranks import Ranks
from spot.train.reference import (
    Reference,
    compute_reference,
    load_reference,
    read_reference,
    reference_key,
    save_reference,
    tokens_hash,
)
from spot.train.rows import as_preferences
from spot.train.step import StepResult, run_step
from spot.train.tokenize import Preference, TokenizedPair, tokenize_pairs
from spot.train.weights import disable_dropout, in_source_form, load_student, load_tokenizer, take_master_weights

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
    preference format with explicit prompts, `eval_dataset` too. The reference is the model as it is when training
    starts. `dropped` lists the pairs that are left out for their length; `not_shared` says why prefixes are not shared,
    `None` where they are. Raises `UserError` on data that cannot be trained on.
    """

    args: SpotConfig

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        args: SpotConfig,
        train_dataset: Iterable[Preference | Mapping[str, Any]],
        eval_dataset: Iterable[Preference | Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        source = model.name_or_path if isinstance(model, PreTrainedModel) else model
        tokenizer = processing_class or load_tokenizer(source or "")
        self.pairs, self.dropped = _tokenized("train_dataset", train_dataset, tokenizer, args)
        eval_pairs, eval_dropped = _tokenized("eval_dataset", eval_dataset or [], tokenizer, args)
        self.dropped += eval_dropped
        # Pairs to evaluate on stand behind those to train on, so that one reference serves both.
        self.num_train = len(self.pairs)
        self.pairs += eval_pairs
        _check_pairs(self.num_train, self.pairs, args)
        if not isinstance(model, PreTrainedModel):
            model = load_student(model)
        _check_vocabulary(self.pairs, model)
        disable_dropout(model)
        self.source_form = take_master_weights(model)
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            callbacks=callbacks,
            eval_dataset=range(self.num_train, len(self.pairs)) if eval_pairs else None,  # pyright: ignore[reportArgumentType]
        )
        self.args._n_gpu = min(self.args.n_gpu, 1)  # pyright: ignore[reportPrivateUsage] (no DataParallel)
        self._train_batch_size = args.per_device_train_batch_size
        # Now, in fp32: accelerate wraps the model's own forward in autocast when training starts.
        _check_head(self.pairs, model)
        self.not_shared = share_prefixes(model, min(self.pairs, key=lambda pair: pair.length))
        _check_budget(self.pairs, [self._scorer.cost(pair) for pair in self.pairs], args)
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
        self._since_log = _Means()
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
        self._since_log = _Means()
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
        model = self._language_model
        self._key = reference_key(model, self.pairs, self.args.precision)
        kept = read_reference(self._reference_path)
        if kept is not None and kept.key == self._key:
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
        if self.args.world_size == 1:
            return Ranks()

        def gather(tensor: Tensor) -> Tensor:
            there = tensor.to(self.args.device)
            distributed.all_reduce(there)
            return there.cpu()

        def sync(last: bool) -> AbstractContextManager[None]:
            return nullcontext() if last else self.accelerator.no_sync(self.model_wrapped)

        return Ranks(self.args.process_index, self.args.world_size, gather, sync)

    @property
    def _language_model(self) -> PreTrainedModel:
        assert isinstance(self.model, PreTrainedModel)
        return self.model

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
            self._since_log = _Means()
        super().log(logs, start_time)
        if is_step and self.metrics_file is not None:
            self.metrics_file.append({"step": self.state.global_step, **logs})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model in the precision it came in, with tokenizer, chat template and generation config.

        Checkpoints (`_internal_call`) keep the fp32 master weights.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        directory = output_dir or str(self.args.output_dir)
        with in_source_form(self._language_model, self.source_form):
            self._language_model.save_pretrained(directory)
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


class _Means:
    """Metrics since the last log: means over steps, the last shift, tokens over seconds."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.tokens = 0
        self.started = time.perf_counter()

    def add(self, row: dict[str, float], tokens: int, started: float) -> None:
        """Add a step that `started` then (what passed before it, a checkpoint say, is not counted)."""
        if not self.rows:
            self.started = started
        self.rows.append(row)
        self.tokens += tokens

    def logged(self) -> dict[str, float]:
        means = {name: sum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[0]}
        means["rewards/delta"] = self.rows[-1]["rewards/delta"]
        return means | {"tokens_per_second": self.tokens / (time.perf_counter() - self.started)}


def step_metrics(result: StepResult, delta: float) -> dict[str, float]:
    """A step's metrics under their logged names; those of rejected answers are left out where none were scored."""
    metrics = {
        "rewards/chosen": result.chosen_rewards.mean(),
        "rewards/rejected": result.rejected_rewards.mean(),
        "rewards/margins": (result.chosen_rewards - result.rejected_rewards).mean(),
        "rewards/accuracies": (result.chosen_rewards > result.rejected_rewards).double().mean(),
        "logps/chosen": result.chosen_logps.mean(),
        "logps/rejected": result.rejected_logps.mean(),
        "rewards/delta": torch.tensor(delta, dtype=torch.float64),
        "tether/chosen": result.chosen_tether.mean(),
        "tether/rejected": result.rejected_tether.mean(),
        "kl/chosen": result.chosen_kl.mean(),
        "shared_fraction": torch.tensor(1 - result.tokens / result.plain_tokens),
    }
    scored = not bool(result.rejected_logps.isnan().any())
    needs_rejected = ("rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/rejected")
    return {name: float(value) for name, value in metrics.items() if scored or name not in needs_rejected}


def _tokenized(
    name: str,
    rows: Iterable[Preference | Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    args: SpotConfig,
) -> tuple[list[TokenizedPair], list[Dropped]]:
    pairs, dropped = tokenize_pairs(as_preferences(rows), tokenizer, args.max_length)
    if dropped and args.overlength == "error":
        raise UserError(
            f"{name}: {len(dropped)} pairs are too long, pair {dropped[0].id!r} among them ({dropped[0].detail}); "
            "raise max_length, or leave them out with overlength=drop"
        )
    return pairs, dropped


def _check_pairs(num_train: int, pairs: list[TokenizedPair], args: SpotConfig) -> None:
    if not num_train:
        raise UserError(f"no pair is left to train on; all are longer than max_length={args.max_length}, or none came")
    _check_budget(pairs, [pair.num_distinct for pair in pairs], args)


def _check_budget(pairs: list[TokenizedPair], costs: list[int], args: SpotConfig) -> None:
    largest = max(costs)
    if largest > args.micro_batch_tokens:
        raise UserError(
            f"pair {pairs[costs.index(largest)].id!r}: {largest} tokens do not fit into micro_batch_tokens="
            f"{args.micro_batch_tokens}; set it to at least {largest}, or lower max_length"
        )


def _check_vocabulary(pairs: list[TokenizedPair], model: PreTrainedModel) -> None:
    embeddings: Any = model.get_input_embeddings()
    for pair in pairs:
        if max(*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids) >= embeddings.num_embeddings:
            raise UserError(
                f"pair {pair.id!r}: a token id is beyond the model's {embeddings.num_embeddings} embeddings; "
                "model and tokenizer do not belong together"
            )


def _check_head(pairs: list[TokenizedPair], model: PreTrainedModel) -> None:
    shortest = min(pairs, key=lambda pair: pair.length)
    difference = head_difference(model, shortest.prompt_ids, shortest.chosen_ids)
    if not math.isfinite(difference):
        raise RunFailed("the student's log-probabilities are not finite before training; its weights are damaged")
    if difference > TOLERANCE:
        raise RunFailed(
            f"{type(model).__name__}: its logits are not its output embeddings applied to its hidden states "
            f"(log-probabilities differ by {difference:.3g}); this architecture is not supported"
        )
