"""Pools of killable workers in which answers are judged.

Computer algebra hangs on some inputs, and a timeout by a signal fails in threads. Here each judgement is made in a
child process (`spot.verify.worker`) that is ended when it takes too long and replaced at the next request. Workers are
started when they are first needed, are plain subprocesses (no fork of a process with threads) and end with this one.
"""

import atexit
import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from spot.errors import RunFailed
from spot.verify.worker import Judgement

START_SECONDS = 120.0
WORKER = "spot.verify.worker"


@dataclass(frozen=True)
class Program:
    """What a worker loads: a module (see `spot.verify.worker`), what it checks and needs (for messages), and variables
    of its environment."""

    module: str
    checks: str
    needs: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


# A fixed hash seed: sympy's order of work, and so which comparisons are too long, follows from it.
MATH = Program("spot.verify.compare", "answers", "latex2sympy2_extended", {"PYTHONHASHSEED": "0"})


class _Worker:
    """One child process; used by one thread at a time."""

    def __init__(self, program: Program, cpu_seconds: float, wall_seconds: float) -> None:
        self._program = program
        self._cpu_seconds, self._wall_seconds = cpu_seconds, wall_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    @property
    def pid(self) -> int | None:
        """The process's id, `None` while there is no process."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ask(self, gold: str, answer: str) -> Judgement:
        """One comparison. A worker that hung or crashed over it is gone afterwards; the next call starts another."""
        process = self._alive()
        request = json.dumps({"gold": gold, "answer": answer}).encode() + b"\n"
        try:
            reply = self._exchange(process, request, self._wall_seconds)
        except TimeoutError:
            self.kill()
            return Judgement(None, "timeout")
        except EOFError:
            status = self.kill(grace=1.0)  # its output closes a moment before its status can be read
            return Judgement(None, "timeout" if status == -signal.SIGPROF else f"worker died (status {status})")
        except BaseException:
            # Interrupted half-way: its reply would be taken for the next request's.
            self.kill()
            raise
        return Judgement(reply["correct"], reply["reason"])

    def kill(self, grace: float = 0.0) -> int | None:
        """End the process, `grace` seconds later if it does not end by itself; its exit status, `None` without one."""
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return None
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # a request that was never read cannot be flushed
                if pipe is not None:
                    pipe.close()
        return process.returncode

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.kill()
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        program = self._program
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, program.module, str(self._cpu_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **program.environment},
            start_new_session=True,  # an interrupt from the keyboard is this process's to handle
        )
        try:
            greeting = self._exchange(self._process, b"", START_SECONDS)
        except (EOFError, TimeoutError):
            raise RunFailed(
                f"the worker that checks {program.checks} did not start (status {self.kill(grace=1.0)}); "
                f"`{Path(sys.executable).name} -m {WORKER} {program.module} 5` shows why"
            ) from None
        except BaseException:
            self.kill()
            raise
        if "error" in greeting:
            self.kill()
            raise RunFailed(f"the worker that checks {program.checks} cannot load {program.needs}: {greeting['error']}")
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes, seconds: float) -> dict[str, Any]:
        """Send a line, if any, and read one; EOFError if the process ends first, TimeoutError if the clock does."""
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + seconds
        rest, entry, output = memoryview(request), process.stdin.fileno(), process.stdout.fileno()
        while rest:  # a pipe holds less than some requests, and a worker that hangs does not read
            _wait(entry, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(entry, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EOFError from None
        while b"\n" not in self._unread:
            _wait(output, select.POLLIN, deadline)
            chunk = os.read(output, 1 << 16)
            if not chunk:
                raise EOFError
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)


def _wait(file: int, event: int, deadline: float) -> None:
    """Until `file` is ready; TimeoutError if the clock is first."""
    poll = select.poll()
    poll.register(file, event)
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(remaining * 1000):
        raise TimeoutError


class Pool:
    """A few workers behind one door; every method may be called from any thread.

    Args:
        num_workers: how many comparisons run at once.
        cpu_seconds: the processor time one comparison may take before it is given up as "timeout".
        wall_seconds: the same by the clock, for one that sleeps or a machine that is very busy.
        program: what the workers run.
    """

    def __init__(
        self, num_workers: int = 2, cpu_seconds: float = 3.0, wall_seconds: float = 30.0, program: Program = MATH
    ) -> None:
        self._new_worker = partial(_Worker, program, cpu_seconds, wall_seconds)
        self._populate(num_workers)

    def _populate(self, num_workers: int) -> None:
        self._workers = [self._new_worker() for _ in range(num_workers)]
        # Last in, first out: one caller alone keeps using one worker and starts no second.
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def judge(self, gold: str, answer: str) -> Judgement:
        """Compare one answer with the known one; waits for a free worker.

        Raises:
            RunFailed: workers cannot be started on this machine at all.
        """
        worker = self._idle.get()
        try:
            return worker.ask(gold, answer)
        finally:
            self._idle.put(worker)

    def judge_many(self, requests: Sequence[tuple[str, str]]) -> list[Judgement]:
        """Compare `(gold, answer)` pairs with all workers at once; the judgements in the same order."""
        if len(requests) < 2:
            return [self.judge(*request) for request in requests]
        with ThreadPoolExecutor(len(self._workers), thread_name_prefix="verify") as threads:
            return list(threads.map(lambda request: self.judge(*request), requests))

    def process_ids(self) -> list[int]:
        """The operating system's ids of the workers that run now."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """End all workers. A later request starts them again."""
        for worker in self._workers:
            worker.kill()

    def forget(self) -> None:
        """After a fork, in the child: leave the parent's workers and their pipes alone and start own ones if asked."""
        self._populate(len(self._workers))


_SHARED: list[Pool] = []


def shared_pool(**settings: Any) -> Pool:
    """A pool (see `Pool`) of the process's own, which ends with it and is another one in a forked child.

    Making it costs nothing: workers start with the first request.
    """
    pool = Pool(**settings)
    _SHARED.append(pool)
    atexit.register(pool.close)
    os.register_at_fork(after_in_child=pool.forget)
    return pool


def shared_process_ids() -> list[int]:
    """The operating system's ids of the workers that run now in all shared pools."""
    return [pid for pool in _SHARED for pid in pool.process_ids()]


SHARED = shared_pool()
"""The pool in which mathematics is compared."""
