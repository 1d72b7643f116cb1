from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
from aiohttp import web

from pytest_speedbench.engines.base import Counters
from pytest_speedbench.engines.control import Control
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.progress import Progress
from pytest_speedbench.load.records import RoundRecord
from pytest_speedbench.load.rounds import difference, record_round
from tests.load.stub_engine import StubEngine, counters, prompts, sampling
from tests.load.stub_server import GOOD, Exchanged, StubServer, event, good


class Diary(StubServer):
    """Writes every request into the engine's diary, after the control calls before it."""

    def __init__(self, engine: StubEngine, *, fails_at: int = 0) -> None:
        self.engine = engine
        self.fails_at = fails_at
        super().__init__(Diary._answer_and_note)

    @staticmethod
    async def _answer_and_note(server: StubServer, exchanged: Exchanged) -> web.StreamResponse:
        assert isinstance(server, Diary)
        server.engine.diary.append(f"request of {exchanged.output_length} tokens")
        if len(server.asked) == server.fails_at:
            return await exchanged.send(event(error="out of memory"))
        return await exchanged.send(GOOD)

    def measure(
        self,
        *,
        warmup: int = 0,
        death: str | None = None,
        progress: Progress | None = None,
    ) -> RoundRecord:
        with closing(Control(self.url)) as control:
            prepared = prepare(self.engine, control, prompts(2), sampling(output_length=100))
            return record_round(
                self.engine,
                control,
                prepared,
                RoundPlan(1),
                warmup=warmup,
                alive=lambda: death,
                progress=progress,
            )


def per_server(*readings: Counters | EngineError | None) -> StubEngine:
    engine = StubEngine(counts_per_request=False)
    engine.counter_readings = list(readings)
    return engine


def test_each_round_starts_clean_and_lies_between_two_readings_of_the_counters() -> None:
    engine = LeavesStepsOpen(True, reading(10, 100), reading(17, 106), reading(17, 106), reading(29, 112))
    with Diary(engine) as server:
        first, second = server.measure(), server.measure()
    a_round = ["reset", "counters", *["request of 100 tokens"] * 2, "counters"]
    assert engine.diary == [*a_round, *a_round]
    assert first.server_counters == reading(7, 6)
    assert second.server_counters == reading(12, 6)


def test_what_warm_up_sent_is_counted_before_the_first_round() -> None:
    """One request of 3 tokens, counted late: not in the first reading after it."""
    warm_up = (reading(10, 100), reading(10, 100), reading(12, 103))
    engine = LeavesStepsOpen(True, *warm_up, reading(12, 103), reading(16, 109))
    with Diary(engine) as server:
        record = server.measure(warmup=1)
    assert engine.diary[:4] == ["counters", "request of 16 tokens", "counters", "counters"]
    assert record.server_counters == reading(4, 6)


def test_a_server_that_counts_no_output_is_read_until_nothing_is_added() -> None:
    late = (counters(steps, (steps, 0, 0)) for steps in (10, 12, 12, 12, 14, 16, 16))
    engine = per_server(*late)
    with Diary(engine) as server:
        record = server.measure(warmup=1)
    assert record.server_counters == counters(4, (4, 0, 0))


def test_counters_of_the_server_are_left_alone_where_each_request_has_its_own() -> None:
    engine = StubEngine()
    with Diary(engine) as server:
        record = server.measure()
    assert engine.diary == ["reset", *["request of 100 tokens"] * 2]
    assert record.server_counters is None


class LeavesStepsOpen(StubEngine):
    """Counts per request, all but the steps without a draft."""

    def __init__(self, open_: bool, *readings: Counters) -> None:
        super().__init__()
        self.open = open_
        self.counter_readings = list(readings)

    @property
    def server_counts_more(self) -> bool:
        return self.open


def reading(steps: int, output_tokens: int) -> Counters:
    return replace(counters(steps, (steps, 0, 0)), decode_steps=steps, output_tokens=output_tokens)


def test_a_server_is_asked_for_the_steps_that_its_responses_leave_open() -> None:
    engine = LeavesStepsOpen(True, reading(10, 100), reading(14, 106))
    with Diary(engine) as server:
        record = server.measure()
    assert record.server_counters == reading(4, 6)


def test_and_is_not_where_nothing_is_open() -> None:
    engine = LeavesStepsOpen(False)
    with Diary(engine) as server:
        record = server.measure()
    assert "counters" not in engine.diary
    assert record.server_counters is None


