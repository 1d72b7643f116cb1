"""A round shared by several processes is the round of one process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest
from aiohttp import web

from pytest_speedbench.engines.base import Engine
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.llamacpp import LlamaCppEngine
from pytest_speedbench.engines.openai_endpoint import OpenAiEndpoint
from pytest_speedbench.engines.reference.engine import ReferenceEngine
from pytest_speedbench.engines.sglang import SglangEngine
from pytest_speedbench.engines.trtllm import TensorRtLlmEngine
from pytest_speedbench.engines.vllm import VllmEngine
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.driver import always_alive, run_round
from pytest_speedbench.load.processes import Job, run_round_shared
from pytest_speedbench.load.progress import Progress
from pytest_speedbench.load.records import RoundRecord
from pytest_speedbench.settings.target import Target
from tests.load.stub_engine import StubEngine, prompts, sampling
from tests.load.stub_server import Exchanged, StubServer, good, only_when_full


def share(
    server: StubServer,
    count: int,
    batch_size: int,
    how_many: int = 3,
    *,
    turns: int = 1,
    conversations: int | None = None,
    engine: StubEngine | None = None,
    progress: Progress | None = None,
    request_timeout_s: float = 20.0,
    death: str | None = None,
) -> RoundRecord:
    engine = engine or StubEngine()
    with closing(Control(server.url)) as control:
        prepared = prepare(engine, control, prompts(count, turns), sampling())
        return run_round_shared(
            engine,
            server.url,
            prepared,
            batch_size,
            processes=how_many,
            conversations=conversations,
            request_timeout_s=request_timeout_s,
            alive=always_alive if death is None else lambda: death,
            progress=progress,
        )


def sent(record: RoundRecord) -> list[tuple[int, int, int, str | None]]:
    return sorted((r.repeat, int(r.question_id[1:]), r.turn, r.error) for r in record.requests)


@pytest.mark.parametrize(("batch_size", "count"), [(2, 7), (16, 50)])
def test_the_batch_is_full_until_the_conversations_run_out_and_never_fuller(
    batch_size: int, count: int
) -> None:
    """The server answers only while its batch is full, so that a slot too few would wait for ever."""
    with StubServer(only_when_full(batch_size, count)) as server:
        record = share(server, count, batch_size)
    assert sent(record) == [(0, number, 0, None) for number in range(count)]
    assert record.batch_size == batch_size
    assert record.client_processes == min(3, batch_size)
    ended = [request.ended_s for request in record.requests]
    assert ended == sorted(ended)


def test_every_conversation_is_sent_once_whoever_takes_it() -> None:
    with StubServer(good) as server:
        record = share(server, 3, 4, turns=2, conversations=11)
        alone = run_round(
            StubEngine(),
            server.url,
            prepare(StubEngine(), Control(server.url), prompts(3, 2), sampling()),
            4,
            conversations=11,
        )
    assert sent(record) == sent(alone)
    assert len(record.requests) == 22
    counted = {(request.output_tokens, request.finish_reason) for request in record.requests}
    assert counted == {(request.output_tokens, request.finish_reason) for request in alone.requests}


def test_later_turns_are_tokenized_in_the_process_that_sends_them() -> None:
    with StubServer(good) as server:
        share(server, 2, 2, how_many=2, turns=2)
    assert sorted(server.asked) == [
        "user:question 0.0",
        "user:question 0.0|assistant:one two|user:question 0.1",
        "user:question 1.0",
        "user:question 1.0|assistant:one two|user:question 1.1",
    ]


def test_what_the_clients_did_is_told() -> None:
    with StubServer(good) as server:
        record = share(server, 6, 3)
    assert 0 < record.client_busy <= 1
    assert record.loop_lag_s_p99 >= 0
    assert record.tokenization == "engine"


def test_progress_is_counted_here() -> None:
    progress = Progress("cell", None)
    progress.begin(8)
    with StubServer(good) as server:
        share(server, 4, 2, turns=2, progress=progress)
    assert "8/8 requests" in progress.line()


def test_an_engine_that_died_is_asked_about_here_and_sent_nothing_more() -> None:
    async def die(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
        await server.until(lambda: len(server.asked) == 4)
        exchanged.drop()
        await asyncio.Event().wait()
        raise AssertionError

    with StubServer(die) as server:
        record = share(server, 20, 4, how_many=2, death="vllm exited with code -9")
    told = [error for *_, error in sent(record)]
    assert told == [
        *["the connection broke off after 0 bytes (vllm exited with code -9)"] * 4,
        *["not sent: vllm exited with code -9"] * 16,
    ]


class Unpicklable(StubEngine):
    def __reduce__(self) -> str:
        raise TypeError("has an open file")


def test_an_engine_that_cannot_be_handed_over_is_refused() -> None:
    class Local(StubEngine):
        pass

    with StubServer(good) as server:
        for engine in (Unpicklable(), Local()):
            with pytest.raises(
                EngineError, match="--speedbench-client-processes=2: engine stub cannot be handed"
            ):
                share(server, 2, 2, how_many=2, engine=engine)
    assert server.asked == []


class Broken(StubEngine):
    """Built again in the other process, where it fails."""

    def __setstate__(self, state: object) -> None:
        raise ImportError("no module named engine")


def test_an_engine_that_cannot_be_built_again_is_refused() -> None:
    with (
        StubServer(good) as server,
        pytest.raises(EngineError, match=r"engine stub .*no module named engine.*; use 1"),
    ):
        share(server, 2, 2, how_many=2, engine=Broken())


class Crashing(StubEngine):
    """Fails as no engine module should."""

    def read(self, events: object) -> object:  # type: ignore[override]
        raise ZeroDivisionError("a fault of the engine's module")


def test_a_process_that_fails_says_why() -> None:
    with StubServer(good) as server, pytest.raises(RuntimeError, match="a fault of the engine's module"):
        share(server, 2, 2, how_many=2, engine=Crashing())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started."""
    found: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            found.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return found


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_every_process(started: list[subprocess.Popen[bytes]], ctrl_c_raises: None) -> None:
    async def interrupt_when_full(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
        await server.until(lambda: server.in_flight == 4)
        if exchanged.asked.endswith("question 0.0"):
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        raise AssertionError

    with StubServer(interrupt_when_full) as server, pytest.raises(KeyboardInterrupt):
        share(server, 8, 4, how_many=2, request_timeout_s=600.0)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize(
    "engine",
    [
        ReferenceEngine(Target("t", "reference", "draft_model", 3)),
        VllmEngine(Target("t", "vllm", "none", 0, model="m")),
        SglangEngine(Target("t", "sglang", "none", 0, model="m")),
        LlamaCppEngine(Target("t", "llamacpp", "none", 0, model="m")),
        TensorRtLlmEngine(Target("t", "trtllm", "none", 0, model="m")),
        OpenAiEndpoint(Target("t", "openai", "unknown", 0, model="m", url="http://127.0.0.1:9")),
    ],
    ids=lambda engine: engine.name,
)
def test_every_engine_of_ours_can_be_handed_over(engine: Engine) -> None:
    """With a tokenizer that calls the server: what a process needs for later turns."""
    import pickle

    with StubServer(good) as server, closing(Control(server.url, headers={"X": "1"})) as control:
        prepared = prepare(StubEngine(), control, prompts(1), sampling())
        again: Job = pickle.loads(pickle.dumps(Job(engine, server.url, prepared, 1, 0, 1.0)))
    assert type(again.engine) is type(engine)
    assert again.prepared.openings == prepared.openings
    assert again.prepared.tokenize(()) == ()
