"""`SpotConfig`: transformers' training arguments with the method's own, and its defaults."""

import re
from dataclasses import dataclass, field, fields
from datetime import date
from typing import Any, get_args

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from spot.objectives import ShiftKind
from spot.train.objective import OBJECTIVES, Objective
from spot.train.products import HAS_MATRIX_UNITS

NOT_HERE = {
    "logging_nan_inf_filter": "would hide a loss that is not finite",
    "label_smoothing_factor": "has no meaning for these losses",
    "neftune_noise_alpha": "makes the policy differ from its reference before any step",
    "dataloader_drop_last": "would leave out pairs",
    "train_sampling_strategy": "is not read: the order of the pairs is drawn from the seed",
    "ignore_data_skip": "would train some pairs of the epoch twice and others not at all",
    "auto_find_batch_size": "would begin again in the midst of training; set micro_batch_tokens, which bounds memory",
    "parallelism_config": "is not supported; a model is shared by FSDP2 or ZeRO-2",
    "bf16_full_eval": "is not read: evaluation is computed as training is",
    "fp16_full_eval": "is not read: evaluation is computed as training is",
    "torch_compile": "would compile anew for each length of a row, and a step has many",
    "torch_empty_cache_steps": "is not read; set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
    "include_num_input_tokens_seen": "is not read; tokens_per_second is logged",
}
"""Arguments of `TrainingArguments` that would be ignored or do harm, and why."""

