from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.engines.reference.clock import Accelerator, Clock, Pass

MODEL = Accelerator()


def test_speedup_falls_as_the_batch_grows_and_passes_one() -> None:
    speedups = {size: MODEL.speedup(size, 2.4, 3) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)}
    values = list(speedups.values())
    assert all(after <= before + 1e-12 for before, after in pairwise(values))
    assert speedups[1] == pytest.approx(1.7, abs=0.1)
    assert speedups[16] > 1.0 > speedups[64]


def test_without_acceptance_drafts_only_cost() -> None:
    assert MODEL.speedup(1, 1.0, 3) < 1.0


def test_few_tokens_take_the_floor_and_many_take_their_arithmetic() -> None:
    assert MODEL.latency_s(Pass(1, 1)) == MODEL.latency_s(Pass(8, 8)) == MODEL.floor_s
    assert MODEL.latency_s(Pass(512, 2048)) == pytest.approx(2048 * MODEL.token_s)


def test_prompts_and_draft_passes_add_to_a_pass() -> None:
    plain = MODEL.latency_s(Pass(4, 4))
    assert MODEL.latency_s(Pass(4, 4, prompt_tokens=1000)) == pytest.approx(
        plain + 1000 * MODEL.prompt_token_s
    )
    assert MODEL.latency_s(Pass(4, 4, draft_passes=2)) == pytest.approx(
        plain + 2 * MODEL.draft_share * MODEL.floor_s
    )


@given(st.builds(Pass, *[st.integers(0, 1000)] * 4), st.floats(0.1, 10.0))
def test_slowdown_multiplies_every_latency(work: Pass, factor: float) -> None:
    assert Accelerator(slowdown=factor).latency_s(work) == pytest.approx(factor * MODEL.latency_s(work))


def test_a_late_pass_is_made_up_for() -> None:
    async def run() -> tuple[Clock, float, float]:
        loop = asyncio.get_running_loop()
        clock = Clock()
        clock.restart()
        begin_s = loop.time()
        await clock.wait(0.01)
        while loop.time() < begin_s + 0.045:  # the machine is busy while three more passes fall due
            pass
        for _ in range(5):
            await clock.wait(0.01)
        return clock, begin_s, loop.time()

    clock, begin_s, end_s = asyncio.run(run())
    # Never early: a pass is not over before its due time, whatever the ones before it did.
    assert end_s >= begin_s + 6 * 0.01
    assert clock.passes == 6
    assert clock.late_passes >= 1
    assert clock.late_s >= 0.045 - 0.02
