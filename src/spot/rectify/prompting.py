"""The Oracle's prompts: versioned template files, rendered in a sandbox.

What a template may read: `problem`, `response` (the student's wrong answer), `start` and `end` (the markers that the
result must stand between), and `answer` where the Oracle is shown the known answer. The values are text and are never
run as templates, whatever braces they hold.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spot.errors import UserError
from spot.rectify.base import Failure
from spot.rectify.parse import Markers
from spot.schema import Problem, as_messages

WITH_ANSWER = "rewrite_with_answer.v1"
WITHOUT_ANSWER = "rewrite_without_answer.v1"

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)


@dataclass(frozen=True)
class PromptTemplate:
    """A template and whether it is shown the known answer. Load it with `load_prompt`."""

    name: str
    text: str
    with_answer: bool

    @property
    def version(self) -> str:
        """Name and content hash: two different texts never share a version."""
        return f"{self.name}@{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return _ENVIRONMENT.from_string(self.text)

    def render(self, failure: Failure, markers: Markers) -> str:
        """The prompt for one failure; raises `UserError` where the template fails."""
        values = {
            "problem": problem_text(failure.problem),
            "response": failure.attempt.response,
            "start": markers.start,
            "end": markers.end,
        }
        return self._rendered(values | ({"answer": failure.problem.answer} if self.with_answer else {}))

    def _rendered(self, values: dict[str, str]) -> str:
        try:
            return self._compiled.render(values)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"prompt {self.name}: line {error.lineno}: {error.message}") from None
        except jinja2.UndefinedError as error:
            known = ", ".join(sorted(values))
            raise UserError(f"prompt {self.name}: {error.message}; it may read: {known}") from None
        except Exception as error:  # a template runs the user's own expressions, which may raise anything
            raise UserError(f"prompt {self.name}: {type(error).__name__}: {error}") from None

    def check(self) -> None:
        """Render once with sample values, so that a broken template fails before anything is sent."""
        sample = {"problem": "P", "response": "R", "start": "<start-0>", "end": "<end-0>"}
        text = self._rendered(sample | ({"answer": "A"} if self.with_answer else {}))
        for field in ("start", "end"):
            if sample[field] not in text:
                raise UserError(f"prompt {self.name}: it never shows {{{{ {field} }}}}, so no result could be found")


def load_prompt(name_or_path: str | None, with_answer: bool) -> PromptTemplate:
    """A prompt of this package by name, or the user's own by path (anything with a `/` or ending in `.jinja`).

    `None` is the newest one for `with_answer`. Raises `UserError` where there is none, or where it does not render.
    """
    name = name_or_path or (WITH_ANSWER if with_answer else WITHOUT_ANSWER)
    if "/" in name or name.endswith(".jinja"):
        path = Path(name)
        stem = path.name.removesuffix(".jinja")
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"prompt {name}: cannot read it ({error.strerror})") from None
        except UnicodeDecodeError:
            raise UserError(f"prompt {name}: not UTF-8") from None
    else:
        known = known_prompts()
        if name not in known:
            raise UserError(f"prompt {name!r}: no such prompt; there are {', '.join(known)}, or give a path to a file")
        stem, text = name, (resources.files("spot.rectify") / "prompts" / f"{name}.jinja").read_text(encoding="utf-8")
    template = PromptTemplate(name=stem, text=text, with_answer=with_answer)
    template.check()
    return template


def known_prompts() -> list[str]:
    """The names of the prompts that come with this package."""
    files = (resources.files("spot.rectify") / "prompts").iterdir()
    return sorted(file.name.removesuffix(".jinja") for file in files if file.name.endswith(".jinja"))


def problem_text(problem: Problem) -> str:
    """A problem as one text; a conversation of several messages keeps its roles."""
    messages = as_messages(problem.prompt)
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"[{message.role}]\n{message.content}" for message in messages)
