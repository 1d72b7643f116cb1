"""Where a server is: out of its URL the connections to it and the heads of requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_speedbench.load.wire import kernel_stamps
from pytest_speedbench.load.wire.connection import READ_BUFFER_BYTES, Connection

if TYPE_CHECKING:
    import ssl


class Endpoint:
    """A server at a URL, as one event loop sees it.

    Args:
        url: `http://HOST:PORT`, `https://` too, perhaps with a path that all calls begin with.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._path = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._tls = _tls() if parts.scheme == "https" else None
        self._addresses: list[tuple[Any, ...]] = []
        self._buffer = bytearray(READ_BUFFER_BYTES)
        self._reader: kernel_stamps.ArrivalReader | None = None

    def head(self, path: str, headers: Mapping[str, str], length: int) -> bytes:
        """The head of a POST request.

        Args:
            path: of the call.
            headers: of the call.
            length: of its body, in bytes.
        """
        lines = [
            f"POST {self._path}{path} HTTP/1.1",
            f"Host: {self._authority}",
            "Accept: */*",
            "Accept-Encoding: identity",  # nobody would unpack it
            f"Content-Length: {length}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            OSError: the name is not known, nobody answers, or TLS was refused.
        """
        loop = asyncio.get_running_loop()
        if not self._addresses:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = [tuple(address[:2]) for *_, address in found]
        if kernel_stamps.AVAILABLE and self._tls is None and self._reader is None:
            self._reader = kernel_stamps.ArrivalReader(loop)
        last: OSError | None = None
        for address in list(self._addresses):
            try:
                transport, connection = await loop.create_connection(
                    lambda: Connection(self._buffer),
                    *address,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls is not None else None,
                )
            except OSError as error:
                last = error
            else:
                self._addresses = [address]
                if self._reader is not None:
                    self._reader.watch(connection, transport)
                return connection
        assert last is not None
        raise last

    def close(self) -> None:
        """Read no more; connections are closed by whoever has them."""
        if self._reader is not None:
            self._reader.close()


def _tls() -> ssl.SSLContext:
    """Trusts what the system trusts, or `SSL_CERT_FILE`."""
    import ssl

    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
