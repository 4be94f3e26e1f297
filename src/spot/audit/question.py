"""What a judge model is asked about one or two answers, and how its reply is read.

The prompt is a versioned jinja file, rendered in a sandbox; a user's own may read `problem`, `answer` (the known one),
`first` and `second` (the answers as numbered lines, `second` empty where there is one answer only), `asked` (the
numbers of the steps to judge), `kinds` (the kinds of errors, a line each), `nonce`, a word that stands in none of them,
and the marker lines `start` and `end`. Which of a pair's answers comes first is drawn by its id, and none is called the
corrected one.

A reply is read strictly: between the markers one line for each step that was asked about, each once, nothing else.
Whatever is not of that form is unreadable as a whole, since no step may be taken for right by accident.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from spot.audit.split import shared_start
from spot.errors import UserError
from spot.rectify.parse import Markers, extract_block
from spot.rectify.prompting import Template
from spot.schema import derived_seed

PROMPT = "judge.v1"
RIGHT = ""
"""The verdict on a step that is right; any other is the kind of its error."""

KINDS: Mapping[str, str] = {
    "arithmetic": "a calculation with numbers comes out wrong",
    "algebra": "an expression or an equation is transformed wrongly",
    "logic": "the conclusion does not follow, or a case is missing",
    "carried-over": "it takes up another number or result than the steps before it came to",
    "misread-question": "it takes something from the problem that the problem does not say",
    "wrong-formula": "it uses or states a rule, formula or method that does not apply",
    "unit": "units, or the things that are counted, are wrong",
    "unjustified-claim": "it asserts what nothing before it supports",
    "other": "none of these",
}

_LINE = re.compile(r"([AB][1-9][0-9]*) (?:right|wrong ([a-z-]+))")


class UnreadableError(ValueError):
    """A reply that is not of the form that was asked for; the text is a short reason (see `read_verdicts`)."""


@dataclass(frozen=True)
class Question:
    """One or two answers to be judged: `prompt` is what is sent, `steps` are theirs, in the order they were given.

    All but the `shared` steps that both begin with are asked about; `asked` holds their numbers, for either answer.
    """

    id: str
    prompt: str
    markers: Markers
    steps: tuple[Sequence[str], Sequence[str]]
    shared: int
    asked: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def every(self) -> list[str]:
        """All numbers that are asked about, in order."""
        return _ordered(self.asked)


class JudgePrompt:
    """The prompt of this package, or the user's own at `path`.

    Raises `UserError` where it cannot be read, does not render or leaves out what a reply needs.
    """

    def __init__(self, path: str | None = None) -> None:
        self._template = Template(*_read(path))
        self._check()

    @cached_property
    def version(self) -> str:
        """Name and content hash, the kinds included: two judges that are asked differently never share a version."""
        return Template(self._template.name, f"{self._template.text}\n{_KIND_LINES}").version

    def question(
        self, id: str, salt: str, problem: str, answer: str, one: Sequence[str], other: Sequence[str] = ()
    ) -> Question:
        """What is asked about the steps of `one` answer, or of two: all that follow the steps they begin with."""
        shared = shared_start(one, other)
        letters = "BA" if other and derived_seed(0, "judge order", salt, id) % 2 else "AB"
        asked = _numbers(letters[0], shared, len(one)), _numbers(letters[1], shared, len(other))
        markers = Markers.derive(f"judge {id}", salt, problem, answer, *one, *other)
        texts = {letter: _lines(letter, steps) for letter, steps in zip(letters, (one, other), strict=True)}
        prompt = self._filled(problem, answer, texts, _ordered(asked), markers)
        return Question(id, prompt, markers, (one, other), shared, asked)

    def _filled(
        self, problem: str, answer: str, texts: Mapping[str, str], asked: Sequence[str], markers: Markers
    ) -> str:
        return self._template.filled(
            {
                "problem": problem,
                "answer": answer,
                "first": texts["A"],
                "second": texts["B"],
                "asked": " ".join(asked),
                "kinds": _KIND_LINES,
                "nonce": markers.nonce,
                "start": markers.start,
                "end": markers.end,
            }
        )

    def _check(self) -> None:
        """Render once with sample values, so that a broken template fails before anything is sent."""
        markers = Markers("sample")
        text = self._filled("P", "K", {"A": "A1| one step", "B": "B1| other step"}, ["A1", "B1"], markers)
        shown = {"first": "A1| one step", "second": "B1| other step", "asked": "A1 B1", "kinds": _KIND_LINES}
        for field, sample in {**shown, "start": markers.start, "end": markers.end}.items():
            if sample not in text:
                raise UserError(f"prompt {self._template.name}: it never shows {{{{ {field} }}}}, which a judge needs")


_KIND_LINES = "\n".join(f"- {kind}: {meaning}" for kind, meaning in KINDS.items())


def _read(path: str | None) -> tuple[str, str]:
    """Name and text of a template."""
    if path is None:
        return PROMPT, (resources.files("spot.audit") / "prompts" / f"{PROMPT}.jinja").read_text("utf-8")
    try:
        return Path(path).name.removesuffix(".jinja"), Path(path).read_text("utf-8")
    except OSError as error:
        raise UserError(f"judge.prompt: {path}: cannot read it ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"judge.prompt: {path}: not UTF-8") from None


def _numbers(letter: str, first: int, end: int) -> tuple[str, ...]:
    return tuple(f"{letter}{place + 1}" for place in range(first, end))


def _ordered(asked: tuple[tuple[str, ...], tuple[str, ...]]) -> list[str]:
    """A's numbers before B's."""
    return [number for numbers in sorted(asked) for number in numbers]


def _lines(letter: str, steps: Sequence[str]) -> str:
    """An answer as the judge sees it: a line a step, so that no step can begin a line that is not its own."""
    return "\n".join(f"{letter}{place}| {step}" for place, step in enumerate(steps, start=1))


def read_verdicts(reply: str, question: Question) -> dict[str, str]:
    """The verdict on every step that was asked about, by its number: `RIGHT` or the kind of its error.

    Raises `UnreadableError` with a reason of `spot.rectify.parse.extract_block`, or `bad_line`, `unknown_kind`,
    `not_asked`, `repeated`, `incomplete`.
    """
    block = extract_block(reply, question.markers)
    if block.text is None:
        raise UnreadableError(block.reason)
    asked, verdicts = set(question.every), dict[str, str]()
    for line in filter(None, map(str.strip, block.text.split("\n"))):
        found = _LINE.fullmatch(line)
        if found is None:
            raise UnreadableError("bad_line")
        number, kind = found[1], found[2] or RIGHT
        if kind != RIGHT and kind not in KINDS:
            raise UnreadableError("unknown_kind")
        if number not in asked:
            raise UnreadableError("not_asked")
        if number in verdicts:
            raise UnreadableError("repeated")
        verdicts[number] = kind
    if len(verdicts) < len(asked):
        raise UnreadableError("incomplete")
    return verdicts
