r"""A worker: `python -m spot.verify.worker CPU_SECONDS` compares answers with math-verify, one JSON line a request.

Request ``{"gold": str, "answer": str}``, reply ``{"correct": true | false | null, "reason": str}``; the first line,
once the imports are done, is ``{"ready": true}``. Reads standard input to its end.

The process is made to be killed. A comparison that uses more than its CPU time is ended by the kernel (SIGPROF), which
needs no cooperation from the code that hangs and works when the parent is gone. CPU time and not the clock, so that a
busy machine gives the same verdicts. Parsed expressions are never printed: `str()` of some does not end.
"""

import json
import math
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from spot.verify import notation

MEMORY_BYTES = 1 << 30


class Judgement(NamedTuple):
    """Whether two expressions are equal, `None` where that could not be told, and why."""

    correct: bool | None
    reason: str = ""


def compare(gold: str, answer: str) -> Judgement:
    """Compare an answer with the known one, both LaTeX or plain notation."""
    known, given = notation.quantity(gold), notation.quantity(answer)
    gold_value, value = known.value, given.value
    if known.known is not None and given.known is not None and known.known != given.known:
        (gold_kind, gold_size), (kind, size) = known.known, given.known
        if gold_kind != kind:
            return Judgement(False, "the units measure different things")
        gold_value, value = rf"{gold_size} \cdot ({gold_value})", rf"{size} \cdot ({value})"
    expected = _parse(gold_value)
    if expected is None:
        return Judgement(None, "the known answer cannot be read")
    parsed = _parse(value)
    if parsed is None:
        return Judgement(False, "the answer cannot be read as mathematics")
    from math_verify import verify

    try:
        # Its own timeouts are signals and turn into "wrong" silently: off. Errors are raised, not turned into "wrong".
        equal = verify(expected, parsed, timeout_seconds=None, raise_on_error=True)
    except Exception as error:
        return Judgement(None, f"comparison failed: {type(error).__name__}")
    return Judgement(equal and not _differ_when_small(expected, parsed))


def _differ_when_small(expected: Any, parsed: Any) -> bool:
    """Whether two numbers only agree because both are small: math-verify rounds to six decimals and drops the rest."""
    try:
        known, given = float(expected), float(parsed)
    except (TypeError, ValueError, OverflowError, AttributeError):
        return False  # not numbers
    return max(abs(known), abs(given)) < 1e-4 and not math.isclose(known, given, rel_tol=1e-4)


@lru_cache(maxsize=4096)
def _parse(latex: str) -> Any:
    """The sympy expression of `latex`, `None` where it cannot be read. Nothing is fished out of the text around it."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units are off: `notation` has read them, and math-verify would take the t of 5t for one.
    normalisation = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalisation)
    try:
        found = parse(rf"\boxed{{{latex}}}", [config], fallback_mode="no_fallback", parsing_timeout=0)
    except Exception:
        return None
    return found[0] if found else None


def serve(requests: BinaryIO, replies: BinaryIO, cpu_seconds: float) -> None:
    """Answer every line of `requests`; each may use `cpu_seconds` of processor time before the kernel ends us."""
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        judgement = compare(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, judgement._asdict())


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def main() -> None:
    """Keep standard output for the protocol, limit memory, import, serve."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _parse("1")
    except ImportError as error:
        _send(replies, {"error": str(error)})
        return
    _send(replies, {"ready": True})
    serve(sys.stdin.buffer, replies, float(sys.argv[1]))


if __name__ == "__main__":
    main()
