"""How far bf16 is from fp32 on the bundled student: log-probabilities of tokens, and the whole model's gradient.

    python -m benchmarks.bf16_error

Three ways: autocast with the model's own logits, as TRL trains; spot with the model's own layers; spot. First over 64
of the lab's pairs, then over `--sets` sets of 16, where a few tokens decide less.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from statistics import geometric_mean
from typing import Any

import torch
from benchmarks.train_speed.workload import Workload, make_data, make_model
from torch import Tensor

from spot.train.layers import restore_layers
from spot.train.logps import Scorer, accept_batches, pad, share_prefixes
from spot.train.objective import Objective
from spot.train.reference import compute_reference
from spot.train.row import BOTH, Side
from spot.train.rows import as_preferences
from spot.train.step import run_step
from spot.train.tokenize import TokenizedPair, tokenize_pairs

LAB = Workload("lab", "lab", 64)
WAYS = ("autocast", "own layers", "spot")
BUDGET = 16384


class _Autocast(Scorer):
    """Plain sequences, whole logits, everything as autocast does it."""

    def __call__(self, pairs: Sequence[TokenizedPair], sides: Sequence[Side] = BOTH) -> tuple[Tensor, Tensor]:
        batch = pad([pair.prompt_ids for pair in pairs] * len(sides), [p.completion(s) for s in sides for p in pairs])
        model: Any = self.model
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch.input_ids, use_cache=False).logits[batch.scored]
        logps = logits.float().log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
        return torch.zeros(batch.mask.shape).masked_scatter(batch.mask, logps), batch.mask


def computed(pairs: list[TokenizedPair], objective: str, way: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all answers' tokens, and the gradient of one step over `pairs`, both flat."""
    model: Any = make_model(LAB, "cpu")
    scorer = _Autocast(model, False, True)
    if way != "autocast":
        assert share_prefixes(model, pairs[0]) is None
        accept_batches(model)
        scorer = Scorer(model, True, way != "fp32")
    if way == "own layers":
        restore_layers(model)
    step = range(len(pairs))
    reference = compute_reference(scorer, pairs, "", [step], micro_batch_tokens=BUDGET)
    run_step(
        *(scorer, pairs, step, reference, Objective((objective,))),
        delta=0.0,
        micro_batch_tokens=BUDGET,
        backward=lambda loss: loss.backward(),
    )
    logps = torch.cat([reference.chosen_token_logps, reference.rejected_token_logps])
    return logps, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def errors(seed: int, num_pairs: int, objective: str) -> dict[str, tuple[float, float]]:
    """By way: rms of the log-probabilities' errors in nats, and the gradient's relative error."""
    tokenizer, rows = make_data(replace(LAB, pairs=num_pairs, seed=seed))
    pairs = tokenize_pairs(as_preferences("lab", rows), tokenizer, 2048)[0]
    logps, gradient = computed(pairs, objective, "fp32")
    found: dict[str, tuple[float, float]] = {}
    for way in WAYS:
        near, near_gradient = computed(pairs, objective, way)
        rms = float((near - logps).square().mean().sqrt())
        found[way] = rms, float((near_gradient - gradient).norm() / gradient.norm())
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bf16_error", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--sets", type=int, default=24)
    sets = parser.parse_args().sets
    print("| 64 pairs | " + " | ".join(f"{way}: nats | gradient, %" for way in WAYS) + " |")
    print("| --- |" + " --- |" * 6)
    for objective in ("spot_bco", "reward_sft", "dft"):
        found = errors(0, 64, objective).values()
        print(f"| {objective} | " + " | ".join(f"{rms:.1e} | {100 * part:.2f}" for rms, part in found) + " |")
    each = [errors(seed, 16, "spot_bco") for seed in range(sets)]
    for number, what in enumerate(("log-probabilities", "gradient")):
        for way in WAYS[:2]:
            ratios = [one["spot"][number] / one[way][number] for one in each]
            nearer = sum(ratio <= 1 for ratio in ratios)
            print(
                f"{what}, spot for {way}: {geometric_mean(ratios):.2f} times the error (geometric mean, {sets} sets), "
                f"{min(ratios):.2f} to {max(ratios):.2f}, no further in {nearer}"
            )


if __name__ == "__main__":
    main()
