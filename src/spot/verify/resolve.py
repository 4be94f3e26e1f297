"""Verifiers by name: the built-in ones, or a user's own as `module:function`."""

import difflib
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from spot.errors import RunFailed, UserError
from spot.schema import Problem, Verdict
from spot.verify.base import Verifier
from spot.verify.boxed import compile_pattern
from spot.verify.notation import encodable

BUILT_IN = {
    "math": "spot.verify.math:verify_problem",
    "exact": "spot.verify.exact:verify_exact",
    "lab": "spot.lab.verify:verify",
}


def resolve(name: str, pattern: str | None = None) -> Verifier:
    r"""The verifier called `name`: `math`, `exact`, `lab`, or `module:function` found on the path or in this directory.

    A user's function takes `(response, problem)` and returns a `spot.schema.Verdict`. What it raises becomes a verdict
    that is unscored; returning anything else raises `RunFailed` at the call.

    Args:
        name: which verifier.
        pattern: the data set's answer pattern, for `math` only: a regular expression with one group (`A:\s*(.+)`).

    Raises:
        UserError: the name is unknown, its module cannot be imported or has no such function, or the pattern is
            invalid or meant for a verifier that reads none.
    """
    if pattern is not None:
        compile_pattern(pattern)
        if name != "math":
            raise UserError(f"verifier {name!r} reads no answer pattern; leave the pattern out or use 'math'")
    if name in BUILT_IN:
        function = _load(name, BUILT_IN[name])
        return partial(function, pattern=pattern) if name == "math" else function
    if ":" not in name:
        close = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"unknown verifier {name!r}: {hint}known are {', '.join(BUILT_IN)}, or your own module:function"
        )
    return _checked(name, _load(name, name))


def _load(name: str, target: str) -> Callable[..., Any]:
    module_name, _, function_name = target.partition(":")
    if not module_name or not function_name:
        raise UserError(f"verifier {name!r} must be written module:function")
    # A console script does not search the directory it is started in; last, so that nothing installed is shadowed.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"verifier {name!r}: cannot import {module_name!r}: {type(error).__name__}: {_one_line(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        close = difflib.get_close_matches(function_name, dir(module), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UserError(f"verifier {name!r}: module {module_name!r} has no {function_name!r}{hint}")
    if not callable(function):
        raise UserError(f"verifier {name!r}: {function_name!r} is not a function")
    return function


def _checked(name: str, function: Callable[..., Any]) -> Verifier:
    def verify(response: str, problem: Problem) -> Verdict:
        try:
            verdict = function(response, problem)
        except Exception as error:
            reason = encodable(f"verifier raised {type(error).__name__}: {_one_line(error)}")
            return Verdict(correct=None, reason=reason)
        if not isinstance(verdict, Verdict):
            raise RunFailed(f"verifier {name!r} returned {type(verdict).__name__}, not a spot.schema.Verdict")
        return verdict

    return verify


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
