"""Which processes use a ledger: each shows a sign of life in it, and the others watch whether that continues.

On one machine the system itself says whether a process lives. Of another machine, or another container, only its sign
of life can be seen: a number that it raises every few seconds. Whoever waits for it counts by its own clock, from when
it began to watch, so that no clock has to be right or agree with another.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from sqlite3 import Connection
from typing import Literal

from spot.errors import UserError

BEAT = 4.0
"""Seconds between two signs of life."""

LEASE = 20.0
"""Seconds without a sign of life after which a process of another machine is taken for dead."""

Liveness = Literal["lives", "silent", "gone"]
"""What is known of a process: `silent` is one of another machine of which no sign has been seen yet."""


@dataclass
class _Watched:
    """A process of another machine: its sign of life, since when it has stood there, and what that says."""

    beat: int | None
    since: float
    state: Liveness = "silent"


class Lease:
    """This process's sign of life in a ledger, and what is known of others.

    `turn` is a transaction on the ledger; `read` gives its connection.
    """

    def __init__(
        self,
        owner: Callable[[], str],
        turn: Callable[[], AbstractContextManager[Connection]],
        read: Callable[[], Connection],
    ) -> None:
        self._owner = owner
        self._turn = turn
        self._read = read
        self._watched: dict[str, _Watched] = {}
        self._over = threading.Event()
        self._beating: threading.Thread | None = None

    def begin(self) -> None:
        """Show signs of life from now on."""
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="ledger-lease", daemon=True)
            self._beating.start()

    def end(self) -> None:
        """Show none any more."""
        self._over.set()
        if self._beating is not None:
            self._beating.join()

    def _beat(self) -> None:
        while not self._over.is_set():
            try:
                with self._turn() as database:
                    database.execute(
                        "INSERT INTO processes VALUES (?, 1) ON CONFLICT (owner) DO UPDATE SET beat = beat + 1",
                        (self._owner(),),
                    )
            except UserError:
                pass  # a full disk: what the command itself commits next says so
            self._over.wait(BEAT)

    def state(self, who: str) -> Liveness:
        """What is known now of the process `who`; ask again to learn more of one that is silent."""
        if who == self._owner():
            return "lives"
        machine, pid, started = who.rsplit(":", 2)
        if machine in (this_machine(), socket.gethostname()):  # the latter as earlier versions wrote it
            return "lives" if _runs(int(pid), started) else "gone"
        row = self._read().execute("SELECT beat FROM processes WHERE owner = ?", (who,)).fetchone()
        beat, now = row and row[0], time.monotonic()
        watched = self._watched.setdefault(who, _Watched(beat, now))
        if beat != watched.beat:
            self._watched[who] = watched = _Watched(beat, now, "lives")
        elif now - watched.since >= LEASE:
            watched.state = "gone"
        return watched.state

    def is_alive(self, who: str) -> bool:
        """Whether the process may still run."""
        return self.state(who) != "gone"


def owner() -> str:
    """This process, as `owner_of` names it."""
    return owner_of(os.getpid())


def owner_of(pid: int) -> str:
    """A process of this machine: machine, pid, and when it started, since pids come round again."""
    return f"{this_machine()}:{pid}:{_started(pid)}"


def described(who: str) -> str:
    """A process in words."""
    machine, pid, _ = who.rsplit(":", 2)
    here = machine in (this_machine(), socket.gethostname())
    return f"process {pid}" if here else f"process {pid} on {machine.partition('/')[0]}"


def this_machine() -> str:
    """The host's name, and what tells its boot and the container's pids from others of that name."""
    return f"{socket.gethostname()}/{_boot_and_pids()}"


@cache
def _boot_and_pids() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        pids = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return ""
    return f"{boot}-{''.join(filter(str.isdigit, pids))}"


def _runs(pid: int, started: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(pid) == started


def _started(pid: int) -> str:
    try:
        # The 22nd field, counted after the command's name, which may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"
