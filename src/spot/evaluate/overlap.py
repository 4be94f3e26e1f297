"""Questions of the evaluation that were trained on: their accuracy after training says nothing about new questions.

What is compared is the question's own text, not the prompt around it: what all questions of a benchmark begin and end
with is its template and is taken off, and a question is looked for anywhere in a pair's prompt. Case, white space,
punctuation and how LaTeX spaces and sizes a formula do not count (`wording`).

* `exact`: the question stands in the prompt. One of few words, which may be part of another question, has to begin and
  end where a sentence does.
* `near`: at most `EDITED` of its words (none below `FEW_WORDS`) were changed, removed or put in, and the numbers are
  the same in the same order. The same template with other numbers is another question, and so is another board.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from rapidfuzz.distance import Levenshtein

from spot.errors import UserError
from spot.evaluate.prompting import CHOICE, MATH
from spot.evaluate.wording import GRID, Wording, wording
from spot.schema import Dropped, Problem, Prompt, as_messages

EDITED = 0.125
"""Up to 10% has to be found; a replaced formula may count as a word more than its author would say."""
FEW_WORDS = 10
FEW_TOKENS = 12
"""A question of fewer is looked for where a sentence begins and ends only."""
GRAM = 4
BOILERPLATE = 50
"""An n-gram of more questions than this is looked up only for questions that have hardly any other."""
ANCHORS = 8
SHARED_ANCHORS = 0.25
TEMPLATE_OF = 8
"""With so many questions, what all begin and end with is how they are asked."""

_TEMPLATES = tuple(wording(text.split("}", 1)[1].replace("{options}", "")).tokens for text in (MATH, CHOICE))
# Words that lead up to a question, and those that follow it, where no punctuation does.
_LEADING = """problem question q task exercise user human instruction input prompt please following inst >"""
_FOLLOWING = """answer final solution please let show think put give provide work reason return your you remember output
write step explain make end conclude box respond reply note hint do use be assistant response user human question
problem first now q a < s inst im"""
_NUMERALS = """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million twice thrice half third
quarter double triple"""
_BEFORE, _AFTER, _NUMBERS = (frozenset(words.split()) for words in (_LEADING, _FOLLOWING, _NUMERALS))


_Pair = TypeVar("_Pair", bound="Trained")


@dataclass(frozen=True)
class Overlap:
    """A question of `task` and a pair that was trained on; `share` of the question's words are in the pair's prompt."""

    pair_id: str
    task: str
    problem_id: str
    share: float

    @property
    def kind(self) -> Literal["exact", "near"]:
        """Whether the question is there word for word, or with a few words changed."""
        return "exact" if self.share == 1 else "near"


@dataclass(frozen=True)
class _Question:
    """A question's own wording, and the tokens of its template next to it."""

    task: str
    problem_id: str
    own: Wording
    before: str | None
    after: str | None


class Trained(Protocol):
    """What is looked at of a pair: `spot.schema.Pair`, or a row of any preference data."""

    @property
    def id(self) -> str:
        """The row's name in messages."""
        ...

    @property
    def prompt(self) -> Prompt:
        """The question, plain or as chat messages."""
        ...


def read_questions(names: Sequence[str], data_dir: Path | None) -> tuple[dict[str, list[Problem]], dict[str, str]]:
    """The questions of the tasks called `names`, and of those whose rows cannot be had, why. Raises `UserError` for a
    name that is none."""
    from spot.evaluate.registry import find_tasks

    questions: dict[str, list[Problem]] = {}
    missing: dict[str, str] = {}
    for task in find_tasks(names):
        try:
            questions[task.name] = task.problems(data_dir)
        except UserError as error:
            missing[task.name] = str(error)
    return questions, missing


def without_overlap(
    tasks: Mapping[str, Sequence[Problem]], pairs: Sequence[_Pair], drop: bool
) -> tuple[list[_Pair], list[Dropped], list[str]]:
    """What to train on, before it is trained on: `pairs`, with `drop` without those that hold a question of `tasks`;
    a row for each that was dropped; what the user must know. Raises `UserError` where none is left."""
    found = overlaps(tasks, pairs)
    first = {row.pair_id: row for row in reversed(found)}
    notes = [note for task, rows in tasks.items() if (note := _note(task, len(rows), found))]
    if not drop:
        return list(pairs), [], notes
    kept = [pair for pair in pairs if pair.id not in first]
    if not kept:
        raise UserError(f"all {len(pairs):,} pairs overlap with questions of the evaluation; train on other problems")
    dropped = [
        Dropped(stage="train", id=name, reason="overlap", detail=f"{row.kind}: {row.task}, question {row.problem_id}")
        for name, row in reversed(first.items())
    ]
    counts = Counter(task for task, _ in {(row.task, row.problem_id) for row in found})
    held = ", ".join(f"{count:,} of {len(tasks[task]):,} questions of {task}" for task, count in counts.items())
    return kept, dropped, [f"{len(dropped):,} of {len(pairs):,} pairs dropped, which hold {held}"] * bool(dropped)


