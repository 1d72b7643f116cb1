"""What goes over the wire, and what becomes of servers that close, break off, hurry or dawdle."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pytest_speedbench.engines.base import Generation, HttpCall
from pytest_speedbench.engines.control import Control
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.driver import run_round
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.records import RoundRecord
from pytest_speedbench.load.wire import kernel_stamps
from pytest_speedbench.load.wire.connection import Connection, Response
from tests.load.stub_engine import StubEngine, prompts, sampling
from tests.load.stub_server import GOOD
from tests.load.wire.raw_server import Peer, RawServer, serving

CONTROL = Control("http://127.0.0.1:9")  # the discard port: nothing in these tests calls it
OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
HALF = OK + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(GOOD), GOOD)
CHUNKED = HALF + b"0\r\n\r\n"


@pytest.fixture(params=["stamped by the kernel", "by the loop"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here holds whoever reads."""
    name: str = request.param
    if name == "by the loop":
        monkeypatch.setattr(kernel_stamps, "AVAILABLE", False)
    elif not kernel_stamps.AVAILABLE:
        pytest.skip("this system's kernel tells no stamps")
    return name


class Keyed(StubEngine):
    """Sends a key."""

    def call(self, generation: Generation) -> HttpCall:
        return HttpCall("/generate", super().call(generation).body, {"Authorization": "Bearer secret"})


def drive(
    server: RawServer,
    count: int = 1,
    batch_size: int = 1,
    *,
    turns: int = 1,
    engine: StubEngine | None = None,
    path: str = "",
    request_timeout_s: float = 20.0,
) -> RoundRecord:
    engine = engine or StubEngine()
    prepared = prepare(engine, CONTROL, prompts(count, turns), sampling())
    return run_round(
        engine, server.url + path, prepared, RoundPlan(batch_size, request_timeout_s=request_timeout_s)
    )


def errors(record: RoundRecord) -> list[str | None]:
    return [request.error for request in record.requests]


def answering(*responses: bytes) -> Callable[[Peer], None]:
    """One response after the other to as many requests, over again."""

    def script(peer: Peer) -> None:
        number = 0
        while peer.request() is not None:
            peer.send(responses[number % len(responses)])
            number += 1

    return script


class TestRequest:
    def test_is_one_post_with_the_call_s_headers_under_the_url_s_path(self) -> None:
        with serving(answering(SIZED)) as server:
            record = drive(server, engine=Keyed(), path="/gateway")
        (head,), (body,) = server.heads, server.bodies
        first, *headers = head.decode().split("\r\n")
        assert errors(record) == [None]
        assert first == "POST /gateway/generate HTTP/1.1"
        assert sorted(headers) == [
            "Accept-Encoding: identity",
            "Accept: */*",
            "Authorization: Bearer secret",
            f"Content-Length: {len(body)}",
            f"Host: {server.url.removeprefix('http://')}",
        ]

    def test_of_several_mebibytes_goes_out_as_fast_as_the_server_takes_it(self) -> None:
        """A prompt of 32k token ids is 200 KB; this one is 2 MiB, to a socket that takes 16 KiB."""

        class Long(StubEngine):
            def call(self, generation: Generation) -> HttpCall:
                return HttpCall("/generate", bytes(range(256)) * 2**13)

        with serving(answering(CHUNKED), receive_bytes=16384) as server:
            record = drive(server, 2, engine=Long())
        assert errors(record) == [None, None]
        assert server.bodies == [bytes(range(256)) * 2**13] * 2

    def test_that_is_refused_before_it_was_taken_is_told_as_refused(self) -> None:
        class Long(StubEngine):
            def call(self, generation: Generation) -> HttpCall:
                return HttpCall("/generate", bytes(2**24))

        refused = threading.Event()

        def refuse(peer: Peer) -> None:
            peer.connection.recv(1000)
            peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 8\r\n\r\ntoo long")
            refused.wait(20)  # so that no reset overtakes the answer

        with serving(refuse) as server:
            record = drive(server, 1, engine=Long())
            refused.set()
        assert errors(record) == ["HTTP 413: too long"]


