from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_speedbench.engines.base import Reply
from pytest_speedbench.load.decode import Exchange, decode
from pytest_speedbench.load.records import Arrivals, RequestRecord
from pytest_speedbench.load.wire.recording import Recording
from tests.load.stub_engine import StubEngine
from tests.load.stub_server import event

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def recording(*chunks: tuple[float, bytes]) -> Recording:
    made = Recording()
    made.take(1.5, HEAD)
    for received_s, data in chunks:
        if data:
            made.take(received_s, data)
    return made


def decoded(*chunks: tuple[float, bytes], error: str | None = None) -> RequestRecord:
    return decode(StubEngine(), Exchange("q0", 1, 2, 1.0, 9.0, recording(*chunks), error)).record


LAST = event(usage=3, finish="length")


def test_a_finished_request_keeps_its_place_its_times_and_its_counts() -> None:
    record = decoded((2.0, event(text="a", tokens=1)), (3.0, event(text="b", tokens=2) + LAST))
    assert record == RequestRecord(
        question_id="q0",
        turn=1,
        repeat=2,
        sent_s=1.0,
        ended_s=9.0,
        arrivals=Arrivals.of([(2.0, 1), (3.0, 2)]),
        output_tokens=3,
        prompt_tokens=1,
        finish_reason="length",
    )


def test_tokens_that_are_known_in_total_only_are_marked() -> None:
    class TotalOnly(StubEngine):
        def read(self, events: Sequence[bytes]) -> Reply:
            return replace(super().read(events), tokens_per_event_known=False)

    chunks = recording((2.0, event(text="a", tokens=3) + LAST))
    assert not decode(TotalOnly(), Exchange("q0", 0, 0, 1.0, 9.0, chunks)).record.tokens_per_event_known
    assert decoded((2.0, event(text="a", tokens=3) + LAST)).tokens_per_event_known


def test_events_of_one_read_are_one_arrival_and_events_without_tokens_are_none() -> None:
    record = decoded(
        (2.0, event(text="")),
        (3.0, event(text="a", tokens=1) + event(text="b", tokens=2)),
        (4.0, LAST),
    )
    assert record.arrivals == Arrivals.of([(3.0, 3)])


def test_arrivals_are_in_order_of_time() -> None:
    record = decoded(
        (3.0, event(text="a", tokens=1)),
        (2.999_99, event(text="b", tokens=1)),
        (4.0, event(text="c", tokens=1) + LAST),
    )
    assert record.arrivals == Arrivals.of([(3.0, 2), (4.0, 1)])


def test_the_reply_is_the_text_of_all_events() -> None:
    stream = event(text="one ", tokens=1) + event(text="two", tokens=2) + LAST
    assert decode(StubEngine(), Exchange("q0", 0, 0, 0.0, 1.0, recording((0.5, stream)))).text == "one two"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (event(text="a", tokens=1), "the stream ended without a finish reason after 1 events"),
        (event(text="a", tokens=1, finish="stop"), "the stream of 1 events tells no count of output tokens"),
        (event(error="out of memory"), "stub: out of memory"),
        (b'{"detail": "not\n found"}', 'the response is not an event stream: \'{"detail": "not found"}\''),
        (b"", "the response is not an event stream: ''"),
    ],
    ids=["no-finish", "no-usage", "engine-error", "no-stream", "empty"],
)
def test_a_stream_that_is_not_whole_is_a_failed_request(body: bytes, error: str) -> None:
    assert decoded((2.0, body)).error == error


def test_a_fault_of_the_wire_stands_and_nothing_is_decoded() -> None:
    record = decoded((2.0, event(text="a", tokens=1)), error="no data for 3 s")
    assert (record.error, list(record.arrivals), record.output_tokens) == ("no data for 3 s", [], 0)


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        (b"5\r\n" + LAST + b"\r\n0\r\n\r\n", "not HTTP/1.1 (Expected LF after chunk data): b'5"),
        (b"ff\r\n" + LAST + b"\r\n0\r\n\r\n", "it goes on after what looked like its end"),
    ],
    ids=["malformed", "no end"],
)
def test_a_response_that_proves_wrong_when_it_is_taken_apart_is_a_failed_request(
    chunks: bytes, error: str
) -> None:
    received = Recording()
    received.take(1.5, HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"))
    received.take(2.0, chunks)
    record = decode(StubEngine(), Exchange("q0", 0, 0, 1.0, 9.0, received)).record
    assert record.error is not None
    assert record.error.startswith(f"the response cannot be read: {error}")
    assert record.output_tokens == 0


def test_an_engine_module_must_tell_tokens_for_every_event() -> None:
    class Forgetful(StubEngine):
        def read(self, events: Sequence[bytes]) -> Reply:
            return super().read(events[:-1])

    stream = event(text="a", tokens=1, finish="stop", usage=1) + event(text="b", tokens=1)
    record = decode(Forgetful(), Exchange("q0", 0, 0, 0.0, 1.0, recording((0.5, stream)))).record
    assert record.error == "stub told tokens for 1 of 2 events"
