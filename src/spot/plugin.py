"""A user's own code by name: `module:function`, found on the path or in the current directory."""

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spot.errors import UserError


def load_function(kind: str, name: str) -> Callable[..., Any]:
    """The function that `name` (`module:function`) names; `kind` says in messages what it is for.

    Raises `UserError` where the name has another form, its module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"{kind} {name!r} must be written module:function")
    # A console script does not search the directory it is started in; last, so that nothing installed is shadowed.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"{kind} {name!r}: cannot import {module_name!r}: {type(error).__name__}: {one_line(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        close = difflib.get_close_matches(function_name, dir(module), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"{kind} {name!r}: module {module_name!r} has no {function_name!r}{hint}")
    if not callable(function):
        raise UserError(f"{kind} {name!r}: {function_name!r} is not a function")
    return function


def one_line(error: Exception) -> str:
    """An error's text as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
