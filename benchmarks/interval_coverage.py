"""How often every 95% interval that the package reports holds the truth: accuracies, differences, averages of tasks.

    python -m benchmarks.interval_coverage --trials 4000 --replicates 2000

Prints every setting's coverage, marked `low` below 0.93 and `high` above 0.98 where there are 198 questions or more,
and a summary of each quantity. Accuracies from one sample a question are exact sums over the binomial distribution; all
else is simulated. The package itself draws 10,000 replicates; fewer move a coverage by some thousandths.

- accuracy: chances of all questions alike, or beta-distributed about the mean;
- from a standard error: the same, by `statistics.interval`, which is used where only the error is known;
- difference: nothing changed; whole questions lost or gained, of 1% to 10%; all questions slightly better;
- average: the mean over tasks of unequal sizes, as `comparison.compare_results` makes it.

For differences that lose exactly the margin of 2 points the last column is how often they are called "kept".
"""

import argparse
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import lgamma, log

import numpy as np

from spot.evaluate import statistics
from spot.evaluate.statistics import HIGH, LOW, accuracy_bounds, difference_replicates, interval

SIZES = (30, 40, 60, 100, 198, 500, 1319)
SAMPLES = (1, 4, 16)
MEANS = (0.02, 0.1, 0.5, 0.9, 0.98)
MARGIN = 0.02


@dataclass(frozen=True)
class Covered:
    """A setting's coverage; how often a loss of the margin is called kept."""

    quantity: str
    n: int
    samples: int
    setting: str
    coverage: float
    kept: float | None = None


def generator(*setting: object) -> np.random.Generator:
    """Random numbers that belong to one setting, whatever else runs."""
    return np.random.default_rng(zlib.crc32(repr(setting).encode()))


def held(low: np.ndarray, high: np.ndarray, truth: float) -> np.ndarray:
    """Where the interval holds `truth`; the last digits do not count."""
    return (low <= truth + 1e-9) & (high >= truth - 1e-9)


def exact_accuracies(sizes: Sequence[int]) -> Iterator[Covered]:
    """One sample a question: every possible number of right answers, weighted by its chance."""
    for n in sizes:
        right = np.arange(n + 1)
        low, high = accuracy_bounds((np.arange(n)[:, None] < right[None, :]).astype(float))
        for mean in (0.01, *MEANS, 0.25, 0.75, 0.99):
            logs = [lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) for k in range(n + 1)]
            chances = np.exp(np.array(logs) + right * log(mean) + (n - right) * log(1 - mean))
            yield Covered("accuracy, exact", n, 1, f"mean {mean}", float(chances[held(low, high, mean)].sum()))


def accuracies(sizes: Sequence[int], trials: int) -> Iterator[Covered]:
    """Several samples a question, by both ways to an interval."""
    for n, samples, mean, spread in product(sizes, SAMPLES, MEANS, (None, 1.0, 4.0)):
        rng = generator(n, samples, mean, spread)
        shape = (n, trials)
        chances = np.full(shape, mean) if spread is None else rng.beta(mean * spread, (1 - mean) * spread, shape)
        shares = rng.binomial(samples, chances) / samples
        setting = f"mean {mean}, " + ("all alike" if spread is None else f"beta, spread {spread:g}")
        low, high = accuracy_bounds(shares)
        yield Covered("accuracy", n, samples, setting, float(held(low, high, mean).mean()))
        errors = shares.std(axis=0, ddof=1) / n**0.5
        means = shares.mean(axis=0)
        ends = np.array([interval(float(a), float(b), n) for a, b in zip(means, errors, strict=True)]).T
        yield Covered("from a standard error", n, samples, setting, float(held(ends[0], ends[1], mean).mean()))


def changes() -> Iterator[tuple[str, float, str, float]]:
    """Name, mean before, what happens, and its size: the share of all questions lost or gained, or a small rise."""
    for mean in MEANS:
        yield "nothing changes", mean, "none", 0.0
    for mean in (0.3, 0.5, 0.9):
        yield "nothing changes, beta", mean, "beta", 0.0
    for mean, lost in product((0.5, 0.98), (0.01, 0.02, 0.05, 0.1)):
        yield "noisy questions lost", mean, "lost", -lost
    for mean, lost in product((0.5, 0.9, 1.0), (0.01, 0.02, 0.05, 0.1)):
        yield "certain questions lost", mean, "certain", -lost
    for mean, gained in product((0.1, 0.5), (0.02, 0.1)):
        yield "certain questions gained", mean, "gained", gained
    yield "many change both ways", 0.5, "both", 0.0
    yield "all slightly better", 0.5, "none", 0.05


