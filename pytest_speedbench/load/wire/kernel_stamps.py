"""Reads that bear the kernel's stamp of the moment at which their bytes came in: on Linux, without TLS.

When all streams of a batch get their chunk at one moment, the last of 512 is read milliseconds after the first. A
stamp that the client takes as it reads says so, and is late by that much; the kernel's does not mind how busy the
client is. Linux tells it of TCP since 4.14 (`SO_TIMESTAMPNS`, `Documentation/networking/timestamping.rst`): of the last
bytes that a read brought.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_speedbench.load.wire.connection import Connection

AVAILABLE = sys.platform == "linux"
READ_BYTES = 2**16
"""What one read takes at most: as much as an allocator gives and takes back without asking the system."""
_SO_TIMESTAMPNS = 35
"""`asm-generic/socket.h`; Python has no name for it."""
_TIMESPEC = struct.Struct("@ll")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) if AVAILABLE else 0
_UNDISTURBED_S = 2e-5
"""Two clocks that were read within so long tell how far they are apart."""


class ArrivalReader:
    """Reads for all connections of an event loop, which it watches through one `epoll` of its own.

    The event loop still connects, writes and closes. A socket that cannot be stamped is left to it altogether.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[socket.socket, Connection]] = {}
        self._ahead_s = 0.0
        """What the kernel's clock, which is the time of day, is ahead of the monotonic one."""
        self._polled_s = time.monotonic()
        """What had come before was read: no read can be older."""
        # The kernel begins to stamp a moment after a first socket asked for it, and stops when the last one is closed
        # (`net_enable_timestamp`): this one asks before there are connections, and is never read.
        self._asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            self._asking.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        loop.add_reader(self._epoll.fileno(), self._read)

    def watch(self, connection: Connection, transport: asyncio.Transport) -> None:
        """Read for a connection from now on, until it is shut."""
        shared = socket.socket(fileno=transport.get_extra_info("socket").fileno())
        try:
            shared.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        except OSError:  # not every sandbox has it
            shared.detach()
            return
        transport.pause_reading()
        self._watched[shared.fileno()] = shared, connection
        self._epoll.register(shared, select.EPOLLIN)
        connection.on_shut = lambda: self._leave(shared)

    def close(self) -> None:
        """Read no more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        for shared, _ in self._watched.values():
            shared.detach()
        self._watched.clear()
        self._asking.close()

    def _leave(self, shared: socket.socket) -> None:
        """Give a socket back to its transport, which closes it."""
        descriptor = shared.detach()
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def _read(self) -> None:
        """Read from every connection that has something."""
        since_s, self._polled_s = self._polled_s, time.monotonic()
        unix_s = time.time()
        if time.monotonic() - self._polled_s < _UNDISTURBED_S:
            self._ahead_s = unix_s - self._polled_s
        for descriptor, _ in self._epoll.poll(0, len(self._watched) + 1):
            watched = self._watched.get(descriptor)
            if watched is None:
                continue  # shut while others were read
            shared, connection = watched
            try:
                data, ancillary, _, _ = shared.recvmsg(READ_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                continue
            except OSError as fault:
                connection.connection_lost(fault)
                continue
            if not data:
                connection.connection_lost(None)
                continue
            received_s = time.monotonic()
            if ancillary:
                seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
                arrived_s = seconds - self._ahead_s + 1e-9 * nanoseconds
                if since_s <= arrived_s <= received_s:  # else the time of day was set meanwhile
                    received_s = arrived_s
            connection.received(received_s, data)
