"""The slots of a round: each sends one conversation after the other, so that the batch is always full."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_speedbench.engines.control import without_key
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.client_load import ClientLoad, ClientLoadMeter
from pytest_speedbench.load.conversation import Prepared, encoder_threads, next_call
from pytest_speedbench.load.decode import Decoded, Exchange, decode, excerpt
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.wire.connection import Connection, Response
from pytest_speedbench.load.wire.endpoint import Endpoint
from pytest_speedbench.load.wire.recording import Recording
from pytest_speedbench.load.wire.response import body_of

if TYPE_CHECKING:
    from pytest_speedbench.data.prompts import Prompt
    from pytest_speedbench.engines.base import Engine, HttpCall
    from pytest_speedbench.load.progress import Progress

IDLE_CONNECTION_S = 2.0
"""Below the 5 s after which uvicorn closes an idle connection: a request written at that moment would be lost."""
DEATH_RATTLE_S = 0.5
"""A process that dies closes its sockets a moment before it can be seen to be dead."""
OPENED_AT_ONCE = 64
"""Connections opened side by side before a round: fewer than the 100 that some servers let wait."""
UNPACKED_BYTES = 2**28
"""What responses may take in memory before they are packed, all together."""
PACKED_AT_ONCE = 16
"""Responses that are packed in one go: so that the thread does not hold the interpreter for long."""


class Silence(Exception):
    """Nothing arrived for too long."""


class Round:
    """The state of one round; lives on one event loop."""

    def __init__(
        self,
        engine: Engine,
        url: str,
        prepared: Prepared,
        plan: RoundPlan,
        alive: Callable[[], str | None],
        progress: Progress | None,
    ) -> None:
        self.engine = engine
        self.prepared = prepared
        self.endpoint: Endpoint = Endpoint(url)
        self.over: str | None = None
        """Why no more requests are sent."""
        self.in_flight: dict[Response, Connection] = {}
        self.conversations: Iterator[tuple[int, int]] = plan.order(prepared)
        self.threads: Executor
        self.one_decoder: threading.Lock = threading.Lock()
        """Decoding holds the interpreter: of several threads that want it, the one of the streams is but one."""
        self.request_timeout_s: float = plan.request_timeout_s
        self._slots = plan.batch_size
        self.turns: list[Decoded] = []
        """Those that are decoded already: a further turn needed them."""
        self.exchanges: list[Exchange] = []
        """Those yet to be decoded."""
        self._unpacked: list[Exchange] = []
        self._alive = alive
        self._progress = progress
        self.last_response_s: float = 0.0

    async def drive(self) -> ClientLoad:
        """Send everything, once all connections are open."""
        slots = [Slot(self) for _ in range(self._slots)]
        try:
            for first in range(0, len(slots), OPENED_AT_ONCE):
                opening = (slot.open() for slot in slots[first : first + OPENED_AT_ONCE])
                if any(await asyncio.gather(*opening, return_exceptions=True)):
                    break  # it is told by the requests that will want a connection
            watch = asyncio.create_task(self._watch())
            with encoder_threads() as self.threads, ClientLoadMeter() as meter:
                await asyncio.gather(*(slot.work() for slot in slots))
            watch.cancel()
            return meter.effort()
        finally:
            for slot in slots:
                slot.close()
            self.endpoint.close()

    async def _watch(self) -> None:
        """Give up requests on which nothing arrives, keep memory bounded and the progress line alive.

        A timer for each request, set anew at every chunk, was a fifth of the client's whole work.
        """
        with _packer() as packer:
            while True:
                await asyncio.sleep(min(0.25, self.request_timeout_s / 4))
                silent_since_s = time.monotonic() - self.request_timeout_s
                for response, connection in list(self.in_flight.items()):
                    if response.last_sign_s < silent_since_s:
                        connection.give_up(Silence())
                self._pack(packer)
                if self._progress is not None:
                    self._progress.tick()

    def _pack(self, packer: Executor) -> None:
        """Shrink the longest recordings where all together are too long."""
        recordings = [response.recording for response in self.in_flight]
        recordings += [exchange.recording for exchange in self._unpacked]
        if sum(recording.unpacked_bytes for recording in recordings) <= UNPACKED_BYTES:
            return
        recordings.sort(key=lambda recording: recording.unpacked_bytes, reverse=True)
        for recording in recordings[:PACKED_AT_ONCE]:
            recording.pack(packer)
        self._unpacked = [exchange for exchange in self._unpacked if exchange.recording.reads]

    def silence(self) -> str:
        """Say that a request was given up.

        An engine that hangs as a whole is given up with it, rather than waited for once more for each prompt left.
        """
        heard = (response.recording.stamps_s[-1:] for response in self.in_flight)
        last_sign_s = max([self.last_response_s, *(stamp for stamps in heard for stamp in stamps)])
        if last_sign_s < time.monotonic() - self.request_timeout_s:
            told = f"the engine hangs, no data for {self.request_timeout_s:g} s on any request"
            self.over = self.over or told
        return f"no data for {self.request_timeout_s:g} s"

    async def explain(self, fault: BaseException, received: int | None) -> str:
        """Put a fault of the wire in words, and find out whether it is the end of the round.

        Args:
            fault: what went wrong.
            received: bytes of the body until then; None where there was no connection.
        """
        waited_until_s = time.monotonic() + DEATH_RATTLE_S
        while self.over is None and self._alive() is None and time.monotonic() < waited_until_s:
            await asyncio.sleep(0.02)
        self.over = self.over or self._alive()
        reason = self.over or " ".join(f"{type(fault).__name__}: {fault}".split())
        if received is not None:
            return f"the connection broke off after {received} bytes ({reason})"
        self.over = self.over or f"nothing answers at {self.endpoint.url} any more"
        return f"no connection to {self.endpoint.url} ({reason})"

    def account(self, ended: Exchange | Decoded) -> None:
        """Every turn passes here exactly once."""
        tokens: int | None = None
        if isinstance(ended, Decoded):
            self.turns.append(ended)
            tokens = ended.record.output_tokens
        else:
            self.exchanges.append(ended)
            self._unpacked.append(ended)
            if ended.error is not None:
                tokens = 0
            elif self.prepared.sampling.ignore_eos:
                tokens = self.prepared.sampling.output_length  # not decoded yet, but known beforehand
        if self._progress is not None:
            self._progress.finished(tokens)


@contextmanager
def _packer() -> Iterator[Executor]:
    packer = ThreadPoolExecutor(1, thread_name_prefix="speedbench-pack")
    try:
        yield packer
    finally:
        packer.shutdown(wait=False)


class Slot:
    """One of the requests in flight: a connection, and the conversation in hand."""

    def __init__(self, round_: Round) -> None:
        self._round = round_
        self._connection: Connection | None = None
        self._response: Response | None = None
        self._prompt: Prompt
        self._repeat = 0
        self._turn = 0
        """Which turn is under way, or the next to be sent."""
        self._call: HttpCall
        self._replies: list[str] = []
        self._woken: asyncio.Future[Response | None]
        """Ends with a response that something is to be done about; None where the conversation is done."""

    async def open(self) -> None:
        """Connect ahead of the next request.

        Raises:
            OSError: there is no connection to be had.
            asyncio.TimeoutError: nobody answers.
        """
        connecting = self._round.endpoint.connect()
        self._connection = await asyncio.wait_for(connecting, self._round.request_timeout_s)

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection.close()

    async def work(self) -> None:
        """Take one conversation after the other."""
        while self._take():
            await self._converse()

    def _take(self) -> bool:
        """Take the next conversation in hand, if there is one: whichever slot is free gets it."""
        found = next(self._round.conversations, None)
        if found is None:
            return False
        index, self._repeat = found
        self._prompt = self._round.prepared.prompts[index]
        self._call = self._round.prepared.openings[index]
        self._turn, self._replies = 0, []
        return True

    async def _converse(self) -> None:
        """Send the conversation in hand, and those that can follow it without any wait."""
        while True:
            if self._round.over is not None:
                return self._abandon(f"not sent: {self._round.over}")
            began_s = time.monotonic()
            failure = await self._connect()
            if failure is not None:
                return self._fail(began_s, time.monotonic(), failure)
            self._woken = asyncio.get_running_loop().create_future()
            self._send()
            response = await self._woken
            if response is None:
                return None
            failure = await self._failure(response)
            if failure is not None:
                return self._fail(response.sent_s, response.ended_s, failure)
            refusal = await self._follow(response)
            if refusal is not None:
                return self._abandon(f"not sent: {refusal}")

    async def _connect(self) -> str | None:
        """See to it that there is a connection; else says why there is none."""
        connection = self._connection
        if connection is not None and connection.reusable(IDLE_CONNECTION_S) and not connection.hung_up():
            return None
        self.close()
        try:
            await self.open()
        except (asyncio.TimeoutError, OSError) as fault:
            if getattr(fault, "errno", None) is None and isinstance(fault, asyncio.TimeoutError):
                return self._round.silence()  # else it is the system's own, that nobody answered
            return await self._round.explain(fault, None)
        return None

    def _send(self) -> None:
        assert self._connection is not None
        call = self._call
        head = self._round.endpoint.head(call.path, call.headers, len(call.body))
        self._response = self._connection.send(head, call.body, self._ended)
        self._round.in_flight[self._response] = self._connection

    def _ended(self) -> None:
        """A response has ended. If all is well, the next conversation goes out before anything else is read.

        Whatever was read between the end of one request and the start of the next would bear the stamp of a
        moment when the batch was not full: in a burst of all streams, hundreds of chunks.
        """
        response, connection = self._response, self._connection
        assert response is not None and connection is not None
        self._response = None
        del self._round.in_flight[response]
        if response.fault is None:
            self._round.last_response_s = response.ended_s
        if self._woken.done():  # cancelled
            return
        try:
            if (
                response.fault is not None
                or response.status != 200
                or self._turn < len(self._prompt.turns) - 1
            ):
                self._woken.set_result(response)
                return
            self._round.account(self._exchange(response.sent_s, response.ended_s, response))
            if self._round.over is None and connection.reusable(IDLE_CONNECTION_S) and self._take():
                self._send()
            else:
                self._woken.set_result(None)
        except Exception as error:  # the event loop would note it, and the slot wait for ever
            self._woken.set_exception(error)

    async def _failure(self, response: Response) -> str | None:
        """What went wrong on the wire, in words."""
        if isinstance(response.fault, Silence):
            return self._round.silence()
        if response.fault is not None:
            body = body_of(response.recording, ended=False)
            return await self._round.explain(body.fault or response.fault, len(body.raw))
        if response.status == 200:
            return None
        told = without_key(excerpt(body_of(response.recording).raw), self._call.headers)
        elsewhere = response.head.headers.get("location") if response.head is not None else None
        return f"HTTP {response.status}: {told}" + (f" (it points to {elsewhere})" if elsewhere else "")

    async def _follow(self, response: Response) -> str | None:
        """Decode a turn and encode the next one, or say why there is none."""
        decoded, following = await asyncio.get_running_loop().run_in_executor(
            self._round.threads, self._decode, self._exchange(response.sent_s, response.ended_s, response)
        )
        self._round.account(decoded)
        self._turn += 1
        if isinstance(following, str):
            return following
        self._call = following
        return None

    def _decode(self, exchange: Exchange) -> tuple[Decoded, HttpCall | str]:
        """In a thread."""
        with self._round.one_decoder:
            decoded = decode(self._round.engine, exchange)
        if decoded.record.error is not None:
            return decoded, f"turn {exchange.turn + 1} failed"
        self._replies.append(decoded.text)
        try:
            return decoded, next_call(self._round.engine, self._round.prepared, self._prompt, self._replies)
        except EngineError as error:
            return decoded, f"turn {exchange.turn + 2} could not be tokenized: {error}"

    def _fail(self, sent_s: float, ended_s: float, error: str) -> None:
        """Record the turn under way as failed, and those after it."""
        self._round.account(self._exchange(sent_s, ended_s, error=error))
        self._turn += 1
        self._abandon(f"not sent: turn {self._turn} failed")

    def _abandon(self, error: str) -> None:
        """Record the turns that are left as failed without having gone out."""
        now_s = time.monotonic()
        while self._turn < len(self._prompt.turns):
            self._round.account(self._exchange(now_s, now_s, error=error))
            self._turn += 1

    def _exchange(
        self, sent_s: float, ended_s: float, response: Response | None = None, error: str | None = None
    ) -> Exchange:
        recording = Recording() if response is None else response.recording
        name = self._prompt.question_id
        return Exchange(name, self._turn, self._repeat, sent_s, ended_s, recording, error)
