"""A worker: `python -m spot.verify.worker MODULE CPU_SECONDS` judges answers, one JSON line a request.

MODULE has a function `load`, which imports what takes long and returns the function that judges a known answer and
another. Request ``{"gold": str, "answer": str}``, reply ``{"correct": true | false | null, "reason": str}``; the first
line, once that is loaded, is ``{"ready": true}``, or ``{"error": str}`` where an import fails. Reads standard input to
its end, and keeps standard output for the protocol.

The process is made to be killed. A request that uses more than its CPU time is ended by the kernel (SIGPROF), which
needs no cooperation from the code that hangs and works when the parent is gone. CPU time and not the clock, so that a
busy machine gives the same verdicts. Parsed expressions are never printed: `str()` of some does not end.
"""

import json
import os
import resource
import signal
import sys
from importlib import import_module
from typing import Any, NamedTuple

MEMORY_BYTES = 1 << 30


class Judgement(NamedTuple):
    """Whether an answer is right, `None` if that could not be judged, and why."""

    correct: bool | None
    reason: str = ""


def run(module: str, cpu_seconds: float) -> None:
    """Serve until standard input ends."""
    replies = os.fdopen(os.dup(1), "wb")

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    os.dup2(2, 1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        judge = import_module(module).load()
    except ImportError as error:
        send({"error": str(error)})
        return
    send({"ready": True})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        request = json.loads(line)
        judgement = judge(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(judgement._asdict())


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]))
