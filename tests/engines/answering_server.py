"""A server that gives each route one fixed answer and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pytest_speedbench.engines.control import Control

Answers = Mapping[str, tuple[int, Any]]
"""By route, such as `GET /version`: a status, and text or what becomes a JSON document."""


@contextmanager
def answering(answers: Answers) -> Iterator[tuple[Control, dict[str, Any]]]:
    """A control of the running server, and the JSON bodies it was sent, by route."""
    asked: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            route = f"{self.command} {self.path}"
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked[route] = json.loads(body) if body else None
            status, answer = answers.get(route, (404, {"detail": "Not Found"}))
            payload = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        control = Control(f"http://127.0.0.1:{server.server_port}")
        try:
            yield control, asked
        finally:
            control.close()
            server.shutdown()
            thread.join()
