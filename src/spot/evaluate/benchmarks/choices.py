r"""GPQA-Diamond, MMLU-Pro and TruthfulQA: the options are known.

GPQA-Diamond: 198 questions of graduate science, four choices each. The authors ask that items are not shown in the
open, so no row is shown here and the set comes from the hub, where its terms have to be accepted, or from the user's
`gpqa_diamond.csv`: columns `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`. Their order is drawn anew for
each repetition: one for all would make the letter a property of the question. The draw depends on the question and the
repetition alone, so that all models see the same orders and can be compared in pairs.

MMLU-Pro: 12,032 questions of 14 subjects with up to ten choices, asked as its authors do, five solved ones first. Rows:
`{"question": "The symmetric group ...", "options": ["0", "1", ...], "answer": "A", "answer_index": 0, "category":
"math", "cot_content": "A: Let's think step by step. ... The answer is (A)."}`; the examples are the first five of the
question's subject in the split `validation`, whose `cot_content` ends in an answer line here. Its authors draw a letter
at random where they can read none; here that is no answer and wrong. So many questions make a small error already, so
each is asked once by default.

TruthfulQA: 817 questions that invite a popular falsehood, by its multiple-choice variants MC1 and MC2. Rows:
`{"question": "What happens to you if you eat watermelon seeds?", "mc1_targets": {"choices": [...], "labels": [1, 0,
...]}, "mc2_targets": {...}}` (the hub's configuration `multiple_choice`). Nothing is generated. Each choice is scored
by the sum of its tokens' log-probabilities as the model's answer to the question; the accuracy is MC1 (the true choice
is the likeliest), the measure `mc2` the probability of all true choices among all. That needs log-probabilities, so the
model has to be in process. The authors prepend six fixed question and answer pairs for models that are no chat models;
here a chat model is asked in its template, without any.
"""

import math
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

from spot.evaluate.prompting import CHOICE, fill
from spot.evaluate.source import Data, Record, Source
from spot.evaluate.task import Part, Task
from spot.schema import Attempt, Message, Problem, derived_seed
from spot.verify.choice import LETTERS
from spot.verify.likelihood import read_logps

SHOTS = 5
_OPENING = re.compile(r"^A:\s*")
_CLOSING = re.compile(r"\s*The answer is \(([A-Z])\)\.?\s*$")
_MMLU_PRO_REVISION = "b189ec765aa7ed75c8acfea42df31fdae71f97be"


def lettered(options: Sequence[str]) -> str:
    """The options as a prompt shows them, one a line."""
    return "\n".join(f"{LETTERS[place]}. {option}" for place, option in enumerate(options))


# --- GPQA -------------------------------------------------------------------------------------------------------------


def build_gpqa(data: Data, prompt: str) -> list[Problem]:
    """The problems, each asked as its first repetition is; `meta` has what the others need."""
    problems: list[Problem] = []
    for record in data:
        options = [record.text("Correct Answer"), *(record.text(f"Incorrect Answer {n}") for n in (1, 2, 3))]
        meta = {"question": record.text("Question"), "template": prompt, "options": options}
        problems.append(
            shuffled(Problem(id=f"gpqa-{record.number}", prompt="?", answer="A", source="gpqa", meta=meta), 0)
        )
    return problems


def shuffled(problem: Problem, sample: int) -> Problem:
    """The problem as repetition `sample` asks it: the right option of `meta` is the first, wherever it is shown."""
    options: list[str] = problem.meta["options"]
    order = list(range(len(options)))
    random.Random(derived_seed(0, "gpqa", problem.id, sample)).shuffle(order)
    shown = [options[index] for index in order]
    return problem.model_copy(
        update={
            "prompt": fill(problem.meta["template"], question=problem.meta["question"], options=lettered(shown)),
            "answer": LETTERS[order.index(0)],
            "meta": problem.meta | {"shown": shown},
        }
    )


GPQA = Task(
    "gpqa",
    "GPQA-D",
    "ood",
    Source(
        "gpqa_diamond.csv",
        "Idavidrein/gpqa",
        "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        "train",
        "gpqa_diamond",
        note="its authors give it to those who accept its terms",
    ),
    build_gpqa,
    CHOICE,
    verifier="choice",
    variant=shuffled,
    fields=("question", "options"),
)


# --- MMLU-Pro ---------------------------------------------------------------------------------------------------------