class TestKeepAlive:
    def test_one_connection_carries_all_requests_of_a_slot(self) -> None:
        with serving(answering(SIZED, CHUNKED)) as server:
            record = drive(server, 12, 3, turns=2)
        assert errors(record) == [None] * 24
        assert server.connections == 3

    @pytest.mark.parametrize(
        "response",
        [
            SIZED.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
            SIZED.replace(b"HTTP/1.1", b"HTTP/1.0"),
            SIZED + b"what nobody asked for",
        ],
        ids=["close", "http-1.0", "excess"],
    )
    def test_a_connection_that_is_not_to_be_used_again_is_not(self, response: bytes) -> None:
        with serving(answering(response)) as server:
            record = drive(server, 4)
        assert errors(record) == [None] * 4
        assert server.connections == 4

    def test_a_body_may_end_with_its_connection(self) -> None:
        def script(peer: Peer) -> None:
            assert peer.request() is not None
            peer.send(OK + b"\r\n", GOOD[:20], GOOD[20:])

        with serving(script) as server:
            record = drive(server, 3)
        assert errors(record) == [None] * 3
        assert server.connections == 3

    def test_a_server_that_closes_idle_connections_is_called_anew(self) -> None:
        """Between two turns the connection is idle; the next turn is encoded only when it is closed."""
        closed = threading.Event()

        def script(peer: Peer) -> None:
            assert peer.request() is not None
            peer.send(SIZED)
            peer.connection.shutdown(socket.SHUT_RDWR)
            closed.set()

        class Slow(StubEngine):
            def call(self, generation: Generation) -> HttpCall:
                if "assistant" in super().call(generation).body.decode():
                    assert closed.wait(20)
                return super().call(generation)

        with serving(script) as server:
            record = drive(server, engine=Slow(tokenizes=False), turns=2)
        assert errors(record) == [None] * 2
        assert server.connections == 2

    def test_a_request_is_never_sent_twice(self) -> None:
        """Whoever closes after the request was written may have begun to generate."""

        def script(peer: Peer) -> None:
            peer.request()
            if peer.number > 0:
                peer.send(SIZED)

        with serving(script) as server:
            record = drive(server, 2)
        first, second = errors(record)
        assert first == "the connection broke off after 0 bytes (ConnectionError: the server closed it)"
        assert second is None
        assert len(server.bodies) == 2


class TestResponse:
    def test_interim_responses_are_skipped(self) -> None:
        with serving(
            answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + SIZED)
        ) as server:
            assert errors(drive(server, 2)) == [None, None]

    def test_a_redirection_is_told_with_where_it_points_to(self) -> None:
        moved = b"HTTP/1.1 307 Moved\r\nLocation: https://other/v1\r\nContent-Length: 0\r\n\r\n"
        with serving(answering(moved)) as server:
            assert errors(drive(server)) == ["HTTP 307:  (it points to https://other/v1)"]

    def test_an_error_with_a_body_in_chunks_leaves_the_connection_usable(self) -> None:
        busy = b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfull\r\n0\r\n\r\n"
        with serving(answering(busy, SIZED)) as server:
            assert errors(drive(server, 2)) == ["HTTP 503: full", None]
        assert server.connections == 1

    @pytest.mark.parametrize(
        ("part", "received"),
        [(HALF, len(GOOD)), (SIZED[:-10], len(GOOD) - 10), (OK + b"Content-Le", 0), (b"", 0)],
        ids=["chunked", "sized", "head", "nothing"],
    )
    @pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
    def test_a_response_that_breaks_off_is_told_with_its_bytes(
        self, part: bytes, received: int, reset: bool
    ) -> None:
        taken = threading.Event()

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(part)
            if reset:
                taken.wait(0.2)  # a reset may overtake what was sent before it
                peer.reset()

        with serving(script) as server:
            (error,) = errors(drive(server))
        assert error is not None
        told = "ConnectionResetError: " if reset else "ConnectionError: the server closed it)"
        assert error.startswith(f"the connection broke off after {received} bytes ({told}")

    def test_a_reset_is_no_end_of_a_body_that_ends_with_its_connection(self) -> None:
        def script(peer: Peer) -> None:
            peer.request()
            peer.send(OK + b"\r\n" + GOOD)
            peer.connection.recv(1)  # until the client gives up: the reset comes when it has read
            peer.reset()

        with serving(script) as server:
            (error,) = errors(drive(server, request_timeout_s=0.5))
        assert error == "no data for 0.5 s"

    def test_a_chunk_that_is_no_http_is_told_once_the_stream_breaks_off(self) -> None:
        """Chunks of an event stream are not parsed as they come."""
        head = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

        def script(peer: Peer) -> None:
            peer.request()
            peer.send(head, b"%x\r\n%s\r\n" % (len(GOOD), GOOD), b"1\r\n%s\r\n" % GOOD)

        with serving(script) as server:
            (error,) = errors(drive(server))
        assert error is not None
        assert error.startswith("the connection broke off after ")
        assert "(Malformed: not HTTP/1.1 (Expected LF after chunk data)" in error

    def test_what_is_no_http_is_told(self) -> None:
        with serving(answering(b"SSH-2.0-OpenSSH_9.6\r\n")) as server:
            (error,) = errors(drive(server))
        assert error is not None
        assert error.startswith(
            "the connection broke off after 0 bytes (Malformed: not HTTP/1.1 (Expected HTTP/"
        )
        assert "b'SSH-2.0" in error


