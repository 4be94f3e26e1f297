"""Real answers of real models as a run: four models' recorded answers to GSM8K's test questions, imported.

Reads `example_model_solutions.jsonl` of openai/grade-school-math and writes what `run.yaml` beside this file names:
the problems, every answer as an attempt, and for each wrong answer the nearest right one (of any of the models) as its
correction. The answers end in `A: 18`, which `run.yaml` declares as their answer pattern. There is no student to load
here, so a small one is made: a BPE tokenizer trained on the answers and a randomly initialised Qwen3-architecture
model. These are GSM8K's test questions: nothing that comes of them may be evaluated on GSM8K.

    python examples/gsm8k/prepare.py path/to/example_model_solutions.jsonl
    spot run examples/gsm8k/run.yaml
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein

from spot.files.disk import write_atomic
from spot.files.store import write_rows
from spot.lab.student import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, START_OF_TURN, build_model
from spot.schema import Problem
from spot.stages.asking import Answer

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
VOCABULARY = 2000


def main() -> None:
    """Read the recorded answers and write a run's inputs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("solutions", type=Path, help="example_model_solutions.jsonl of openai/grade-school-math")
    parser.add_argument("--output", type=Path, default=Path("runs/gsm8k-inputs"))
    options = parser.parse_args()
    if not options.solutions.is_file():
        sys.exit(f"error: {options.solutions}: no such file")
    records = [json.loads(line) for line in options.solutions.read_text("utf-8").splitlines()]
    problems: list[Problem] = []
    answers: list[Answer] = []
    corrections: list[str] = []
    for number, record in enumerate(records):
        problem_id = f"gsm8k-test-{number}"
        problems.append(_problem(problem_id, record))
        solutions = [record[model] for model in MODELS]
        right = [_text(solution) for solution in solutions if solution["is_correct"]]
        for sample, (model, solution) in enumerate(zip(MODELS, solutions, strict=True)):
            text = _text(solution)
            answers.append(Answer(problem_id=problem_id, response=text, sample=sample, model=model))
            if right and not solution["is_correct"]:
                nearest = min(
                    right, key=lambda other, text=text: Levenshtein.normalized_distance(text.split(), other.split())
                )
                corrections.append(json.dumps({"attempt_id": f"{problem_id}#{sample}", "response": nearest}))
    write_rows(options.output / "problems.jsonl", problems)
    write_rows(options.output / "answers.jsonl", answers)
    write_atomic(options.output / "corrections.jsonl", "\n".join(corrections) + "\n")
    make_student(
        [answer.response for answer in answers] + [str(p.prompt) for p in problems], options.output / "student"
    )
    sys.stdout.write(
        f"{options.output}: {len(problems)} problems, {len(answers)} answers, {len(corrections)} corrections\n"
    )


def _problem(problem_id: str, record: dict[str, Any]) -> Problem:
    gold = record["ground_truth"].rsplit("A: ", 1)[1].strip()
    return Problem(id=problem_id, prompt=record["question"], answer=gold, source="gsm8k test")


def _text(solution: dict[str, Any]) -> str:
    return solution["solution"]


def make_student(texts: list[str], output: Path) -> None:
    """A BPE tokenizer trained on `texts` and an untrained model that fits it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in (END_OF_TEXT, START_OF_TURN, END_OF_TURN)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TURN, pad_token=END_OF_TEXT)
    fast.chat_template = CHAT_TEMPLATE
    model = build_model(fast, seed=0)
    model.save_pretrained(output)
    fast.save_pretrained(output)


if __name__ == "__main__":
    main()
