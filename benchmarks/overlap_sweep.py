r"""The overlap check on whole benchmarks: every question as an exact copy in many forms, edited, and renumbered.

    python -m benchmarks.overlap_sweep --data path/to/data

Exact copies differ from the benchmark's question in what surrounds it, in white space, in case, or in how a formula is
written. In near copies a tenth of the words, rounded down, are replaced, removed or followed by another one; those with
digits stay, and questions of fewer than ten words have no near copy. In renumbered ones every number is another, which
makes another question. Each question is looked for in its own set; sets are compared with each other last, and the
first hits are printed to be judged by eye.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spot.evaluate.overlap import overlaps
from spot.evaluate.registry import benchmark
from spot.schema import Message, Problem, Prompt, text_of

BENCHMARKS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "ifeval")
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
DAPO_PREFIX = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_SUFFIX = '\n\nRemember to put your answer on its own line after "Answer:".'
COMMANDS = """
    alpha beta gamma delta theta lambda mu nu pi rho sigma tau phi omega eta epsilon Delta Gamma Omega Sigma Phi Lambda
    le leq ge geq ne neq times cdot div infty pm approx in subset subseteq cup cap to rightarrow angle triangle
    circ perp equiv ldots cdots dots sum prod int sqrt ell lfloor rfloor mid emptyset
"""
SIGNS = "αβγδθλμνπρστφωηεΔΓΩΣΦΛ≤≤≥≥≠≠×·÷∞±≈∈⊂⊆∪∩→→∠△°⊥≡…⋯…∑∏∫√ℓ⌊⌋∣∅"
SUPERSCRIPTS = str.maketrans("0123456789n", "⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ")
FILLERS = "river garden window quickly purple therefore mountain with from under about value total find"


@dataclass(frozen=True)
class Question:
    """A question as a pair to train on would ask it."""

    id: str
    prompt: Prompt


def as_unicode(text: str) -> str:
    """`text` with Unicode letters and signs in place of their LaTeX commands, and without dollars."""
    names: dict[str, str] = dict(zip(COMMANDS.split(), SIGNS, strict=True))
    text = re.sub(r"\\([A-Za-z]+)", lambda found: names.get(found[1], found[0]), text)
    text = re.sub(r"\^(?:\{(\d+|n)\}|(\d|n\b))", lambda found: (found[1] or found[2]).translate(SUPERSCRIPTS), text)
    return re.sub(r"(?<!\\)\$", "", text).replace("\\$", "$").replace("-", "\N{MINUS SIGN}")


EXACT: Mapping[str, Callable[[str], Prompt]] = {
    "bare": lambda text: text,
    "one line": lambda text: " ".join(text.split()),
    "more space": lambda text: text.replace(" ", "  \n"),
    "upper case": str.upper,
    "lower case": str.lower,
    "Unicode": as_unicode,
    "\\( for $": lambda text: re.sub(r"\$([^$]+)\$", r"\\(\1\\)", text),
    "LaTeX spacing": lambda text: re.sub(r"([=+<])", r"\\,\1\\!", text),
    "\\left, \\dfrac": lambda text: re.sub(r"(?<!\\)\(", r"\\left(", text).replace("\\frac", "\\dfrac"),
    "few-shot": lambda text: f"Q: What is 2 + 2?\nA: 4\n\nQ: {text}\nA:",
    "Question: Answer:": lambda text: f"Question: {' '.join(text.split())} Answer:",
    "DAPO": lambda text: DAPO_PREFIX + text + DAPO_SUFFIX,
    "chat messages": lambda text: [Message(role="system", content=BOXED), Message(role="user", content=text)],
    "suffix": lambda text: f"{text} {BOXED}",
    "suffix, own line": lambda text: f"{text}\n{BOXED}",
    "prefix": lambda text: f"{BOXED}\n\n{text}",
    "all of them": lambda text: DAPO_PREFIX + " ".join(as_unicode(text).upper().split()) + f" {BOXED}",
}


def edited(text: str, rng: random.Random) -> str:
    """`text` with a tenth of its words edited, rounded down; those with digits stay."""
    parts = re.split(r"(\s+)", text)
    words = [place for place in range(0, len(parts), 2) if parts[place]]
    free = [place for place in words if not re.search(r"\d", parts[place])]
    for place in rng.sample(free, min(len(words) // 10, len(free))):
        other = rng.choice(FILLERS.split())
        parts[place] = rng.choice([other, other, "", f"{parts[place]} {other}"])
    return "".join(parts)


def renumbered(text: str, rng: random.Random) -> str:
    """`text` with every number raised by 1 to 9."""
    return re.sub(r"\d+", lambda number: str(int(number[0]) + rng.randint(1, 9)), text)


def read_sets(data: Path) -> Iterator[tuple[str, list[Problem], list[Problem]]]:
    """Each set in `data`: its name, its questions as they are asked, and bare."""
    for name in BENCHMARKS:
        task = benchmark(name)
        yield name, task.problems(data), task.problems(data, "{question}")
    rows = [json.loads(line)["question"] for line in (data / "gsm8k/test.jsonl").open(encoding="utf-8")]
    bare = [Problem(id=f"gsm8k-{number}", prompt=text, answer="0") for number, text in enumerate(rows, start=1)]
    yield "gsm8k", bare, bare


def training_sets(data: Path) -> Iterator[tuple[str, list[Question]]]:
    """Problems that people train on."""
    with (data / "deepmath_rlvr/math_deepmath_deal.jsonl").open(encoding="utf-8") as file:
        prompts = dict.fromkeys(json.loads(line)["prompt"] for line in file)
    yield "deepmath", [Question(f"deepmath-{number}", text) for number, text in enumerate(prompts, start=1)]
    rows = json.loads((data / "verify_then_generate/dataset.json").read_text("utf-8"))
    texts = dict.fromkeys(row["problem"] for row in rows)
    yield "verify_then_generate", [Question(f"vtg-{number}", text) for number, text in enumerate(texts, start=1)]


@dataclass(frozen=True)
class Row:
    """Of `copies` in one form so many were `found`; the first that were `missed` as they were written."""

    name: str
    form: str
    copies: int
    found: int
    missed: Sequence[str]


def measured(name: str, form: str, asked: list[Problem], copies: Sequence[tuple[str, Prompt]], exact: bool) -> Row:
    """How many `copies`, each with its question's id, are found under their own question; only as `exact` ones."""
    made = [Question(str(number), prompt) for number, (_, prompt) in enumerate(copies)]
    hits = {
        row.pair_id
        for row in overlaps({name: asked}, made)
        if row.problem_id == copies[int(row.pair_id)][0] and (row.kind == "exact" or not exact)
    }
    missed = [text_of(one.prompt) for one in made if one.id not in hits]
    return Row(name, form, len(made), len(hits), missed)


def of_set(name: str, asked: list[Problem], bare: list[Problem], seeds: int) -> Iterator[Row]:
    """Every form of one set's questions."""
    texts = [(row.id, text_of(row.prompt)) for row in bare]
    for form, wrap in EXACT.items():
        yield measured(name, form, asked, [(one, wrap(text)) for one, text in texts], exact=True)
    long = [(one, text) for one, text in texts if len(text.split()) >= 10]
    for form, prefix, suffix in (("near", "", ""), ("near, wrapped", DAPO_PREFIX, f"\n\n{BOXED}")):
        rng = random.Random(form)
        copies = [(one, prefix + edited(text, rng) + suffix) for one, text in long for _ in range(seeds)]
        yield measured(name, form, asked, copies, exact=False)
    rng = random.Random("renumbered")
    others = [(one, renumbered(text, rng)) for one, text in texts if re.search(r"\d", text)]
    yield measured(name, "renumbered", asked, others, exact=False)


def between(sets: Mapping[str, list[Problem]], others: Mapping[str, Sequence[Question]]) -> None:
    """Print the hits of each set's questions among those of all other sets."""
    print("\n| prompts of | prompts | questions of other sets | hits | exact | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    shown: list[str] = []
    for name, prompts in others.items():
        tasks = {task: rows for task, rows in sets.items() if task != name}
        started = time.process_time()
        found = overlaps(tasks, prompts)
        seconds = time.process_time() - started
        exact = sum(row.kind == "exact" for row in found)
        num_questions = sum(map(len, tasks.values()))
        print(f"| {name} | {len(prompts):,} | {num_questions:,} | {len(found)} | {exact} | {seconds:.1f} |", flush=True)
        texts = {one.id: text_of(one.prompt) for one in prompts}
        shown += [f"{row.kind}, {row.task} {row.problem_id}: {texts[row.pair_id][:160]!r}" for row in found[:5]]
    print("\n" + "\n".join(shown))


def main() -> None:
    """Sweep all sets and print what is found and what is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder with aime24, math500, gsm8k, deepmath_rlvr"
    )
    parser.add_argument("--seeds", type=int, default=2, help="near copies of each question, bare and wrapped each")
    parser.add_argument("--only", nargs="+", help="names of sets; the comparison between sets is left out")
    options = parser.parse_args()
    sets: dict[str, list[Problem]] = {}
    others: dict[str, Sequence[Question]] = {}
    print("| set | form | copies | found | share |\n| --- | --- | --- | --- | --- |")
    for name, asked, bare in read_sets(options.data):
        sets[name], others[name] = asked, [Question(row.id, row.prompt) for row in bare]
        if options.only and name not in options.only:
            continue
        for row in of_set(name, asked, bare, options.seeds):
            share = row.found / row.copies
            print(f"| {row.name} | {row.form} | {row.copies:,} | {row.found:,} | {share:.2%} |", flush=True)
            if row.form != "renumbered":
                for text in row.missed[:4]:
                    print(f"missed, {row.name}, {row.form}: {text!r}", file=sys.stderr, flush=True)
    if not options.only:
        between(sets, {**others, **dict(training_sets(options.data))})


if __name__ == "__main__":
    main()
