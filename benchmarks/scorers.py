r"""The mathematical verifier measured: verifications a second, and side by side with lm_eval's and lighteval's scorers.

    python -m benchmarks.scorers speed
    python -m benchmarks.scorers peers --lm_eval /tmp/lm/bin/python --lighteval /tmp/le/bin/python --output found.json

The peers live in environments of their own, since they pin other versions of latex2sympy2_extended and antlr4:

    python -m venv /tmp/lm
    /tmp/lm/bin/pip install --no-deps lm_eval==0.4.13
    /tmp/lm/bin/pip install "math-verify[antlr4_11_0]==0.9.0" sympy==1.14.0 antlr4-python3-runtime==4.11.0 datasets
    python -m venv /tmp/le
    /tmp/le/bin/pip install -c constraints.txt torch && /tmp/le/bin/pip install lighteval==0.13

Three sets of answers, all boxed: the adversarial table of the tests; the known answers of MATH-500 and OlympiadBench
rewritten by a seeded rule, each once so that it stays equal and once so that it does not; and the recorded answers to
GSM8K's test questions with their labels. Five scorers: ours; lm_eval's `math_verify` (minerva_math: whole response);
lm_eval's `minerva` and `hendrycks` equivalence, both given the last box by lm_eval's own function (left as they are,
they look for a sentence or for dollar signs instead); lighteval's `pass_at_k_math`, as its MATH-500 task has it. Each
verdict of a peer may take 20 seconds; then the peer is ended and the verdict is "hang". Prints Markdown.
"""

import argparse
import json
import os
import random
import re
import select
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

SEED = 0
WARM = "expressions, ours, workers in use"
PEERS = {"lm_eval": ("math_verify", "minerva", "hendrycks"), "lighteval": ("lighteval",)}
SCORERS = ("spot", *PEERS["lm_eval"], *PEERS["lighteval"])
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Answer(NamedTuple):
    """A response with the known answer, what it is an example of, and whether it is right (`None`: cannot be said)."""

    kind: str
    response: str
    answer: str
    correct: bool | None


# --- The answers ------------------------------------------------------------------------------------------------------

INTEGER = re.compile(r"-?[0-9]+")
FRACTION = re.compile(r"(-?)\\d?frac\{([0-9]+)\}\{([0-9]+)\}")
ROOT = re.compile(r"\\sqrt\{([0-9]+)\}")
EXPONENT = re.compile(r"(?<=[A-Za-z2-9)])\^(?:\{([0-9]+)\}|([0-9]))")
Rewrite = Callable[[str, random.Random], str | None]


def for_integers(make: Callable[[int, random.Random], str | None]) -> Rewrite:
    """A rewriting of plain integers, from `make`."""
    return lambda text, rng: make(int(text), rng) if INTEGER.fullmatch(text) else None


def for_fractions(make: Callable[[str, int, int, random.Random], str | None]) -> Rewrite:
    """A rewriting of fractions of integers, from `make`, which is given sign, numerator and denominator."""

    def rewrite(text: str, rng: random.Random) -> str | None:
        match = FRACTION.fullmatch(text)
        return make(match[1], int(match[2]), int(match[3]), rng) if match else None

    return rewrite


def parts_of(text: str) -> list[str]:
    """The parts of a list without brackets round it, of a set in braces or of a tuple."""
    from spot.verify import notation

    inner = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text).strip()
    for opening, closing in (("(", ")"), (r"\{", r"\}")):
        if len(notation.items(inner)) == 1 and inner.startswith(opening) and inner.endswith(closing):
            return notation.items(inner[len(opening) : -len(closing)])
    return notation.items(inner)


def decimal(sign: str, top: int, bottom: int, _: random.Random) -> str | None:
    """The decimal of a fraction if it ends within six places."""
    value = Fraction(top, bottom)
    text = f"{float(value):.6f}".rstrip("0")
    return f"{sign}{text}" if Fraction(text) == value and value.denominator > 1 else None


