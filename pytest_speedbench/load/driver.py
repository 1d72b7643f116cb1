"""Drive one round: requests in flight at exactly the batch size, every chunk stamped as it arrives.

While the clock runs a chunk costs one reading of the clock and one append. What was read is decoded after the
round; only a prompt with a further turn is decoded as soon as its turn has ended, in a thread, because the
further turn holds the reply.

The clock is `time.monotonic`: it never goes back, resolves nanoseconds on every POSIX system (where it is the
same clock as `time.perf_counter`), and is the one that the event loop's own timeouts run on.
"""

from __future__ import annotations

import asyncio
import gc
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_speedbench.engines.control import without_key
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.conversation import Prepared, encoder_threads, next_call
from pytest_speedbench.load.eventloop import run
from pytest_speedbench.load.exchange import Exchange, decode, excerpt
from pytest_speedbench.load.records import RequestRecord, RoundRecord

if TYPE_CHECKING:
    import aiohttp

    from pytest_speedbench.data.prompts import Prompt
    from pytest_speedbench.engines.base import Engine, HttpCall
    from pytest_speedbench.load.progress import Progress

READ_BUFFER_BYTES = 4 * 2**20
"""Per connection. aiohttp's default of 64 KiB stops reading from the socket when the client is late, which
slows the server down: its time would be measured, and ours would be in it."""
IDLE_CONNECTION_S = 2.0
"""Below the 5 s after which uvicorn closes an idle connection: a request written at that moment would be lost."""
DEATH_RATTLE_S = 0.5
"""A process that dies closes its sockets a moment before it can be seen to be dead."""


def always_alive() -> str | None:
    """For a server whose process is not ours to watch."""
    return None


def requests_of(prepared: Prepared, batch_size: int) -> int:
    """Requests that one round sends: the turns of all prompts, each prompt as often as it is used."""
    return sum(len(prepared.prompts[index].turns) for index, _ in _order(prepared, batch_size))


