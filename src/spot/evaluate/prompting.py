"""Prompt templates of benchmarks, with fields in braces: ours, or the user's from a YAML file."""

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from spot.errors import UserError
from spot.files.settings import read_yaml

if TYPE_CHECKING:
    from spot.evaluate.task import Task

_FIELD = re.compile(r"\{([a-z_]+)\}")

MATH = r"""{question}

Work the problem out step by step, and check your work. Close with the final answer alone in \boxed{}."""
CHOICE = """{question}

{options}

Think it through step by step. Then end with one line that is nothing but "Answer: " and the letter of your choice."""


def fill(template: str, **values: str) -> str:
    """The template with its fields filled. Other braces, of LaTeX say, stay as they are."""
    return _FIELD.sub(lambda found: values.get(found[1], found[0]), template)


def read_prompts(path: Path, tasks: "list[Task]") -> dict[str, str]:
    """The user's templates by task, from a YAML file, which may have more than `tasks` need.

    Raises `UserError` where the file cannot be read, or a template lacks a required field.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict) or not all(isinstance(text, str) for text in raw.values()):
        raise UserError(f"{path}: must map names of tasks to templates")
    from spot.evaluate.registry import BENCHMARKS

    known = [*BENCHMARKS, *(task.name for task in tasks)]
    if unknown := next((str(name) for name in raw if name not in known), None):
        near = difflib.get_close_matches(unknown, known, n=1)
        raise UserError(f"{path}: unknown task {unknown!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    for task in tasks:
        for name in task.fields:
            if task.name in raw and f"{{{name}}}" not in raw[task.name]:
                raise UserError(f"{path}: the template of {task.name} lacks the field {{{name}}}")
    return {str(name): text for name, text in raw.items()}
