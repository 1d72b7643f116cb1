"""An HTTP/1.1 response: its head and its end while the clock runs, its body afterwards. Parsed by llhttp (`httptools`)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httptools

from pytest_speedbench.load.wire.recording import Recording

LONGEST_HEAD = 2**16
"""Bytes of a head, interim responses included."""
_EVENT_END = b"\n\n\r\n"
"""A blank line, which ends an event, and the end of the chunk that it came in."""
_LAST_CHUNK = b"0\r\n\r\n"


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

    @property
    def streams_events(self) -> bool:
        """Whether the body is an event stream in chunks."""
        is_events = self.headers.get("content-type", "").lower().startswith("text/event-stream")
        return is_events and "transfer-encoding" in self.headers


class ResponseReader:
    """Records one response and finds its end.

    An event stream in chunks is not parsed for that. No response ends in a byte other than a line feed, nor in
    `_EVENT_END`: the empty line that is the end of the last chunk follows a line that is not empty. So each chunk of a
    stream is only put down, until `_EVENT_END` is followed by `_LAST_CHUNK`. That this was the end is found by `body_of`;
    only a field named `0` in the stream itself could look the same. Everything else is parsed as it comes.

    Args:
        recording: takes all reads.
    """

    def __init__(self, recording: Recording) -> None:
        self.complete: bool = False
        self._recording = recording
        self._parser = _Parser()
        self._parsed = 0
        self._streams_events = False

    @property
    def head(self) -> Head | None:
        """Of the final response; None until it is complete. Interim responses (100, 103) are skipped."""
        return self._parser.head

    @property
    def exceeded(self) -> bool:
        """Whether bytes followed that belong to no request."""
        return self._parser.exceeded

    def feed(self, received_s: float, data: bytes) -> bool:
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
        reads = recording.reads
        reads.append(data)  # not by `take`: this is done for every chunk
        recording.stamps_s.append(received_s)
        if self._streams_events:
            if data.endswith(_EVENT_END) or not (data.endswith(b"\n") or _LAST_CHUNK in data):
                return False
            apart = data == _LAST_CHUNK and len(reads) > 1 and reads[-2].endswith(_EVENT_END)
            if apart or data.endswith(_EVENT_END + _LAST_CHUNK):
                self.complete = True
                return True
        self._parser.feed(recording.reads_from(self._parsed))
        self._parsed = len(recording.stamps_s)
        self.complete = self._parser.complete
        self._streams_events = self.head is not None and self.head.streams_events
        return self.complete

    def close(self) -> None:
        """Let go of the parser's reference to itself: garbage collection is off during a round."""
        self._parser.close()


@dataclass(frozen=True)
class Body:
    """The body of a response, taken apart after the fact."""

    raw: bytearray
    read_ends: array[int]
    """How much of it there was after each read, in bytes."""
    stamps_s: array[float]
    """Monotonic clock of each read."""
    fault: Malformed | None
    """What in the response is not HTTP/1.1, or that it has no end though it was taken to have ended."""


def body_of(recording: Recording, *, ended: bool = True) -> Body:
    """Take a response apart.

    Args:
        recording: of the response.
        ended: whether it was taken to have ended well.
    """
    parser, fault = _Parser(keeps_body=True), None
    try:
        parser.feed(recording.reads_from(0))
    except Malformed as malformed:
        fault = malformed
    head = parser.head
    if fault is None and ended and not parser.complete and (head is None or head.length_known):
        fault = Malformed("it goes on after what looked like its end")
    parser.close()
    return Body(parser.body, parser.body_ends, recording.stamps_s, fault)


class _Parser:
    """Parses one response.

    Stricter than RFC 9112 where llhttp is, and no server is known to mind: a repeated `Content-Length`, folded headers and
    spaces within chunk extensions are refused. Heads whose lines end in a bare LF are accepted.

    Args:
        keeps_body: whether to copy the body.
    """

    def __init__(self, *, keeps_body: bool = False) -> None:
        self.head: Head | None = None
        self.complete = False
        self.exceeded = False
        self.body = bytearray()
        self.body_ends = array("q")
        """Bytes of the body after each read."""
        self._head_bytes = 0
        self._headers: dict[str, str] = {}
        if keeps_body:
            self.on_body = self.body.extend  # called for every chunk: a method of our own costs twice as much
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_chunked_length=True,  # RFC 9112, section 6.3: Transfer-Encoding overrides Content-Length
            lenient_data_after_close=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self._feed = self._parser.feed_data

    def feed(self, reads: Iterable[bytes | memoryview]) -> None:
        """Parse on.

        Raises:
            Malformed: this is not HTTP/1.1.
        """
        feed, body, body_ends = self._feed, self.body, self.body_ends
        for data in reads:
            try:
                feed(data)
            except httptools.HttpParserUpgrade:  # 101 to a request that asked for no upgrade
                self.exceeded = True
            except httptools.HttpParserError as error:
                if not self.complete:
                    reason = error.__context__ if isinstance(error.__context__, Malformed) else error
                    raise Malformed(f"not HTTP/1.1 ({reason}): {bytes(data[:60])!r}") from None
                self.exceeded = True
            body_ends.append(len(body))
            if self.head is None:
                self._head_bytes += len(data)
                if self._head_bytes > LONGEST_HEAD:
                    raise Malformed(f"not HTTP/1.1 (no end of the head within {LONGEST_HEAD} bytes)")

    def close(self) -> None:
        """Let go of the parser, which refers to this object."""
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
