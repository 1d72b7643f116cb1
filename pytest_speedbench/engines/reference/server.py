"""The HTTP server: vLLM's routes, streams with one event per step, and faults on request."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from pytest_speedbench import __version__
from pytest_speedbench.engines.reference import protocol
from pytest_speedbench.engines.reference.batching import Batch, Delivery, Job
from pytest_speedbench.engines.reference.clock import Accelerator
from pytest_speedbench.engines.reference.decoding import Decoding
from pytest_speedbench.engines.reference.models import ModelPair
from pytest_speedbench.engines.reference.protocol import GenerationRequest, Reply, RequestError
from pytest_speedbench.engines.reference.randomness import Randomness, digest
from pytest_speedbench.engines.reference.vocabulary import Vocabulary, built_in

BROKEN_OFF_AFTER = 2
"""Events that a stream brings before it crashes, stalls or drops."""
CRASH_STATUS = 70
_MAX_BODY = 64 * 2**20


@dataclass(frozen=True)
class Options:
    """How a server was started."""

    method: str = "draft_model"
    draft_length: int = 3
    seed: int = 0
    draft_quality: float = 1.0
    fault: str | None = None
    fault_after: int = 0
    """Generations that are still served rightly; for `slow-start`, calls of `/health` answered with 503."""
    max_model_len: int = 131_072
    accelerator: Accelerator = field(default_factory=Accelerator)


class Server:
    """One engine: its models, its batch and its routes.

    Args:
        options: how it was started.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._vocabulary: Vocabulary = built_in()
        self._models = ModelPair(self._vocabulary, options.draft_quality)
        self._looping = (
            ModelPair(self._vocabulary, options.draft_quality, loop=True) if options.fault == "loop" else None
        )
        k = options.draft_length if options.method != "none" else 0
        self._draft_length = k
        self.batch: Batch = Batch(options.accelerator, k if options.method == "draft_model" else 0, k)
        self._generations = 0
        self._probes = 0

    def application(self) -> web.Application:
        """The routes, with the batch running as long as they are served."""
        application = web.Application(client_max_size=_MAX_BODY, middlewares=[_errors_as_json])
        application.add_routes(
            [
                web.get("/health", self._health),
                web.get("/version", self._version),
                web.get("/v1/models", self._list_models),
                web.get("/metrics", self._metrics),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat_completions),
            ]
        )
        application.cleanup_ctx.append(self._keep_running)
        return application

    async def _keep_running(self, _: web.Application) -> AsyncIterator[None]:
        running = asyncio.create_task(self.batch.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    @property
    def _ready(self) -> bool:
        return self._options.fault != "slow-start" or self._probes > self._options.fault_after

    async def _health(self, _: web.Request) -> web.Response:
        self._probes += 1
        return web.Response(status=200 if self._ready else 503)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": __version__})

    async def _list_models(self, _: web.Request) -> web.Response:
        model = {
            "id": protocol.MODEL,
            "object": "model",
            "created": 0,
            "owned_by": "pytest-speedbench",
            "root": protocol.MODEL,
            "parent": None,
            "max_model_len": self._options.max_model_len,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _metrics(self, _: web.Request) -> web.Response:
        lost = self._options.fault == "no-counters" and self._generations >= self._options.fault_after
        return web.Response(text=protocol.exposition(self.batch, counters=not lost))

    async def _tokenize(self, request: web.Request) -> web.Response:
        tokens = protocol.parse_tokenize(await _json(request), self._vocabulary)
        answer = {"count": len(tokens), "max_model_len": self._options.max_model_len, "tokens": tokens}
        return web.json_response(answer)

    async def _detokenize(self, request: web.Request) -> web.Response:
        tokens = protocol.parse_detokenize(await _json(request), self._vocabulary)
        return web.json_response({"prompt": self._vocabulary.decode(tokens, special=True)})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        if not self._ready:
            raise RequestError("the engine is still starting", 503)
        asked = protocol.parse_generation(
            await _json(request), self._vocabulary, chat=chat, max_model_len=self._options.max_model_len
        )
        number = self._generations
        self._generations += 1
        fault = self._options.fault if number >= self._options.fault_after else None
        if fault == "http-500":
            raise RequestError("internal error, as --fault http-500 asked", 500)
        job = self._job(asked, self._looping if fault == "loop" and self._looping else self._models)
        reply = Reply(asked, number)
        self.batch.submit(job)
        try:
            deliveries = self._deliveries(job, request, fault)
            if asked.stream:
                return await self._stream(request, asked, reply, job, deliveries, fault)
            return await self._whole(reply, job, deliveries, fault)
        finally:
            job.cancelled = True

    def _job(self, asked: GenerationRequest, models: ModelPair) -> Job:
        options = self._options
        decoding = Decoding(
            models,
            asked.prompt,
            method=options.method,
            draft_length=options.draft_length,
            temperature=asked.temperature,
            randomness=Randomness(digest(asked.prompt, options.seed, asked.seed)),
            may_end=not asked.ignore_eos,
        )
        return Job(decoding, len(asked.prompt), asked.output_length, self._draft_length)

    async def _deliveries(self, job: Job, request: web.Request, fault: str | None) -> AsyncIterator[Delivery]:
        brought = 0
        while True:
            if brought == BROKEN_OFF_AFTER and fault is not None:
                await _break_off(fault, job, request)
            delivery = await job.deliveries.get()
            yield delivery
            brought += 1
            if delivery.finish_reason:
                return

    async def _stream(
        self,
        request: web.Request,
        asked: GenerationRequest,
        reply: Reply,
        job: Job,
        deliveries: AsyncIterator[Delivery],
        fault: str | None,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        opening = reply.opening()
        async for delivery in deliveries:
            text = self._vocabulary.decode(delivery.tokens)
            chunk = reply.chunk(text, delivery.tokens, delivery.finish_reason)
            event = _event(chunk) if opening is None else _event(opening) + _event(chunk)
            opening = None
            await response.write(event)
        end = b"data: [DONE]\n\n"
        if asked.include_usage:
            end = _event(reply.closing(None if fault == "no-counters" else job.tally)) + end
        await response.write(end)
        await response.write_eof()
        return response

    async def _whole(
        self, reply: Reply, job: Job, deliveries: AsyncIterator[Delivery], fault: str | None
    ) -> web.StreamResponse:
        tokens: list[int] = []
        finish_reason = None
        async for delivery in deliveries:
            tokens.extend(delivery.tokens)
            finish_reason = delivery.finish_reason
        tally = None if fault == "no-counters" else job.tally
        body = reply.whole(self._vocabulary.decode(tokens), tokens, finish_reason, tally)
        return web.Response(body=protocol.encode(body), content_type="application/json")


async def _break_off(fault: str, job: Job, request: web.Request) -> None:
    if fault == "crash":
        print("reference engine: crashing, as --fault crash asked", file=sys.stderr, flush=True)
        os._exit(CRASH_STATUS)
    if fault == "drop":
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError
    if fault == "stall":
        job.cancelled = True
        await asyncio.Event().wait()


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + protocol.encode(document) + b"\n\n"


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {error}") from None


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestError as error:
        return web.json_response(error.body, status=error.status)
    except web.HTTPException as error:
        return web.json_response(RequestError(error.reason, error.status).body, status=error.status)
