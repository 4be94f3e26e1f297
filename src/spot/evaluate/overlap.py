"""Questions of the evaluation that were trained on: their accuracy after training says nothing about new questions."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from spot.schema import Pair, Problem, Prompt, as_messages, text_of

NGRAM = 13
"""Words in a row that do not come together twice by chance; what data sets are usually compared by."""

COVERED = 0.8
"""The share of a question's words, inside such n-grams, from which on it counts as the same question."""

BOILERPLATE = 50
"""An n-gram of more questions than this is how a benchmark asks, not what."""

# A number; one CJK character; a word; a sign that makes another formula of the same numbers.
_WORD = re.compile(r"\d+|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W\d_]+|[-+*/^=<>|%]")


@dataclass(frozen=True)
class Overlap:
    """A question of `task` and a pair that was trained on; `share` of the question's words are in the pair's prompt."""

    pair_id: str
    task: str
    problem_id: str
    share: float


def overlap_note(task: str, questions: Sequence[Problem], pairs: Sequence[Pair]) -> str:
    """What a reader must know where questions of `task` have the prompt of a training pair; empty where none has."""
    trained = {_asked(pair.prompt) for pair in pairs}
    count = sum(_asked(question.prompt) in trained for question in questions)
    if not count:
        return ""
    return (
        f"{count:,} of {len(questions):,} questions of {task} are among the problems trained on (the same prompt); "
        "accuracy on these after training says nothing about new questions."
    )


def in_common(ones: Mapping[str, Sequence[Problem]], others: Mapping[str, Sequence[Problem]]) -> str:
    """The first task of `ones` that asks questions of `others` in the same words, in a few words; empty where none."""
    known = {name: {tuple(question_words(row.prompt)) for row in rows} for name, rows in others.items()}
    for name, rows in ones.items():
        for other, asked in known.items():
            if count := sum(tuple(question_words(row.prompt)) in asked for row in rows):
                return f"{count:,} of {len(rows):,} questions of {name} are questions of {other} in evaluate.tasks"
    return ""


def overlaps(tasks: Mapping[str, Sequence[Problem]], pairs: Sequence[Pair]) -> list[Overlap]:
    """Questions that are a pair's prompt, or nearly: in the order of the pairs, `share` 1 for the same words.

    Nearly is: `COVERED` of the question's words stand in n-grams of `NGRAM` words of that one prompt, and so do, apart
    from order, all of its numbers. The same template with other numbers is another question. Case, punctuation and
    white space do not count; n-grams that more than `BOILERPLATE` questions share are left out on both sides, and a
    question of fewer than `NGRAM` words must be the same altogether. Answers are not looked at.
    """
    questions = [(task, problem.id, question_words(problem.prompt)) for task, rows in tasks.items() for problem in rows]
    same: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    places: defaultdict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for number, (_, _, words) in enumerate(questions):
        same[tuple(words)].append(number)
        for start, gram in _grams(words):
            places[gram].append((number, start))
    places = defaultdict(list, {gram: found for gram, found in places.items() if len(found) <= BOILERPLATE})
    numbers = [Counter(word for word in words if word.isdigit()) for _, _, words in questions]
    found: list[Overlap] = []
    for pair in pairs:
        words = question_words(pair.prompt)
        shares = dict.fromkeys(same.get(tuple(words), ()), 1.0)
        covered: defaultdict[int, set[int]] = defaultdict(set)
        for _, gram in _grams(words):
            for number, start in places.get(gram, ()):
                covered[number].update(range(start, start + NGRAM))
        theirs = Counter(word for word in words if word.isdigit())
        for number, inside in covered.items():
            share = len(inside) / _specific(questions[number][2], places)
            if share >= COVERED and numbers[number] <= theirs:
                shares.setdefault(number, share)
        found += [Overlap(pair.id, *questions[number][:2], share) for number, share in sorted(shares.items())]
    return found


def question_words(prompt: Prompt) -> list[str]:
    """The words, numbers and operators of a prompt, in lower case."""
    return _WORD.findall(text_of(prompt).casefold())


def _grams(words: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    return ((start, tuple(words[start : start + NGRAM])) for start in range(len(words) - NGRAM + 1))


def _specific(words: Sequence[str], places: Mapping[tuple[str, ...], object]) -> int:
    """How many words of a question are in an n-gram that is no boilerplate."""
    return len({start + place for start, gram in _grams(words) if gram in places for place in range(NGRAM)})


def _asked(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content.strip()) for message in as_messages(prompt))
