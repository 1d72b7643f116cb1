"""One request as it was taken off the wire, and its decoding once time no longer matters."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.records import Arrivals, RequestRecord
from pytest_speedbench.load.wire.events import split_events
from pytest_speedbench.load.wire.recording import Recording
from pytest_speedbench.load.wire.response import body_of

if TYPE_CHECKING:
    from pytest_speedbench.engines.base import Engine


@dataclass(frozen=True)
class Exchange:
    """A request and its response, not decoded yet."""

    question_id: str
    turn: int
    repeat: int
    sent_s: float
    """Monotonic clock just before the request was written."""
    ended_s: float
    """Monotonic clock when the stream ended, well or badly."""
    recording: Recording = field(default_factory=Recording)
    """The response."""
    error: str | None = None
    """What went wrong on the wire, in words."""


@dataclass(frozen=True)
class Decoded:
    """What a request brought."""

    record: RequestRecord
    text: str = ""
    """Of the reply."""


def decode(engine: Engine, exchange: Exchange) -> Decoded:
    """Read what was recorded.

    A request has failed if the wire failed, if the engine's module cannot read the stream, if the stream ends
    without a finish reason (the engine stopped in the middle) or without a count of output tokens (nothing
    could be divided by the time then). A failed request is never decoded halfway: its record holds the times
    and the error, and what the stream told where the stream could be read.
    """
    record = RequestRecord(
        question_id=exchange.question_id,
        turn=exchange.turn,
        repeat=exchange.repeat,
        sent_s=exchange.sent_s,
        ended_s=exchange.ended_s,
        error=exchange.error,
    )
    if exchange.error is not None:
        return Decoded(record)
    body = body_of(exchange.recording)
    if body.fault is not None:
        return Decoded(replace(record, error=f"the response cannot be read: {body.fault}"))
    events, received_s = split_events(body.raw, body.read_ends, body.stamps_s)
    if not events:
        return Decoded(replace(record, error=f"the response is not an event stream: {excerpt(body.raw)!r}"))
    try:
        reply = engine.read(events)
    except EngineError as error:
        return Decoded(replace(record, error=str(error)))
    if len(reply.tokens_per_event) != len(events):
        told = f"{engine.name} told tokens for {len(reply.tokens_per_event)} of {len(events)} events"
        return Decoded(replace(record, error=told))
    error_text = None
    if reply.finish_reason is None:
        error_text = f"the stream ended without a finish reason after {len(events)} events"
    elif reply.output_tokens < 1:
        error_text = f"the stream of {len(events)} events tells no count of output tokens"
    record = replace(
        record,
        arrivals=_arrivals(received_s, reply.tokens_per_event),
        output_tokens=reply.output_tokens,
        prompt_tokens=reply.prompt_tokens,
        finish_reason=reply.finish_reason,
        token_ids=None if reply.token_ids is None else _compact(reply.token_ids),
        counters=reply.counters,
        tokens_per_event_known=reply.tokens_per_event_known,
        error=error_text,
    )
    return Decoded(record, reply.text)


def excerpt(body: bytes | bytearray) -> str:
    """The first 300 characters of a response, on one line."""
    return " ".join(body[:1200].decode(errors="replace").split())[:300]


def _arrivals(received_s: Sequence[float], tokens: Sequence[int]) -> Arrivals:
    """One arrival for each moment: events of one read became known together.

    Stamps of the kernel are set against the monotonic clock anew at each poll (`load.wire.kernel_stamps`). Where a read seems to
    be microseconds older than the one before, it is taken to have come with that.
    """
    import numpy as np

    counts = np.asarray(tokens, np.int64)
    bearing = counts > 0
    counts, moments = counts[bearing], np.asarray(received_s, np.float64)[bearing]
    if not len(moments):
        return Arrivals()
    latest = np.maximum.accumulate(moments)
    starts = np.flatnonzero(np.diff(latest, prepend=-np.inf) > 0)
    arrivals = Arrivals()
    arrivals.received_s.frombytes(moments[starts].tobytes())
    arrivals.tokens.frombytes(np.add.reduceat(counts, starts).astype(np.uint32).tobytes())
    return arrivals


def _compact(token_ids: Sequence[int]) -> Sequence[int]:
    try:
        return array("I", token_ids)
    except (OverflowError, TypeError):  # no number of a token, and not ours to judge
        return token_ids
