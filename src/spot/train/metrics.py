"""What is logged about a step, under the names that users of TRL know."""

import time

import torch

from spot.train.step import StepResult

STEP_METRICS = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "rewards/delta"),
    *("logps/chosen", "logps/rejected", "kl/chosen", "shared_fraction"),
)
"""What is known of evaluated pairs, too (tethers are gradients, which evaluation has none of)."""


class StepMeans:
    """Metrics since the last log: means over steps, the last shift, tokens over seconds."""

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows = rows or []
        self.tokens = 0
        self.started = time.perf_counter()

    def add(self, row: dict[str, float], tokens: int, started: float) -> None:
        """Add a step that `started` then (what passed before it, a checkpoint say, is not counted)."""
        if not self.tokens:
            self.started = started
        self.rows.append(row)
        self.tokens += tokens

    def leave_out(self, seconds: float) -> None:
        """Have `seconds` that just passed not count: no step was taken in them."""
        self.started += seconds

    def logged(self) -> dict[str, float]:
        """What the log shows."""
        means = {name: sum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[0]}
        means["rewards/delta"] = self.rows[-1]["rewards/delta"]
        return means | {"tokens_per_second": self.tokens / (time.perf_counter() - self.started)}


def step_metrics(result: StepResult, delta: float, scores_rejected: bool) -> dict[str, float]:
    """A step's metrics under their logged names; those of rejected answers are left out where none were scored."""
    metrics = {
        "loss": result.losses.mean(),
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
    needs_rejected = ("rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/rejected")
    return {name: float(value) for name, value in metrics.items() if scores_rejected or name not in needs_rejected}
