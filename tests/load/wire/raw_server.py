"""A server that writes bytes to sockets, for what no HTTP library would send."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Script = Callable[["Peer"], None]


class Peer:
    """One connection, as the server sees it."""

    def __init__(self, server: RawServer, connection: socket.socket, number: int) -> None:
        self.server = server
        self.connection = connection
        self.number = number
        """Counted from 0, in the order in which connections were opened."""

    def request(self) -> tuple[bytes, bytes] | None:
        """Head and body of the next request; None if the client has hung up."""
        received = b""
        while b"\r\n\r\n" not in received:
            data = self.connection.recv(65536)
            if not data:
                return None
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += self.connection.recv(65536)
        self.server.heads.append(head)
        self.server.bodies.append(body)
        return head, body

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.connection.sendall(part)

    def reset(self) -> None:
        """End the connection as a killed process does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()


class RawServer:
    """Where it listens, and what it was sent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connections = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []


@contextmanager
def serving(
    script: Script, *, host: str = "127.0.0.1", context: ssl.SSLContext | None = None, receive_bytes: int = 0
) -> Iterator[RawServer]:
    """Serve while the block runs: `script` has each connection in a thread of its own, and it ends with it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    open_connections: list[socket.socket] = []
    threads: list[threading.Thread] = []
    with socket.socket(family) as listening:
        if receive_bytes:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        listening.bind((host, 0))
        listening.listen(128)
        where = f"[{host}]" if ":" in host else host
        scheme = "http" if context is None else "https"
        server = RawServer(f"{scheme}://{where}:{listening.getsockname()[1]}")

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                peer = Peer(server, connection, server.connections)
                server.connections += 1
                open_connections.append(connection)
                threads.append(threading.Thread(target=converse, args=(peer,)))
                threads[-1].start()

        def converse(peer: Peer) -> None:
            with suppress(OSError):
                if context is not None:
                    peer.connection = context.wrap_socket(peer.connection, server_side=True)
                    open_connections.append(peer.connection)
                script(peer)
            with suppress(OSError):
                peer.connection.close()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield server
        finally:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            accepting.join()
            for connection in open_connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
