"""Throughput: tokens per second of the whole batch and of one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pytest_speedbench.load.records import RequestRecord, RoundRecord

DIP_S = 0.05
"""A batch that is full again after so long was full all the time. A slot that is free takes the next prompt within
milliseconds; to leave these out would leave out the tokens that arrive in them, and they come in bursts: one step of
the whole batch, while the first request of it to end has no successor yet."""


@dataclass(frozen=True)
class Interval:
    """A stretch of time in which the number of requests in flight did not change."""

    start_s: float
    end_s: float
    in_flight: int


def output_tps(round_: RoundRecord) -> float | None:
    """Output tokens per second of a round: all tokens / (last end - first send).

    As SPEED-Bench's own code has it: prefill, ramp and tail are in the time. None without finished requests.
    """
    finished = [request for request in round_.requests if request.error is None]
    if not finished:
        return None
    seconds = max(r.ended_s for r in round_.requests) - min(r.sent_s for r in round_.requests)
    return sum(request.output_tokens for request in finished) / seconds if seconds > 0 else None


def in_flight(requests: Sequence[RequestRecord]) -> tuple[Interval, ...]:
    """How many requests were in flight, from the first send to the last end, in order and without gaps.

    A request is in flight from `sent_s` to `ended_s`, whether it finished or failed.
    """
    changes = sorted([(r.sent_s, 1) for r in requests] + [(r.ended_s, -1) for r in requests])
    intervals: list[Interval] = []
    count = 0
    for (start_s, change), (end_s, _) in pairwise(changes):
        count += change
        if end_s > start_s:
            intervals.append(Interval(start_s, end_s, count))
    return tuple(intervals)


def full_batch(round_: RoundRecord) -> tuple[tuple[float, float], ...]:
    """(start, end) in seconds of the stretches in which the batch was full, in order.

    Dips of at most `DIP_S` between them are part of them.
    """
    stretches: list[tuple[float, float]] = []
    for part in in_flight(round_.requests):
        if part.in_flight < round_.batch_size:
            continue
        if stretches and part.start_s - stretches[-1][1] <= DIP_S:
            stretches[-1] = (stretches[-1][0], part.end_s)
        else:
            stretches.append((part.start_s, part.end_s))
    return tuple(stretches)


def steady_output_tps(rounds: Sequence[RoundRecord]) -> float | None:
    """Output tokens per second while the batch was full; None if it never was.

    Only the time with `batch_size` requests in flight counts, and the tokens that arrived in it, so that the
    ramp at the start and the tail at the end of a round are out. Pooled over rounds: tokens / seconds.
    """
    tokens = 0
    seconds = 0.0
    for round_ in rounds:
        stretches = full_batch(round_)
        seconds += sum(end_s - start_s for start_s, end_s in stretches)
        starts = np.array([start_s for start_s, _ in stretches])
        ends = np.array([end_s for _, end_s in stretches])
        for request in round_.requests:
            received_s = moments(request)
            begun = np.searchsorted(starts, received_s, side="right")
            over = np.searchsorted(ends, received_s, side="left")
            tokens += int(counts(request)[begun > over].sum())
    return tokens / seconds if seconds > 0 else None


def moments(request: RequestRecord) -> NDArray[np.float64]:
    """When a request's tokens arrived: monotonic clock in seconds, one value per arrival."""
    return np.asarray(request.arrivals.received_s, dtype=np.float64)


def counts(request: RequestRecord) -> NDArray[np.uint32]:
    """How many tokens arrived at each of its `moments`."""
    return np.asarray(request.arrivals.tokens, dtype=np.uint32)


def user_tps(requests: Sequence[RequestRecord], steps: Sequence[int] | None = None) -> float | None:
    """Output tokens per second of one request, prefill excluded: sum(tokens - 1) / sum(`decode_s`).

    Per request as SPEED-Bench's `Generation Tokens Per Second`, (n - 1) / (t_last - t_first), but the same whether a
    server sends the first token alone or together with the next steps; pooled as a ratio of sums, so that a short
    request weighs by its time. Requests whose tokens arrived all at once have no decode time and are left out; None
    where none is left.

    Args:
        requests: finished requests.
        steps: decode steps of each, in the same order, where the engine reports them.
    """
    counted = [None] * len(requests) if steps is None else steps
    timed = [(r, decode_s(r, n)) for r, n in zip(requests, counted, strict=True) if is_timed(r)]
    seconds = sum(seconds for _, seconds in timed)
    return sum(request.output_tokens - 1 for request, _ in timed) / seconds if seconds > 0 else None


def is_timed(request: RequestRecord) -> bool:
    """Whether tokens arrived at more than one moment, so that decoding can be timed."""
    return len(request.arrivals) > 1 and span_s(request) > 0


def span_s(request: RequestRecord) -> float:
    """Seconds from the first arrival to the last; 0 without any."""
    return request.arrivals.received_s[-1] - request.arrivals.received_s[0] if request.arrivals else 0.0


def decode_s(request: RequestRecord, steps: int | None = None) -> float:
    """Seconds of all decode steps of a request, whatever arrived together with its first token.

    Where that token arrives alone, the time since it. Where the tokens of further steps arrive with it, the time since
    then holds the remaining steps only, and all steps take in proportion:

        decode_s = span * steps / (steps - those of the first arrival).

    How many steps those are is in general not known. They are at least as many as it takes to deliver that many
    tokens with full drafts, and at most as many as leave a step for each later arrival. Where the two are one number
    it is taken, else, and where the engine does not report a request's steps, a share in proportion to tokens: too many
    for one request, too few for another, and right on average.

    Args:
        request: one that delivered a token.
        steps: its decode steps, where the engine reports them.
    """
    tokens = request.output_tokens - 1
    early = first_arrival_tokens(request) - 1
    if not 0 < early < tokens or not is_timed(request):
        return span_s(request)
    whole = steps or tokens  # no step at all is what inconsistent counters come to
    return span_s(request) * whole / (whole - _steps_of_first_arrival(request, steps, early, tokens))


def _steps_of_first_arrival(request: RequestRecord, steps: int | None, early: int, tokens: int) -> float:
    """Steps that the tokens took that arrived with the first one; in tokens where steps are not known."""
    if not steps:
        return early
    draft_length = request.counters.draft_length if request.counters is not None else 0
    fewest = -(-early // (1 + draft_length))
    most = steps - (len(request.arrivals) - 1)
    return fewest if fewest == most else steps * early / tokens


def first_arrival_tokens(request: RequestRecord) -> int:
    """Tokens that arrived at the first moment: 1 where the first token is sent by itself; 0 without any."""
    return request.arrivals.tokens[0] if request.arrivals else 0


def streaming_pattern(requests: Sequence[RequestRecord]) -> dict[str, float]:
    """How a server cuts its output into events, as metrics: what a change of this alone must not be taken for speed.

    `first_arrival_tokens` is the mean over requests of several arrivals; 1 where the first token is sent by itself.
    `tokens_per_arrival` is the mean over all later arrivals: the acceptance length where each brings one step, more
    where steps are merged.
    """
    several = [request for request in requests if len(request.arrivals) > 1]
    if not several:
        return {}
    first = [first_arrival_tokens(request) for request in several]
    later = sum(request.arrivals.total_tokens for request in several) - sum(first)
    return {
        "first_arrival_tokens": sum(first) / len(several),
        "tokens_per_arrival": later / sum(len(request.arrivals) - 1 for request in several),
    }


def elapsed_s(request: RequestRecord) -> float:
    """Seconds from sending to the last token."""
    return request.arrivals.received_s[-1] - request.sent_s if request.arrivals else 0.0
