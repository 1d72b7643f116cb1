from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.load.client_load import INTERVAL_S, ClientLoad, ClientLoadMeter, p99
from pytest_speedbench.load.eventloop import run


def measured(work_s: float, hold_s: float = 0.0) -> ClientLoad:
    """Of a loop that sleeps until `work_s` is over and is held up once, for `hold_s`."""

    async def main() -> ClientLoad:
        with ClientLoadMeter() as meter:
            until_s = time.monotonic() + work_s
            time.sleep(hold_s)
            while time.monotonic() < until_s:
                await asyncio.sleep(INTERVAL_S)
        return meter.effort()

    return run(main)


def test_a_loop_that_is_held_up_is_late_for_all_that_was_due_meanwhile() -> None:
    """Of 0.2 s, 0.1 s were lost: one callback in two was late, by up to those 0.1 s, although it ran only once."""
    assert measured(0.2, hold_s=0.1).loop_lag_s_p99 > 0.09


def test_waiting_is_no_computing() -> None:
    effort = measured(0.2)
    assert 0 < effort.client_busy < 1
    assert effort.client_waiting >= 0


def test_computing_is_counted() -> None:
    async def main() -> ClientLoad:
        with ClientLoadMeter() as meter:
            until_s = time.thread_time() + 0.1
            while time.thread_time() < until_s:
                pass
        return meter.effort()

    began_s = time.monotonic()
    effort = run(main)
    assert effort.client_busy * (time.monotonic() - began_s) >= 0.1


def test_a_round_of_no_time_at_all_is_no_lag() -> None:
    async def main() -> ClientLoad:
        with ClientLoadMeter() as meter:
            pass
        return meter.effort()

    assert run(main).loop_lag_s_p99 == 0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300))
def test_p99_is_not_exceeded_by_99_of_100(values: list[float]) -> None:
    found = p99(values)
    assert found in values
    assert sum(value > found for value in values) <= len(values) / 100
    assert sum(value >= found for value in values) > len(values) / 100 - 1


def test_p99_of_nothing() -> None:
    assert p99([]) is None
    assert p99([3.0]) == 3.0
    assert p99(range(1, 101)) == pytest.approx(99)
