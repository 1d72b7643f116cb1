from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing

import pytest
from aiohttp import web

from pytest_speedbench.engines.base import Message
from pytest_speedbench.engines.control import Control
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.conversation import Prepared, prepare
from pytest_speedbench.load.driver import always_alive, run_round
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.progress import Progress
from pytest_speedbench.load.records import RequestRecord, RoundRecord
from tests.load.stub_engine import StubEngine, prompts, sampling
from tests.load.stub_server import GOOD, Exchanged, StubServer, event, good, only_when_full


def control(server: StubServer) -> AbstractContextManager[Control]:
    return closing(Control(server.url))


def prepared_for(
    server: StubServer, count: int, turns: int = 1, engine: StubEngine | None = None
) -> Prepared:
    with control(server) as calls:
        return prepare(engine or StubEngine(), calls, prompts(count, turns), sampling())


def drive(
    server: StubServer,
    count: int,
    batch_size: int,
    *,
    turns: int = 1,
    request_timeout_s: float = 20.0,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
) -> RoundRecord:
    return run_round(
        StubEngine(),
        server.url,
        prepared_for(server, count, turns),
        RoundPlan(batch_size, request_timeout_s=request_timeout_s),
        alive=alive,
        progress=progress,
    )


def errors(record: RoundRecord) -> list[str | None]:
    """Errors in the order of prompts and turns."""
    return [request.error for request in sorted(record.requests, key=place)]


def place(request: RequestRecord) -> tuple[int, int, int]:
    return request.repeat, int(request.question_id[1:]), request.turn


def most_at_once(record: RoundRecord) -> int:
    """How many requests were ever in flight together, by the client's own clock."""
    starts = [(request.sent_s, 1) for request in record.requests]
    ends = [(request.ended_s, -1) for request in record.requests]
    return max(itertools.accumulate(change for _, change in sorted(starts + ends)))