NOT_READ = (
    *("per_device_eval_batch_size", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
    *("prediction_loss_only", "batch_eval_metrics", "include_for_metrics", "label_names", "remove_unused_columns"),
    *("length_column_name", "average_tokens_across_devices", "dataloader_num_workers", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    *("dataloader_in_order", "accelerator_config", "use_cache"),
)
"""Those that change nothing here and do no harm: there are no batches to load, to collate or to predict."""

LIGER_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
"""Liger's own losses; the second would take the place of the model's forward."""


def _help(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SpotConfig(TrainingArguments):
    """Arguments of `SpotTrainer`: those of `TrainingArguments`, with the paper's defaults, and these.

    A step trains on `per_device_train_batch_size` pairs, times `gradient_accumulation_steps` (folded into it, since
    micro-batches are cut by tokens inside a step), times the number of processes. Arguments in `NOT_READ` change
    nothing. Raises `ValueError` on values that make no sense, and on those in `NOT_HERE`.
    """

    learning_rate: float = _help(1e-6, "The peak learning rate; 1e-6 fits an 8B model.")
    num_train_epochs: float = _help(2.0, "How often each pair is seen.")
    per_device_train_batch_size: int = _help(32, "Pairs an optimizer step and process.")
    weight_decay: float = _help(0.01, "AdamW's weight decay.")
    adam_beta2: float = _help(0.95, "AdamW's second moment decay.")
    lr_scheduler_type: str = _help("cosine", "The learning rate's schedule.")
    warmup_steps: float = _help(0.05, "Steps of warm-up; below 1, their share of all steps.")
    logging_steps: float = _help(1, "Log every so many steps, means over them.")
    bf16: bool | None = _help(  # pyright: ignore[reportIncompatibleVariableOverride]
        None,
        "Products in bf16 (weights, sums and losses stay fp32); unless set, true but on a CPU that is faster in fp32.",
    )
    hub_strategy: str = _help("end", "Must be end: checkpoints hold fp32 masters and are not uploaded.")
    logging_nan_inf_filter: bool = _help(False, "Must stay off: a loss that is not finite stops the run.")
    save_steps: float = _help(0.25, "A checkpoint every so many steps; below 1, a share of all steps.")

    loss_type: list[str] = field(
        default_factory=lambda: ["spot_bco"],
        metadata={"help": f"The objective: {', '.join(OBJECTIVES)}, or your own module:function; several are summed."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the losses in loss_type, 1 each unless given."}
    )
    beta: float = _help(0.1, "Scale of the implicit rewards; rewards are sums, so short answers need a larger one.")
    reward_shift: str = _help("ema", "How spot_bco's shift follows the rewards: ema, cumulative or none.")
    shift_decay: float = _help(0.9, "Decay of the ema shift.")
    sft_reduction: str = _help(
        "token_mean", "The SFT family: token_mean (over a step's tokens) or sequence_sum (eq. 2)."
    )
    kl_coefficient: float = _help(0.1, "kl_sft: weight of the KL estimate.")
    kl_estimator: str = _help("k3", "kl_sft: estimator of KL(policy, reference) from single tokens: k1, k2 or k3.")
    score_rejected: bool = _help(True, "Objectives of chosen answers: score the rejected ones too, for the log only.")
    max_length: int = _help(8192, "Pairs with a longer sequence are never truncated; see overlength.")
    overlength: str = _help("drop", "Pairs longer than max_length: drop (counted, never truncated) or error.")
    micro_batch_tokens: int = _help(16384, "Distinct tokens a micro-batch may hold; bounds memory.")
    template_date: str | None = _help(
        None,
        "The day that a chat template prints which prints the date, YYYY-MM-DD; unless set, the day on which training "
        "in output_dir began.",
    )
    metrics_path: str | None = _help(None, "Where each logged step is written as a JSON line.")
    reference_path: str | None = _help(
        None, "Where the reference's log-probabilities are kept; output_dir/reference.safetensors unless set."
    )

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        if not torch.accelerator.is_available():
            # Unless it is said, transformers refuses bf16 there, and runs several processes as if each were alone.
            self.use_cpu = True
        if self.bf16 is None:
            faster = HAS_MATRIX_UNITS or not self.use_cpu
            self.bf16 = faster  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.use_liger_kernel:
            asked = [name for name in LIGER_LOSSES if (self.liger_kernel_config or {}).get(name)]
            if asked:
                raise ValueError(
                    f"liger_kernel_config: {asked[0]} is not used, the losses here make no logits; leave it off"
                )
            self.liger_kernel_config = {**(self.liger_kernel_config or {}), **dict.fromkeys(LIGER_LOSSES, False)}
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every parameter takes part in every row
        # The Trainer takes for granted that the best checkpoint is found by evaluating pairs, and by their loss.
        of_tasks = self.load_best_model_at_end and self.eval_strategy == IntervalStrategy.NO
        self.load_best_model_at_end = self.load_best_model_at_end and not of_tasks
        if self.metric_for_best_model is not None:
            self.metric_for_best_model = re.sub("^eval/", "eval_", self.metric_for_best_model)
        elif self.load_best_model_at_end and self.shift_kind != "none":
            self.metric_for_best_model = "rewards/chosen"
        super().__post_init__()
        self.load_best_model_at_end = self.load_best_model_at_end or of_tasks
        self.per_device_train_batch_size *= self.gradient_accumulation_steps
        self.gradient_accumulation_steps = 1
        # Every process is given the whole step and takes its share of it.
        self.pairs_per_step = self.per_device_train_batch_size * self.world_size
        self._check()
        self._check_inherited()

    def _check(self) -> None:
        _ = self.objective
        if self.reward_shift not in get_args(ShiftKind):
            raise ValueError(f"reward_shift must be one of {', '.join(get_args(ShiftKind))}, got {self.reward_shift!r}")
        if self.overlength not in ("drop", "error"):
            raise ValueError(f"overlength must be drop or error, got {self.overlength!r}")
        if not 0 <= self.shift_decay < 1:
            raise ValueError(f"shift_decay must be in [0, 1), got {self.shift_decay}")
        for name in ("per_device_train_batch_size", "max_length", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.template_date is not None:
            try:
                date.fromisoformat(self.template_date)
            except ValueError:
                raise ValueError(f"template_date must be written YYYY-MM-DD, got {self.template_date!r}") from None
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise ValueError(f"num_train_epochs must be above 0, got {self.num_train_epochs}")
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate must not be negative, got {self.learning_rate}")

    def _check_inherited(self) -> None:
        """Of the arguments of `TrainingArguments`, those that cannot be had here."""
        if self.fp16:
            raise ValueError("fp16 is not supported; use --bf16, or neither for fp32")
        self._check_best()
        if HubStrategy(self.hub_strategy) != HubStrategy.END:
            raise ValueError("hub_strategy must be end: checkpoints hold fp32 masters and are not uploaded")
        for given in fields(self):
            if given.name in NOT_HERE and getattr(self, given.name) and getattr(self, given.name) != given.default:
                raise ValueError(f"{given.name} {NOT_HERE[given.name]}; leave it at its default")
        accelerate: Any = self.accelerator_config
        if accelerate.gradient_accumulation_kwargs:
            raise ValueError(
                "accelerator_config: gradient_accumulation_kwargs is not read; set gradient_accumulation_steps"
            )
        optimizer = OptimizerNames(self.optim).value
        if "lomo" in optimizer or optimizer.endswith("layerwise"):
            raise ValueError(
                f"optim={optimizer} steps in each backward pass, of which a step here has many; take another"
            )
        if optimizer.startswith("schedule_free"):
            raise ValueError(f"optim={optimizer} is not supported: its weights are not the model's; take another")

    def _check_best(self) -> None:
        """Checkpoints are ranked by what can be compared between them."""
        if not self.load_best_model_at_end and SaveStrategy(self.save_strategy) != SaveStrategy.BEST:
            return
        if self.metric_for_best_model is None:
            raise ValueError(
                "load_best_model_at_end: by what? set metric_for_best_model, eval_TASK for a task that is evaluated "
                "during training, eval_rewards/chosen for evaluated pairs"
            )
        if self.metric_for_best_model in ("loss", "eval_loss") and self.shift_kind != "none":
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model}: spot_bco's losses are each under the shift of "
                "their step and cannot be compared; use eval_rewards/chosen, or eval_TASK for an evaluated task"
            )

    @property
    def objective(self) -> Objective:
        """What is minimised; raises `ValueError` where it makes no sense."""
        reduction: Any = self.sft_reduction
        estimator: Any = self.kl_estimator
        return Objective(
            tuple(self.loss_type),
            None if self.loss_weights is None else tuple(self.loss_weights),
            self.beta,
            reduction,
            self.kl_coefficient,
            estimator,
            self.score_rejected,
        )

    @property
    def shift_kind(self) -> ShiftKind:
        """How the shift moves; only `spot_bco` has one."""
        kind: Any = self.reward_shift
        return kind if "spot_bco" in self.loss_type else "none"

    @property
    def precision(self) -> str:
        """What the matrix products are computed in; weights (but DeepSpeed's), sums and losses are fp32."""
        return "bf16" if self.bf16 else "fp32"

    def settings(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        names = (
            "loss_type",
            "loss_weights",
            "beta",
            "reward_shift",
            "shift_decay",
            "sft_reduction",
            "kl_coefficient",
            "kl_estimator",
            "max_length",
            "micro_batch_tokens",
            "optim",
            "optim_args",
            "optim_target_modules",
            "lr_scheduler_kwargs",
            "learning_rate",
            "num_train_epochs",
            "max_steps",
            "pairs_per_step",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "warmup_steps",
            "max_grad_norm",
            "seed",
            "data_seed",
            "precision",
            "use_liger_kernel",
            "liger_kernel_config",
        )
        return {name: getattr(self, name) for name in names} | {
            "lr_scheduler_type": SchedulerType(self.lr_scheduler_type).value
        }
