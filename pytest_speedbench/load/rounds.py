"""Measure one round of a cell: warm-up if asked for, then the round, between two readings of the counters."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from pytest_speedbench.engines.base import Counters
from pytest_speedbench.errors import EngineError
from pytest_speedbench.load.conversation import Prepared, warm_up
from pytest_speedbench.load.driver import Driven, always_alive, drive
from pytest_speedbench.load.other_processes import OtherProcesses
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.records import RoundRecord

if TYPE_CHECKING:
    from pytest_speedbench.engines.base import Engine
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.load.progress import Progress


_SETTLED_S = 5.0
"""How long a server may take to count what it has sent."""
_LOOK_EVERY_S = 0.05


def record_round(
    engine: Engine,
    control: Control,
    prepared: Prepared,
    plan: RoundPlan,
    *,
    warmup: int = 0,
    alive: Callable[[], str | None] = always_alive,
    progress: Progress | None = None,
    watch_others: bool = False,
) -> RoundRecord:
    """Send a cell's prompts once, from a clean start and between two readings of the counters.

    Before the round the engine forgets what went before (`Engine.reset`): a prefix cache or an n-gram pool
    that has seen the prompts would be measured instead of the drafter.

    Args:
        engine: what is measured.
        control: the running server; must be idle but for us.
        prepared: what to send.
        plan: how.
        warmup: unmeasured requests before the round, with a short output, at most `plan.batch_size` at once.
        alive: as in `drive`.
        progress: one line; warm-up is not counted.
        watch_others: whether to measure what other processes took of the processors; the engine must run below this one.

    Raises:
        EngineError: the engine is dead before the round, computes fewer requests at once than the batch size, or
            a control call failed.
    """
    _refuse_dead(alive)
    _refuse_to_queue(engine, control, plan.batch_size)
    try:
        if progress is not None:
            progress.begin(plan.requests(prepared))
        if warmup > 0:
            _warm_up(engine, control, prepared, plan, warmup, alive)
            _refuse_dead(alive)
        engine.reset(control)
        before = engine.server_counters(control) if _server_tells(engine) else None
        with OtherProcesses() if watch_others else nullcontext() as others:
            driven = drive(engine, control.url, prepared, plan, alive=alive, progress=progress)
        counted = None if before is None else _counted_since(before, engine, control, driven)
    finally:
        if progress is not None:
            progress.end()
    return driven.record(plan, prepared, counted, None if others is None else others.share)


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


def _warm_up(
    engine: Engine,
    control: Control,
    prepared: Prepared,
    plan: RoundPlan,
    requests: int,
    alive: Callable[[], str | None],
) -> None:
    before = engine.server_counters(control) if _server_tells(engine) else None
    smaller = replace(plan, batch_size=min(plan.batch_size, requests), conversations=requests)
    driven = drive(engine, control.url, warm_up(engine, prepared, requests), smaller, alive=alive)
    if before is not None:  # what is counted late would be counted to the round
        _counted_since(before, engine, control, driven)


def _server_tells(engine: Engine) -> bool:
    """Whether a server has to be asked for what responses do not tell."""
    return not engine.counts_per_request or engine.server_counts_more


def _since(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


def _counted_since(before: Counters, engine: Engine, control: Control, driven: Driven) -> Counters | None:
    """What was counted in a round, once all of it is: a server may send a token first and count it then.

    A server that does not count its output tokens is read until two readings are alike.
    """
    sent = sum(request.output_tokens for request in driven.requests)
    give_up = time.monotonic() + _SETTLED_S
    last: Counters | None = None
    try:
        while True:
            after = engine.server_counters(control)
            counted = None if after is None else difference(after, before)
            if counted is None or driven.failed or time.monotonic() > give_up:
                return counted
            settled = counted == last if counted.output_tokens is None else counted.output_tokens >= sent
            if settled:
                return counted
            last = counted
            time.sleep(_LOOK_EVERY_S)
    except EngineError:
        if driven.failed:  # an engine that died in the round: the failed requests say it better
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
