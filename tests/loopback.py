"""A server on loopback that answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]


class Server:
    """Keeps what it was asked, and how many questions it was working on at most."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reply: Callable[[str, dict[str, Any]], Reply] = lambda path, asked: (404, {})
        self.busy = self.most = 0
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, path: str, headers: dict[str, str], asked: dict[str, Any]) -> Reply:
        """The reply to one question."""
        with self.lock:
            self.asked.append(asked)
            self.headers.append(headers)
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            return self.reply(path, asked)
        finally:
            with self.lock:
                self.busy -= 1


@contextmanager
def serving() -> Iterator[Server]:
    """A server for as long as this lasts."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {key.lower(): value for key, value in self.headers.items()}
            status, body = server.answer(self.path, headers, asked)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that gave up
    server.url = f"http://127.0.0.1:{http.server_port}/v1#tiny"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
