"""Measure one cell: warm-up, then rounds, each from a clean start and between two readings of the counters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from pytest_speedbench.engines.base import Counters
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.conversation import Prepared, warm_up
from pytest_speedbench.load.driver import always_alive, one_pass, requests_of, run_round
from pytest_speedbench.load.processes import run_round_shared
from pytest_speedbench.load.records import RoundRecord
from pytest_speedbench.settings.options import REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from pytest_speedbench.engines.base import Engine
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.load.progress import Progress


_SETTLED_S = 5.0
"""How long a server may take to count what it has sent."""
_LOOK_EVERY_S = 0.05


def measure_rounds(
    engine: Engine,
    control: Control,
    prepared: Prepared,
    batch_size: int,
    *,
    rounds: int = 1,
    warmup: int = 0,
    conversations: int | None = None,
    client_processes: int = 1,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
) -> tuple[RoundRecord, ...]:
    """Measure a cell's prompts at one batch size.

    Before each round the engine forgets what went before (`Engine.reset`): a prefix cache or an n-gram pool
    that has seen the prompts would be measured instead of the drafter.

    Args:
        engine: what is measured.
        control: the running server; must be idle but for us.
        prepared: what to send.
        batch_size: requests in flight at once.
        rounds: measured passes.
        warmup: unmeasured requests before them, with a short output, at most `batch_size` at once.
        conversations: of each round, as in `run_round`.
        client_processes: how many processes share the streams of a measured round.
        request_timeout_s: as in `run_round`.
        alive: as in `run_round`.
        progress: one line for all rounds; warm-up is not counted.

    Returns:
        One record for each round. A round with a failed request is the last one: the cell is invalid, whatever
        would follow.

    Raises:
        EngineError: the engine is dead before a round, computes fewer requests at once than the batch size, or
            a control call failed.
    """

    def one_round(
        what: Prepared, in_flight: int, how_many: int, shown: Progress | None, processes: int
    ) -> RoundRecord:
        send = run_round if processes == 1 else partial(run_round_shared, processes=processes)
        return send(
            engine,
            control.url,
            what,
            in_flight,
            conversations=how_many,
            request_timeout_s=request_timeout_s,
            alive=alive,
            progress=shown,
        )

    done: list[RoundRecord] = []
    how_many = one_pass(prepared, batch_size) if conversations is None else conversations
    _refuse_dead(alive)
    _refuse_to_queue(engine, control, batch_size)
    try:
        if progress is not None:
            progress.begin(rounds * requests_of(prepared, how_many))
        if warmup > 0:
            _refuse_dead(alive)
            one_round(warm_up(engine, prepared, warmup), min(batch_size, warmup), warmup, None, 1)
        while len(done) < rounds and not (done and done[-1].failed):
            _refuse_dead(alive)
            engine.reset(control)
            before = engine.server_counters(control) if _server_tells(engine) else None
            record = one_round(prepared, batch_size, how_many, progress, client_processes)
            if before is not None:
                record = replace(record, server_counters=_counted_since(before, engine, control, record))
            done.append(record)
    finally:
        if progress is not None:
            progress.end()
    return tuple(done)


def difference(after: Counters, before: Counters) -> Counters:
    """What was counted between two readings of a server's counters.

    Raises:
        EngineError: a counter went back, so the server was started anew in between.
    """
    positions = zip_longest(after.accepted_per_position, before.accepted_per_position, fillvalue=0)
    counted = replace(
        after,
        drafted_steps=_since(after.drafted_steps, before.drafted_steps),
        drafted_tokens=_since(after.drafted_tokens, before.drafted_tokens),
        accepted_tokens=after.accepted_tokens - before.accepted_tokens,
        accepted_per_position=tuple(later - earlier for later, earlier in positions),
        decode_steps=_since(after.decode_steps, before.decode_steps),
        output_tokens=_since(after.output_tokens, before.output_tokens),
    )
    numbers = (counted.drafted_steps or 0, counted.drafted_tokens or 0, counted.accepted_tokens)
    if min(*numbers, *counted.accepted_per_position) < 0:
        raise EngineError("the engine's counters went back during a round: it was restarted while measured")
    return counted


def _server_tells(engine: Engine) -> bool:
    """Whether a server has to be asked for what responses do not tell."""
    return not engine.counts_per_request or engine.server_counts_more


def _since(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


def _counted_since(
    before: Counters, engine: Engine, control: Control, record: RoundRecord
) -> Counters | None:
    """What was counted in a round, once all of it is: a server may send a token first and count it then."""
    sent = sum(request.output_tokens for request in record.requests)
    give_up = time.monotonic() + _SETTLED_S
    try:
        while True:
            after = engine.server_counters(control)
            counted = None if after is None else difference(after, before)
            missing = (
                counted is not None and counted.output_tokens is not None and counted.output_tokens < sent
            )
            if not missing or record.failed or time.monotonic() > give_up:
                return counted
            time.sleep(_LOOK_EVERY_S)
    except EngineError:
        if record.failed:  # an engine that died in the round: the failed requests say it better
            return None
        raise


def _refuse_to_queue(engine: Engine, control: Control, batch_size: int) -> None:
    if (most := engine.requests_at_once(control)) < batch_size:
        raise EngineError(
            f"batch size {batch_size}: {engine.name} computes {most} requests at once, and the others would wait; "
            "launch it with room for more (--speedbench-engine-arg), or leave this batch size out"
        )


def _refuse_dead(alive: Callable[[], str | None]) -> None:
    death = alive()
    if death is not None:
        raise EngineError(f"the engine is gone: {death}")
