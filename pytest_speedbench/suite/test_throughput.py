"""Tokens per second on the throughput splits, by input length, entropy tier and batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_speedbench.speed_bench import INPUT_LENGTHS

if TYPE_CHECKING:
    from pytest_speedbench.fixture import SpeedBench


@pytest.mark.speedbench(split=tuple(INPUT_LENGTHS))
def test_throughput(speedbench: SpeedBench) -> None:
    """The batch as a whole, and each of its users, get their tokens as fast as they did."""
    speedbench.measure().assert_no_regression("output_tps", "user_tps")