def is_list(text: str) -> bool:
    """Whether `text` is several answers without brackets round them."""
    from spot.verify import notation

    return len(notation.items(text)) > 1 and not re.search(r"\\text|where|=|\\!", text)


def is_bare(text: str) -> bool:
    """Whether `text` is one expression: no list, relation, brackets around all of it, words or unit."""
    return not (re.search(r"[=<>,%\[\]]|\\(?:text|mbox|l?eq?|g?eq?|in|cup|circ|pm|begin|\{|infty|le|ge)", text)
                or text.startswith("(") or re.fullmatch(r"[A-Za-z ]+", text) or "_" in text)  # fmt: skip


def swapped(text: str, _: random.Random) -> str | None:
    parts = parts_of(text)
    if not re.fullmatch(r"\(.*\)", text) or is_list(text) or len(parts) < 2 or parts[::-1] == parts:
        return None
    return f"({', '.join(parts[::-1])})"


def other_bracket(text: str, _: random.Random) -> str | None:
    if is_list(text) or not re.fullmatch(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]", text):
        return None
    return ("[" if text[0] == "(" else "(") + text[1:] if len(text.split(",")) == 2 else None


def higher_exponent(text: str, _: random.Random) -> str | None:
    if "text" in text or not EXPONENT.search(text):
        return None
    return EXPONENT.sub(lambda found: f"^{{{int(found[1] or found[2]) + 1}}}", text, count=1)


EQUAL: dict[str, Rewrite] = {
    "dfrac": lambda text, _: text.replace(r"\frac", r"\dfrac") if r"\frac" in text else None,
    "solidus": for_fractions(lambda sign, top, bottom, _: f"{sign}{top}/{bottom}"),
    "unreduced fraction": for_fractions(
        lambda sign, top, bottom, rng: rf"{sign}\frac{{{top * (k := rng.randint(2, 9))}}}{{{bottom * k}}}"
    ),
    "decimal of a fraction": for_fractions(decimal),
    "x =": lambda text, _: f"x = {text}" if INTEGER.fullmatch(text) or FRACTION.fullmatch(text) else None,
    "without spaces": lambda text, _: (
        None if "text" in text or (tight := re.sub(r"(?<![A-Za-z])\s+|\s+(?![A-Za-z])", "", text)) == text else tight
    ),
    "displaystyle": lambda text, _: rf"\displaystyle {text}" if "\\" in text else None,
    "final period": lambda text, _: f"{text}.",
    "unit in text": for_integers(lambda number, _: rf"{number}\text{{ units}}"),
    "thousands comma": for_integers(lambda number, _: f"{number:,}" if abs(number) >= 1000 else None),
    "integer as decimal": for_integers(lambda number, _: f"{number}.0"),
    "integer as quotient": for_integers(lambda number, rng: rf"\frac{{{number * (k := rng.randint(2, 9))}}}{{{k}}}"),
    "integer as sum": for_integers(lambda number, _: f"{number - 1}+1"),
    "list the other way round": lambda text, _: ", ".join(parts_of(text)[::-1]) if is_list(text) else None,
    "Unicode minus": lambda text, _: text.replace("-", "\u2212") if "-" in text and "text" not in text else None,
    "root as power": lambda text, _: ROOT.sub(r"{\1}^{1/2}", text) if ROOT.search(text) else None,
    "left and right": lambda text, _: (
        text.replace("(", r"\left(").replace(")", r"\right)")
        if "left" not in text and text.count("(") == text.count(")") > 0 and "[" not in text and "]" not in text
        else None
    ),
}
UNEQUAL: dict[str, Rewrite] = {
    "off by one": for_integers(lambda number, rng: str(number + rng.choice((-1, 1)))),
    "digit appended": for_integers(lambda number, rng: f"{number}{rng.randint(0, 9)}" if number else None),
    "first digit missing": for_integers(lambda number, _: str(number)[1:].lstrip("0") or None if number > 9 else None),
    "other sign": lambda text, _: (
        f"-{text}" if not text.startswith("-") and text != "0" and (INTEGER.fullmatch(text) or FRACTION.fullmatch(text))
        else None
    ),
    "upside down": for_fractions(
        lambda sign, top, bottom, _: rf"{sign}\frac{{{bottom}}}{{{top}}}" if top not in (0, bottom) else None
    ),
    "numerator off by one": for_fractions(lambda sign, top, bottom, _: rf"{sign}\frac{{{top + 1}}}{{{bottom}}}"),
    "tuple the other way round": swapped,
    "part missing": lambda text, _: ", ".join(parts_of(text)[:-1]) if is_list(text) else None,
    "part added": lambda text, _: f"{text}, 917" if is_list(text) or INTEGER.fullmatch(text) else None,
    "other bracket": other_bracket,
    "exponent off by one": higher_exponent,
    "root lost": lambda text, _: ROOT.sub(r"{\1}", text) if ROOT.search(text) and ROOT.findall(text) != ["1"] else None,
    "million": for_integers(lambda number, _: rf"{number}\text{{ million}}" if number else None),
    "one more": lambda text, _: f"{text} + 1" if is_bare(text) and not INTEGER.fullmatch(text) else None,
    "echoed template": lambda *_: "ANSWER",
}  # fmt: skip


