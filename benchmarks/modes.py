"""What an Oracle has to write in each mode: real pairs, replayed through the encoders of rewrite, patch and continue.

    python benchmarks/modes.py --gsm8k FILE --verify-then-generate FILE

The files are GSM8K's `example_model_solutions.jsonl` (each wrong answer with the nearest right one to its question) and
verify-then-generate's `dataset.json` (each wrong solution with the reference). Counted are the Oracle's output tokens,
marker lines included and thinking excluded, under a byte-level BPE of 32,000 that is trained on the texts, or under
`--tokenizer` (a `tokenizer.json`).

- rewrite: the whole right answer between two marker lines.
- patch: the smallest edits that give it. patch (steps): edits of whole steps (lines, sentences), by a model that does
  not look for the shortest text that is unique.
- continue: the first wrong step quoted and written right, one round.

The pairs are two answers written independently, not an Oracle's corrections, and they are short. So longer ones are
made of 2 to 24 of them, one after another: once every part wrong (places to edit are as dense as in the pairs), once a
single part wrong and the others right (a long answer with one passage that goes wrong). Prints Markdown; writes
`modes.png` and `modes.json` to `--output`.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from spot import change_ratio
from spot.rectify.parse import Markers
from spot.rectify.patch import Edit, write_edits
from spot.rectify.steps import split_steps, write_step

GAMMA = 0.6
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)
LENGTHS = (0, 75, 100, 150, 200, 100_000)
LONG_LENGTHS = (0, 200, 400, 800, 1600, 100_000)
MADE = 800
MOST_PARTS = 24
WINDOW = 41  # answers of about one length whose median is one point of a curve
MODES = {"rewrite": "rewrite", "patch": "patch", "patch_steps": "patch (steps)", "go_on": "continue"}

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Text:
    """A wrong answer and its right one."""

    source: str
    rejected: str
    chosen: str


@dataclass(frozen=True)
class Cost:
    """Oracle output tokens of one pair in each mode; `length` is the wrong answer's."""

    source: str
    length: int
    ratio: float
    rewrite: int
    patch: int
    patch_steps: int
    go_on: int


def gsm8k_texts(path: Path) -> Iterator[Text]:
    """Each wrong answer with the nearest right one to the same question."""
    for line in path.read_text("utf-8").splitlines():
        solutions = [value for value in json.loads(line).values() if isinstance(value, dict)]
        right = [solution["solution"] for solution in solutions if solution["is_correct"]]
        for wrong in (solution["solution"] for solution in solutions if not solution["is_correct"]):
            if right:
                nearest = min(right, key=lambda text, wrong=wrong: Levenshtein.normalized_distance(wrong, text))
                yield Text("GSM8K", wrong, nearest)


def verify_then_generate_texts(path: Path) -> Iterator[Text]:
    """Each wrong solution with the reference solution."""
    for row in json.loads(path.read_text("utf-8")):
        yield Text("verify-then-generate", "\n".join(row["student_incorrect_solution"]), row["reference_solution"])


def make_encode(texts: Iterable[Text], path: Path | None) -> Encode:
    """From text to token ids: of the tokenizer at `path`, or of one trained on `texts`."""
    if path is not None:
        backend = Tokenizer.from_file(str(path))
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=32_000, initial_alphabet=alphabet, show_progress=False)
        corpus = [side for text in texts for side in (text.rejected, text.chosen)]
        # The marker lines are made of what real vocabularies have as one token each (Qwen's has); here they are learnt.
        markers = Markers("")
        corpus += [markers.enclose(Edit("", "", "").written(markers))] * len(corpus)
        backend.train_from_iterator(corpus, trainer)
    return lambda text: backend.encode(text, add_special_tokens=False).ids


def measure(text: Text, encode: Encode) -> Cost:
    """What each mode costs for one pair."""
    rejected, chosen = text.rejected, text.chosen
    markers = Markers.derive(rejected, "0", rejected, chosen)

    def cost(block: str) -> int:
        return len(encode(markers.enclose(block)))

    return Cost(
        source=text.source,
        length=len(encode(rejected)),
        ratio=change_ratio(encode(rejected), encode(chosen)),
        rewrite=cost(chosen),
        patch=cost(write_edits(rejected, chosen, markers)),
        patch_steps=cost(write_edits(rejected, chosen, markers, split_steps)),
        go_on=cost(write_step(rejected, chosen, markers)),
    )


def made(texts: Sequence[Text], source: str, rng: random.Random) -> Iterator[Text]:
    """Long answers of several of `texts`, every part wrong or, for the source `one part wrong`, a single one."""
    for _ in range(MADE):
        parts = rng.sample(texts, round(2 * (MOST_PARTS / 2) ** rng.random()))
        wrong = rng.randrange(len(parts)) if source == "one part wrong" else None
        rejected = [part.chosen if wrong not in (None, place) else part.rejected for place, part in enumerate(parts)]
        yield Text(source, "\n\n".join(rejected), "\n\n".join(part.chosen for part in parts))


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--verify-then-generate", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json instead of the BPE trained on the texts")
    parser.add_argument("--output", type=Path, default=Path("runs/modes"))
    args = parser.parse_args()
    texts = list(gsm8k_texts(args.gsm8k)) if args.gsm8k else []
    texts += verify_then_generate_texts(args.verify_then_generate) if args.verify_then_generate else []
    texts = [text for text in texts if text.rejected.split() != text.chosen.split()]
    if not texts:
        parser.error("give --gsm8k FILE, --verify-then-generate FILE or both")
    encode = make_encode(texts, args.tokenizer)
    real = [measure(text, encode) for text in texts]
    near = [text for text, cost in zip(texts, real, strict=True) if cost.ratio <= GAMMA]
    rng = random.Random(0)
    long = {
        source: [measure(text, encode) for text in made(near, source, rng)]
        for source in ("every part wrong", "one part wrong")
    }
    report(real, long)
    args.output.mkdir(parents=True, exist_ok=True)
    kept = [cost for cost in real if cost.ratio <= GAMMA]
    draw({"real pairs": kept, **long}, args.output / "modes.png")
    every = [*real, *(cost for costs in long.values() for cost in costs)]
    (args.output / "modes.json").write_text(json.dumps([asdict(cost) for cost in every]))


