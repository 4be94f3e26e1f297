"""An OpenAI-compatible server that misbehaves on purpose, as a process of its own so that it costs the client nothing.

`python tests/fault_server.py --rates '{"error": 0.02, "hang": 0.01}' --seed 7` prints its URL and serves until killed;
`FaultServer` does that for tests and benchmarks. What befalls a try is drawn from the seed, the body and how often that
body came before, so it does not depend on the order of arrival. Storms alone are shared: while one lasts, everybody is
turned down.

Faults: `storm` and `storm_told` (429 for `--storm-seconds`; the latter with Retry-After), `busy` (one 429), `error`
(500), `unavailable` (503), `hang`, `reset`, `cut` (JSON cut off; half of them have a Content-Length that promises
more), `unicode` (bytes that are no UTF-8), `surrogate` (half a pair), `empty`, `length`, `slow` (a body that drips for
`--slow-seconds`). With `--capacity N` whoever comes while N are being served gets 429.

`GET /stats` tells what was done; `--log` names a file that gets a line for every reply that was sent whole.
"""

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import json
import math
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FAULTS = (
    *("storm", "storm_told", "busy", "error", "unavailable", "hang", "reset", "cut", "unicode", "surrogate", "empty"),
    *("length", "slow"),
)
A_TENTH = {
    "storm": 0.0002, "storm_told": 0.0002, "busy": 0.01, "error": 0.02, "unavailable": 0.005, "hang": 0.004,
    "reset": 0.015, "cut": 0.01, "unicode": 0.005, "surrogate": 0.002, "empty": 0.01, "length": 0.01, "slow": 0.01,
}  # fmt: skip
"""A tenth of all tries have a fault, storms not counted: each begins a time in which everybody is turned down."""

STATUS = {"busy": 429, "storm": 429, "storm_told": 429, "error": 500, "unavailable": 503}

Body = dict[str, Any]


def echo(body: Body) -> str:
    """The answer unless `--answer` names another function."""
    return str(body["messages"][-1]["content"]).upper()