def build_mmlu_pro(data: Data, prompt: str) -> list[Problem]:
    """The problems, each after the examples of its subject as turns of a chat."""
    shown: defaultdict[str, list[Message]] = defaultdict(list)
    for record in data.examples or ():
        turns = shown[record.text("category")]
        if len(turns) < 2 * SHOTS:
            solution, letter = _OPENING.sub("", record.text("cot_content")), _letter(record)
            turns.append(Message(role="user", content=_asked(record, prompt)))
            turns.append(Message(role="assistant", content=f"{_CLOSING.sub('', solution)}\nAnswer: {letter}"))
    for record in data:
        if len(shown[record.text("category")]) < 2 * SHOTS:
            place = data.examples.place if data.examples else "no examples"
            raise record.error(f"its subject {record.text('category')!r} has fewer than {SHOTS} examples in {place}")
    return [
        Problem(
            id=f"mmlu_pro-{record.number}",
            prompt=[*shown[record.text("category")], Message(role="user", content=_asked(record, prompt))],
            answer=_letter(record),
            source="mmlu_pro",
            meta={"subject": record.text("category"), "options": _options(record)},
        )
        for record in data
    ]


def _asked(record: Record, prompt: str) -> str:
    return fill(prompt, question=record.text("question"), options=lettered(_options(record)))


def _options(record: Record) -> list[str]:
    found = record.get("options")
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise record.error("column 'options' is no list")
    options = [str(option) for option in cast(Sequence[Any], found) if str(option) != "N/A"]
    if len(options) > len(LETTERS):
        raise record.error(f"{len(options)} options, more than there are letters")
    return options


def _letter(record: Record) -> str:
    letter = record.text("answer")
    if letter not in LETTERS[: len(_options(record))]:
        raise record.error(f"the answer {letter[:20]!r} is none of its {len(_options(record))} options")
    return letter


MMLU_PRO = Task(
    "mmlu_pro",
    "MMLU-Pro",
    "general",
    Source("mmlu_pro/test.jsonl", "TIGER-Lab/MMLU-Pro", _MMLU_PRO_REVISION),
    build_mmlu_pro,
    CHOICE,
    verifier="choice",
    repeats=1,
    examples=Source("mmlu_pro/validation.jsonl", "TIGER-Lab/MMLU-Pro", _MMLU_PRO_REVISION, "validation"),
    fields=("question", "options"),
)


# --- TruthfulQA -------------------------------------------------------------------------------------------------------


def build_truthfulqa(data: Data, prompt: str) -> list[Problem]:
    """The questions; `meta` has the `choices`, which of them are true, and which are MC1's."""
    problems: list[Problem] = []
    for record in data:
        first, second = (_targets(record, name) for name in ("mc1_targets", "mc2_targets"))
        truths = first | second | first  # MC1's choices first, and its labels where the two disagree
        problems.append(
            Problem(
                id=f"truthfulqa-{record.number}",
                prompt=fill(prompt, question=record.text("question")),
                answer=next(choice for choice, true in first.items() if true),
                source="truthfulqa",
                meta={
                    "choices": list(truths),
                    "true": list(truths.values()),
                    "mc1": [choice in first for choice in truths],
                    "mc2": [choice in second for choice in truths],
                },
            )
        )
    return problems


def _targets(record: Record, name: str) -> dict[str, bool]:
    """Each choice and whether it is true."""
    targets: Any = record.get(name)
    try:
        found = {
            str(choice).strip(): bool(label)
            for choice, label in zip(targets["choices"], targets["labels"], strict=True)
        }
    except (TypeError, KeyError, ValueError):
        raise record.error(f"column {name!r} has no choices with labels") from None
    if not any(found.values()) or all(found.values()):
        raise record.error(f"column {name!r} has no true choice, or no false one")
    return found


def measures(attempt: Attempt, problem: Problem) -> Mapping[str, Part]:
    """MC2: the probability of the true choices among all."""
    try:
        logps = read_logps(attempt.response, len(problem.meta["choices"]))
    except ValueError:
        return {"mc2": (0.0, 1.0)}
    return {"mc2": (true_share(logps, problem.meta["true"], problem.meta["mc2"]), 1.0)}


def true_share(logps: Sequence[float], true: Sequence[bool], counted: Sequence[bool]) -> float:
    """The probability of the true ones of the `counted` choices, given that it is one of these."""
    kept = [(logp, is_true) for logp, is_true, counts in zip(logps, true, counted, strict=True) if counts]
    highest = max(logp for logp, _ in kept)
    weights = [(math.exp(logp - highest), is_true) for logp, is_true in kept]
    return sum(weight for weight, is_true in weights if is_true) / sum(weight for weight, _ in weights)


TRUTHFULQA = Task(
    "truthfulqa",
    "TruthfulQA",
    "general",
    Source(
        "truthfulqa/validation.jsonl",
        "truthfulqa/truthful_qa",
        "741b8276f2d1982aa3d5b832d3ee81ed3b896490",
        "validation",
        "multiple_choice",
    ),
    build_truthfulqa,
    "{question}",
    verifier="likelihood",
    repeats=1,
    measures=measures,
    has_one_answer=False,
    scored_by="likelihood",
)
