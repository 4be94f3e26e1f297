"""Ctrl-C and a scheduler's SIGTERM: what is under way is called off in order, wherever the signal finds it.

A signal's handler runs between any two lines. Raising there is right in plain code, but inside an event loop it ends
whichever coroutine happens to run, others go on, and what they were waiting for never comes. So while one runs here a
signal cancels its main task, and everything below it closes as it does on any error.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

from spot.errors import Interrupted

Result = TypeVar("Result")

ENDINGS = (signal.SIGINT, signal.SIGTERM)
"""The second is how Slurm, Kubernetes and timeout end a command."""


def install() -> None:
    """Have both signals raise `Interrupted` from now on."""
    for ending in ENDINGS:
        signal.signal(ending, _raise)


def _raise(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            # Libraries take an error in the middle of their import for a broken installation, or abort.
            sys.stderr.write("stopped: interrupted; what was done is kept; the same command resumes there\n")
            sys.stderr.flush()
            os._exit(3)
        frame = frame.f_back
    raise Interrupted


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run`; where signals raise `Interrupted`, they do so after everything below `main` has been closed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not _raise:
        return asyncio.run(main)
    try:
        return asyncio.run(_cancellable(main))
    finally:
        install()  # taking a handler out of a loop sets the signal's default


async def _cancellable(main: Coroutine[Any, Any, Result]) -> Result:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    heard: list[int] = []

    def hear(number: int) -> None:
        heard.append(number)
        task.cancel()
        if len(heard) > 1:
            install()  # whoever asks a third time does not want to wait

    for ending in ENDINGS:
        loop.add_signal_handler(ending, hear, ending)
    try:
        result = await main
    except asyncio.CancelledError:
        if not heard:
            raise
        raise Interrupted from None
    finally:
        for ending in ENDINGS:
            loop.remove_signal_handler(ending)
    if heard:
        raise Interrupted
    return result
