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
        logps: Any = json.loads(response)
        counted = [place for place, counts in enumerate(problem.meta["mc1"]) if counts]
        best = max(counted, key=lambda place: _finite(logps[place]))
        return Verdict(correct=bool(problem.meta["true"][best]), answer=str(problem.meta["choices"][best]))
    except (ValueError, TypeError, KeyError, IndexError):
        return Verdict(correct=None, reason="no log-probability for each choice")


def _finite(logp: Any) -> float:
    if isinstance(logp, bool) or not isinstance(logp, int | float) or not math.isfinite(logp):
        raise ValueError(logp)
    return float(logp)
