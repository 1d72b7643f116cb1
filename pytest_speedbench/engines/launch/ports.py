"""Ports of 127.0.0.1: one that an engine may have, and who has it instead."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from pytest_speedbench.errors import EngineError

_PROBED = 100
_LOWEST_PORT = 10_000
"""Below are those of well-known services."""
_GIVEN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_GIVEN_PORTS_BEGIN = 49_152
"""Where the system does not say: RFC 6335, section 6."""


def free() -> int:
    """A port that nobody is bound to now, and that the system will give to nobody who asks for just any.

    An engine binds its port only once its model is loaded. By then one that the system had chosen may be the
    end of somebody's connection, or the socket by which another engine's processes find each other.

    Raises:
        EngineError: there is none.
    """
    draw = random.SystemRandom()  # pytest-randomly seeds the other, alike in runs side by side
    ours = range(_LOWEST_PORT, _lowest_given_port())
    for port in [*draw.sample(ours, min(_PROBED, len(ours))), 0]:  # 0: of the system's own choice
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise EngineError("no port is free on 127.0.0.1")


def listeners(port: int) -> dict[int, str]:
    """Processes that listen on a port of 127.0.0.1, as far as this user may see them: process id -> name."""
    import psutil

    found: dict[int, str] = {}
    with contextlib.suppress(psutil.AccessDenied):  # macOS shows connections to root alone
        for connection in psutil.net_connections(kind="tcp"):
            address, pid = connection.laddr, connection.pid
            if connection.status != psutil.CONN_LISTEN or not address or address.port != port or pid is None:
                continue
            if address.ip in ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found[pid] = psutil.Process(pid).name()
    return found


def _lowest_given_port() -> int:
    """Where the ports begin that the system gives to whoever asks for any."""
    try:
        return int(_GIVEN_PORTS.read_text().split()[0])
    except OSError:
        return _GIVEN_PORTS_BEGIN
