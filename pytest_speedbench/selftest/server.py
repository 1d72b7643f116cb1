"""A known fast server on the loopback: it streams as vLLM does, at a stated rate, and tells when it sent what.

    python -m pytest_speedbench.selftest.server --rate 50

It computes nothing: token k of a stream is due k intervals after its first. Each event carries the moment at which
it was sent (`sent_s`, `time.monotonic`, which all processes of one machine share), and `GET /sent` tells all moments
of all streams, so that a client's own account can be held against the truth. A late client never holds a paced
stream up: what the socket does not take waits in memory, and keeps the moment at which it was due.

The loop is asyncio's own. uvloop is faster, but writes at the end of a turn of its loop, long after the stamp.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.request import ProxyHandler, build_opener

from pytest_speedbench.errors import EngineError
from pytest_speedbench.selftest import protocol as wire

STREAMS_PER_PROCESS = 1_000_000
"""Room for the stream numbers of one process, so that those of several do not collide."""
_BURST = 16
"""Events of one write where a server sends as fast as it can."""


@dataclass(frozen=True)
class Sent:
    """What a server sent, by its own clock (`time.monotonic`, in seconds)."""

    stamps_s: Mapping[int, Sequence[float]]
    """By number of the stream, when each of its token-bearing events was handed to the system."""
    asked_s: Mapping[int, float]
    """By number of the stream, when its request had arrived."""
    cpu_s: float
    """Processor time of the server so far, start-up included."""
    held_up: int
    """How often a socket was full, so that bytes had to wait: the client was behind."""

    @property
    def chunks(self) -> int:
        """Token-bearing events, of one token each."""
        return sum(map(len, self.stamps_s.values()))

    @property
    def full_s(self) -> float:
        """When the last stream sent its first event: from then on all send, until the first ends."""
        return max((stamps[0] for stamps in self.stamps_s.values() if stamps), default=0.0)

    @property
    def seconds(self) -> float:
        """From the first request to the last event; 0 where nothing was sent."""
        ended_s = [stamps[-1] for stamps in self.stamps_s.values() if stamps]
        return max(ended_s) - min(self.asked_s.values()) if ended_s else 0.0


class Loopback:
    """A running server, of one process or several that share a port.

    Args:
        url: where it answers.
        controls: base URL of each process alone.
    """

    def __init__(self, url: str, controls: Sequence[str]) -> None:
        self.url = url
        self._controls = tuple(controls)

    def requests(self) -> int:
        """How many streams were asked for so far."""
        return sum(one["requests"] for one in self._ask("/requests"))

    def sent(self) -> Sent:
        """All that was sent so far."""
        told = self._ask("/sent")
        return Sent(
            stamps_s={int(number): stamps for one in told for number, stamps in one["stamps_s"].items()},
            asked_s={int(number): asked_s for one in told for number, asked_s in one["asked_s"].items()},
            cpu_s=sum(one["cpu_s"] for one in told),
            held_up=sum(one["held_up"] for one in told),
        )

    def _ask(self, path: str) -> list[dict[str, Any]]:
        told = []
        direct = build_opener(ProxyHandler({}))  # not by way of a proxy of the environment
        for control in self._controls:
            with direct.open(control + path, timeout=60) as answer:
                told.append(json.load(answer))
        return told


@contextmanager
def serving(chunks_per_second: float | None, *, phases: int = 1, processes: int = 1) -> Iterator[Loopback]:
    """Serve from processes of their own while the `with` block runs.

    Args:
        chunks_per_second: of each stream; None for as fast as it can.
        phases: as in `Server`.
        processes: that share one port. The system spreads connections over them, not quite evenly.

    Raises:
        EngineError: a process did not start; the message holds what it said.
    """
    command = [sys.executable, "-m", "pytest_speedbench.selftest.server", "--tied", "--phases", str(phases)]
    command += [] if chunks_per_second is None else ["--rate", repr(chunks_per_second)]
    command += ["--shared"] if processes > 1 else []
    with ExitStack() as running:
        controls: list[str] = []
        url, port = "", 0
        for number in range(processes):
            options = ["--port", str(port), "--first-stream", str(number * STREAMS_PER_PROCESS)]
            told = running.enter_context(_process([*command, *options]))
            url, port = told["url"], told["port"]
            controls.append(told["control"])
        yield Loopback(url, controls)


@contextmanager
def _process(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if not line:
            said = process.stderr.read().strip().splitlines() or ["it said nothing"]
            raise EngineError(f"the loopback server did not start: {said[-1]}")
        yield json.loads(line)
    finally:
        process.terminate()
        process.communicate()


class Server:
    """All streams of one process, and the wheel that turns them.

    Args:
        chunks_per_second: of each stream; None for as fast as the sockets take them.
        phases: into how many moments of an interval streams are spread. 1: all streams send together, as those of
            an engine do after each step of its batch; more: the load is even.
        first_stream: number of the first stream.
    """

    def __init__(self, chunks_per_second: float | None, *, phases: int = 1, first_stream: int = 0) -> None:
        self.held_up = 0
        self._asked_s: dict[int, float] = {}
        self._stamps_s: dict[int, array[float]] = {}
        self._first_stream = first_stream
        self._slots: list[list[_Stream]] = [[] for _ in range(phases)]
        self._turns = 0
        self._slot_s = None if chunks_per_second is None else 1 / chunks_per_second / phases
        self._due_s = 0.0
        self._turning = False

    def add(self, connection: _Connection, asked: wire.Asked) -> _Stream:
        """Begin a stream: its first event goes out when the wheel next comes by."""
        loop = asyncio.get_running_loop()
        count = len(self._stamps_s)
        number = self._first_stream + count
        stamps_s: array[float] = array("d")
        self._stamps_s[number] = stamps_s
        self._asked_s[number] = time.monotonic()
        stream = _Stream(connection, asked, number, stamps_s)
        self._slots[count % len(self._slots)].append(stream)
        if not self._turning:
            self._turning = True
            self._due_s = loop.time() + (self._slot_s or 0.0)
            loop.call_at(self._due_s, self._paced_turn if self._slot_s else self._unpaced_turn)
        return stream

    def account(self, path: str) -> dict[str, Any]:
        """The document of `GET /sent`, or of `GET /requests`."""
        if path == "/requests":
            return {"requests": len(self._asked_s)}
        return {
            "asked_s": self._asked_s,
            "cpu_s": time.process_time(),
            "held_up": self.held_up,
            "stamps_s": {number: stamps_s.tolist() for number, stamps_s in self._stamps_s.items()},
        }

    def _paced_turn(self) -> None:
        """Send one event on each stream of a slot. A turn that is late is followed at once by the next."""
        assert self._slot_s is not None
        slot = self._slots[self._turns % len(self._slots)]
        self._turns += 1
        ended = False
        for stream in slot:
            if stream.left > 1:
                stream.send()
            else:
                stream.end()
                ended = True
        if ended:
            slot[:] = [stream for stream in slot if stream.left]
        self._due_s += self._slot_s
        self._turning = any(self._slots)
        if self._turning:
            asyncio.get_running_loop().call_at(self._due_s, self._paced_turn)

    def _unpaced_turn(self) -> None:
        """Send a burst on each stream whose socket takes one."""
        wrote = False
        for slot in self._slots:
            for stream in slot:
                if stream.connection.full:
                    continue
                if stream.left > 1:
                    stream.send(min(_BURST, stream.left - 1))
                else:
                    stream.end()
                wrote = True
            slot[:] = [stream for stream in slot if stream.left]
        self._turning = any(self._slots)
        if self._turning:
            loop = asyncio.get_running_loop()
            loop.call_later(0.0 if wrote else 1e-4, self._unpaced_turn)


class _Stream:
    """One response as it goes out."""

    __slots__ = ("_asked", "_ending", "_event", "_stamps_s", "_write", "connection", "left")

    def __init__(
        self, connection: _Connection, asked: wire.Asked, number: int, stamps_s: array[float]
    ) -> None:
        self.connection: _Connection = connection
        self.left: int = asked.output_length
        """Events to come; 0 once the client has gone."""
        self._asked = asked
        self._stamps_s = stamps_s
        self._event = wire.template(asked, number)
        self._ending = wire.ending(asked, number)
        self._write = connection.transport.write
        self._write(wire.opening(asked, number))

    def send(self, count: int = 1) -> None:
        """Send the next events, in one write."""
        self.left -= count
        self._write(self._next() if count == 1 else b"".join([self._next() for _ in range(count)]))

    def end(self) -> None:
        """Send the last event, and what ends the response."""
        if self.left:
            self.left = 0
            self._write(wire.finished(self._next()) + self._ending)
            self.connection.ended()

    def _next(self) -> bytes:
        stamp_s = time.monotonic()
        self._stamps_s.append(stamp_s)
        if not self._asked.continuous_usage:
            return self._event % stamp_s
        count = len(self._stamps_s)
        return self._event % (self._asked.prompt_tokens + count, count, stamp_s)


class _Connection(asyncio.Protocol):
    """One client connection: requests one after the other, each answered before the next is looked at."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = bytearray()
        self._stream: _Stream | None = None
        self._closes = False
        self.full: bool = False
        """Whether the socket takes no more for now."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=0)  # told of the first byte that the socket does not take

    def pause_writing(self) -> None:
        self.full = True
        self._server.held_up += 1

    def resume_writing(self) -> None:
        self.full = False

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._answer()

    def connection_lost(self, error: Exception | None) -> None:
        if self._stream is not None:
            self._stream.left = 0

    def ended(self) -> None:
        """The stream is complete; the connection is free for the next request."""
        self._stream = None
        if self._closes:
            self.transport.close()
        elif self._received:
            self._answer()

    def _answer(self) -> None:
        while self._stream is None and not self.transport.is_closing():
            try:
                request = wire.parse_request(self._received)
                if request is None:
                    return
                del self._received[: request.length]
                self._closes = request.closes
                if request.path in wire.GENERATIONS:
                    self._stream = self._server.add(self, wire.asked(request))
                    continue
                own = request.path in ("/sent", "/requests")
                document = self._server.account(request.path) if own else wire.document(request)
                self.transport.write(wire.response(200, document))
            except wire.Refusal as refusal:
                self._closes = self._closes or refusal.ends_connection
                self.transport.write(wire.response(refusal.status, {"error": {"message": str(refusal)}}))
            if self._closes:
                self.transport.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_speedbench.selftest.server",
        description=__doc__.splitlines()[0] if __doc__ else None,
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, for a free one")
    parser.add_argument("--rate", type=float, metavar="R", help="chunks/s of each stream; default: no limit")
    parser.add_argument("--phases", type=int, default=1, metavar="N", help="1: all streams send together")
    parser.add_argument("--shared", action="store_true", help="share the port with other processes")
    parser.add_argument("--tied", action="store_true", help="end when standard input does")
    parser.add_argument("--first-stream", type=int, default=0, metavar="N", help="number of the first stream")
    options = parser.parse_args(arguments)
    if options.rate is not None and not 0 < options.rate <= 100_000:
        parser.error(f"--rate {options.rate:g}: allowed is a number above 0, up to 100,000")
    if options.phases < 1:
        parser.error(f"--phases {options.phases}: allowed is a whole number from 1")
    try:
        asyncio.run(_serve(options))
    except (OSError, OverflowError) as error:
        print(f"loopback server: cannot serve port {options.port}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    if options.tied:  # whoever started us may be killed, and could not end us then
        loop.add_reader(sys.stdin.fileno(), stop.set)
    server = Server(options.rate, phases=options.phases, first_stream=options.first_stream)
    public = await loop.create_server(
        lambda: _Connection(server),
        "127.0.0.1",
        options.port,
        backlog=1024,
        reuse_port=True if options.shared else None,
    )
    control = await loop.create_server(lambda: _Connection(server), "127.0.0.1", 0)
    port, own = (one.sockets[0].getsockname()[1] for one in (public, control))
    told = {"url": f"http://127.0.0.1:{port}", "port": port, "control": f"http://127.0.0.1:{own}"}
    print(json.dumps(told), flush=True)
    await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
