"""The workers: killed when they hang, replaced when they die, gone when their parent is."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spot.errors import RunFailed
from spot.verify.pool import Pool
from spot.verify.worker import MEMORY_BYTES

TOWER = "9^{9^{9^9}}"


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(num_workers=1, cpu_seconds=0.7, wall_seconds=60)
    yield pool
    pool.close()


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie (Linux)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def has_ended(pid: int, seconds: float = 60) -> bool:
    """Whether the process ends within the time."""
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def test_a_hang_is_ended_and_the_next_request_answered(pool: Pool) -> None:
    pool.judge("1/2", "0.5")
    start = time.monotonic()
    judgement = pool.judge("5", TOWER)
    assert (judgement.correct, judgement.reason) == (None, "timeout")
    assert (
        time.monotonic() - start < 60
    )  # the clock's limit: 0.7 seconds of processor time on a machine that others use
    assert pool.judge("5", "4+1").correct is True


def test_the_clock_ends_what_uses_no_processor() -> None:
    pool = Pool(num_workers=1, cpu_seconds=60, wall_seconds=0.7)
    pool.judge("1/2", "0.5")
    (pid,) = pool.process_ids()
    os.kill(pid, signal.SIGSTOP)
    assert pool.judge("5", "5").reason == "timeout"
    assert not is_running(pid)
    pool.close()


def test_a_worker_that_died_idle_is_replaced(pool: Pool) -> None:
    pool.judge("1/2", "0.5")
    (first,) = pool.process_ids()
    os.kill(first, signal.SIGKILL)
    assert has_ended(first)
    assert pool.judge("1/2", "0.5").correct is True
    assert pool.process_ids() != [first]


def test_a_worker_that_dies_at_work_is_reported_and_replaced() -> None:
    pool = Pool(num_workers=1, cpu_seconds=120, wall_seconds=120)
    pool.judge("1/2", "0.5")
    (pid,) = pool.process_ids()
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    judgement = pool.judge("5", TOWER)
    assert judgement.correct is None
    assert "died" in judgement.reason
    assert pool.judge("5", "4+1").correct is True
    pool.close()


def test_a_worker_has_a_limit_of_memory_and_says_where_it_is_reached(pool: Pool) -> None:
    pool.judge("1/2", "0.5")
    (pid,) = pool.process_ids()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (address_space,) = [line.split()[3] for line in limits if line.startswith("Max address space")]
    assert int(address_space) <= MEMORY_BYTES
    assert pool.judge("5", "10^{10^{10}}").correct is None
    assert pool.judge("5", "4+1").correct is True


def test_workers_start_only_when_needed_and_one_caller_needs_one() -> None:
    pool = Pool(num_workers=3, cpu_seconds=5)
    assert pool.process_ids() == []
    for _ in range(3):
        assert pool.judge("1/2", "0.5").correct is True
    assert len(pool.process_ids()) == 1
    pool.close()
    assert pool.process_ids() == []


def test_many_callers_share_two_workers_and_a_hang_hurts_nobody_else() -> None:
    pool = Pool(num_workers=2, cpu_seconds=0.7, wall_seconds=60)
    requests = [(f"{n}/7", f"\\frac{{{n}}}{{7}}" if n % 6 else TOWER) for n in range(1, 19)]
    with ThreadPoolExecutor(8) as threads:
        judgements = list(threads.map(lambda request: pool.judge(*request), requests))
    assert [judgement.correct for judgement in judgements] == [True if n % 6 else None for n in range(1, 19)]
    assert len(pool.process_ids()) <= 2
    pool.close()


def test_many_keep_their_order(pool: Pool) -> None:
    judgements = pool.judge_many([("5", f"{n}+1") for n in range(8)])
    assert [judgement.correct for judgement in judgements] == [n == 4 for n in range(8)]


def test_a_python_without_math_verify_is_a_clear_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunFailed, match="did not start"):
        Pool(num_workers=1).judge("1", "1")


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_worker_module_imports_nothing_heavy() -> None:
    heavy = run_python(
        "import sys, spot.verify.worker, spot.verify.pool\n"
        "print([name for name in ('torch', 'pydantic', 'sympy', 'numpy', 'transformers') if name in sys.modules])"
    )
    assert heavy.strip() == "[]"


def test_a_forked_child_has_workers_of_its_own() -> None:
    output = run_python(
        "import os\n"
        "from spot.verify.pool import SHARED\n"
        "assert SHARED.judge('1/2', '0.5').correct\n"
        "before = SHARED.process_ids()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    right = SHARED.judge('1/3', '2/6').correct and SHARED.process_ids() != before\n"
        "    SHARED.close()\n"
        "    os._exit(0 if right else 1)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(status, SHARED.process_ids() == before, SHARED.judge('1/2', '0.5').correct)\n"
    )
    assert output.split() == ["0", "True", "True"]


def test_a_hanging_worker_does_not_outlive_a_killed_parent() -> None:
    code = (
        "from spot.verify.pool import Pool\n"
        "pool = Pool(num_workers=1, cpu_seconds=1.0)\n"
        "pool.judge('1/2', '0.5')\n"
        "print(*pool.process_ids(), flush=True)\n"
        f"pool.judge('5', {TOWER!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    assert has_ended(worker)


def test_a_worker_that_does_not_read_is_given_up_in_time() -> None:
    pool = Pool(num_workers=1, cpu_seconds=60, wall_seconds=1.0)
    try:
        pool.judge("1/2", "0.5")
        [pid] = pool.process_ids()
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        # More than a pipe holds: the request cannot be written, let alone read.
        assert pool.judge("1", "2" * 2_000_000) == (None, "timeout")
        assert time.monotonic() - started < 10
    finally:
        pool.close()
