"""Verifiers by name: the built-in ones, or a user's own as `module:function`."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from spot.errors import RunFailed, UserError
from spot.plugin import REGISTERED, described, load_function
from spot.schema import Problem, Verdict
from spot.verify.base import Verifier
from spot.verify.boxed import compile_pattern
from spot.verify.notation import encodable

BUILT_IN = {
    **REGISTERED["verifier"],
    "math": "spot.verify.math:verify_problem",
    "exact": "spot.verify.exact:verify_exact",
    "connect4": "spot.verify.connect4:verify",
    "choice": "spot.verify.choice:verify",
    "likelihood": "spot.verify.likelihood:verify",
    "ifeval": "spot.verify.ifeval:verify",
}


def resolve(name: str, pattern: str | None = None) -> Verifier:
    r"""The verifier called `name`: a built-in one, or `module:function` found on the path or in this directory.

    A user's function takes `(response, problem)` and returns a `spot.schema.Verdict`. What it raises becomes an
    unscored verdict; if it returns anything else, the call raises `RunFailed`.

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
            raise UserError(f"verifier {name!r} reads no answer pattern; remove the pattern or use 'math'")
    if name in BUILT_IN:
        function = load_function("verifier", BUILT_IN[name])
        return partial(function, pattern=pattern) if name == "math" else function
    if ":" not in name:
        close = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"unknown verifier {name!r}: {hint}known are {', '.join(BUILT_IN)}, or your own module:function"
        )
    return _checked(name, load_function("verifier", name))


def _checked(name: str, function: Callable[..., Any]) -> Verifier:
    def verify(response: str, problem: Problem) -> Verdict:
        try:
            verdict = function(response, problem)
        except Exception as error:
            return Verdict(correct=None, reason=encodable(f"verifier raised {described(error)}"))
        if not isinstance(verdict, Verdict):
            raise RunFailed(f"verifier {name!r} returned {type(verdict).__name__}, not a spot.schema.Verdict")
        return verdict

    return verify