def boxed(content: str) -> str:
    """A response that ends in a box."""
    return f"Adding up, we find the answer.\n\nTherefore, the final answer is: $\\boxed{{{content}}}$."


def rewritten(answers: Iterable[str], per_answer: int) -> Iterator[Answer]:
    """Each known answer rewritten `per_answer` times to an equal and as often to an unequal one."""
    rng = random.Random(SEED)
    for answer in answers:
        bare = re.sub(r"(?<!\\)\$", "", answer).strip().removesuffix(".")
        for rewrites, correct in ((EQUAL, True), (UNEQUAL, False)):
            made = [(name, content) for name, rewrite in rewrites.items() if (content := rewrite(bare, rng))]
            for name, content in rng.sample(made, min(per_answer, len(made))):
                yield Answer(f"{'=' if correct else '≠'} {name}", boxed(content), answer, correct)


def rows_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        sys.exit(f"error: {path}: no such file; give the folder of the data sets with --data")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def answers_of(data: Path, per_answer: int) -> dict[str, list[Answer]]:
    """The three sets of answers."""
    from tests.verify.test_verify_adversarial import CASES

    known = [row["answer"] for row in rows_of(data / "math500/test.jsonl")]
    known += [row["final_answer"][0] for row in rows_of(data / "olympiadbench/test.jsonl")]
    recorded: list[Answer] = []
    for row in rows_of(data / "gsm8k/example_model_solutions.jsonl"):
        gold = row["ground_truth"].rsplit("A: ", 1)[1].strip()
        for name, solution in row.items():
            if isinstance(solution, dict):
                text, _, last = solution["solution"].rpartition("A:")
                recorded.append(Answer(name, f"{text}$\\boxed{{{last.strip()}}}$", gold, solution["is_correct"]))
    return {
        "adversarial": [Answer(case.name, case.response, case.answer, case.correct) for case in CASES],
        "rewritten": list(rewritten(known, per_answer)),
        "gsm8k": recorded,
    }


# --- The peers --------------------------------------------------------------------------------------------------------


def serve(name: str) -> None:
    """In the peer's own Python: read `{scorer, response, answer}` a line, write its verdict a line."""
    judges = {"lm_eval": lm_eval_judges, "lighteval": lighteval_judges}[name]()
    replies = sys.stdout
    sys.stdout = sys.stderr
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            verdict: Any = bool(judges[request["scorer"]](request["response"], request["answer"]))
        except BaseException as error:  # math-verify's timeout is no Exception
            verdict = type(error).__name__
        replies.write(json.dumps(verdict) + "\n")
        replies.flush()


