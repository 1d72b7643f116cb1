"""What rate the client holds on this machine, in ten seconds: `python -m pytest_speedbench.selftest.__main__`.

The client that measures engines is run against a server that sends at growing rates and knows what it sent when
(`selftest/server.py`). A rate is held if the client was not too busy and its moments are those of the server.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from pytest_speedbench.data.prompts import Prompt
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.reference.engine import ReferenceEngine
from pytest_speedbench.errors import EngineError, SpeedBenchError
from pytest_speedbench.load.conversation import prepare
from pytest_speedbench.load.driver import run_round
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.records import RequestRecord, RoundRecord
from pytest_speedbench.selftest.server import Sent, serving
from pytest_speedbench.settings.target import Sampling, Target

RATES = (12.5, 25.0, 50.0, 100.0, 200.0)
"""Chunks per second of each stream, step by step. An engine that gives each user 50 steps/s sends 50."""
MAX_STREAMS = 4096
MOST_BUSY = 0.9
MOST_LAG_S = 0.02
"""A step of an engine that gives each user 50 steps/s."""
LEAST_OFFERED = 0.97
"""Share of the offered rate below which it was the server that did not hold it."""
LEAST_CHUNKS = 5
_PROCESSES = 2
"""Of the server. One sends some 60,000 chunks/s on a core."""
_OTHER_FILES = 64
_CURES = {
    "client busy": "for more, use faster cores",
    "no free core": "something else uses the cores of this machine: give the client one of its own",
    "client late": "something else uses the cores of this machine: give the client one of its own",
    "server slow": "more could not be offered: the server had no core of its own",
}
_HEADER = f"{'streams':>7}{'offered/s':>11}{'received/s':>12}{'CPU us/chunk':>14}{'busy':>7}{'lag p99':>12}  verdict"


@dataclass(frozen=True)
class Step:
    """What one rate came to."""

    streams: int
    offered_per_s: float
    """Chunks per second of all streams together, as asked for."""
    sent_per_s: float
    """By the server's own count: the sum over streams of what each had between its first chunk and its last."""
    received_per_s: float
    """The same sum, by the client's count."""
    cpu_s_per_chunk: float
    """Processor time of the client process, decoding included, connections not."""
    busy: float
    """Share of the time in which the client's thread was computing."""
    waiting: float
    """Share of the time in which it could have been, and had no core."""
    lag_p99_s: float
    """From the server's stamp to the client's."""

    @property
    def verdict(self) -> str:
        """`held`, or why not."""
        if self.busy > MOST_BUSY:
            return "client busy"
        if self.busy + self.waiting > MOST_BUSY:
            return "no free core"
        if self.lag_p99_s > MOST_LAG_S:
            return "client late"
        if self.sent_per_s < LEAST_OFFERED * self.offered_per_s:
            return "server slow"
        return "held"

    def line(self) -> str:
        """A row of the table."""
        return (
            f"{self.streams:>7,}{self.offered_per_s:>11,.0f}{self.received_per_s:>12,.0f}"
            f"{1e6 * self.cpu_s_per_chunk:>14.1f}{self.busy:>7.0%}{1e3 * self.lag_p99_s:>9.1f} ms  {self.verdict}"
        )


def steps(streams: int, seconds: float) -> Iterator[Step]:
    """Measure rate after rate, until one is not held.

    Args:
        streams: requests in flight.
        seconds: for all rates together.

    Raises:
        EngineError: the server did not start, or a stream failed.
    """
    drive(
        min(streams, 8), RATES[-1], LEAST_CHUNKS
    )  # what is imported at the first use is no part of any step
    set_up = drive(streams, RATES[-1], LEAST_CHUNKS)
    for rate in RATES:
        run = drive(streams, rate, max(2 * LEAST_CHUNKS, round(rate * seconds / len(RATES))))
        step = summarise(rate * streams, run, set_up)
        yield step
        if step.verdict != "held":
            return


@dataclass(frozen=True)
class Run:
    """One round against the server."""

    record: RoundRecord
    """Of the client; no request failed."""
    sent: Sent
    """Of the server."""
    cpu_s: float
    """Processor time of the client."""


def drive(streams: int, rate: float, chunks: int) -> Run:
    """One round, against a server of its own.

    Args:
        streams: requests in flight.
        rate: chunks per second of each.
        chunks: of each stream.

    Raises:
        EngineError: the server did not start, or a stream failed.
    """
    engine = ReferenceEngine(Target(name="selftest", engine="reference", method="none", draft_length=0))
    prompts = [Prompt(f"stream {number}", "selftest", ("Say yes.",)) for number in range(streams)]
    with serving(rate, processes=_PROCESSES) as server, closing(Control(server.url)) as control:
        prepared = prepare(engine, control, prompts, Sampling.exactly(chunks))
        cpu_s = -time.process_time()
        record = run_round(engine, server.url, prepared, RoundPlan(streams))
        cpu_s += time.process_time()
        sent = server.sent()
    failed = [request.error for request in record.requests if request.error is not None]
    if failed:
        raise EngineError(f"{len(failed)} of {streams} streams failed, the first: {failed[0]}")
    return Run(record, sent, cpu_s)