def run_round(
    engine: Engine,
    url: str,
    prepared: Prepared,
    batch_size: int,
    *,
    request_timeout_s: float = 600.0,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
) -> RoundRecord:
    """One pass over the prompts with `batch_size` requests in flight.

    Each of `batch_size` slots takes the next prompt as soon as it is free, and sends the prompt's turns one
    after the other. Prompts are used again, in turn, where the batch is larger than their number, so that the
    batch can be full. It is full until the last prompts run out, save for the moment between two turns of a
    prompt.

    Every turn is in the result and counts as sent, also one that never went out because an earlier turn failed
    or the engine was gone: it is a failed request, and its error says so.

    Args:
        engine: decodes the streams.
        url: of the running server.
        prepared: what to send.
        batch_size: requests in flight at once.
        request_timeout_s: a request fails when nothing arrived on it for so long. If nothing arrived on any
            other one either, the engine hangs, and no more requests are sent.
        alive: None while the engine's process lives, else what became of it. Asked from another thread when a
            connection was lost; once it answers, no more requests are sent.
        progress: told of every request that ended.

    Returns:
        One record for each turn, in the order in which they ended.
    """
    round_ = _Round(engine, url, prepared, batch_size, request_timeout_s, alive, progress)
    with _no_garbage_collection():
        client_busy = run(round_.drive)
        records = [*round_.records, *(decode(engine, exchange)[0] for exchange in round_.exchanges)]
    return RoundRecord(
        batch_size=batch_size,
        requests=tuple(sorted(records, key=lambda record: record.ended_s)),
        tokenization=prepared.tokenization,
        client_busy=client_busy,
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from stopping the client to look for cycles.

    A full collection visits every object of the process: with two million, as the records of earlier cells can
    be, it held all streams up for half a second. A round leaves few cycles, and they are collected after it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _order(prepared: Prepared, batch_size: int) -> Iterator[tuple[int, int]]:
    """(index of the prompt, repeat) of every conversation of a round."""
    prompts = len(prepared.prompts)
    return ((number % prompts, number // prompts) for number in range(max(prompts, batch_size)))


class _Round:
    """The state of one round; lives on one event loop."""

    def __init__(
        self,
        engine: Engine,
        url: str,
        prepared: Prepared,
        batch_size: int,
        request_timeout_s: float,
        alive: Callable[[], str | None],
        progress: Progress | None,
    ) -> None:
        self.records: list[RequestRecord] = []
        """Turns that are decoded already."""
        self.exchanges: list[Exchange] = []
        """Turns yet to be decoded."""
        self._engine = engine
        self._url = url
        self._prepared = prepared
        self._batch_size = batch_size
        self._request_timeout_s = request_timeout_s
        self._alive = alive
        self._progress = progress
        self._waiting = _order(prepared, batch_size)
        self._in_flight: dict[asyncio.Task[str | None], _Stream] = {}
        self._last_response_s = 0.0
        self._over: str | None = None
        """Why no more requests are sent."""

    async def drive(self) -> float:
        """Send everything.

        Returns:
            Share of the time in which this thread was computing.
        """
        watch = asyncio.create_task(self._watch())
        async with _session() as session:
            with encoder_threads() as threads:
                wall_s, busy_s = -time.monotonic(), -time.thread_time()
                await asyncio.gather(*(self._slot(session, threads) for _ in range(self._batch_size)))
                wall_s, busy_s = wall_s + time.monotonic(), busy_s + time.thread_time()
        watch.cancel()
        return busy_s / wall_s

    async def _slot(self, session: aiohttp.ClientSession, threads: Executor) -> None:
        for index, repeat in self._waiting:  # shared by all slots: whoever is free takes the next
            await self._converse(session, threads, index, repeat)

    async def _converse(
        self, session: aiohttp.ClientSession, threads: Executor, index: int, repeat: int
    ) -> None:
        """All turns of one prompt."""
        prompt = self._prepared.prompts[index]
        last = len(prompt.turns) - 1
        call = self._prepared.openings[index]
        replies: list[str] = []
        for turn in range(last):
            if self._over is not None:
                break
            exchange = await self._exchange(session, call, prompt, turn, repeat)
            record, following = await asyncio.get_running_loop().run_in_executor(
                threads, self._follow, exchange, prompt, replies
            )
            self._account(record)
            if isinstance(following, str):
                self._abandon(prompt, turn + 1, repeat, following)
                return
            call = following
        if self._over is not None:
            self._abandon(prompt, len(replies), repeat, f"not sent: {self._over}")
            return
        self._account(await self._exchange(session, call, prompt, last, repeat))

    def _follow(
        self, exchange: Exchange, prompt: Prompt, replies: list[str]
    ) -> tuple[RequestRecord, HttpCall | str]:
        """Decode a turn and encode the next one, or say why there is none. Runs in a thread."""
        record, reply = decode(self._engine, exchange)
        if record.error is not None:
            return record, f"not sent: turn {exchange.turn + 1} failed"
        replies.append(reply)
        try:
            return record, next_call(self._engine, self._prepared, prompt, replies)
        except EngineError as error:
            return record, f"not sent: turn {exchange.turn + 2} could not be tokenized: {error}"

    async def _exchange(
        self, session: aiohttp.ClientSession, call: HttpCall, prompt: Prompt, turn: int, repeat: int
    ) -> Exchange:
        """One request and its response, as it comes off the wire."""
        import aiohttp

        stream = _Stream(sent_s=time.monotonic())
        receiving = asyncio.create_task(self._receive(session, call, stream))
        self._in_flight[receiving] = stream
        try:
            await asyncio.wait((receiving,))
        finally:
            del self._in_flight[receiving]
            receiving.cancel()
        error: str | None
        if receiving.cancelled():
            self._suspect_silence()
            error = f"no data for {self._request_timeout_s:g} s"
        elif isinstance(fault := receiving.exception(), (aiohttp.ClientError, OSError)):
            error = await self._explain(fault, sum(len(data) for _, data in stream.chunks))
        else:
            error = receiving.result()
            self._last_response_s = stream.ended_s
        return Exchange(prompt.question_id, turn, repeat, stream.sent_s, stream.ended_s, stream.chunks, error)

    async def _receive(self, session: aiohttp.ClientSession, call: HttpCall, stream: _Stream) -> str | None:
        """Send, and read to the end; returns the server's refusal, in words."""
        clock = time.monotonic
        keep = stream.chunks.append
        # aiohttp warns of bytes above 1 MiB, and sends the same bytes in pieces where they come as a file.
        body = call.body if len(call.body) < 2**20 else io.BytesIO(call.body)
        stream.sent_s = clock()
        try:
            async with session.post(self._url + call.path, data=body, headers=call.headers) as response:
                if response.status != 200:
                    told = without_key(excerpt(await response.content.read()), call.headers)
                    return f"HTTP {response.status}: {told}"
                read = response.content.readany
                while data := await read():
                    keep((clock(), data))
        finally:
            stream.ended_s = clock()
        return None

    async def _watch(self) -> None:
        """Give up requests on which nothing arrives, and keep the progress line alive.

        aiohttp's own read timeout sets a new timer at every chunk: a fifth of the client's whole work.
        """
        while True:
            await asyncio.sleep(min(1.0, self._request_timeout_s / 4))
            silent_since_s = time.monotonic() - self._request_timeout_s
            for receiving, stream in self._in_flight.items():
                if stream.last_sign_s < silent_since_s:
                    receiving.cancel()
            if self._progress is not None:
                self._progress.tick()

    def _suspect_silence(self) -> None:
        """Give up on an engine that hangs as a whole, rather than wait once more for each prompt left."""
        chunks = (stream.chunks[-1][0] for stream in self._in_flight.values() if stream.chunks)
        if max(self._last_response_s, *chunks, 0.0) < time.monotonic() - self._request_timeout_s:
            self._over = (
                self._over or f"the engine hangs, no data for {self._request_timeout_s:g} s on any request"
            )

    async def _explain(self, fault: BaseException, received: int) -> str:
        """Put a fault of the wire in words, and find out whether it is the end of the round."""
        import aiohttp

        waited_until_s = time.monotonic() + DEATH_RATTLE_S
        while self._over is None and self._alive() is None and time.monotonic() < waited_until_s:
            await asyncio.sleep(0.02)
        self._over = self._over or self._alive()
        reason = self._over or " ".join(f"{type(fault).__name__}: {fault}".split())
        if not isinstance(fault, aiohttp.ClientConnectorError):
            return f"the connection broke off after {received} bytes ({reason})"
        self._over = self._over or f"nothing answers at {self._url} any more"
        return f"no connection to {self._url} ({reason})"

    def _abandon(self, prompt: Prompt, turn: int, repeat: int, error: str) -> None:
        """Record `turn` and those after it as failed without having gone out."""
        now_s = time.monotonic()
        for unsent in range(turn, len(prompt.turns)):
            self._account(Exchange(prompt.question_id, unsent, repeat, now_s, now_s, error=error))

    def _account(self, ended: Exchange | RequestRecord) -> None:
        """Every turn passes here exactly once."""
        tokens: int | None = None
        if isinstance(ended, RequestRecord):
            self.records.append(ended)
            tokens = ended.output_tokens
        else:
            self.exchanges.append(ended)
            if ended.error is not None:
                tokens = 0
            elif self._prepared.sampling.ignore_eos:
                tokens = self._prepared.sampling.output_length  # not decoded yet, but known beforehand
        if self._progress is not None:
            self._progress.finished(tokens)


@dataclass
class _Stream:
    """A response as it comes in."""

    sent_s: float
    ended_s: float = 0.0
    chunks: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def last_sign_s(self) -> float:
        return self.chunks[-1][0] if self.chunks else self.sent_s


def _session() -> aiohttp.ClientSession:
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S, ttl_dns_cache=None),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),
        read_bufsize=READ_BUFFER_BYTES,
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},  # nobody would unpack it
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )
