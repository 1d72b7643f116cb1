"""What a round leaves behind: one record per request, plain data that can be written as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_speedbench.engines.base import Counters


@dataclass(frozen=True, slots=True)
class Arrival:
    """Output tokens that became known to the client at one moment."""

    received_s: float
    """Monotonic clock of the client, before parsing."""
    tokens: int
    """At least 1: events without tokens leave no arrival."""


@dataclass(frozen=True)
class RequestRecord:
    """One turn of one prompt. `error` is set for a failed request, and the rest is then as far as it got."""

    question_id: str
    turn: int
    """Counted from 0."""
    repeat: int
    """0, or n where the batch is larger than the cell's prompts and this is the n-th reuse of the prompt."""
    sent_s: float
    """Monotonic clock just before the request was written."""
    ended_s: float
    """Monotonic clock when the stream ended."""
    arrivals: tuple[Arrival, ...] = ()
    output_tokens: int = 0
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    counters: Counters | None = None
    error: str | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One pass over a cell's prompts at its batch size."""

    batch_size: int
    requests: tuple[RequestRecord, ...]
    """Every turn of every prompt, in the order in which they ended; sent = finished + failed = len(requests)."""
    tokenization: str
    """How prompts went out: `engine` (its /tokenize), `transformers`, or `messages` (the engine's own template)."""
    server_counters: Counters | None = None
    """Difference over the round, where the engine counts per server only."""
    client_busy: float = 0.0
    """Share of the round in which the client's own thread was computing; near 1 it is the client's speed that
    was measured."""

    @property
    def failed(self) -> int:
        """Requests that failed, those included that never went out because of an earlier failure."""
        return sum(request.error is not None for request in self.requests)
