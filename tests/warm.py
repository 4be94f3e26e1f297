"""Runs many commands from one process that has loaded the heavy libraries once: each is a fork of it.

`python warm.py serve SOCKET` listens; `python -S warm.py SOCKET spot ARGUMENT...` then does what
`python -m spot ARGUMENT...` does, with the caller's streams, folder, environment and exit code, without six seconds of
imports. For tests of what a command does; what it imports, and how its process ends by a signal, needs a process of
its own.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

HEAVY = ("spot.cli", "spot.stages.pipeline", "spot.models.local.model", "spot.models.endpoint.model", "spot.train.run",
         "spot.report.build", "spot.report.terminal", "spot.evaluate.statistics", "matplotlib.figure")  # fmt: skip


def serve(path: str) -> None:
    """Fork for each caller until the process that started this one is gone."""
    for module in HEAVY:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)  # noqa: T201
        while True:
            caller, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                answer(caller)
            caller.close()


def answer(caller: socket.socket) -> None:
    """Run one command in a fork of this fork and send its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told, streams, _, _ = socket.recv_fds(caller, 1 << 20, 3)
    while not told.endswith(b"\n"):
        told += caller.recv(1 << 20)
    folder, environment, arguments = json.loads(told)
    command = os.fork()
    if command == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        caller.close()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os._exit(run(arguments))
    for stream in streams:
        os.close(stream)
    caller.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])}".encode())
    os._exit(0)


def run(arguments: list[str]) -> int:
    """`python -m NAME ARGUMENT...`, or `python -c CODE`; its exit code."""
    name, *sys.argv[1:] = arguments
    code = 1
    try:
        if name == "-c":
            sys.argv = ["-c"]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return code


def call(path: str, arguments: list[str]) -> int:
    """Have `arguments` run by the server at `path`."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        told = json.dumps([os.getcwd(), dict(os.environ), arguments]).encode() + b"\n"  # noqa: PTH109
        socket.send_fds(server, [told[:1]], [0, 1, 2])
        server.sendall(told[1:])
        return int(server.recv(100) or 1)


@contextmanager
def warm_process(**environment: str) -> Generator[list[str]]:
    """A server while the context lasts: the beginning of a command line that runs a module in it."""
    with tempfile.TemporaryDirectory(prefix="warm") as folder:
        path = f"{folder}/socket"
        command = [sys.executable, __file__, "serve", path]
        serving = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | environment)
        try:
            assert serving.stdout is not None and serving.stdout.readline() == b"ready\n"
            yield [sys.executable, "-S", str(Path(__file__).resolve()), path]
        finally:
            serving.kill()
            serving.communicate()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(call(sys.argv[1], sys.argv[2:]))
