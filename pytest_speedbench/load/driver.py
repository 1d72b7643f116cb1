"""Drive one round: requests in flight at exactly the batch size, every read with the moment it arrived.

While the clock runs a chunk costs a time stamp and two appends. What was read is decoded after the
round; only a prompt with a further turn is decoded as soon as its turn has ended, in a thread, because the
further turn holds the reply.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_speedbench.load.client_load import ClientLoad
from pytest_speedbench.load.conversation import Prepared
from pytest_speedbench.load.decode import decode
from pytest_speedbench.load.eventloop import run
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.records import RequestRecord, RoundRecord
from pytest_speedbench.load.round import Round

if TYPE_CHECKING:
    from pytest_speedbench.engines.base import Counters, Engine
    from pytest_speedbench.load.progress import Progress


def always_alive() -> str | None:
    """For a server whose process is not ours to watch."""
    return None


@dataclass(frozen=True)
class Driven:
    """What was sent and what came of it, decoded."""

    requests: tuple[RequestRecord, ...]
    """One for each turn, in the order in which they ended."""
    client_load: ClientLoad

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return sum(request.error is not None for request in self.requests)

    def record(
        self,
        plan: RoundPlan,
        prepared: Prepared,
        server_counters: Counters | None = None,
        other_processes_busy: float | None = None,
    ) -> RoundRecord:
        """The record of the round, with what was measured around it."""
        return RoundRecord(
            batch_size=plan.batch_size,
            requests=self.requests,
            tokenization=prepared.tokenization,
            server_counters=server_counters,
            client_busy=self.client_load.client_busy,
            client_waiting=self.client_load.client_waiting,
            loop_lag_s_p99=self.client_load.loop_lag_s_p99,
            other_processes_busy=other_processes_busy,
        )


def run_round(
    engine: Engine,
    url: str,
    prepared: Prepared,
    plan: RoundPlan,
    *,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
) -> RoundRecord:
    """As `drive`, without what is measured around a round."""
    return drive(engine, url, prepared, plan, alive=alive, progress=progress).record(plan, prepared)


def drive(
    engine: Engine,
    url: str,
    prepared: Prepared,
    plan: RoundPlan,
    *,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
) -> Driven:
    """Send conversations with `plan.batch_size` requests in flight.

    Each slot takes the next conversation as soon as it is free, and sends its turns one after the other. Prompts are
    used again, in turn, where there are more conversations than prompts. The batch is full until the last conversation
    is taken, save for the moment between two turns.

    Every turn is in the result and counts as sent, also one that never went out because an earlier turn failed
    or the engine was gone: it is a failed request, and its error says so.

    Args:
        engine: decodes the streams.
        url: of the running server.
        prepared: what to send.
        plan: how.
        alive: None while the engine's process lives, else what became of it. Asked from another thread when a
            connection was lost; once it answers, no more requests are sent.
        progress: notified of every request that ended.
    """
    round_ = Round(engine, url, prepared, plan, alive, progress)
    with _no_garbage_collection():
        client_load = run(round_.drive)
        records = [turn.record for turn in round_.turns]
        while round_.exchanges:  # each is dropped as soon as it was read, so that memory does not double
            records.append(decode(engine, round_.exchanges.pop()).record)
    return Driven(tuple(sorted(records, key=lambda request: request.ended_s)), client_load)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from stopping the client to look for cycles.

    A full collection visits every object of the process: with two million, as the records of earlier cells can
    be, it held all streams up for half a second. A round leaves few cycles, and they are collected after it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