class TestBatch:
    @pytest.mark.parametrize(("batch_size", "count"), [(1, 5), (4, 11), (32, 80)])
    def test_is_full_until_the_prompts_run_out_and_never_fuller(self, batch_size: int, count: int) -> None:
        with StubServer(only_when_full(batch_size, count)) as server:
            record = drive(server, count, batch_size)
        assert errors(record) == [None] * count
        assert most_at_once(record) == batch_size

    def test_prompts_are_used_again_in_turn_where_the_batch_is_larger(self) -> None:
        with StubServer(only_when_full(8, 8)) as server:
            record = drive(server, 3, 8)
        assert most_at_once(record) == 8
        assert sorted(place(request)[:2] for request in record.requests) == [
            *((0, 0), (0, 1), (0, 2)),
            *((1, 0), (1, 1), (1, 2)),
            *((2, 0), (2, 1)),
        ]

    def test_as_many_conversations_as_asked_for(self) -> None:
        with StubServer(only_when_full(4, 10)) as server:
            prepared = prepared_for(server, 3)
            record = run_round(StubEngine(), server.url, prepared, RoundPlan(4, conversations=10))
        assert most_at_once(record) == 4
        assert sorted(place(request)[:2] for request in record.requests) == [
            *((0, 0), (0, 1), (0, 2)),
            *((1, 0), (1, 1), (1, 2)),
            *((2, 0), (2, 1), (2, 2)),
            (3, 0),
        ]

    def test_prompts_go_out_in_order(self) -> None:
        with StubServer(good) as server:
            drive(server, 5, 1)
        assert server.asked == [f"user:question {number}.0" for number in range(5)]

    @pytest.mark.parametrize(("count", "turns", "batch_size", "requests"), [(3, 2, 1, 6), (3, 2, 8, 16)])
    def test_its_requests_are_known_beforehand(
        self, count: int, turns: int, batch_size: int, requests: int
    ) -> None:
        with StubServer(good) as server:
            prepared = prepared_for(server, count, turns)
            record = run_round(StubEngine(), server.url, prepared, RoundPlan(batch_size))
        assert RoundPlan(batch_size).requests(prepared) == requests == len(record.requests)

    def test_records_are_in_the_order_in_which_requests_ended(self) -> None:
        async def last_come_first_served(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            turn = len(server.asked)
            await server.until(lambda: len(server.asked) == 4 and server.answered == 4 - turn)
            return await exchanged.send(GOOD)

        with StubServer(last_come_first_served) as server:
            record = drive(server, 4, 4)
        ended = [request.ended_s for request in record.requests]
        assert ended == sorted(ended)
        assert errors(record) == [None] * 4


class TestStream:
    def test_every_read_is_stamped_before_the_next_one_is_sent(self) -> None:
        """The server writes an event only after the client must have had the one before."""
        released: list[float] = []

        async def one_by_one(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            response = await exchanged.start()
            for _ in range(5):
                released.append(asyncio.get_running_loop().time())
                await response.write(event(text="x", tokens=1))
                await asyncio.sleep(0.03)
            await response.write(event(usage=5, finish="length"))
            return response

        with StubServer(one_by_one) as server:
            (request,) = drive(server, 1, 1).requests
        stamps = [arrival.received_s for arrival in request.arrivals]
        assert sum(arrival.tokens for arrival in request.arrivals) == request.output_tokens == 5
        assert request.sent_s < released[0]
        assert all(stamp > sent for stamp, sent in zip(stamps, released, strict=False))
        assert stamps == sorted(stamps)
        assert stamps[-1] < request.ended_s

    def test_many_events_in_one_read(self) -> None:
        async def burst(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            many = event(text="x", tokens=2) * 5_000
            return await exchanged.send(many + event(usage=10_000, finish="length"))

        with StubServer(burst) as server:
            (request,) = drive(server, 1, 1).requests
        assert request.error is None
        assert sum(arrival.tokens for arrival in request.arrivals) == 10_000
        assert len(request.arrivals) < 5_000

    def test_characters_split_between_reads_are_whole_again(self) -> None:
        async def split(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            stream = 'data: {"text": "日本語", "tokens": 3, "usage": 3, "finish": "stop"}\n\n'.encode()
            return await exchanged.send(*(bytes([byte]) for byte in stream))

        with StubServer(split) as server:
            (request,) = drive(server, 1, 1).requests
        assert (request.error, request.output_tokens) == (None, 3)

    def test_a_body_above_one_mebibyte_goes_out_without_a_warning(self) -> None:
        long_turn = "x" * (2 * 2**20)

        with StubServer(good) as server, control(server) as calls:
            (prompt,) = prompts(1)
            engine = StubEngine(tokenizes=False)
            prepared = prepare(engine, calls, [type(prompt)("q0", "rag", (long_turn,))], sampling())
            record = run_round(engine, server.url, prepared, RoundPlan(1))
        assert errors(record) == [None]
        assert server.asked == [f"user:{long_turn}"]

    def test_no_garbage_collection_stops_the_streams(self) -> None:
        during: list[bool] = []

        async def look(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            during.append(gc.isenabled())
            return await exchanged.send(GOOD)

        with StubServer(look) as server:
            drive(server, 1, 1)
        assert during == [False]
        assert gc.isenabled()


class TestTurns:
    def test_a_turn_is_sent_with_the_reply_to_the_one_before(self) -> None:
        async def echo(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            reply = f"reply {len(server.asked)}"
            return await exchanged.send(event(text=reply, tokens=1, usage=1, finish="stop"))

        with StubServer(echo) as server:
            record = drive(server, 1, 1, turns=3)
        assert server.asked == [
            "user:question 0.0",
            "user:question 0.0|assistant:reply 1|user:question 0.1",
            "user:question 0.0|assistant:reply 1|user:question 0.1|assistant:reply 2|user:question 0.2",
        ]
        assert [request.turn for request in record.requests] == [0, 1, 2]

    def test_the_turns_of_a_prompt_follow_each_other(self) -> None:
        with StubServer(good) as server:
            record = drive(server, 4, 2, turns=2)
        for number in range(4):
            first, second = (r for r in record.requests if r.question_id == f"q{number}")
            assert first.ended_s <= second.sent_s

    def test_after_a_failed_turn_the_rest_of_the_prompt_is_failed_too(self) -> None:
        async def second_turn_fails(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            if exchanged.asked.endswith("question 0.1"):
                return await exchanged.send(event(error="out of memory"))
            return await exchanged.send(GOOD)

        with StubServer(second_turn_fails) as server:
            record = drive(server, 2, 1, turns=3)
        assert errors(record) == [None, "stub: out of memory", "not sent: turn 2 failed", None, None, None]
        assert record.failed == 2

    def test_a_turn_that_cannot_be_tokenized_is_failed(self) -> None:
        class Forgets(StubEngine):
            def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
                if len(messages) > 1:
                    raise EngineError("POST /tokenize answered 413")
                return super().tokenize(control, messages)

        with StubServer(good) as server:
            engine = Forgets()
            record = run_round(engine, server.url, prepared_for(server, 1, 2, engine), RoundPlan(1))
        assert errors(record) == [
            None,
            "not sent: turn 2 could not be tokenized: POST /tokenize answered 413",
        ]


class TestFaults:
    def test_a_refusal_is_told_with_the_beginning_of_its_body(self) -> None:
        async def refuse(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            return web.Response(status=500, text="CUDA error:\n  out of memory " + "." * 1_000)

        with StubServer(refuse) as server:
            record = drive(server, 3, 2)
        assert record.failed == 3
        (error,) = set(errors(record))
        assert error is not None
        assert error.startswith("HTTP 500: CUDA error: out of memory ...")
        assert len(error) == len("HTTP 500: ") + 300

    def test_a_dropped_connection_fails_its_request_only(self) -> None:
        async def drop_one(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            if not exchanged.asked.endswith("question 1.0"):
                return await exchanged.send(GOOD)
            response = await exchanged.start()
            await response.write(event(text="x", tokens=1))
            exchanged.drop()
            return response

        with StubServer(drop_one) as server:
            record = drive(server, 4, 2)
        first, broken, *others = errors(record)
        assert (first, others) == (None, [None, None])
        assert broken is not None
        assert broken.startswith("the connection broke off after ")

    def test_a_stream_that_ends_early_without_a_fault_is_failed(self) -> None:
        async def stop_short(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            return await exchanged.send(event(text="x", tokens=1))

        with StubServer(stop_short) as server:
            record = drive(server, 1, 1)
        assert errors(record) == ["the stream ended without a finish reason after 1 events"]

    def test_one_stalled_request_fails_by_itself(self) -> None:
        given_up = asyncio.Event()

        async def stall_one(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            response = await exchanged.start()
            await response.write(event(text="x", tokens=1))
            if exchanged.asked.endswith("question 0.0"):
                try:
                    await asyncio.Event().wait()
                finally:  # the client has hung up
                    given_up.set()
            while not given_up.is_set():  # the engine as a whole is not silent meanwhile
                await response.write(event(text="x", tokens=1))
                await asyncio.sleep(0.02)
            await response.write(event(usage=3, finish="length"))
            return response

        with StubServer(stall_one) as server:
            record = drive(server, 3, 2, request_timeout_s=1.0)
        assert errors(record) == ["no data for 1 s", None, None]

    def test_an_engine_that_hangs_as_a_whole_is_not_waited_for_again_and_again(self) -> None:
        async def stall(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            await asyncio.Event().wait()
            raise AssertionError

        with StubServer(stall) as server:
            record = drive(server, 50, 2, request_timeout_s=0.2)
        assert record.failed == 50
        told = errors(record)
        assert told[:2] == ["no data for 0.2 s"] * 2
        assert set(told[4:]) == {"not sent: the engine hangs, no data for 0.2 s on any request"}

    def test_nothing_more_is_sent_to_an_engine_that_died(self) -> None:
        """It drops its connections, refuses new ones, and can be seen to be dead only a moment later."""
        looks = itertools.chain([None, None], itertools.repeat("vllm exited with code -9"))
        in_hand: list[Exchanged] = []

        async def die(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            in_hand.append(exchanged)
            await server.until(lambda: len(in_hand) == 4)
            if exchanged is in_hand[0]:
                await server.close_port()
            exchanged.drop()
            await asyncio.Event().wait()
            raise AssertionError

        with StubServer(die) as server:
            record = drive(server, 20, 4, turns=2, request_timeout_s=600.0, alive=lambda: next(looks))
        told = errors(record)
        assert len(told) == record.failed == 40
        assert (
            told[:8]
            == [
                "the connection broke off after 0 bytes (vllm exited with code -9)",
                "not sent: turn 1 failed",
            ]
            * 4
        )
        assert set(told[8:]) == {"not sent: vllm exited with code -9"}
        assert len(server.asked) == 4

    def test_a_server_that_is_not_there(self) -> None:
        with StubServer(good) as server:
            prepared = prepared_for(server, 5)
        record = run_round(StubEngine(), server.url, prepared, RoundPlan(1))
        first, *others = errors(record)
        assert first is not None
        assert first.startswith(f"no connection to {server.url} (ConnectionRefusedError: ")
        assert others == [f"not sent: nothing answers at {server.url} any more"] * 4


class TestInterruption:
    @pytest.fixture
    def ctrl_c_raises(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def test_ctrl_c_ends_every_request_and_goes_on(self, ctrl_c_raises: None) -> None:
        async def interrupt_when_full(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            response = await exchanged.start()
            await response.write(event(text="x", tokens=1))
            await server.until(lambda: server.in_flight == 4)
            if exchanged.asked.endswith("question 0.0"):
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()  # until the client hangs up
            raise AssertionError

        with StubServer(interrupt_when_full) as server:
            with pytest.raises(KeyboardInterrupt):
                drive(server, 8, 4, request_timeout_s=600.0)
            server.call(server.until(lambda: server.in_flight == 0))
        assert len(server.asked) == 4
        assert gc.isenabled()
        assert "speedbench-load" not in {thread.name for thread in threading.enumerate()}

    def test_runs_inside_a_test_that_is_a_coroutine(self) -> None:
        async def asynchronous_test(server: StubServer) -> RoundRecord:
            return drive(server, 2, 2)

        with StubServer(good) as server:
            assert errors(asyncio.run(asynchronous_test(server))) == [None, None]


class TestProgress:
    def test_every_request_is_counted_once_also_those_that_were_not_sent(self) -> None:
        async def second_turn_fails(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
            if "assistant" in exchanged.asked:
                return web.Response(status=500)
            return await exchanged.send(GOOD)

        progress = Progress("cell", None)
        with StubServer(second_turn_fails) as server:
            progress.begin(9)
            drive(server, 3, 2, turns=3, progress=progress)
        assert "9/9 requests" in progress.line()


def test_the_client_s_own_work_is_told() -> None:
    with StubServer(good) as server:
        record = drive(server, 4, 2)
    assert 0 < record.client_busy <= 1
    assert record.client_waiting >= 0
    assert record.loop_lag_s_p99 >= 0
    assert record.tokenization == "engine"
