"""Latency: time to the first token, between tokens, per step, and end to end, as mean, median, p90, p95 and p99."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pytest_speedbench.load.records import RequestRecord
from pytest_speedbench.metrics.throughput import counts, decode_s, elapsed_s, is_timed, moments


def ttft_s(requests: Sequence[RequestRecord]) -> NDArray[np.float64]:
    """Seconds from sending to the first token; one value per request that has one."""
    return np.array([r.arrivals.received_s[0] - r.sent_s for r in requests if r.arrivals])


def inter_token_latency_s(requests: Sequence[RequestRecord]) -> NDArray[np.float64]:
    """Seconds per token; one value per token after a request's first arrival.

    An arrival of m tokens after a gap of g seconds counts as m tokens of g / m seconds each: a step with accepted
    drafts delivers several tokens at once, and servers merge chunks under load. vLLM's `itl` is the bare gap
    between chunks, which counts both as slowness.
    """
    gaps = [np.empty(0)]
    for request in requests:
        later_tokens = counts(request)[1:]
        gaps.append(np.repeat(np.diff(moments(request)) / later_tokens, later_tokens))
    return np.concatenate(gaps)


def end_to_end_s(requests: Sequence[RequestRecord]) -> NDArray[np.float64]:
    """Seconds from sending to the last token; one value per request that has tokens."""
    return np.array([elapsed_s(request) for request in requests if request.arrivals])


def step_latency_s(requests: Sequence[RequestRecord], steps: Sequence[int]) -> NDArray[np.float64]:
    """Seconds per decode step; one value per step, each the mean of its request: `decode_s` / steps.

    One step cannot be timed from outside, as chunks are not steps; a request's mean can. Each value is
    repeated for every step of its request, so that the mean is that over all steps, and
    user TPS = acceptance length / mean step latency holds exactly for the requests that could be timed. Those whose
    tokens arrived all at once are in the acceptance length of a cell, and in neither of the other two.

    Args:
        requests: finished requests.
        steps: decode steps of each, in the same order.
    """
    pairs = [(decode_s(r, n), n) for r, n in zip(requests, steps, strict=True) if n > 0 and is_timed(r)]
    latencies = np.array([seconds / n for seconds, n in pairs], dtype=np.float64)
    return np.repeat(latencies, np.array([n for _, n in pairs], dtype=np.int64))


def spread(name: str, values_s: NDArray[np.float64]) -> dict[str, float]:
    """Mean, median and the 90th, 95th and 99th percentile (linear between values) as metrics; empty without values.

    Args:
        name: metric name without suffix, such as `ttft_s`.
        values_s: in seconds.
    """
    if not values_s.size:
        return {}
    percentiles = np.percentile(values_s, (50, 90, 95, 99))
    return {f"{name}_mean": float(values_s.mean())} | {
        f"{name}_{suffix}": float(value)
        for suffix, value in zip(("median", "p90", "p95", "p99"), percentiles, strict=True)
    }