def test_what_a_server_sent_and_has_not_counted_yet_is_waited_for() -> None:
    """Two requests of 3 tokens each."""
    engine = LeavesStepsOpen(True, reading(10, 100), reading(12, 103), reading(13, 105), reading(14, 106))
    with Diary(engine) as server:
        record = server.measure()
    assert engine.diary.count("counters") == 4
    assert record.server_counters == reading(4, 6)


def test_an_engine_without_counters_is_measured_all_the_same() -> None:
    with Diary(per_server(None, None)) as server:
        record = server.measure()
    assert (record.server_counters, record.failed) == (None, 0)


def test_failed_requests_say_more_than_counters_that_cannot_be_read_after_them() -> None:
    engine = per_server(counters(1, (1, 0, 0)), EngineError("connection refused"))
    with Diary(engine, fails_at=1) as server:
        record = server.measure()
    assert (record.failed, record.server_counters) == (1, None)


def test_counters_that_cannot_be_read_after_a_good_round_are_an_error() -> None:
    engine = per_server(counters(1, (1, 0, 0)), EngineError("GET /metrics answered 404"))
    with Diary(engine) as server, pytest.raises(EngineError, match="answered 404"):
        server.measure()


def test_a_dead_engine_is_not_measured() -> None:
    engine = StubEngine()
    with Diary(engine) as server, pytest.raises(EngineError, match="gone: vllm exited with code 1"):
        server.measure(warmup=1, death="vllm exited with code 1")
    assert engine.diary == []


def test_a_round_sends_as_many_conversations_as_asked_for() -> None:
    engine = StubEngine()
    writes: list[str] = []
    with StubServer(good) as server, closing(Control(server.url)) as control:
        prepared = prepare(engine, control, prompts(2), sampling())
        plan = RoundPlan(2, conversations=5)
        record = record_round(engine, control, prepared, plan, progress=Progress("cell", writes.append))
    assert writes[0] == "\ncell  0/5 requests"
    assert sorted((r.repeat, r.question_id) for r in record.requests) == [
        *((0, "q0"), (0, "q1")),
        *((1, "q0"), (1, "q1")),
        (2, "q0"),
    ]


@pytest.mark.parametrize("watched", [False, True])
def test_what_other_processes_took_is_measured_where_that_is_asked_for(watched: bool) -> None:
    engine = StubEngine()
    with StubServer(good) as server, closing(Control(server.url)) as control:
        prepared = prepare(engine, control, prompts(2), sampling())
        record = record_round(engine, control, prepared, RoundPlan(1), watch_others=watched)
    assert (record.other_processes_busy is not None) is watched


class OneAtATime(StubEngine):
    def requests_at_once(self, control: Control) -> int:
        self.diary.append("requests at once")
        return 1


def test_a_batch_that_the_engine_would_let_wait_is_not_measured() -> None:
    engine = OneAtATime()
    with Diary(engine) as server, closing(Control(server.url)) as control:
        prepared = prepare(engine, control, prompts(2), sampling())
        assert record_round(engine, control, prepared, RoundPlan(1)).failed == 0
        with pytest.raises(EngineError, match="batch size 2: stub computes 1 requests at once"):
            record_round(engine, control, prepared, RoundPlan(2))
    assert engine.diary.count("request of 8 tokens") == 2


def test_one_progress_line_wiped_at_the_end() -> None:
    writes: list[str] = []
    with Diary(StubEngine()) as server:
        server.measure(warmup=2, progress=Progress("cell", writes.append))
    assert writes[0] == "\ncell  0/2 requests"
    assert writes[-1] == "\r\x1b[K\x1b[A"


def test_difference_counts_what_happened_in_between() -> None:
    before, after = counters(10, (8, 5, 1)), counters(30, (20, 9, 1))
    assert difference(after, before) == counters(20, (12, 4, 0))


def test_difference_where_a_position_was_reached_for_the_first_time() -> None:
    before, after = counters(10, (8,)), counters(30, (20, 9))
    assert difference(after, before) == counters(20, (12, 9))


def test_a_server_that_was_restarted_in_between_is_an_error() -> None:
    with pytest.raises(EngineError, match="counters went back"):
        difference(counters(3, (2, 1, 0)), counters(10, (8, 5, 1)))
