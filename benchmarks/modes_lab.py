"""The three ways to correct, in the lab, with an Oracle that errs in a tenth of its replies.

    python -m benchmarks.modes_lab --problems 2000

One run a mode on the same answers of the bundled student. Printed as Markdown: the share of failures that became pairs,
Oracle requests and tokens a pair, what of y+ is the student's own, and how likely y+ is to the student.
"""

import argparse
import json
import shutil
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from benchmarks.train_speed.__main__ import table
from rapidfuzz.distance import Levenshtein
from rich.console import Console

from spot.config import load_config
from spot.files.store import read_rows
from spot.hub import model_path
from spot.models.paid.ledger import Ledger
from spot.pairs.tokens import load_encoder
from spot.schema import Attempt, Pair, text_of
from spot.stages.pipeline import run
from spot.train.logps import Scorer, accept_batches
from spot.train.tokenize import tokenize_pairs
from spot.train.weights import load_student, load_tokenizer

MODES = ("rewrite", "patch", "continue")
ERRORS = {"wrong_rate": 0.04, "ambiguous_rate": 0.03, "misfit_rate": 0.03}


def corrected(mode: str, options: argparse.Namespace) -> Path:
    """A run directory with pairs; the student's answers are those of the first mode."""
    directory = options.directory / mode
    overrides = [
        *(
            f"run.dir={directory}",
            "run.stages=[elicit,rectify,filter]",
            f"problems.count={options.problems}",
            "filter.max_pairs=null",
        ),
        *(f"rectify.mode={mode}", f"rectify.oracle_options={json.dumps(ERRORS)}"),
    ]
    config = load_config(Path(model_path("lab")).parent / "demo.yaml", overrides)
    return run(config, Console(quiet=True), overwrite=True)


def nll_a_token(pairs: list[Pair]) -> float:
    """Mean negative log-likelihood of the chosen answers' tokens under the student, in nats."""
    student: Any = load_student(model_path("lab"))
    accept_batches(student)
    scorer = Scorer(student, shared=False, bf16=False)
    tokenized, _ = tokenize_pairs(pairs, load_tokenizer(model_path("lab")), 1024)
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(tokenized), 64):
            logps, mask = scorer(tokenized[start : start + 64], ["chosen"])
            total -= float(logps[mask].sum())
            count += float(mask.sum())
    return total / count


def row(mode: str, directory: Path) -> list[str]:
    """A mode's line in the table."""
    encode = load_encoder(model_path("lab"))
    pairs = read_rows(directory / "pairs.jsonl", Pair)
    failures = sum(attempt.outcome == "wrong" for attempt in read_rows(directory / "attempts.jsonl", Attempt))
    texts = [(encode(text_of(pair.rejected)), encode(text_of(pair.chosen))) for pair in pairs]
    with Ledger(directory / "ledger.sqlite") as ledger:
        asked = [found["text"] for found in ledger.rows() if found["stage"] == "rectify"]
    written = [len(encode(text)) for text in asked]
    prefix = [next((i for i, (a, b) in enumerate(zip(*both, strict=False)) if a != b), 0) for both in texts]
    distance = [Levenshtein.distance(*both) / max(map(len, both)) for both in texts]
    return [
        mode,
        f"{len(pairs) / failures:.1%} of {failures}",
        f"{len(asked) / len(pairs):.2f}",
        f"{sum(written) / len(pairs):.0f}",
        f"{fmean(pair.change_ratio for pair in pairs):.3f}",
        f"{median(distance):.3f}",
        f"{fmean(shared / len(chosen) for shared, (_, chosen) in zip(prefix, texts, strict=True)):.0%}",
        f"{nll_a_token(pairs):.4f}",
    ]


HEADER = [
    *("mode", "failures that became pairs", "Oracle requests a pair", "Oracle tokens a pair", "change ratio, mean"),
    *("edit distance, median", "prefix shared with y-", "student's nll of y+, nats a token"),
]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--directory", type=Path, default=Path("runs/modes-lab"))
    options = parser.parse_args()
    if options.directory.exists():
        shutil.rmtree(options.directory)
    print(table(HEADER, [row(mode, corrected(mode, options)) for mode in MODES]))


if __name__ == "__main__":
    main()