def overlap_note(task: str, questions: Sequence[Problem], pairs: Sequence[Trained]) -> str:
    """What a reader must know where questions of `task` are among the pairs' prompts; empty where none is."""
    return _note(task, len(questions), overlaps({task: questions}, pairs))


def _note(task: str, num_questions: int, found: Sequence[Overlap]) -> str:
    exact = {row.problem_id for row in found if row.task == task and row.kind == "exact"}
    near = {row.problem_id for row in found if row.task == task} - exact
    if not exact | near:
        return ""
    kinds = [f"{len(exact):,} word for word"] * bool(exact) + [f"{len(near):,} nearly"] * bool(near)
    return (
        f"{len(exact | near):,} of {num_questions:,} questions of {task} are among the problems trained on "
        f"({', '.join(kinds)}); accuracy on these after training says nothing about new questions."
    )


def in_common(ones: Mapping[str, Sequence[Problem]], others: Mapping[str, Sequence[Problem]]) -> str:
    """The first task of `ones` that asks questions of `others` word for word, in a few words; empty where none."""
    for other, asked in others.items():
        for name, rows in ones.items():
            found = {row.problem_id for row in overlaps({name: rows}, asked) if row.kind == "exact"}
            if found:
                return f"{len(found):,} of {len(rows):,} questions of {name} are questions of {other} in evaluate.tasks"
    return ""


def overlaps(tasks: Mapping[str, Sequence[Problem]], pairs: Sequence[Trained]) -> list[Overlap]:
    """Questions that a pair's prompt holds, word for word or nearly, in the order of the pairs and of the questions.

    Of questions with options the options are not looked at, of few-shot prompts only what is asked in the end. Answers
    are not looked at.
    """
    questions = [question for task, rows in tasks.items() for question in _own_texts(task, rows)]
    index = _Index(questions)
    found: list[Overlap] = []
    seen: dict[str, list[tuple[int, float]]] = {}  # several pairs of one problem have one prompt
    for pair in pairs:
        text = "\n".join(message.content for message in as_messages(pair.prompt))
        if text not in seen:
            seen[text] = list(index.matches(wording(text)))
        found += [
            Overlap(pair.id, questions[number].task, questions[number].problem_id, share)
            for number, share in seen[text]
        ]
    return found


def _own_texts(task: str, problems: Sequence[Problem]) -> list[_Question]:
    """The questions without their template."""
    whole = [wording(_asked(problem)) for problem in problems]
    distinct = {tuple(one.tokens) for one in whole}
    start, stop = (
        (_shared(distinct), _shared({one[::-1] for one in distinct})) if len(distinct) >= TEMPLATE_OF else (0, 0)
    )
    made: list[_Question] = []
    for problem, one in zip(problems, whole, strict=True):
        size, first, last = len(one.tokens), start, stop
        for template in _TEMPLATES:
            if size > len(template) and tuple(one.tokens[size - len(template) :]) == tuple(template):
                last = max(last, len(template))
        if first + last >= size:
            first = last = 0
        before = one.tokens[first - 1] if first else None
        after = one.tokens[size - last] if last else None
        made.append(_Question(task, problem.id, one[first : size - last], before, after))
    return made


def _asked(problem: Problem) -> str:
    """What is asked at last, without options."""
    text = as_messages(problem.prompt)[-1].content
    known, options = problem.meta.get("question"), problem.meta.get("options")
    if isinstance(known, str) and known.strip() and known.strip() in text:
        return known
    if isinstance(options, list) and options:
        return text.split(f"\nA. {options[0]}")[0] or text
    return text


