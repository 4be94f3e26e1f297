"""The pool of killable workers in which IFEval's instructions are checked: `spot.verify.pool` with other workers."""

import atexit
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from spot.errors import RunFailed
from spot.verify.pool import (
    START_SECONDS,
    Pool,
    _Worker,  # pyright: ignore[reportPrivateUsage]
)


class _Checker(_Worker):
    """One child process; used by one thread at a time."""

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.kill()
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        # One thread for numpy, which NLTK imports: many would reserve more memory than the worker may have.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spot.verify.ifeval_worker", str(self._cpu_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is this process's to handle
        )
        try:
            greeting = self._exchange(self._process, b"", START_SECONDS)
        except (EOFError, TimeoutError):
            raise RunFailed(
                f"the worker that checks instructions did not start (status {self.kill(grace=1.0)}); "
                f"`{Path(sys.executable).name} -m spot.verify.ifeval_worker 5` shows why"
            ) from None
        except BaseException:
            self.kill()
            raise
        if "error" in greeting:
            self.kill()
            raise RunFailed(f"the worker that checks instructions cannot load lm_eval: {greeting['error']}")
        return self._process


class CheckerPool(Pool):
    """The same for instructions; a response may take longer than an expression, being longer."""

    def __init__(self, num_workers: int = 2, cpu_seconds: float = 10.0, wall_seconds: float = 60.0) -> None:
        super().__init__(num_workers, cpu_seconds, wall_seconds)
        self._new_worker = partial(_Checker, cpu_seconds, wall_seconds)
        self._populate(num_workers)


SHARED = CheckerPool()
"""The process's own pool. Making it costs nothing: workers start with the first request and end with the process."""
atexit.register(SHARED.close)
os.register_at_fork(after_in_child=SHARED.forget)