def lm_eval_judges() -> dict[str, Callable[[str, str], bool]]:
    import importlib.util
    from importlib.metadata import files

    def load(task: str) -> Any:
        wanted = f"lm_eval/tasks/{task}/utils.py"
        path = next(entry.locate() for entry in files("lm_eval") or [] if str(entry) == wanted)
        spec = importlib.util.spec_from_file_location(task, str(path))
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    minerva, hendrycks = load("minerva_math"), load("hendrycks_math")

    def last_box(response: str) -> str | None:
        found = minerva.last_boxed_only_string(response)
        return None if found is None else minerva.remove_boxed(found)

    def by_minerva(response: str, answer: str) -> bool:
        box = last_box(response)
        normalize = minerva.normalize_final_answer
        return box is not None and minerva.is_equiv(normalize(box), normalize(answer))

    def by_math_verify(response: str, answer: str) -> bool:
        document = {"solution": f"The answer is $\\boxed{{{answer}}}$.", "answer": answer}
        return bool(minerva.process_results(document, [response])["math_verify"])

    def by_hendrycks(response: str, answer: str) -> bool:
        box = last_box(response)
        return box is not None and hendrycks.is_equiv(box, answer)

    return {"math_verify": by_math_verify, "minerva": by_minerva, "hendrycks": by_hendrycks}


def lighteval_judges() -> dict[str, Callable[[str, str], bool]]:
    import logging

    from lighteval.metrics.metrics import Metrics
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc

    logging.disable(logging.CRITICAL)
    metric = Metrics.pass_at_k_math(sample_params={"k": 1, "n": 1}).sample_level_fn

    def judge(response: str, answer: str) -> bool:
        document = Doc(query="", choices=[f"ANSWER: $\\boxed{{{answer}}}$."], gold_index=0)
        return metric.compute(doc=document, model_response=ModelResponse(text=[response])) == 1

    return {"lighteval": judge}


class Peer:
    """A peer's process, ended when it takes too long and started anew."""

    def __init__(self, python: str, name: str, seconds: float = 20) -> None:
        self.command = [python, str(Path(__file__).resolve()), "serve", name]
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, scorer: str, answer: Answer) -> bool | str:
        """The verdict, or the name of what went wrong."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if self.reply(300) != b"ready\n":
                sys.exit(f"error: `{' '.join(self.command)}` does not start")
        assert self.process.stdin is not None
        request = {"scorer": scorer, "response": answer.response, "answer": answer.answer}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        reply = self.reply(self.seconds)
        if reply:
            return json.loads(reply)
        self.close()
        return "hang" if reply is None else "crash"

    def reply(self, seconds: float) -> bytes | None:
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def judge_all(python: str, name: str, answers: list[Answer]) -> dict[str, list[bool | str]]:
    """Every verdict of a peer's scorers."""
    peer = Peer(python, name)
    verdicts = {scorer: [peer.ask(scorer, answer) for answer in answers] for scorer in PEERS[name]}
    peer.close()
    return verdicts


# --- The reports ------------------------------------------------------------------------------------------------------


def peers(options: argparse.Namespace) -> None:
    """Run all scorers on all answers and print who is right."""
    from spot.verify.math import verify_many

    pythons = {name: getattr(options, name) for name in PEERS if getattr(options, name)}
    found: dict[str, Any] = {}
    for group, answers in answers_of(options.data, options.per_answer).items():
        if options.only not in (None, group):
            continue
        verdicts: dict[str, list[bool | str | None]] = {
            "spot": [verdict.correct for verdict in verify_many([(row.response, row.answer) for row in answers])]
        }
        with ThreadPoolExecutor() as threads:
            waiting = [threads.submit(judge_all, python, name, answers) for name, python in pythons.items()]
            for done in waiting:
                verdicts |= done.result()
        print(f"\n### {group}: {len(answers):,} answers\n")
        print_totals(answers, verdicts)
        print_disagreements(answers, verdicts)
        sys.stdout.flush()
        found[group] = [
            {**answer._asdict(), **{name: column[row] for name, column in verdicts.items()}}
            for row, answer in enumerate(answers)
            if len({column[row] for column in verdicts.values()} | {answer.correct}) > 1
        ]
    if options.output:
        options.output.write_text(json.dumps(found, indent=1, ensure_ascii=True))


