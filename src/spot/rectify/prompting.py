"""The Oracle's prompts: versioned template files, rendered in a sandbox.

What a template may read: `problem`, `response` (the student's wrong answer), `answer` where the Oracle is shown the
known answer, and `nonce`, a word that stands in none of them. Then the marker lines: `start` and `end`, which the
result must stand between, in the modes `patch` and `continue` also `search`, `divider` and `replace`, which structure
an edit, and in `patch` `gap`, which leaves out the middle of its old text (see `spot.rectify.patch`). A template whose
name ends in `.plain` asks for the corrected answer alone: it has no marker lines, and the whole reply is the result.
The values are text and are never run as templates, whatever braces they hold.
"""

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spot.errors import UserError
from spot.rectify.base import Failure
from spot.rectify.parse import REASONS, Markers
from spot.schema import Mode, Problem, as_messages

# The newest version of each kind; `simplified` is a way to ask in the mode `rewrite`.
VERSIONS = {"rewrite": "v1", "simplified": "v1.plain", "patch": "v1", "continue": "v1"}
TELL_BACK = "tell_back.v1"

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)


@dataclass(frozen=True)
class Template:
    """A named text with fields. Raises `UserError` from whatever fails in it."""

    name: str
    text: str

    @property
    def version(self) -> str:
        """Name and content hash: two different texts never share a version."""
        return f"{self.name}@{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return _ENVIRONMENT.from_string(self.text)

    def filled(self, values: dict[str, str]) -> str:
        """The text with `values` in it."""
        try:
            return self._compiled.render(values)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"prompt {self.name}: line {error.lineno}: {error.message}") from None
        except jinja2.UndefinedError as error:
            known = ", ".join(sorted(values))
            raise UserError(f"prompt {self.name}: {error.message}; it may read: {known}") from None
        except Exception as error:  # a template runs the user's own expressions, which may raise anything
            raise UserError(f"prompt {self.name}: {type(error).__name__}: {error}") from None


@dataclass(frozen=True)
class PromptTemplate(Template):
    """A template, whether it is shown the known answer, and how it has the Oracle correct. See `load_prompt`."""

    with_answer: bool
    mode: Mode = "rewrite"

    @property
    def plain(self) -> bool:
        """Whether the whole reply is the result, without markers."""
        return self.name.endswith(".plain")

    def render(self, failure: Failure, markers: Markers) -> str:
        """The prompt for one failure; raises `UserError` where the template fails."""
        return self._rendered(problem_text(failure.problem), failure.attempt.response, failure.problem.answer, markers)

    def _rendered(self, problem: str, response: str, answer: str, markers: Markers) -> str:
        values = {"problem": problem, "response": response, "nonce": markers.nonce}
        values |= {"answer": answer} if self.with_answer else {}
        return self.filled(values if self.plain else values | _marker_fields(markers, self.mode))

    def check(self) -> None:
        """Render once with sample values, so that a broken template fails before anything is sent."""
        if self.plain and self.mode != "rewrite":
            raise UserError(
                f"prompt {self.name}: without markers (.plain) it can only ask for a rewrite, not {self.mode}"
            )
        markers = Markers("sample")
        text = self._rendered("P", "R", "A", markers)
        for field, line in marker_lines(markers, self.mode).items():
            if not self.plain and line not in text:
                raise UserError(f"prompt {self.name}: it never shows {{{{ {field} }}}}, so no result could be found")


def marker_lines(markers: Markers, mode: Mode) -> dict[str, str]:
    """The marker lines that a template of `mode` has to show."""
    lines = {"start": markers.start, "end": markers.end}
    if mode in ("patch", "continue"):
        lines |= {"search": markers.search, "divider": markers.divider, "replace": markers.replace}
    return lines


def _marker_fields(markers: Markers, mode: Mode) -> dict[str, str]:
    """The marker lines that a template of `mode` may read."""
    return marker_lines(markers, mode) | ({"gap": markers.gap} if mode == "patch" else {})


def load_prompt(name_or_path: str | None, with_answer: bool, mode: Mode = "rewrite") -> PromptTemplate:
    """A prompt of this package by name, or the user's own by path (anything with a `/` or ending in `.jinja`).

    `None` is the newest one for `mode` and `with_answer`, a kind (`rewrite`, `simplified`, `patch`, `continue`) the
    newest one of that kind. Raises `UserError` where there is none, or where it does not render or fit `mode`.
    """
    name = name_or_path or mode
    if name in VERSIONS:
        name = f"{name}_{'with' if with_answer else 'without'}_answer.{VERSIONS[name]}"
    template = PromptTemplate(*_read(name), with_answer=with_answer, mode=mode)
    template.check()
    return template


def render_tell_back(complaint: str, markers: Markers, mode: Mode) -> str:
    """What the Oracle is told once where its block could not be used; the next reply is read with `markers`.

    `complaint` is the text of an `EditError` or `StepError`, or a reason of `extract_block`.
    """
    text = REASONS.get(complaint, complaint)
    return _tell_back().filled({"complaint": text, "mode": mode, **_marker_fields(markers, mode)})


def tell_back_version() -> str:
    """Name and content hash of what `render_tell_back` fills."""
    return _tell_back().version


@cache
def _tell_back() -> Template:
    return Template(*_read(TELL_BACK))


def _read(name: str) -> tuple[str, str]:
    """Name and text of a template, from a file or from this package."""
    if "/" in name or name.endswith(".jinja"):
        path = Path(name)
        try:
            return path.name.removesuffix(".jinja"), path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"prompt {name}: cannot read it ({error.strerror})") from None
        except UnicodeDecodeError:
            raise UserError(f"prompt {name}: not UTF-8") from None
    known = known_prompts()
    if name not in known and name != TELL_BACK:
        raise UserError(f"prompt {name!r}: no such prompt; there are {', '.join(known)}, or give a path to a file")
    return name, (resources.files("spot.rectify") / "prompts" / f"{name}.jinja").read_text(encoding="utf-8")


def known_prompts() -> list[str]:
    """The names of the prompts that come with this package."""
    files = (resources.files("spot.rectify") / "prompts").iterdir()
    names = (file.name.removesuffix(".jinja") for file in files if file.name.endswith(".jinja"))
    return sorted(name for name in names if name != TELL_BACK)


def problem_text(problem: Problem) -> str:
    """A problem as one text; a conversation of several messages keeps its roles."""
    messages = as_messages(problem.prompt)
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"[{message.role}]\n{message.content}" for message in messages)
