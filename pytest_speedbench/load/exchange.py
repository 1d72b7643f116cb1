"""One request as it was taken off the wire, and its decoding once time no longer matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.records import Arrival, RequestRecord
from pytest_speedbench.load.sse import split_events

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
    chunks: Sequence[tuple[float, bytes]] = ()
    """(monotonic clock on arrival, bytes) of every read."""
    error: str | None = None
    """What went wrong on the wire, in words."""


def decode(engine: Engine, exchange: Exchange) -> tuple[RequestRecord, str]:
    """What a request brought: its record, and the text of the reply.

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
        return record, ""
    events = split_events(exchange.chunks)
    if not events:
        body = b"".join(data for _, data in exchange.chunks)
        return replace(record, error=f"the response is no event stream: {excerpt(body)!r}"), ""
    try:
        reply = engine.read([payload for _, payload in events])
    except EngineError as error:
        return replace(record, error=str(error)), ""
    if len(reply.tokens_per_event) != len(events):
        told = f"{engine.name} told tokens for {len(reply.tokens_per_event)} of {len(events)} events"
        return replace(record, error=told), ""
    error_text = None
    if reply.finish_reason is None:
        error_text = f"the stream ended without a finish reason after {len(events)} events"
    elif reply.output_tokens < 1:
        error_text = f"the stream of {len(events)} events tells no count of output tokens"
    record = replace(
        record,
        arrivals=_arrivals([received_s for received_s, _ in events], reply.tokens_per_event),
        output_tokens=reply.output_tokens,
        prompt_tokens=reply.prompt_tokens,
        finish_reason=reply.finish_reason,
        token_ids=reply.token_ids,
        counters=reply.counters,
        error=error_text,
    )
    return record, reply.text


def excerpt(body: bytes) -> str:
    """The first 300 characters of a response, on one line."""
    return " ".join(body[:1200].decode(errors="replace").split())[:300]


def _arrivals(received_s: Sequence[float], tokens: Sequence[int]) -> tuple[Arrival, ...]:
    """One arrival for each moment: events of one read became known together."""
    moments = groupby(zip(received_s, tokens, strict=True), key=lambda event: event[0])
    sums = ((moment, sum(count for _, count in events)) for moment, events in moments)
    return tuple(Arrival(moment, count) for moment, count in sums if count > 0)
