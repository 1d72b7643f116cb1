"""One connection to a server, and the responses that come over it: a time stamp and two appends for each read.

An asyncio protocol without streams: there is no task to switch to while a response comes in. The next request can
go out from within the callback that tells of the end of the one before. Reads come from an `ArrivalReader`, which
tells when their bytes came in, or where there is none from the event loop.

The clock is `time.monotonic`: it never goes back, resolves nanoseconds on every POSIX system (where it is the
same clock as `time.perf_counter`), is the same in all processes, and is the one that the event loop runs on.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from pytest_speedbench.load.wire.recording import Recording
from pytest_speedbench.load.wire.response import Head, Malformed, ResponseReader

READ_BUFFER_BYTES = 2**18
"""What one read takes at most. A client that was late reads all that came in the meantime at once."""
WRITE_BYTES = 2**18
"""A larger request is written in pieces, the next one when the socket has taken those before it."""


@dataclass(eq=False)
class Response:
    """A response as it comes in."""

    sent_s: float
    """Monotonic clock just before the request was written."""
    ended_s: float = 0.0
    """Monotonic clock at the end, good or bad; 0 before it."""
    head: Head | None = None
    recording: Recording = field(default_factory=Recording)
    """All of it, head included."""
    fault: BaseException | None = None
    """What broke it off."""

    @property
    def status(self) -> int:
        """HTTP status; 0 while it is not known."""
        return 0 if self.head is None else self.head.status

    @property
    def last_sign_s(self) -> float:
        """When something was last heard of it."""
        return self.recording.stamps_s[-1] if self.recording.stamps_s else self.sent_s


class Connection(asyncio.BufferedProtocol):
    """A connection that carries one request at a time.

    Args:
        buffer: shared by all connections of an event loop: each read goes into it, and what concerns a connection is
            copied. asyncio would make and cut down `READ_BUFFER_BYTES` for each read otherwise.
    """

    def __init__(self, buffer: bytearray) -> None:
        self._view = memoryview(buffer)
        self.on_shut: Callable[[], None] = lambda: None
        """Called once the connection is of no use any more, before its socket is closed."""
        self._transport: asyncio.Transport | None = None
        self._open = False
        self._response: Response | None = None
        self._on_end: Callable[[], None] = lambda: None
        self._reader: ResponseReader | None = None
        self._unsent = memoryview(b"")
        self._paused = False
        self._idle_since_s = 0.0
        self._served = False

    def reusable(self, idle_s: float) -> bool:
        """Whether the next request may go over it: the server left it open, and it was idle for less than that."""
        return self._open and self._response is None and time.monotonic() - self._idle_since_s < idle_s

    def hung_up(self) -> bool:
        """Whether there is something to read while nothing was asked: nearly always, that the server closes.

        The event loop may come to know it too late, after the next request was written and lost.
        """
        if not self._served or self._transport is None:  # a TLS server has something to say at the start
            return False
        waiting = select.poll()
        waiting.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(waiting.poll(0))

    def send(self, head: bytes, body: bytes, on_end: Callable[[], None]) -> Response:
        """Write a request; its response is complete when `on_end` is called.

        Args:
            head: the request's, blank line included.
            body: the request's.
            on_end: called once, from the event loop; the response then says how it went.
        """
        assert self._transport is not None and self._response is None
        self._response = response = Response(sent_s=time.monotonic())
        self._reader = ResponseReader(response.recording)
        self._on_end = on_end
        if len(body) <= WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._write_on()
        return response

    def give_up(self, fault: BaseException) -> None:
        """Break off the response that is under way, and the connection with it."""
        self._end(time.monotonic(), fault)

    def close(self) -> None:
        """Drop the connection at once; what comes over it is nobody's any more."""
        self._response, self._reader = None, None
        self._shut()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop, as are those below."""
        self._transport = cast(asyncio.Transport, transport)
        self._open = True
        self._idle_since_s = time.monotonic()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the event loop's next read goes."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what the event loop read; the time stamp comes first."""
        self.received(time.monotonic(), bytes(self._view[:nbytes]))

    def received(self, received_s: float, data: bytes) -> None:
        """Take what was read.

        Args:
            received_s: monotonic clock when it came in.
            data: not empty.
        """
        if self._reader is None:  # a server may say that it closes an idle connection, as with 408
            self._shut()
            return
        try:
            if self._reader.feed(received_s, data):
                self._end(received_s)
        except Malformed as fault:
            self._end(received_s, fault)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of a body without an end of its own, or a fault."""
        self._shut()
        head = None if self._reader is None else self._reader.head
        proper = exc is None and head is not None and not head.length_known
        self._end(time.monotonic(), None if proper else exc or ConnectionError("the server closed it"))

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes more again."""
        self._paused = False
        self._write_on()

    def _write_on(self) -> None:
        while self._unsent and not self._paused and self._transport is not None:
            piece, self._unsent = self._unsent[:WRITE_BYTES], self._unsent[WRITE_BYTES:]
            self._transport.write(piece)

    def _end(self, ended_s: float, fault: BaseException | None = None) -> None:
        response, self._response = self._response, None
        reader, self._reader = self._reader, None
        if response is None or reader is None:
            return
        response.head = reader.head
        reader.close()
        usable = fault is None and reader.complete and response.head is not None and response.head.keeps_alive
        if not usable or reader.exceeded or self._unsent:
            self._shut()
        self._idle_since_s = ended_s
        self._served = True
        response.ended_s, response.fault = ended_s, fault
        self._on_end()

    def _shut(self) -> None:
        if not self._open:
            return
        self._open = False
        self._unsent = memoryview(b"")
        self.on_shut()
        if self._transport is not None:
            self._transport.abort()