def test_over_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with serving(answering(SIZED), host="::1") as server:
        record = drive(server, 2)
    assert errors(record) == [None, None]
    assert f"Host: {server.url.removeprefix('http://')}".encode() in server.heads[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate that signs itself, for localhost."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl, which is not here")
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(path), "-out", str(path.with_suffix(".crt"))),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_over_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    many = b'data: {"tokens": 0}\n\n' * 20_000 + GOOD

    def script(peer: Peer) -> None:
        while peer.request() is not None:
            peer.send(OK + b"Content-Length: %d\r\n\r\n" % len(many), many)

    with serving(script, context=context) as server:
        record = drive(server, 6, 2)
    assert errors(record) == [None] * 6
    assert server.connections == 2


def test_a_certificate_that_nobody_vouches_for_is_no_connection(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serving(answering(SIZED), context=context) as server:
        (error,) = errors(drive(server))
    assert error is not None
    assert error.startswith(f"no connection to {server.url} (SSLCertVerificationError: ")
    assert server.heads == []


def test_a_name_that_nobody_knows_is_no_connection() -> None:
    engine = StubEngine()
    prepared = prepare(engine, CONTROL, prompts(1), sampling())
    record = run_round(engine, "http://no-such-host.invalid:8000", prepared, RoundPlan(1))
    (error,) = errors(record)
    assert error is not None
    assert error.startswith("no connection to http://no-such-host.invalid:8000 (gaierror: ")


def test_the_batch_is_full_whenever_something_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of different lengths end at different times: the next one goes out before anything else is read."""
    streams, batch_size = 200, 4
    sent, in_flight, found = 0, set[Connection](), set[int]()
    send, received = Connection.send, Connection.received

    def count_and_send(
        connection: Connection, head: bytes, body: bytes, on_end: Callable[[], None]
    ) -> Response:
        nonlocal sent
        sent += 1
        in_flight.add(connection)

        def ended() -> None:
            in_flight.remove(connection)
            on_end()

        return send(connection, head, body, ended)

    def count_and_take(connection: Connection, received_s: float, data: bytes) -> None:
        if batch_size <= sent < streams:
            found.add(len(in_flight))
        received(connection, received_s, data)

    def script(peer: Peer) -> None:
        number = peer.number
        while peer.request() is not None:
            number += 1
            peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
            for part in [b'data: {"tokens": 1}\n\n'] * (5 + number % 7) + [GOOD]:
                peer.send(b"%x\r\n%s\r\n" % (len(part), part))
            peer.send(b"0\r\n\r\n")

    monkeypatch.setattr(Connection, "send", count_and_send)
    monkeypatch.setattr(Connection, "received", count_and_take)
    with serving(script) as server:
        record = drive(server, streams, batch_size)
    assert {request.error for request in record.requests} == {None}
    assert found == {batch_size}


def test_nothing_stays_open_after_a_round() -> None:
    epolls = epolls_open()
    with serving(answering(SIZED, CHUNKED)) as server:
        drive(server, 8, 2)
        port = int(server.url.rpartition(":")[2])
        assert [c for c in psutil.Process().net_connections() if c.raddr and c.raddr.port == port] == []
    assert epolls_open() == epolls


def epolls_open() -> int:
    """Of this process."""
    files = [entry.path for entry in os.scandir("/proc/self/fd")]
    return sum(os.readlink(file) == "anon_inode:[eventpoll]" for file in files if os.path.lexists(file))
