"""An HTTP/1.1 response read piece by piece with llhttp (by `httptools`), its body recorded with a stamp for each read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import SupportsIndex

import httptools

from pytest_speedbench.load.wire.recording import Recording

LONGEST_HEAD = 2**16
"""Bytes of a head, interim responses included."""


class Malformed(Exception):
    """The server sent something other than an HTTP/1.1 response."""


@dataclass(frozen=True)
class Head:
    """Status and headers of a response."""

    status: int
    headers: Mapping[str, str]
    """By name in lower case; values of the same name joined by `, `."""
    keeps_alive: bool
    """Whether the server leaves the connection open after the body."""

    @property
    def length_known(self) -> bool:
        """Whether the body marks its own end; otherwise the end of the connection is that of the body."""
        return "transfer-encoding" in self.headers or "content-length" in self.headers


class ResponseReader:
    """Reads one response.

    Stricter than RFC 9112 where llhttp is, and no server is known to mind: a repeated `Content-Length`, folded headers and
    spaces within chunk extensions are refused. Heads whose lines end in a bare LF are accepted.

    Args:
        recording: takes the body.
    """

    def __init__(self, recording: Recording) -> None:
        self.head: Head | None = None
        """Of the final response; None until it is complete. Interim responses (100, 103) are skipped."""
        self.complete: bool = False
        self.exceeded: bool = False
        """Whether bytes followed that belong to no request."""
        self._recording = recording
        self._head_bytes = 0
        self._headers: dict[str, str] = {}
        # Called for every piece of the body: a method of our own would cost twice as much.
        self.on_body: Callable[[Iterable[SupportsIndex]], None] = recording.raw.extend
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_chunked_length=True,  # RFC 9112, section 6.3: Transfer-Encoding overrides Content-Length
            lenient_data_after_close=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self._feed = self._parser.feed_data

    def feed(self, received_s: float, data: bytes | memoryview) -> bool:
        """Take what one read brought.

        Args:
            received_s: when it arrived, on the monotonic clock.
            data: cut anywhere.

        Returns:
            Whether the response is complete.

        Raises:
            Malformed: this is not HTTP/1.1.
        """
        recording = self._recording
        before = len(recording.raw)
        if self.head is None:
            self._head_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade:  # 101 to a request that asked for no upgrade
            self.exceeded = True
        except httptools.HttpParserError as error:
            if not self.complete:
                reason = error.__context__ if isinstance(error.__context__, Malformed) else error
                raise Malformed(f"not HTTP/1.1 ({reason}): {bytes(data[:60])!r}") from None
            self.exceeded = True
        if size := len(recording.raw) - before:
            recording.stamps_s.append(received_s)
            recording.sizes.append(size)
        elif self.head is None and self._head_bytes > LONGEST_HEAD:
            raise Malformed(f"not HTTP/1.1 (no end of the head within {LONGEST_HEAD} bytes)")
        return self.complete

    def close(self) -> None:
        """Let go of the parser, which refers to this object: garbage collection is off during a round."""
        del self._parser, self._feed

    def on_message_begin(self) -> None:
        """Called by the parser, as are those below."""
        if self.complete:
            raise Malformed("bytes after the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer, which is ignored."""
        if self.head is None:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
            self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        """End of a head."""
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, {}
        if self.complete or (status < 200 and status != 101):
            return
        coding = headers.get("transfer-encoding", "chunked")
        if coding.lower() != "chunked":
            raise Malformed(f"unknown Transfer-Encoding: {coding}")
        # The parser knows only now: it forgets the head with the end of the message.
        self.head = Head(status, headers, self._parser.should_keep_alive())

    def on_message_complete(self) -> None:
        """End of a response."""
        self.complete = self.head is not None
