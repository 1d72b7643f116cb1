"""An endpoint of the OpenAI API as strict as the original: unknown fields are refused, and so is a wrong key."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_BODY = {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "stream", "stream_options"}


@dataclass
class OpenAiStub:
    """What the endpoint is like, and what it was asked."""

    key: str | None = None
    """Asked for in every call."""
    tells_usage: bool = True
    repeats_the_key: bool = False
    """Whether generations fail with an error that holds the key."""
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of generations."""
    keys: set[str | None] = field(default_factory=set)
    """`Authorization` of all calls."""


@contextmanager
def serving(stub: OpenAiStub, certificate: Path | None = None) -> Iterator[OpenAiStub]:
    """The endpoint, running; over TLS where there is a certificate with its key."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self._may():
                found = self.path == "/v1/models"
                self._answer(200, {"data": [{"id": "tiny"}]}) if found else self._answer(404, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._may():
                return
            stub.asked.append(body)
            unknown = set(body) - _BODY | set(body["stream_options"]) - {"include_usage"}
            if unknown:
                self._answer(400, {"error": {"message": f"Unrecognized request argument: {unknown}"}})
            elif stub.repeats_the_key and body["max_tokens"] > 2:
                self._answer(401, {"error": {"message": f"Incorrect API key provided: {stub.key}"}})
            else:
                self._stream(body["max_tokens"])

        def _may(self) -> bool:
            given = self.headers.get("Authorization")
            stub.keys.add(given)
            if stub.key is None or given == f"Bearer {stub.key}":
                return True
            self._answer(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
            return False

        def _stream(self, tokens: int) -> None:
            def choice(text: str, finish: str | None) -> dict[str, Any]:
                return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}

            events = [choice("word ", None) for _ in range(tokens)] + [choice("", "length")]
            if stub.tells_usage:
                events.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})
            lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(sum(map(len, lines))))
            self.end_headers()
            for line in lines:
                self.wfile.write(line.encode())
                self.wfile.flush()

        def _answer(self, status: int, answer: Any) -> None:
            payload = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            scheme = "https"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stub.url = f"{scheme}://localhost:{server.server_port}"
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
