"""HTTP/1.1 responses as far as a stream needs them: the head once, then a body cut anywhere, by RFC 9112.

Python's own parser and those of HTTP libraries read from a file or call back for every piece. The one that costs
least is the one that looks at the size of a chunk and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pytest_speedbench.load.wire.recording import Recording

LONGEST_HEAD = 2**16
"""Bytes of a head, of a line between chunks, or of a trailer."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: .*)?")
_SIZE = re.compile(rb"[0-9a-fA-F]{1,15}")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


class Malformed(Exception):
    """The server sent what is no HTTP/1.1 response."""


@dataclass(frozen=True)
class Head:
    """Status and headers of a response."""

    status: int
    headers: Mapping[str, str]
    """By name in lower case; values of the same name joined by `, `."""
    keeps_alive: bool
    """Whether the server leaves the connection open, if the body has an end of its own."""


def split_head(received: bytes) -> tuple[Head, bytes] | None:
    """The final head in what a server sent, and what follows it; None while it is not complete.

    Interim responses (100, 103) are skipped.

    Raises:
        Malformed: this is no head.
    """
    while True:
        end = _BLANK_LINE.search(received)
        if end is None:
            if len(received) > LONGEST_HEAD or not b"HTTP/1.".startswith(received[:7]):
                raise Malformed(f"no HTTP/1.1 head: {received[:60]!r}")
            return None
        head = _parse(received[: end.start()])
        received = received[end.end() :]
        if head.status >= 200 or head.status == 101:
            return head, received


def _parse(text: bytes) -> Head:
    first, *lines = (line.rstrip(b"\r") for line in text.split(b"\n"))
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise Malformed(f"no HTTP/1.1 status line: {first[:60]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name or name != name.strip():
            raise Malformed(f"no header: {line[:60]!r}")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    wishes = {wish.strip().lower() for wish in headers.get("connection", "").split(",")}
    keeps_alive = "close" not in wishes and (status_line[1] == b"1" or "keep-alive" in wishes)
    return Head(int(status_line[2]), headers, keeps_alive)


def body_of(head: Head, recording: Recording) -> ChunkedBody | SizedBody | OpenBody:
    """What takes the body that follows a head, by RFC 9112, section 6.3.

    Raises:
        Malformed: the head contradicts itself.
    """
    if head.status in (101, 204, 304):
        return SizedBody(recording, 0)
    coding = head.headers.get("transfer-encoding")
    if coding is not None:
        if coding.lower() != "chunked":
            raise Malformed(f"unknown Transfer-Encoding: {coding}")
        return ChunkedBody(recording)
    length = head.headers.get("content-length")
    if length is None:
        return OpenBody(recording)
    told = {part.strip() for part in length.split(",")}
    if len(told) > 1 or not (one := told.pop()).isdecimal():
        raise Malformed(f"no Content-Length: {length}")
    return SizedBody(recording, int(one))


class OpenBody:
    """A body that ends with the connection."""

    ends_with_connection = True
    exceeded = False

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def feed(self, received_s: float, data: bytes) -> bool:
        """Take what was read; False: this never is the end."""
        self._recording.keep(received_s, data)
        return False


class SizedBody:
    """A body of known length."""

    ends_with_connection = False

    def __init__(self, recording: Recording, length: int) -> None:
        self._recording = recording
        self._left = length
        self.exceeded = False
        """Whether something came after the body that nobody asked for."""

    def feed(self, received_s: float, data: bytes) -> bool:
        """Take what was read; tells whether the body is complete."""
        self.exceeded = len(data) > self._left
        data = data[: self._left]
        self._left -= len(data)
        if data:
            self._recording.keep(received_s, data)
        return not self._left


_BEGINNING = 6
"""Bytes of a chunk that hold its size, and what ends the line of it, if it is a small one."""


@lru_cache(maxsize=2**13)
def _one_chunk(beginning: bytes) -> tuple[int, int]:
    """(length of the chunk that begins so, where its data starts) in bytes; (0, 0) where this does not tell it.

    Not the last chunk, which is empty. Remembered: sizes are few, and to read one costs more than all the rest.
    """
    size, end_of_line, _ = beginning.partition(b"\r\n")
    if not end_of_line or not _SIZE.fullmatch(size) or not (number := int(size, 16)):
        return 0, 0
    start = len(size) + 2
    return start + number + 2, start


class ChunkedBody:
    """A body in chunks, each after a line with its size."""

    ends_with_connection = False

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._stamp = recording.stamps_s.append
        self._note_size = recording.sizes.append
        self._left = 0
        """Bytes of the chunk that are yet to come."""
        self._line = b""
        """The beginning of a line that was cut."""
        self._read_line = self._size
        self._between = True
        """Whether what comes next begins with a line of a size."""
        self.exceeded = False
        """Whether something came after the body that nobody asked for."""

    def feed(self, received_s: float, data: bytes) -> bool:
        """Take what was read; tells whether the body is complete.

        Nearly always a read brings one chunk and no more, which its length and its first bytes tell.

        Raises:
            Malformed: this is no chunk.
        """
        if self._between:
            length, start = _one_chunk(data[:_BEGINNING])
            if length == len(data) and data[-2:] == b"\r\n":
                self._stamp(received_s)
                self._note_size(length - start - 2)
                self._recording.raw += data[start:-2]
                return False
        return self._feed_any(received_s, data)

    def _feed_any(self, received_s: float, data: bytes) -> bool:
        """Chunks that were cut, or several of them."""
        parts: list[bytes] = []
        position, complete = 0, False
        while position < len(data) and not complete:
            if self._left:
                parts.append(data[position : position + self._left])
                position += len(parts[-1])
                self._left -= len(parts[-1])
                continue
            newline = data.find(b"\n", position)
            self._line += data[position:] if newline < 0 else data[position:newline]
            if len(self._line) > LONGEST_HEAD:
                raise Malformed(f"no end of a chunk's line: {self._line[:60]!r}")
            if newline < 0:
                break
            line, self._line = self._line, b""
            position = newline + 1
            complete = self._read_line(line.removesuffix(b"\r"))
        self.exceeded = complete and position < len(data)
        self._between = not self._left and not self._line and self._read_line == self._size
        if body := b"".join(parts):
            self._recording.keep(received_s, body)
        return complete

    def _size(self, line: bytes) -> bool:
        size = line.partition(b";")[0].strip(b" \t")
        if not _SIZE.fullmatch(size):
            raise Malformed(f"no size of a chunk: {line[:60]!r}")
        self._left = int(size, 16)
        self._read_line = self._end_of_chunk if self._left else self._trailer
        return False

    def _end_of_chunk(self, line: bytes) -> bool:
        if line:
            raise Malformed(f"more than the size of a chunk: {line[:60]!r}")
        self._read_line = self._size
        return False

    def _trailer(self, line: bytes) -> bool:
        return not line
