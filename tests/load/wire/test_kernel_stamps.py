"""Stamps of the kernel: a client that is late does not make the engine late."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterator

import pytest

from pytest_speedbench.load.wire import kernel_stamps
from pytest_speedbench.load.wire.connection import READ_BUFFER_BYTES, Connection
from pytest_speedbench.load.wire.kernel_stamps import ArrivalReader

pytestmark = pytest.mark.skipif(not kernel_stamps.AVAILABLE, reason="this system's kernel tells no stamps")

LATE_S = 0.05
"""How long the event loop is held up after something came in."""

Pair = tuple[socket.socket, socket.socket]
"""Both ends of a connection: the engine's, and ours."""


class Noting(Connection):
    """Notes what is read."""

    def __init__(self) -> None:
        super().__init__(bytearray(READ_BUFFER_BYTES))
        self.reads: list[tuple[float, bytes]] = []

    def received(self, received_s: float, data: bytes) -> None:
        self.reads.append((received_s, data))


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with theirs, ours:
        yield theirs, ours


@pytest.fixture
def stamping() -> Iterator[None]:
    """The kernel stamps what comes in: it begins a moment after the first socket asked for it.

    Of fresh sockets that asked by themselves, 2 to 3.5 % had no stamp on their first read.
    """
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as ours,
    ):
        theirs, _ = listening.accept()
        ours.setsockopt(socket.SOL_SOCKET, kernel_stamps._SO_TIMESTAMPNS, 1)
        with theirs:
            for _ in range(100_000):
                theirs.sendall(b"x")
                if ours.recvmsg(1, kernel_stamps._ANCILLARY_BYTES)[1]:
                    break
            else:
                pytest.fail("the kernel stamps nothing")
            yield


def read_late(pair: Pair, sent: list[bytes]) -> tuple[list[tuple[float, bytes]], float]:
    """Send something, and have it read by an event loop that is held up; what was read, and when it went on."""
    theirs, ours = pair

    async def main() -> tuple[list[tuple[float, bytes]], float]:
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(Noting, sock=ours)
        reader = ArrivalReader(loop)
        reader.watch(connection, transport)
        for data in sent:
            theirs.sendall(data)
        time.sleep(LATE_S)
        went_on_s = time.monotonic()
        while len(b"".join(data for _, data in connection.reads)) < len(b"".join(sent)):
            await asyncio.sleep(0)
        connection.close()
        reader.close()
        return connection.reads, went_on_s

    return asyncio.run(main())


def assert_stamped_as_it_was_read(pair: Pair) -> None:
    """Asserts that something sent is read whole, and stamped not before it was read."""
    ((stamp_s, data),), went_on_s = read_late(pair, [b"data"])
    assert data == b"data"
    assert went_on_s <= stamp_s <= time.monotonic()


@pytest.mark.usefixtures("stamping")
def test_a_read_bears_the_moment_at_which_its_bytes_came_in(pair: Pair) -> None:
    began_s = time.monotonic()
    ((stamp_s, data),), went_on_s = read_late(pair, [b"first", b"last"])
    assert data == b"firstlast"
    assert began_s <= stamp_s < went_on_s - LATE_S / 2


def test_the_kernel_stamps_before_a_connection_asks_for_it(pair: Pair) -> None:
    """Else it would begin some reads after the first response has come in."""
    theirs, ours = pair

    async def main() -> bool:
        reader = ArrivalReader(asyncio.get_running_loop())
        for _ in range(20_000):  # about 0.1 s, for the kernel to begin
            theirs.sendall(b"x")
            ours.recv(1)
        theirs.sendall(b"y")
        ours.setsockopt(socket.SOL_SOCKET, kernel_stamps._SO_TIMESTAMPNS, 1)
        _, stamp, _, _ = ours.recvmsg(1, kernel_stamps._ANCILLARY_BYTES)
        reader.close()
        return bool(stamp)

    assert asyncio.run(main())


@pytest.mark.usefixtures("stamping")
@pytest.mark.parametrize("off_s", [1000.0, -1000.0])
def test_it_bears_that_of_the_read_where_the_time_of_day_was_set(
    off_s: float, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    unix_s = time.time
    monkeypatch.setattr("pytest_speedbench.load.wire.kernel_stamps.time.time", lambda: unix_s() + off_s)
    assert_stamped_as_it_was_read(pair)


def test_it_bears_that_of_the_read_where_the_kernel_tells_none(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_stamps, "_SO_TIMESTAMPNS", socket.SO_KEEPALIVE)
    assert_stamped_as_it_was_read(pair)


def test_a_socket_that_cannot_be_stamped_is_read_by_the_event_loop(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_such_option = 9999
    with pytest.raises(OSError, match=os.strerror(errno.ENOPROTOOPT)):
        pair[1].setsockopt(socket.SOL_SOCKET, no_such_option, 1)
    monkeypatch.setattr(kernel_stamps, "_SO_TIMESTAMPNS", no_such_option)
    assert_stamped_as_it_was_read(pair)