def drawn(
    kind: str, mean: float, change: float, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The questions' chances before and after."""
    if kind == "beta":
        before = rng.beta(mean * 2, (1 - mean) * 2, shape)
        return before, before
    if kind in ("certain", "gained", "both"):
        before = (rng.random(shape) < mean).astype(float)
        if kind == "both":  # a fifth of the right ones falls, as many others rise
            turned = rng.random(shape) < 0.2
            return before, np.where(turned, 1 - before, before)
        at = rng.random(shape)
        after = before * (at >= -change / mean) if kind == "certain" else np.maximum(before, at < change / (1 - mean))
        return before, after
    before = np.full(shape, mean)
    return before, before * (rng.random(shape) >= -change / mean) if kind == "lost" else before + change


def differences(sizes: Sequence[int], trials: int) -> Iterator[Covered]:
    """Paired differences of one task."""
    for (name, mean, kind, change), n, samples in product(changes(), sizes, SAMPLES):
        rng = generator(name, mean, change, n, samples)
        chances = drawn(kind, mean, change, (n, trials), rng)
        before, after = (rng.binomial(samples, side) / samples for side in chances)
        replicates = difference_replicates(before, after, samples, np.random.default_rng(0))
        low, high = np.quantile(replicates, (LOW, HIGH), axis=0)
        kept = float(np.mean(low >= -MARGIN)) if change == -MARGIN else None
        setting = f"{name}, mean {mean}, change {change:+g}"
        yield Covered("difference", n, samples, setting, float(held(low, high, change).mean()), kept)


def averages(trials: int) -> Iterator[Covered]:
    """Means over tasks, each with its own number of questions, mean and change."""
    tasks = ((30, 16, 0.2), (198, 4, 0.5), (500, 1, 0.8))
    groups = {"30 + 198 + 500": tasks, "30 + 30 + 40": ((30, 16, 0.2), (30, 16, 0.1), (40, 8, 0.6))}
    for (sizes, group), (kind, change) in product(
        groups.items(), (("beta", 0.0), ("certain", -0.02), ("lost", -0.02), ("certain", -0.05), ("gained", 0.05))
    ):
        rng = generator(sizes, kind, change)
        means: list[np.ndarray] = []
        for seed, (n, samples, mean) in enumerate(group):
            chances = drawn(kind, mean, change, (n, trials), rng)
            before, after = (rng.binomial(samples, side) / samples for side in chances)
            means.append(difference_replicates(before, after, samples, np.random.default_rng(seed)))
        low, high = np.quantile(np.mean(means, axis=0), (LOW, HIGH), axis=0)
        kept = float(np.mean(low >= -MARGIN)) if change == -MARGIN else None
        setting = f"{sizes}: {kind}, change {change:+g}"
        smallest = min(n for n, _, _ in group)
        yield Covered("average", smallest, group[0][1], setting, float(held(low, high, change).mean()), kept)


def main() -> None:
    """Print the coverage of every setting, then a summary of each quantity."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2000, help="simulated evaluations of each setting")
    parser.add_argument("--replicates", type=int, default=2000, help="of each interval")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    statistics.REPLICATES = options.replicates
    rows: defaultdict[str, list[Covered]] = defaultdict(list)
    print("| quantity | questions | samples | setting | coverage | | called kept |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for some in (
        exact_accuracies(options.sizes),
        accuracies(options.sizes, options.trials),
        differences(options.sizes, options.trials),
        averages(options.trials),
    ):
        for row in some:
            rows[row.quantity].append(row)
            mark = "low" if row.coverage < 0.93 else "high" if row.n >= 198 and row.coverage > 0.98 else ""
            kept = "" if row.kept is None else f"{row.kept:.3f}"
            print(
                f"| {row.quantity} | {row.n} | {row.samples} | {row.setting} | {row.coverage:.3f} | {mark} | {kept} |",
                flush=True,
            )
    print(
        "\n| quantity | settings | lowest | median | highest | below 0.93 | n >= 198: above 0.98 | most called kept |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for quantity, some in rows.items():
        found = [row.coverage for row in some]
        high = sum(row.n >= 198 and row.coverage > 0.98 for row in some)
        kept = max((row.kept for row in some if row.kept is not None), default=None)
        print(
            f"| {quantity} | {len(found)} | {min(found):.3f} | {np.median(found):.3f} | {max(found):.3f} "
            f"| {sum(one < 0.93 for one in found)} | {high} | {'' if kept is None else f'{kept:.3f}'} |"
        )


if __name__ == "__main__":
    main()
