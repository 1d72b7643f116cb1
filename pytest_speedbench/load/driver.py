"""Drive one round: requests in flight at exactly the batch size, every read with the moment it arrived.

While the clock runs a chunk costs a time stamp and an append. What was read is decoded after the
round; only a prompt with a further turn is decoded as soon as its turn has ended, in a thread, because the
further turn holds the reply.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_speedbench.load.client_load import ClientLoad
from pytest_speedbench.load.conversation import Prepared
from pytest_speedbench.load.decode import Decoded, Exchange, decode
from pytest_speedbench.load.eventloop import run
from pytest_speedbench.load.records import RequestRecord, RoundRecord
from pytest_speedbench.load.round import Conversations, Round
from pytest_speedbench.settings.options import REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from pytest_speedbench.engines.base import Engine
    from pytest_speedbench.load.progress import Progress


def always_alive() -> str | None:
    """For a server whose process is not ours to watch."""
    return None


def one_pass(prepared: Prepared, batch_size: int) -> int:
    """Conversations of a round where nobody says how many: each prompt once, or as many as fill the batch."""
    return max(len(prepared.prompts), batch_size)


def order(prepared: Prepared, conversations: int) -> Conversations:
    """The conversations of a round: prompts in turn, over and over."""
    prompts = len(prepared.prompts)
    return ((number % prompts, number // prompts) for number in range(conversations))


def requests_of(prepared: Prepared, conversations: int) -> int:
    """Requests that so many conversations take: the turns of all prompts, each prompt as often as it is used."""
    return sum(len(prepared.prompts[index].turns) for index, _ in order(prepared, conversations))


def run_round(
    engine: Engine,
    url: str,
    prepared: Prepared,
    batch_size: int,
    *,
    conversations: int | None = None,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
) -> RoundRecord:
    """Send conversations with `batch_size` requests in flight.

    Each of `batch_size` slots takes the next conversation as soon as it is free, and sends its turns one after
    the other. Prompts are used again, in turn, where there are more conversations than prompts. The batch is
    full until the last conversation is taken, save for the moment between two turns.

    Every turn is in the result and counts as sent, also one that never went out because an earlier turn failed
    or the engine was gone: it is a failed request, and its error says so.

    Args:
        engine: decodes the streams.
        url: of the running server.
        prepared: what to send.
        batch_size: requests in flight at once.
        conversations: how many; None for `one_pass`.
        request_timeout_s: a request fails when nothing arrived on it for so long. If nothing arrived on any
            other one either, the engine hangs, and no more requests are sent.
        alive: None while the engine's process lives, else what became of it. Asked from another thread when a
            connection was lost; once it answers, no more requests are sent.
        progress: told of every request that ended.

    Returns:
        One record for each turn, in the order in which they ended.
    """
    how_many = one_pass(prepared, batch_size) if conversations is None else conversations
    driven = drive(
        engine,
        url,
        prepared,
        batch_size,
        order(prepared, how_many),
        request_timeout_s=request_timeout_s,
        alive=alive,
        progress=progress,
    )
    return merge(batch_size, prepared.tokenization, [driven.decoded(engine)])


@dataclass(frozen=True)
class Share:
    """What one client process brought of a round."""

    requests: tuple[RequestRecord, ...]
    effort: ClientLoad


@dataclass(frozen=True)
class Driven:
    """What one client process brought, before it is decoded."""

    turns: list[Decoded]
    """Decoded already: a further turn needed them."""
    exchanges: list[Exchange]
    """Yet to be decoded."""
    effort: ClientLoad

    def decoded(self, engine: Engine) -> Share:
        """Read all streams. Once only: each is dropped as soon as it was read, so that memory does not double."""
        with _no_garbage_collection():
            records = []
            while self.turns or self.exchanges:
                decoded = self.turns.pop() if self.turns else decode(engine, self.exchanges.pop())
                records.append(decoded.record)
        return Share(tuple(records), self.effort)


def merge(batch_size: int, tokenization: str, shares: Sequence[Share]) -> RoundRecord:
    """The record of a round out of what its client processes brought."""
    requests = [request for share in shares for request in share.requests]
    busiest = max(
        (share.effort for share in shares), key=lambda effort: effort.client_busy + effort.client_waiting
    )
    return RoundRecord(
        batch_size=batch_size,
        requests=tuple(sorted(requests, key=lambda request: request.ended_s)),
        tokenization=tokenization,
        client_busy=busiest.client_busy,
        client_waiting=busiest.client_waiting,
        loop_lag_s_p99=max(share.effort.loop_lag_s_p99 for share in shares),
        client_processes=len(shares),
    )


def drive(
    engine: Engine,
    url: str,
    prepared: Prepared,
    slots: int,
    conversations: Conversations,
    *,
    request_timeout_s: float,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
    when_ready: Callable[[], None] = lambda: None,
) -> Driven:
    """Send conversations until there are none, `slots` of them at once; arguments as in `run_round`.

    `when_ready` is called once all connections are open, and may block until the clock is to start.
    """
    round_ = Round(engine, url, prepared, slots, conversations, request_timeout_s, alive, progress)

    def send_all() -> Coroutine[Any, Any, ClientLoad]:
        return round_.drive(when_ready)

    with _no_garbage_collection():
        effort = run(send_all)
    return Driven(round_.turns, round_.exchanges, effort)


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
