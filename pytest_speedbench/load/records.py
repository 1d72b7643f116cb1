"""What a round leaves behind: one record per request, plain data that can be written as JSON."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from pytest_speedbench.engines.base import Counters


@dataclass(frozen=True, slots=True)
class Arrival:
    """Output tokens that became known to the client at one moment."""

    received_s: float
    """Monotonic clock of the client, before parsing."""
    tokens: int
    """At least 1: events without tokens leave no arrival."""


@dataclass(frozen=True, slots=True)
class Arrivals(Sequence[Arrival]):
    """Arrivals in order of time, in two columns: 12 bytes each, where an object each would take 100.

    A sequence of `Arrival` for whoever reads one request, and two arrays (which numpy takes without a copy) for
    whoever counts millions. Not to be changed once built.
    """

    received_s: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("I"))

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, int]]) -> Arrivals:
        """Out of (monotonic clock in seconds, tokens), in order of time."""
        arrivals = cls()
        for received_s, tokens in pairs:
            arrivals.received_s.append(received_s)
            arrivals.tokens.append(tokens)
        return arrivals

    @property
    def total_tokens(self) -> int:
        """Tokens of all arrivals."""
        return sum(self.tokens)

    def __len__(self) -> int:
        return len(self.received_s)

    def __iter__(self) -> Iterator[Arrival]:
        return map(Arrival, self.received_s, self.tokens)

    @overload
    def __getitem__(self, index: int) -> Arrival: ...
    @overload
    def __getitem__(self, index: slice) -> Arrivals: ...
    def __getitem__(self, index: int | slice) -> Arrival | Arrivals:
        if isinstance(index, slice):
            return Arrivals(self.received_s[index], self.tokens[index])
        return Arrival(self.received_s[index], self.tokens[index])


@dataclass(frozen=True)
class RequestRecord:
    """One turn of one prompt. `error` is set for a failed request, and the rest is then as far as it got."""

    question_id: str
    turn: int
    """Counted from 0."""
    repeat: int
    """0, or n where a round sends more conversations than there are prompts and this is the n-th reuse."""
    sent_s: float
    """Monotonic clock just before the request was written."""
    ended_s: float
    """Monotonic clock when the stream ended."""
    arrivals: Arrivals = field(default_factory=Arrivals)
    output_tokens: int = 0
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    token_ids: Sequence[int] | None = None
    """Of the output, where the engine tells them; 4 bytes each."""
    counters: Counters | None = None
    tokens_per_event_known: bool = True
    """False where the engine reports the total only; an arrival's `tokens` are then those of its events, taken for one
    each."""
    error: str | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One pass over a cell's conversations at its batch size."""

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
    client_waiting: float = 0.0
    """Share of the round in which that thread had work to do and no core to do it on. What is left of the round
    beside both shares is the client's reserve. 0 where the system does not tell (it is Linux that does)."""
    loop_lag_s_p99: float = 0.0
    """How late the client's event loop came to what was due, 99th percentile in seconds: as late can a next request
    be, and where the kernel stamps nothing (`load.wire.kernel_stamps`) a time stamp."""
    other_processes_busy: float | None = None
    """Share of the processors' time that went to neither engine nor client (`load.other_processes`); None where the engine
    was not launched here."""

    @property
    def failed(self) -> int:
        """Requests that failed, those included that never went out because of an earlier failure."""
        return sum(request.error is not None for request in self.requests)
