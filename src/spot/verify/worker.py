r"""A worker: `python -m spot.verify.worker CPU_SECONDS` compares answers, one JSON line a request.

Request ``{"gold": str, "answer": str}``, reply ``{"correct": true | false | null, "reason": str}``; the first line,
once the imports are done, is ``{"ready": true}``. Reads standard input to its end.

The process is made to be killed. A comparison that uses more than its CPU time is ended by the kernel (SIGPROF), which
needs no cooperation from the code that hangs and works when the parent is gone. CPU time and not the clock, so that a
busy machine gives the same verdicts. Parsed expressions are never printed: `str()` of some does not end.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

MEMORY_BYTES = 1 << 30


class Judgement(NamedTuple):
    """Whether two expressions are equal, `None` where that could not be told, and why."""

    correct: bool | None
    reason: str = ""


def run(load: Callable[[], Callable[[str, str], Judgement]]) -> None:
    """Serve with what `load` gives, which compares a known answer and another; its `ImportError` is reported.

    Standard output is kept for the protocol, memory is limited, and each line may use the processor time of the
    command line before the kernel ends us.
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        judge = load()
    except ImportError as error:
        _send(replies, {"error": str(error)})
        return
    _send(replies, {"ready": True})
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
        request = json.loads(line)
        judgement = judge(request["gold"], request["answer"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, judgement._asdict())


def _send(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def _ready() -> Callable[[str, str], Judgement]:
    from spot.verify.compare import compare  # imports what takes long

    compare("x", "x")
    return compare


if __name__ == "__main__":
    run(_ready)
