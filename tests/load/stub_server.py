"""A real HTTP server on the loopback, in a thread, whose answers a test writes as a coroutine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.load.stub_engine import spoken_to

if TYPE_CHECKING:
    from typing_extensions import Self

Answer = Callable[["StubServer", "Exchanged"], Awaitable[web.StreamResponse]]


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


GOOD = event(text="one ", tokens=1) + event(text="two", tokens=2) + event(usage=3, finish="length")


class Exchanged:
    """One request, as the server sees it."""

    def __init__(self, server: StubServer, request: web.BaseRequest, body: dict[str, Any]) -> None:
        self._server = server
        self.request = request
        self.in_flight = True
        self.output_length = int(body["output_length"])
        self.asked = spoken_to(body)

    async def start(self) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(self.request)
        return response

    async def send(self, *parts: bytes) -> web.StreamResponse:
        """A whole response; each part goes out in a write of its own."""
        self.leave()  # before the client can know, which may send its next request at once
        response = await self.start()
        for part in parts:
            await response.write(part)
        await response.write_eof()
        return response

    def leave(self) -> None:
        if self.in_flight:
            self.in_flight = False
            self._server.in_flight -= 1
            self._server.answered += 1

    def drop(self) -> None:
        """End the connection as a killed process does."""
        assert self.request.transport is not None
        self.request.transport.abort()


class StubServer:
    """Serves while the `with` block runs; counts the requests in flight."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[str] = []
        """What every request said, in order of arrival."""
        self.output_lengths: list[int] = []
        self.in_flight = 0
        self.answered = 0
        self.changed = asyncio.Condition()
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stub-server")
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.call(self._start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        self.call(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, work: Any) -> Any:
        """Run a coroutine beside the server and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=20)

    async def close_port(self) -> None:
        """From now on connections are refused; those that stand go on."""
        assert self._site is not None
        await self._site.stop()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def _start(self) -> None:
        self._runner = web.ServerRunner(
            web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0.1
        )
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await self._site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        exchanged = Exchanged(self, request, json.loads(await request.content.read()))
        async with self.changed:
            self.asked.append(exchanged.asked)
            self.output_lengths.append(exchanged.output_length)
            self.in_flight += 1
            self.changed.notify_all()
        try:
            return await self._answer(self, exchanged)
        finally:
            exchanged.leave()
            async with self.changed:
                self.changed.notify_all()


async def good(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
    return await exchanged.send(GOOD)


def only_when_full(batch_size: int, total: int) -> Answer:
    """Answers only while the batch is full, or holds all that is left: else a client waits for ever."""

    async def answer(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
        await server.until(lambda: server.in_flight == min(batch_size, total - server.answered))
        return await exchanged.send(GOOD)

    return answer
