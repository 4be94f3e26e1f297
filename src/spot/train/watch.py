"""A watch over rewards and shift: says while it happens that training undoes what it has learned, and what beta can do.

The chosen reward is the one thing logged that tells learning from ranking: beta times how much likelier the
corrections have become. The method's tether, `beta * (1 - sigmoid(r+ - d))`, stops early at each pair that is learned.
Two things can go wrong, whatever the loss says, which falls all the while:

- *slack*: rejected rewards fall without bound, the shift d follows them down, and `r+ - d` is large although r+ is not:
  the tether has let go of corrections that eq. 9, without a shift, would still hold. `dpo` has the same gradient with d
  at a pair's own mean reward, so it is watched by that.
- *turned*: the chosen reward has fallen from its peak, by more than its noise and by what matters.

Both are of smoothed values, in units of the gate, the noise or the bound, so they hold for any length of answers.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

DECAY = 0.9
"""Of the smoothing, the shift's own default: a batch's pairs differ, and some ten steps tell the trend."""

CLOSED = 3.0
"""A reward above the shift by this much leaves the gate `1 - sigmoid(r+ - d)` open by less than 5%."""

FALL = 0.25
"""A fall that matters: of the peak's reward,"""

FALL_OF_BOUND = 0.05
"""and of the most that a chosen reward can be."""

FIRST = 20
"""Steps before anything is said: as many as the smoothing needs to forget its first."""

NOISE_DECAY = 0.98
"""Of the variance from step to step, which needs more steps than a trend to be known."""

TETHERS = 10.0
"""A bound of the chosen reward under which no tether closes by learning; method.md has the runs."""

PAPER_BOUND = 70.0
"""The bound that the paper's beta and corrections have."""


@dataclass(frozen=True)
class Bound:
    """What chosen rewards can reach at most, since no log-probability is above 0: beta times the reference's nats."""

    mean: float
    low: float
    beta: float

    @classmethod
    def of(cls, nats: Tensor, beta: float) -> "Bound":
        """From the reference's nats of each correction, `(num_pairs,)`."""
        return cls(beta * float(nats.mean()), beta * float(nats.quantile(0.1)), beta)

    @property
    def summary(self) -> str:
        """The bound in a few words."""
        return (
            f"with beta {self.beta:g} a chosen reward reaches at most {self.mean:.3g}, for a tenth of the pairs "
            f"{self.low:.3g} (beta times the nats of a correction under the reference)"
        )

    @property
    def warning(self) -> str | None:
        """Why this beta tethers nothing, where it does not."""
        if self.mean >= TETHERS:
            return None
        fitting = self.beta * PAPER_BOUND / self.mean if self.mean > 0 else math.inf
        return (
            f"{self.summary}; a bound under about {TETHERS:g} cannot tether: beta {_rounded(fitting):g} would "
            f"give about {PAPER_BOUND:g}, as the paper's pairs have"
        )


@dataclass
class Watch:
    """Rewards so far, and what was said of them. `state` goes into checkpoints; `Watch(**state)` is the same again."""

    steps: int = 0
    chosen: float = 0.0
    weight: float = 0.0
    last: float = 0.0
    variance: float = 0.0
    variance_weight: float = 0.0
    peak: float = 0.0
    peak_step: int = 0
    mean: float = 0.0
    negative_since: int = 0
    said: list[str] = field(default_factory=list[str])
    untold: list[str] = field(default_factory=list[str])
    """Lines that no logged row has had yet."""

    @property
    def state(self) -> dict[str, Any]:
        """What `Watch` is made of."""
        return asdict(self)

    def see(
        self, step: int, chosen: float, shift: float, bound: float, rejected: float | None = None
    ) -> tuple[str, int] | None:
        """Take in a step's mean chosen reward, its shift (0 where there is none) and the bound over all pairs.

        With a mean `rejected` reward, which is for `dpo`, the smoothed mean of both is taken for the shift. Returns
        what has gone wrong and since which step, each kind once.
        """
        if self.steps:
            change = (chosen - self.last) ** 2 / 2
            self.variance = NOISE_DECAY * self.variance + (1 - NOISE_DECAY) * change
            self.variance_weight = NOISE_DECAY * self.variance_weight + (1 - NOISE_DECAY)
        self.chosen = DECAY * self.chosen + (1 - DECAY) * chosen
        self.weight = DECAY * self.weight + (1 - DECAY)
        self.steps, self.last = self.steps + 1, chosen
        if rejected is not None:
            self.mean = DECAY * self.mean + (1 - DECAY) * (chosen + rejected) / 2
            shift = self.mean / self.weight
        if shift >= 0:
            self.negative_since = step
        if self.steps < FIRST:
            return None
        now = self.chosen / self.weight
        if now > self.peak:
            self.peak, self.peak_step = now, step
        return self._once("slack", self._slack(now, shift, rejected is None), self.negative_since + 1) or self._once(
            "turned", self._turned(now, bound), self.peak_step
        )

    def _once(self, kind: str, what: str, since: int) -> tuple[str, int] | None:
        if not what or kind in self.said:
            return None
        self.said.append(kind)
        return what, since

    def _slack(self, now: float, shift: float, tethered: bool) -> str:
        """Closed with the shift, open without it, and more by the shift than by the reward."""
        margin = now - shift if tethered else 2 * (now - shift)  # dpo's gate is that of r+ - r-
        if not (now < CLOSED < margin and -shift > now):
            return ""
        if not tethered:
            return (
                f"the chosen reward is {now:.2f} and the mean of both rewards {shift:.2f}: the margin comes from the "
                "rejected answers' fall, and nothing holds the corrections"
            )
        return (
            f"the chosen reward is {now:.2f}, and the shift followed the rejected ones down to {shift:.2f}: the tether "
            f"is {_gate(now - shift):.0%} open, without a shift it would be {_gate(now):.0%}; the loss now ranks "
            "and no longer holds the corrections"
        )

    def _turned(self, now: float, bound: float) -> str:
        # An exponential mean of independent steps has (1 - DECAY) / (1 + DECAY) of their variance, and the highest and
        # the lowest of n such means lie at most some 2 sqrt(2 log n) standard deviations apart where only noise moves.
        error = math.sqrt(self.variance / self.variance_weight * (1 - DECAY) / (1 + DECAY))
        spread = 2.5 * error * math.sqrt(2 * math.log(self.steps))
        if self.peak - now <= max(FALL * self.peak, FALL_OF_BOUND * bound, spread):
            return ""
        if now < 0:
            return f"the chosen reward is {now:.2f}: the corrections are less likely than before training"
        return f"the chosen reward has fallen from {self.peak:.2f} to {now:.2f}: the corrections are being unlearned"


def advice(objectives: list[str], shifted: bool, bound: Bound, checkpoint: str | None) -> str:
    """What to do about it, the surest first."""
    ways = [f"go back to {checkpoint}" if checkpoint else "save checkpoints (save_steps) and use an earlier one"]
    ways += ["train fewer steps", "lower learning_rate"]
    if shifted or "dpo" in objectives:
        ways.append("use spot_bce, which has no shift" if shifted else "use spot_bce, which has a tether")
    if bound.mean < TETHERS:
        ways.append(f"raise beta (the bound of {bound.mean:.3g} cannot tether)")
    return f"{', '.join(ways[:-1])}, or {ways[-1]}"


def _gate(margin: float) -> float:
    return 1 / (1 + math.exp(margin))


def _rounded(value: float) -> float:
    """Two digits: it is a rule of thumb."""
    return float(f"{value:.2g}")
