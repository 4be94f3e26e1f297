"""Known choices by their log-probabilities: the likeliest must be a true one.

The response is what `spot.models.local.likelihood` gives: a JSON list of log-probabilities, one a choice of `meta`.
"""

import json
import math
from typing import Any

from spot.schema import Problem, Verdict


def verify(response: str, problem: Problem) -> Verdict:
    """Whether the likeliest of the choices that count (`meta`: `mc1`) is true; the first of equals counts."""
    try:
        choices, true, counts = (problem.meta[name] for name in ("choices", "true", "mc1"))
        logps = read_logps(response, len(choices))
        best = max((place for place in range(len(choices)) if counts[place]), key=lambda place: logps[place])
        return Verdict(correct=bool(true[best]), answer=str(choices[best]))
    except (ValueError, TypeError, KeyError, IndexError):
        return Verdict(correct=None, reason="no log-probability for each choice")


def read_logps(response: str, count: int) -> list[float]:
    """The log-probabilities of `count` choices; `ValueError` unless there is a finite number for each."""
    logps: Any = json.loads(response)
    if not isinstance(logps, list) or len(logps) != count:
        raise ValueError(f"not a list of {count} numbers")
    if any(isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in logps):
        raise ValueError("not a finite number for each choice")
    return [float(one) for one in logps]