def _shared(texts: set[tuple[str, ...]]) -> int:
    """How many tokens all of `texts` begin with."""
    low, high = min(texts), max(texts)
    return next(
        (place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
    )


class _Index:
    """Questions by their n-grams, the rarer the better."""

    def __init__(self, questions: Sequence[_Question]) -> None:
        self._questions = questions
        grams = [[(gram, place) for place, gram in _grams(one.own.tokens, GRAM)] for one in questions]
        counts = Counter(gram for of_one in grams for gram in {gram for gram, _ in of_one})
        self._places: defaultdict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        self._needed: list[float] = []
        self._sizes = {min(GRAM, len(one.own.tokens)) for one in questions} - {0}
        for number, of_one in enumerate(grams):
            rare = [one for one in of_one if counts[one[0]] <= BOILERPLATE]
            if len(rare) < ANCHORS:
                rare = sorted(of_one, key=lambda one: counts[one[0]])[:ANCHORS]
            for gram, place in rare:
                self._places[gram].append((number, place))
            self._needed.append(max(1.0, SHARED_ANCHORS * len({gram for gram, _ in rare})))

    def matches(self, prompt: Wording) -> Iterator[tuple[int, float]]:
        """The numbers of the questions that `prompt` holds, in order, and the share of their words that it has."""
        offsets: defaultdict[int, Counter[int]] = defaultdict(Counter)
        grams: defaultdict[int, set[tuple[str, ...]]] = defaultdict(set)
        for size in self._sizes:
            for start, gram in _grams(prompt.tokens, size):
                if len(gram) == size:
                    for number, place in self._places.get(gram, ()):
                        offsets[number][start - place] += 1
                        grams[number].add(gram)
        for number in sorted(offsets):
            question = self._questions[number]
            if len(grams[number]) < self._needed[number]:
                continue
            if _stands(question, prompt):
                yield number, 1.0
            elif share := _nearly(question.own, prompt, [offset for offset, _ in offsets[number].most_common(3)]):
                yield number, share


def _grams(tokens: Sequence[str], size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The n-grams and where they begin; of fewer tokens than `size`, all of them."""
    size = min(size, len(tokens))
    return ((start, tuple(tokens[start : start + size])) for start in range(len(tokens) - size + 1) if size)


def _stands(question: _Question, prompt: Wording) -> bool:
    """Whether the question is in the prompt, word for word; a short one as sentences of their own."""
    own, start = question.own, -1
    places = {place: token for token, place in enumerate(prompt.places)}
    while (start := prompt.joined.find(own.joined, start + 1)) >= 0:
        first, last = places.get(start), places.get(start + len(own.joined))
        if first is None or last is None:
            continue
        if len(own.tokens) >= FEW_TOKENS:
            return True
        lead, follows = prompt.tokens[first - 1 : first], prompt.tokens[last : last + 1]
        begins = prompt.opens[first] or lead[0] in _BEFORE or lead[0] == question.before
        ends = prompt.opens[last] or follows[0] in _AFTER or follows[0] == question.after
        if begins and ends:
            return True
    return False


def _nearly(own: Wording, prompt: Wording, offsets: Sequence[int]) -> float:
    """The share of the question's words that are unedited where it begins at one of `offsets`; 0 if not nearly all."""
    if own.num_words < FEW_WORDS or GRID in own.tokens:
        return 0.0
    allowed = int(EDITED * own.num_words)
    slack = 3 * allowed + 4
    for offset in offsets:
        window = prompt[max(0, offset - slack) : max(0, offset + len(own.tokens) + slack)]
        edits = _edits(own, _nearest(own, window))
        if edits is not None and edits <= allowed:
            return 1 - max(1, edits) / own.num_words
    return 0.0


def _nearest(own: Wording, window: Wording) -> Wording:
    """The part of `window` that the fewest edits of tokens turn into the question, with its numbers where it can."""
    # Sellers' algorithm: the edit distance to all parts that end at a token, and where the nearest of them begins.
    # An edited number costs more than all words together: of equally near parts the one with the same numbers counts.
    number = len(own.tokens) + len(window.tokens)
    costs = [number if token.isdigit() else 1 for token in window.tokens]
    ends = [(0, place) for place in range(len(window.tokens) + 1)]
    for token in own.tokens:
        cost = number if token.isdigit() else 1
        diagonal, ends[0] = ends[0], (ends[0][0] + cost, 0)
        for place, other in enumerate(window.tokens, start=1):
            same = diagonal if token == other else (diagonal[0] + max(cost, costs[place - 1]), diagonal[1])
            left, above = ends[place - 1], ends[place]
            diagonal = above
            ends[place] = min(same, (left[0] + costs[place - 1], left[1]), (above[0] + cost, above[1]))
    last = min(range(len(ends)), key=ends.__getitem__)
    return window[ends[last][1] : last]


def _edits(own: Wording, part: Wording) -> int | None:
    """How many words were edited between the question and `part` of a prompt; `None` where its numbers are others."""
    if part.numbers != own.numbers:
        return None
    touched: set[tuple[str, int]] = set()
    for step in Levenshtein.opcodes(own.tokens, part.tokens):
        old, new = own.tokens[step.src_start : step.src_end], part.tokens[step.dest_start : step.dest_end]
        if step.tag == "replace" and any(map(_NUMBERS.__contains__, old)) and {"one", *_NUMBERS} & {*new}:
            return None
        if step.tag == "insert":
            touched |= {("new", word) for word in part.words[step.dest_start : step.dest_end]}
        elif step.tag != "equal":
            touched |= {("old", word) for word in own.words[step.src_start : step.src_end]}
    return len(touched)
