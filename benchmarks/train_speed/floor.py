"""The least that the work can cost: floating-point operations of the distinct tokens over the machine's matrix rate."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.train_speed.workload import Shape

PAPER_MINUTES = {"v1": 28, "v2": 16}


@dataclass(frozen=True)
class Work:
    """Floating-point operations of forward and backward over some pairs, by stage."""

    projections: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.projections + self.attention + self.head


def work(shape: Shape, pairs: Sequence[Sequence[int]]) -> Work:
    """Of `pairs`, each `(prompt, chosen, rejected, common)` in tokens.

    A product of matrices costs 2 operations a weight and token forward and 4 backward. Attention is two products over
    the tokens that a token sees (4 backward). The head runs where a token is predicted, once for both answers where
    they share the place. An answer's last token is predicted but never an input.
    """
    tokens = seen = scored = 0
    for prompt, chosen, rejected, common in pairs:
        shared = prompt + common
        tails = (chosen - common - 1, rejected - common - 1)
        tokens += shared + sum(tails)
        seen += shared * (shared + 1) // 2 + sum(tail * shared + tail * (tail + 1) // 2 for tail in tails)
        scored += common + 1 + sum(tails)
    return Work(
        projections=6.0 * shape.layers * shape.layer_weights * tokens,
        attention=12.0 * shape.layers * shape.heads * shape.head_dim * seen,
        head=6.0 * shape.hidden * shape.vocabulary * scored,
    )


def matrix_rate(device: str, precision: str) -> float:
    """Operations a second of a large square product, the median of several.

    On a CPU operands in bf16 may be multiplied in fp32, so the faster of both is what can be had.
    """
    if device == "cpu" and precision == "bf16":
        return max(_product_rate(device, kind) for kind in ("bf16", "fp32"))
    return _product_rate(device, precision)


def _product_rate(device: str, precision: str) -> float:
    import torch

    size, repeats = (8192, 20) if device == "cuda" else (3072, 7)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds: list[float] = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / median(seconds[1:])


@dataclass(frozen=True)
class Projection:
    """Assumptions about a run of the paper's size; `bandwidth` is bytes a second and GPU, `fill` the share of time that
    a GPU does not wait for the slowest of its step."""

    pairs: int = 4000
    epochs: int = 2
    pairs_a_step: int = 32
    gpus: int = 8
    bandwidth: float = 300e9
    fill: float = 0.9

    def minutes(self, shape: Shape, flops_a_pair: Work, rate: float) -> dict[str, float]:
        """Minutes by part; `rate` is the operations a second and GPU that training was measured at."""
        steps = self.pairs * self.epochs / self.pairs_a_step
        once = self.pairs * flops_a_pair.total / (rate * self.gpus * self.fill)
        # Layers are run again in the backward pass (a third of their cost); the head's recomputation is in the rate.
        again = self.pairs * (flops_a_pair.projections + flops_a_pair.attention) / 3 / (rate * self.gpus * self.fill)
        # ZeRO-2: gradients are reduced in fp32, weights gathered in bf16, neither hidden behind the products.
        exchange = steps * shape.parameters * (4 + 2) * (self.gpus - 1) / self.gpus / self.bandwidth
        seconds = {
            "reference": once / 3,
            "training": once * self.epochs,
            "recomputation": again * self.epochs,
            "communication": exchange,
        }
        return {part: value / 60 for part, value in seconds.items()} | {"total": sum(seconds.values()) / 60}
