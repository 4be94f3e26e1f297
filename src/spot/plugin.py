"""A user's own code by name: `module:function`, found on the path or in the current directory; so is the lab."""

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spot.errors import RunFailed, StoppedEarly, UserError

_FAMILIES = ("in_domain", "ood", "instructions")
REGISTERED: Mapping[str, Mapping[str, str]] = {
    "model": {"lab": "spot.lab.student:directory"},
    "problems": {"lab": "spot.lab.tasks:problems"},
    "verifier": {"lab": "spot.lab.verify:verify"},
    "oracle": {"scripted": "spot.lab.scripted_model:oracle"},
    "task": {f"{family}{split}": "spot.lab.tasks:task" for family in _FAMILIES for split in ("", "_tune")},
    "step judge": {"lab": "spot.lab.step_judge:step_judge"},
    "command": {"lab": "spot.lab.command:lab"},
}
"""Short names for a `module:function`, by kind. Nothing else in the core names the lab's modules."""


def registered(kind: str, name: str) -> str | None:
    """The `module:function` that is registered as `name`, `None` where none is."""
    return REGISTERED[kind].get(name)


def load_registered(kind: str, name: str) -> Callable[..., Any]:
    """The function registered as `name`, or, for a name that is not registered, the `module:function` it is."""
    return load_function(kind, registered(kind, name) or name)


def call(kind: str, name: str, /, *values: Any, **arguments: Any) -> Any:
    """What the function `name`, registered or `module:function`, returns.

    Raises `UserError` where it takes other arguments, and `RunFailed` where it raises something else than our errors.
    """
    function = load_registered(kind, name)
    with own_code(kind, registered(kind, name) or name):
        try:
            inspect.signature(function).bind(*values, **arguments)
        except TypeError as error:
            raise UserError(f"{kind} {name!r}: calling it failed ({error})") from error
        return function(*values, **arguments)


def load_function(kind: str, name: str) -> Callable[..., Any]:
    """The function that `name` (`module:function`) names; `kind` says in messages what it is for.

    Raises `UserError` where the name has another form, its module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"{kind} {name!r} must be written module:function")
    # A console script does not search the directory it is started in; last, so that nothing installed is shadowed.
    here = str(Path.cwd())
    if here not in sys.path and not module_name.startswith("spot."):
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(f"{kind} {name!r}: cannot import {module_name!r}: {described(error)}") from error
    function = getattr(module, function_name, None)
    if function is None:
        close = difflib.get_close_matches(function_name, dir(module), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"{kind} {name!r}: module {module_name!r} has no {function_name!r}{hint}")
    if not callable(function):
        raise UserError(f"{kind} {name!r}: {function_name!r} is not a function")
    return function


@contextmanager
def own_code(kind: str, name: str) -> Generator[None]:
    """Turn what the user's `module:function` raises into one `RunFailed` that names it and the line."""
    try:
        yield
    except (UserError, RunFailed, StoppedEarly):
        raise  # of ours, which it may well use: one line already
    except Exception as error:
        raise RunFailed(f"{kind} {name!r}: {described(error)} ({_place(error, name)})") from error


def described(error: Exception) -> str:
    """An error's type and text as one line; the text is cut to 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _place(error: Exception, name: str) -> str:
    """`file.py:line` where it was raised, or where the user's module called what raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    last = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
    return f"{Path(last.filename).name}:{last.lineno}"