def report(real: Sequence[Cost], long: dict[str, list[Cost]]) -> None:
    """The tables."""
    kept = [cost for cost in real if cost.ratio <= GAMMA]
    print(
        f"Oracle output tokens, medians; in brackets the sum over that of rewrite.\n\nReal pairs with R <= {GAMMA}:\n"
    )
    sources = sorted({cost.source for cost in real})
    table("pairs", [*((name, [c for c in kept if c.source == name]) for name in sources), ("all", kept)])
    print(f"\nBy the length of the student's answer, R <= {GAMMA}:\n")
    table("answer's tokens", by_length(kept, LENGTHS))
    print("\nBy change ratio:\n")
    bins = [(f"{low} to {high}", low, high) for low, high in pairwise(RATIOS)]
    table("change ratio", [(name, [c for c in real if low < c.ratio <= high]) for name, low, high in bins])
    for source, costs in long.items():
        print(f"\nLong answers, {source}:\n")
        table("answer's tokens", by_length(costs, LONG_LENGTHS))
    print(
        "\nFrom which length on a mode costs less than half of rewrite (the median over answers of about one length):\n"
    )
    names = [name for name in MODES if name != "rewrite"]
    print(f"| answers | longest | {' | '.join(MODES[name] for name in names)} |")
    print("| --- " * (len(names) + 2) + "|")
    for source, costs in {"real pairs": kept, **long}.items():
        told = [break_even(costs, name) for name in names]
        cells = ["not reached" if length is None else f"{length:.0f}" for length in told]
        print(f"| {source} | {max(cost.length for cost in costs)} | {' | '.join(cells)} |")


def by_length(costs: Sequence[Cost], edges: Sequence[int]) -> list[tuple[str, list[Cost]]]:
    """Groups of answers by their length."""
    groups: list[tuple[str, list[Cost]]] = []
    for low, high in pairwise(edges):
        name = f"{low} to {high - 1}" if high != edges[-1] else f"{low} and more"
        groups.append((name, [cost for cost in costs if low <= cost.length < high]))
    return groups


def table(title: str, groups: Iterable[tuple[str, Sequence[Cost]]]) -> None:
    """One row a group of pairs."""
    print(f"| {title} | pairs | R | {' | '.join(MODES.values())} | patch under half |")
    print("| --- " * (len(MODES) + 4) + "|")
    for name, group in groups:
        if not group:
            continue
        whole = sum(cost.rewrite for cost in group)
        cells: list[str] = []
        for mode in MODES:
            values = [getattr(cost, mode) for cost in group]
            cells.append(f"{median(values):.0f}" + (f" ({sum(values) / whole:.2f})" if mode != "rewrite" else ""))
        half = fmean(2 * cost.patch < cost.rewrite for cost in group)
        ratio = median(cost.ratio for cost in group)
        print(f"| {name} | {len(group)} | {ratio:.2f} | {' | '.join(cells)} | {half:.0%} |")


def running(costs: Sequence[Cost], value: Callable[[Cost], float]) -> list[tuple[float, float]]:
    """Median length and median `value` of answers of about one length, from the shortest on."""
    ordered = sorted(costs, key=lambda cost: cost.length)
    windows = [ordered[start : start + WINDOW] for start in range(max(0, len(ordered) - WINDOW + 1))]
    return [(median(cost.length for cost in window), median(map(value, window))) for window in windows]


def share(mode: str) -> Callable[[Cost], float]:
    """What `mode` costs over what rewrite does."""
    return lambda cost: getattr(cost, mode) / cost.rewrite


def break_even(costs: Sequence[Cost], mode: str) -> float | None:
    """The length from which on the running median stays under a half; `None` where it does not."""
    points = running(costs, share(mode))
    above = [index for index, (_, value) in enumerate(points) if value >= 0.5]
    first = above[-1] + 1 if above else 0
    return points[first][0] if first < len(points) else None


def draw(groups: dict[str, list[Cost]], path: Path) -> None:
    """A panel a group: each mode's tokens over rewrite's, by the answer's length."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(groups), figsize=(4.4 * len(groups), 4), sharey=True, layout="constrained")
    for axes, (source, costs) in zip(panels, groups.items(), strict=True):
        for mode, name in MODES.items():
            if mode != "rewrite":
                points = running(costs, share(mode))
                axes.plot([length for length, _ in points], [value for _, value in points], label=name)
        axes.axhline(1, color="0.3", linewidth=0.8)
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel="student's answer, tokens", title=source)
        lengths = [cost.length for cost in costs]
        ticks = [tick for tick in (50, 100, 200, 500, 1000, 2000) if min(lengths) <= tick <= max(lengths)]
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="Oracle's tokens over those of rewrite", ylim=(0, 1.7))
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