class Server:
    """State of the process: what was drawn, how long storms lasted, what was sent whole."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rates: dict[str, float] = json.loads(options.rates)
        if unknown := set(self.rates) - set(FAULTS):
            raise SystemExit(f"unknown faults: {', '.join(sorted(unknown))}")
        self.answer: Callable[[Body], str] = echo
        if options.answer:
            module, _, name = options.answer.partition(":")
            self.answer = getattr(importlib.import_module(module), name)
        self.seen: Counter[bytes] = Counter()
        self.done: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self.storm_until = 0.0
        self.storm_told = False
        self.storm_seconds = 0.0
        self.log = Path(options.log).open("a") if options.log else None  # noqa: SIM115 (open until killed)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests on one connection, one after the other, until a side hangs up."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(content_length(head))
                if head.startswith(b"GET"):
                    writer.write(http(200, json.dumps(self.stats()).encode()))
                elif not await self.serve(body, reader, writer):
                    break
        writer.close()

    async def serve(self, raw: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection can be used again."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault, spare = self.drawn(raw)
            self.done[fault or "none"] += 1
            if self.options.delay and fault not in STATUS:
                await asyncio.sleep(self.options.delay)
            if status := STATUS.get(fault):
                told = max(0.0, self.storm_until - time.monotonic()) if fault == "storm_told" else None
                writer.write(refusal(status, told))
                return True
            if fault == "hang":
                await reader.read()
                return False
            if fault == "reset":
                reset(writer)
                return False
            return await self.reply(raw, fault, spare, writer)
        finally:
            self.in_flight -= 1

    def drawn(self, raw: bytes) -> tuple[str, float]:
        """The fault that befalls this try, empty where none does, and a number in [0, 1) to choose its kind by."""
        now = time.monotonic()
        if now < self.storm_until:
            return ("storm_told" if self.storm_told else "storm"), 0.0
        if self.options.capacity and self.in_flight > self.options.capacity:
            return "busy", 0.0
        key = hashlib.blake2b(raw, digest_size=8).digest()
        self.seen[key] += 1
        source = hashlib.blake2b(key + b"%d %d" % (self.seen[key], self.options.seed), digest_size=12).digest()
        luck, spare = int.from_bytes(source[:8]) / 2**64, int.from_bytes(source[8:]) / 2**32
        for fault, rate in self.rates.items():
            if luck < rate:
                if fault in {"storm", "storm_told"}:
                    self.storm_until, self.storm_told = now + self.options.storm_seconds, fault == "storm_told"
                    self.storm_seconds += self.options.storm_seconds
                return fault, spare
            luck -= rate
        return "", spare

    async def reply(self, raw: bytes, fault: str, spare: float, writer: asyncio.StreamWriter) -> bool:
        """A completion, whole or as the fault has it."""
        request: Body = json.loads(raw)
        body = completion(request, "" if fault == "empty" else self.answer(request), fault)
        if fault == "unicode":
            body = body.replace(b'"content": "', b'"content": "\xff', 1)
        elif fault == "surrogate":
            body = body.replace(b'"content": "', b'"content": "\\ud800', 1)
        elif fault == "cut":
            half = body[: len(body) // 2]
            promised = len(body) if spare < 0.5 else len(half)
            writer.write(http(200, half, promised))
            return promised == len(half)
        if fault == "slow":
            writer.write(http(200, b"", len(body)))
            for start in range(0, len(body), len(body) // 4 + 1):
                await asyncio.sleep(self.options.slow_seconds / 4)
                writer.write(body[start : start + len(body) // 4 + 1])
                await writer.drain()
        else:
            writer.write(http(200, body))
            await writer.drain()
        if fault != "unicode" and self.log:
            key = hashlib.blake2b(raw, digest_size=8).hexdigest()
            self.log.write(json.dumps({"key": key, "question": str(request["messages"][-1]["content"])[:200]}) + "\n")
            self.log.flush()
        return True

    def stats(self) -> dict[str, Any]:
        """What was done so far; `tries` counts by fault, `none` being those that went well."""
        return {"tries": self.done, "most_in_flight": self.most_in_flight, "storm_seconds": self.storm_seconds}


def content_length(head: bytes) -> int:
    lower = head.lower()
    start = lower.find(b"content-length:")
    return 0 if start < 0 else int(lower[start + 15 : lower.index(b"\r\n", start)])


def http(status: int, body: bytes, length: int | None = None, headers: str = "") -> bytes:
    """A response; `length` is what its Content-Length promises where that is not the truth."""
    length = len(body) if length is None else length
    return (
        f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n"
    ).encode() + body


def refusal(status: int, retry_after: float | None) -> bytes:
    headers = "" if retry_after is None else f"Retry-After: {math.ceil(retry_after)}\r\n"
    body = {"error": {"message": "injected", "type": "injected", "code": None}}
    return http(status, json.dumps(body).encode(), headers=headers)


def completion(request: Body, text: str, fault: str) -> bytes:
    prompt = sum(len(message["content"]) for message in request["messages"])
    tokens = {"prompt_tokens": prompt // 4 + 1, "completion_tokens": len(text) // 4 + 1}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "length" if fault == "length" else "stop"}
    body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": request["model"],
        "choices": [choice], "usage": {**tokens, "total_tokens": sum(tokens.values())},
    }  # fmt: skip
    return json.dumps(body).encode()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees RST and not an orderly end."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve_forever(options: argparse.Namespace) -> None:
    server = Server(options)
    listening = await asyncio.start_server(server.connection, "127.0.0.1", options.port, backlog=4096)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)  # noqa: T201
    await listening.serve_forever()


class FaultServer:
    """The server as a child process while the context lasts; arguments are the command line's."""

    def __init__(
        self, rates: Mapping[str, float] | None = None, *, seed: int = 0, log: Path | None = None, **options: Any
    ) -> None:
        options |= {"rates": json.dumps(dict(rates or {})), "seed": seed}
        options |= {"log": log} if log else {}
        flags = (f"--{name.replace('_', '-')}={value}" for name, value in options.items())
        self._command = [sys.executable, str(Path(__file__).resolve()), *flags]
        self.log_path = log
        self.url = ""

    def __enter__(self) -> "FaultServer":
        root = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, cwd=root)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the server did not start"
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def kill(self) -> None:
        """As a machine that goes away: connections break, nothing listens any more."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats") as response:
            return json.loads(response.read())

    def committed(self) -> Counter[str]:
        """How often each question was answered in full, from the log."""
        assert self.log_path is not None
        return Counter(json.loads(line)["question"] for line in self.log_path.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rates", default="{}", help="JSON: fault -> probability of a try")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every reply")
    parser.add_argument("--storm-seconds", type=float, default=1.0)
    parser.add_argument("--slow-seconds", type=float, default=1.0)
    parser.add_argument("--capacity", type=int, default=0)
    parser.add_argument("--answer", default="", help="module:function, body -> text")
    parser.add_argument("--log", default="")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_forever(parser.parse_args()))


if __name__ == "__main__":
    main()