def summarise(offered_per_s: float, run: Run, set_up: Run) -> Step:
    """What a round came to. Lag is that of the time in which all streams were sending.

    Args:
        offered_per_s: chunks per second, as asked of the server.
        run: the round, of two chunks or more for each stream.
        set_up: a round of fewer chunks for each of as many streams: its processor time goes into connections.
    """
    import numpy as np

    chunks = run.sent.chunks - set_up.sent.chunks
    lags_of_run = lags_s(run.sent, run.record.requests, run.sent.full_s)
    return Step(
        streams=len(run.record.requests),
        offered_per_s=offered_per_s,
        sent_per_s=sum((len(s) - 1) / (s[-1] - s[0]) for s in run.sent.stamps_s.values()),
        received_per_s=user_tps_sum(run.record),
        cpu_s_per_chunk=max(run.cpu_s - set_up.cpu_s, 0.0) / chunks,
        busy=run.record.client_busy,
        waiting=run.record.client_waiting,
        lag_p99_s=float(np.percentile(lags_of_run, 99)),
    )


def lags_s(sent: Sent, requests: Sequence[RequestRecord], since_s: float = 0.0) -> list[float]:
    """For each token of some requests, the seconds from the server's stamp to the client's.

    A stream is known by its token ids: all of them are its number.

    Args:
        sent: what the server sent.
        requests: what the client recorded; failed ones and those without token ids have no lag.
        since_s: leaves out what was sent before.
    """
    lags: list[float] = []
    for request in requests:
        if request.error is not None or not request.token_ids:
            continue
        stamps = sent.stamps_s[request.token_ids[0]]
        first = 0
        for arrival in request.arrivals:
            events = stamps[first : first + arrival.tokens]
            lags += [arrival.received_s - stamp for stamp in events if stamp >= since_s]
            first += arrival.tokens
    return lags


def user_tps_sum(record: RoundRecord) -> float:
    """Tokens per second of all requests, each counted from its first arrival to its last."""
    rates = []
    for request in record.requests:
        first, last = request.arrivals[0], request.arrivals[-1]
        if last.received_s > first.received_s:
            rates.append((request.output_tokens - first.tokens) / (last.received_s - first.received_s))
    return sum(rates)


def conclusion(done: Sequence[Step]) -> str:
    """One line on what the steps came to, with the cure where the client was what gave in.

    Args:
        done: steps in order of rate; at least one.
    """
    held = [step for step in done if step.verdict == "held"]
    last = done[-1]
    streams = f"{last.streams:,} streams"
    if held:
        told = f"The client holds {held[-1].offered_per_s:,.0f} chunks/s from {streams}"
    else:
        told = f"The client did not hold {last.offered_per_s:,.0f} chunks/s from {streams}"
    if last.verdict == "held":
        return f"{told}, with {1 - last.busy:.0%} of its core to spare."
    return f"{told}; {_CURES[last.verdict]}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns 0 if a rate was held, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_speedbench.selftest.__main__",
        description="What rate of stream chunks the client holds on this machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--streams", type=int, default=512, metavar="N", help="requests in flight (512)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="for all rates together (10)"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.streams <= MAX_STREAMS:
        parser.error(f"--streams {options.streams}: allowed are 1 to {MAX_STREAMS}")
    if not 1 <= options.seconds <= 3600:
        parser.error(f"--seconds {options.seconds:g}: allowed are 1 to 3600")
    if (files := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < options.streams + _OTHER_FILES:
        parser.error(
            f"--streams {options.streams}: this shell allows {files} open files; "
            f"ulimit -n {options.streams + _OTHER_FILES}, or fewer streams"
        )
    print(
        f"The client against a known server on this machine, {os.cpu_count()} cores\n\n{_HEADER}", flush=True
    )
    done: list[Step] = []
    try:
        for step in steps(options.streams, options.seconds):
            done.append(step)
            print(step.line(), flush=True)
    except SpeedBenchError as error:
        print(f"\nselftest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\n" + textwrap.fill(conclusion(done), 80, break_on_hyphens=False))
    return 0 if any(step.verdict == "held" for step in done) else 1


if __name__ == "__main__":
    sys.exit(main())
