"""A provider's batch interface on the loopback: files, batches that end as a test says, and who was paid for what."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Row = dict[str, Any]


@dataclass
class Held:
    """A batch as the server holds it. `rows` are its input; what ends it sets the rest."""

    id: str
    input_file_id: str
    metadata: dict[str, str]
    rows: list[Row]
    status: str = "validating"
    output: list[str] | None = None
    errors_out: list[str] | None = None
    errors: list[Row] = field(default_factory=list[Row])
    polls: int = 0
    completed: int | None = None


Ending = Callable[["BatchServer", Held], None]
"""Brings a batch to its end (or leaves it as it is)."""


@dataclass(frozen=True)
class Fault:
    """In place of an answer: a status and a body, or a connection that breaks. `after` lets the work be done first."""

    status: int = 500
    body: bytes = b'{"error": {"message": "no"}}'
    headers: dict[str, str] = field(default_factory=dict[str, str])
    hang_up: bool = False
    after: bool = False


def complete(server: "BatchServer", batch: Held) -> None:
    finish(server, batch, "completed", range(len(batch.rows)))


def pending(server: "BatchServer", batch: Held) -> None:
    batch.status = "in_progress"


def ends(status: str, answered: Sequence[int], code: str | None = None) -> Ending:
    """Ends as `status` with only these rows answered; the others are in the error file under `code`, or nowhere."""

    def ending(server: "BatchServer", batch: Held) -> None:
        finish(server, batch, status, answered)
        if code is not None:
            left = [row for n, row in enumerate(batch.rows) if n not in answered]
            batch.errors_out = [error_line(row, code) for row in left]

    return ending


def fails(code: str, message: str) -> Ending:
    """Turned down as a whole, nothing was run."""

    def ending(server: "BatchServer", batch: Held) -> None:
        batch.status = "failed"
        batch.errors = [{"code": code, "message": message, "line": None, "param": None}]

    return ending


def replaced(line_of: Callable[[Row, str], str | None], at: Iterable[int]) -> Ending:
    """Completes, but some lines of the output are what `line_of` makes of them; `None` leaves one out."""

    def ending(server: "BatchServer", batch: Held) -> None:
        complete(server, batch)
        assert batch.output is not None
        changed = set(at)
        lines = [
            line_of(row, line) if n in changed else line
            for n, (row, line) in enumerate(zip(batch.rows, batch.output, strict=True))
        ]
        batch.output = [line for line in lines if line is not None]

    return ending


def finish(server: "BatchServer", batch: Held, status: str, answered: Iterable[int]) -> None:
    batch.status = status
    batch.output = [server.run(batch.rows[n]) for n in answered] or None


def output_line(row: Row, body: object, status: int = 200) -> str:
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "l", "custom_id": row["custom_id"], "response": response, "error": None})


def error_line(row: Row, code: str, message: str = "it was not run") -> str:
    error = {"code": code, "message": message}
    return json.dumps({"id": "l", "custom_id": row["custom_id"], "response": None, "error": error})


def completion(text: str, finish_reason: str = "stop") -> Row:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def question(row: Row) -> str:
    return row["body"]["messages"][-1]["content"]


class BatchServer:
    """Serves while the context lasts. The n-th batch ends as the n-th of `endings` says, later ones as the last.

    A batch is run when it is looked at for the (`polls` + 1)-th time. `fault` may answer in place of the server; `ran`
    counts how often each question was answered, which is what a provider charges for.
    """

    def __init__(
        self,
        *endings: Ending,
        polls: int = 0,
        fault: Callable[[str, str], Fault | None] | None = None,
        text: Callable[[str], str] = str.upper,
    ) -> None:
        self.endings = endings or (complete,)
        self.polls = polls
        self.fault = fault or (lambda method, path: None)
        self.text = text
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Held] = {}
        self.ran: Counter[str] = Counter()
        self.seen: list[str] = []
        self.keys: set[str] = set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "BatchServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def run(self, row: Row) -> str:
        """Answer a request and charge for it."""
        self.ran[question(row)] += 1
        return output_line(row, completion(self.text(question(row))))

    def inputs(self) -> list[list[str]]:
        """The questions of each batch, in the order in which they were made."""
        return [[question(row) for row in batch.rows] for batch in self.batches.values()]

    def _work(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if (method, path) == ("POST", "/files"):
            return 200, self._uploaded(body)
        if found := re.fullmatch(r"/files/(.+)/content", path):
            content = self.files.get(found[1])
            return (404, b'{"error": {"message": "no such file"}}') if content is None else (200, content)
        if (method, path) == ("POST", "/batches"):
            return 200, self._created(json.loads(body))
        if method == "GET" and path.startswith("/batches?"):
            return 200, self._listed(path)
        batch = self.batches.get(path.removeprefix("/batches/"))
        if batch is None:
            return 404, b'{"error": {"message": "no such batch"}}'
        if batch.status in ("validating", "in_progress"):
            if batch.polls >= self.polls:
                number = list(self.batches).index(batch.id)
                self.endings[min(number, len(self.endings) - 1)](self, batch)
            batch.polls += 1
        return 200, json.dumps(self._told(batch)).encode()

    def _uploaded(self, body: bytes) -> bytes:
        boundary = body[: body.index(b"\r\n")]
        parts = [part.strip(b"\r\n").partition(b"\r\n\r\n") for part in body.split(boundary)]
        content = next(text for head, _, text in parts if b'name="file"' in head)
        assert any(text == b"batch" for head, _, text in parts if b'name="purpose"' in head)
        id = f"file-in{len(self.files)}"
        self.files[id] = content
        return json.dumps({"id": id, "object": "file", "bytes": len(content)}).encode()

    def _created(self, told: Row) -> bytes:
        assert (told["endpoint"], told["completion_window"]) == ("/v1/chat/completions", "24h")
        rows = [json.loads(line) for line in self.files[told["input_file_id"]].decode().splitlines()]
        assert all((row["method"], row["url"]) == ("POST", "/v1/chat/completions") for row in rows)
        assert len({row["custom_id"] for row in rows}) == len(rows)
        batch = Held(f"batch_{len(self.batches)}", told["input_file_id"], told["metadata"], rows)
        self.batches[batch.id] = batch
        return json.dumps(self._told(batch)).encode()

    def _listed(self, path: str) -> bytes:
        ids = list(reversed(self.batches))
        after = re.search(r"after=(\w+)", path)
        first = ids.index(after[1]) + 1 if after else 0
        page = [self._told(self.batches[id]) for id in ids[first : first + 1]]
        more = first + 1 < len(ids)
        return json.dumps({"object": "list", "data": page, "has_more": more}).encode()

    def _told(self, batch: Held) -> Row:
        for name, lines in (("out", batch.output), ("err", batch.errors_out)):
            if lines is not None:
                self.files[f"{batch.id}-{name}"] = "".join(f"{line}\n" for line in lines).encode()
        counts = {
            "total": len(batch.rows),
            "completed": len(batch.output or []) if batch.completed is None else batch.completed,
            "failed": len(batch.errors_out or []),
        }
        return {
            "id": batch.id, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h",
            "created_at": int(time.time()), "input_file_id": batch.input_file_id, "metadata": batch.metadata,
            "status": batch.status, "request_counts": counts,
            "output_file_id": f"{batch.id}-out" if batch.output is not None else None,
            "error_file_id": f"{batch.id}-err" if batch.errors_out is not None else None,
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        }  # fmt: skip

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two cost 40 ms

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = self._chunks()
                path = self.path.removeprefix("/v1")
                with server._lock:
                    server.seen.append(f"{self.command} {path.partition('?')[0]}")
                    server.keys.add(self.headers.get("Authorization", ""))
                    fault = server.fault(self.command, path)
                    status, answer, headers = 200, b"", dict[str, str]()
                    if fault is None or fault.after:
                        status, answer = server._work(self.command, path, body)
                    if fault is not None:
                        status, answer, headers = fault.status, fault.body, fault.headers
                if fault is not None and fault.hang_up:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def _chunks(self) -> bytes:
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client has gone
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                return None

        return Handler