def print_totals(answers: list[Answer], verdicts: dict[str, list[Any]]) -> None:
    print("| scorer | as it should be | wrong credited | right refused | unscored credited | error, hang |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, column in verdicts.items():
        pairs = list(zip(column, (answer.correct for answer in answers), strict=True))
        credited, refused, unscored = (sum(pair == wrong for pair in pairs) for wrong in
                                       ((True, False), (False, True), (True, None)))  # fmt: skip
        failed = sum(isinstance(verdict, str) for verdict, _ in pairs)
        good = sum(is_as_it_should_be(verdict, correct) for verdict, correct in pairs)
        print(f"| {name} | {good / len(pairs):.1%} | {credited} | {refused} | {unscored} | {failed} |")


def is_as_it_should_be(verdict: bool | str | None, correct: bool | None) -> bool:
    """Where nothing can be said, "wrong" is as good as no verdict for those who have none."""
    return verdict is correct or (correct is None and verdict is False)


def print_disagreements(answers: list[Answer], verdicts: dict[str, list[Any]]) -> None:
    """One line a kind of answer and pattern of verdicts, with its count and its first example."""
    patterns: dict[tuple[str, str, str], list[Answer]] = defaultdict(list)
    for row, answer in enumerate(answers):
        wrong = [
            f"{name} ({column[row]})" if isinstance(column[row], str) else name
            for name, column in verdicts.items()
            if not is_as_it_should_be(column[row], answer.correct)
        ]
        if wrong:
            patterns[answer.kind, shown(answer.correct), ", ".join(wrong)].append(answer)
    print("\n| kind | answers | known | boxed | is | who says otherwise |\n| --- | --- | --- | --- | --- | --- |")
    for (kind, correct, wrong), examples in sorted(patterns.items(), key=lambda item: (item[0][1], item[0])):
        known, content = code(examples[0].answer), code(examples[0].response)
        print(f"| {kind} | {len(examples)} | {known} | {content} | {correct} | {wrong} |")


def shown(correct: bool | None) -> str:
    return {True: "right", False: "wrong", None: "unscored"}[correct]


def code(text: str) -> str:
    """`text` as code in a Markdown table, its boxed part if it has one, shortened."""
    from spot.verify.boxed import last_boxed

    text = last_boxed(text) or text[-60:] if "boxed" in text else text
    text = ascii(text)[1:-1].replace("\\\\", "\\").replace("`", "'").replace("|", "\\|").replace("\\n", " ")
    return f"`{text[:57]}...`" if len(text) > 60 else f"`{text or ' '}`"


def speed(options: argparse.Namespace) -> None:
    """Verifications a second on two workers, medians over alternating repeats, and math-verify alone for comparison."""
    from spot.verify import math as verify_module
    from spot.verify import notation
    from spot.verify.boxed import last_boxed
    from spot.verify.math import verify_many
    from spot.verify.pool import Pool

    rng = random.Random(SEED)
    prose = "We add the two sides, square them and find that nothing else is left over.\n" * 25
    integers = [(f"{prose}{boxed(str(number + number % 2))}", str(number)) for number in rng.sample(range(10**6), 4000)]
    known = [row["answer"] for row in rows_of(options.data / "math500/test.jsonl")]
    known += [row["final_answer"][0] for row in rows_of(options.data / "olympiadbench/test.jsonl")]
    rows = rewritten([answer for answer in known if not INTEGER.fullmatch(answer.strip("$"))], 3)
    expressions = list({(row.response, row.answer) for row in rows if row.kind != "≠ echoed template"})
    expressions.sort()
    # The grammar's tables are learned as it is used: a quarter of the answers teaches it, the others are measured.
    first, rest = expressions[::4], [pair for place, pair in enumerate(expressions) if place % 4]
    rates: dict[str, list[tuple[float, float]]] = defaultdict(list)
    waits: list[float] = []

    def ours(pairs: list[tuple[str, str]]) -> None:
        verify_many(pairs)

    def alone(pairs: list[tuple[str, str]]) -> None:
        from math_verify import parse, verify

        for response, answer in pairs:
            content = last_boxed(response) or ""
            gold, given = (parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (answer, content))
            verify(gold, given, timeout_seconds=None)

    jobs = {
        "integers, ours": (ours, integers),
        "expressions, ours, workers just started": (ours, rest),
        WARM: (ours, rest),
        "integers, math-verify in one process": (alone, integers[:500]),
        "expressions, math-verify in one process": (alone, [pair for pair in expressions[::4] if "^" not in pair[1]]),
    }
    for _ in range(options.repeats):
        for name, (work, pairs) in jobs.items():
            verify_module.SHARED.close()
            verify_module.SHARED = Pool(num_workers=2)  # new workers remember nothing
            started = time.perf_counter()
            verify_module.SHARED.judge_many([("1/2", "0.5")] * 2)
            waits.append(time.perf_counter() - started)
            clear_caches()
            if name == WARM:
                for worker_share in (first, first[::-1]):
                    verify_many(worker_share)
            started, used = time.perf_counter(), cpu_seconds(verify_module.SHARED.process_ids())
            work(pairs)
            wall, cpu = time.perf_counter() - started, cpu_seconds(verify_module.SHARED.process_ids()) - used
            rates[name].append((len(pairs) / wall, len(pairs) / cpu))
    settled = sum(verify_module._settle(notation.clean(last_boxed(response) or ""), notation.clean(answer)) is not None
                  for response, answer in expressions)  # fmt: skip
    print("| answers | verifications | a second: median | lowest | highest | a second of CPU: median |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found in rates.items():
        wall, cpu = [rate for rate, _ in found], [rate for _, rate in found]
        print(f"| {name} | {len(jobs[name][1]):,} | {median(wall):,.0f} | {min(wall):,.0f} | {max(wall):,.0f} ", end="")
        print(f"| {median(cpu):,.0f} |")
    print(f"\n{options.repeats} alternating repeats; starting two workers takes {median(waits):.1f} s, not counted; ")
    print(f"{settled} of the {len(expressions):,} expressions are settled by their text alone.")


def cpu_seconds(process_ids: list[int]) -> float:
    """Processor time of this process and of those, all threads."""
    ticks = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13] for pid in process_ids]
    return time.process_time() + sum(int(user) + int(system) for user, system in ticks) / os.sysconf("SC_CLK_TCK")


def clear_caches() -> None:
    """Forget what math-verify has parsed in this process."""
    from math_verify import parser

    for name in vars(parser):
        if hasattr(found := getattr(parser, name), "cache_clear"):
            found.cache_clear()


def main() -> None:
    """Measure, compare, or serve as a peer."""
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    for function in (speed, peers):
        command = commands.add_parser(function.__name__, help=(function.__doc__ or "").partition("\n")[0])
        command.set_defaults(run=function)
        command.add_argument("--data", type=Path, default=DATA, help="the folder with math500, olympiadbench and gsm8k")
        if function is speed:
            command.add_argument("--repeats", type=int, default=5)
        else:
            command.add_argument("--lm_eval", help="the Python that has lm_eval")
            command.add_argument("--lighteval", help="the Python that has lighteval")
            command.add_argument(
                "--per_answer", type=int, default=1, help="rewritings of each known answer, per verdict"
            )
            command.add_argument("--only", choices=("adversarial", "rewritten", "gsm8k"), help="one set of answers")
            command.add_argument("--output", type=Path, help="write every disagreement as JSON")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
