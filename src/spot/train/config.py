"""`SpotConfig`: transformers' training arguments with the method's own, and its defaults."""

from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SchedulerType

from spot.objectives import ShiftKind
from spot.train.objective import OBJECTIVES, Objective
from spot.train.products import HAS_MATRIX_UNITS

NOT_HERE = {
    "logging_nan_inf_filter": "would hide a loss that is not finite",
    "label_smoothing_factor": "has no meaning for these losses",
    "neftune_noise_alpha": "makes the policy differ from its reference before any step",
    "dataloader_drop_last": "would leave out pairs",
}
"""Arguments of `TrainingArguments` that would be ignored or do harm, and why."""


def _help(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SpotConfig(TrainingArguments):
    """Arguments of `SpotTrainer`: those of `TrainingArguments`, with the paper's defaults, and these.

    A step trains on `per_device_train_batch_size` pairs, times `gradient_accumulation_steps` (folded into it, since
    micro-batches are cut by tokens inside a step), times the number of processes. Raises `ValueError`
    on values that make no sense.
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
    overlength: str = _help("drop", "Pairs longer than max_length: drop (left out and counted) or error.")
    micro_batch_tokens: int = _help(16384, "Distinct tokens a micro-batch may hold; bounds memory.")
    metrics_path: str | None = _help(None, "Where each logged step is written as a JSON line.")
    reference_path: str | None = _help(
        None, "Where the reference's log-probabilities are kept; output_dir/reference.safetensors unless set."
    )

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        if self.bf16 is None:
            faster = torch.accelerator.is_available() or HAS_MATRIX_UNITS
            self.bf16 = faster  # pyright: ignore[reportIncompatibleVariableOverride]
        if not torch.accelerator.is_available():
            # Unless it is said, transformers refuses bf16 there, and runs several processes as if each were alone.
            self.use_cpu = True
        if self.use_liger_kernel:
            # Its head computes a loss of its own and would take the place of the model's forward.
            own = {"cross_entropy": False, "fused_linear_cross_entropy": False}
            self.liger_kernel_config = {**(self.liger_kernel_config or {}), **own}
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every parameter takes part in every row
        super().__post_init__()
        self.per_device_train_batch_size *= self.gradient_accumulation_steps
        self.gradient_accumulation_steps = 1
        # Every process is given the whole step and takes its share of it.
        self.pairs_per_step = self.per_device_train_batch_size * self.world_size
        self._check()

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
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise ValueError(f"num_train_epochs must be above 0, got {self.num_train_epochs}")
        if self.learning_rate < 0:
            raise ValueError(f"learning_rate must not be negative, got {self.learning_rate}")
        if self.fp16:
            raise ValueError("fp16 is not supported; use --bf16, or neither for fp32")
        if HubStrategy(self.hub_strategy) != HubStrategy.END:
            raise ValueError("hub_strategy must be end: checkpoints hold fp32 masters and are not uploaded")
        for name, why in NOT_HERE.items():
            if getattr(self, name):
                raise ValueError(f"{name} {why}; leave it off")

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
        """What the matrix products are computed in; weights, sums and losses are fp32 in any case."""
        return "bf16" if self.bf16 else "fp32"

    def settings(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        names = (
            *("loss_type", "loss_weights", "beta", "reward_shift", "shift_decay", "sft_reduction", "kl_coefficient"),
            *("kl_estimator", "max_length", "micro_batch_tokens", "optim", "optim_args", "lr_scheduler_kwargs"),
            *("learning_rate", "num_train_epochs", "max_steps", "pairs_per_step", "weight_decay"),
            *(
                "adam_beta1",
                "adam_beta2",
                "adam_epsilon",
                "warmup_steps",
                "max_grad_norm",
                "seed",
                "data_seed",
                "precision",
                "use_liger_kernel",
            ),
        )
        return {name: getattr(self, name) for name in names} | {
            "lr_scheduler_type": SchedulerType(self.lr_scheduler_type).value
        }
