"""A small OpenAI-compatible server on the loopback that answers what a test tells it to, faults included."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Seen:
    """One request as it arrived; `number` counts from 0, header names are in lower case."""

    number: int
    path: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def question(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclass(frozen=True)
class Answer:
    """What to send back. `cut` sends only so many bytes of a longer announced body and hangs up."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    delay: float = 0.0
    cut: int | None = None


def completion(text: str | None, finish_reason: str | None = "stop", **message: Any) -> Answer:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text, **message}}
    body = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return Answer(body=json.dumps(body).encode())


def failure(status: int, message: str = "no", headers: dict[str, str] | None = None, code: str | None = None) -> Answer:
    return Answer(status, json.dumps({"error": {"message": message, "code": code}}).encode(), headers or {})


Script = Callable[[Seen], Answer]


class FakeServer:
    """Serves `script` while the context lasts; `seen` holds all requests in order of arrival."""

    def __init__(self, script: Script, path: str = "/v1") -> None:
        self.seen: list[Seen] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(script))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def __enter__(self) -> "FakeServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self, script: Script) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                raw = self.rfile.read(length)
                if len(raw) < length:  # the client has hung up in the middle of its request
                    self.close_connection = True
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                with server._lock:
                    seen = Seen(len(server.seen), self.path, json.loads(raw or b"{}"), headers)
                    server.seen.append(seen)
                answer = script(seen)
                time.sleep(answer.delay)
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                hang_up = answer.cut is not None or server._stopping.is_set()
                if hang_up:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(answer.body[: answer.cut])
                self.close_connection = hang_up

            do_GET = do_POST

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client has given up waiting
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                return None

        return Handler
