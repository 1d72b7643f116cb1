"""What speculation is worth: output TPS over that of the same target without it, both measured in this run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_speedbench.speed_bench import INPUT_LENGTHS

if TYPE_CHECKING:
    from pytest_speedbench.fixture import SpeedBench


@pytest.mark.speedbench(split=tuple(INPUT_LENGTHS), speedup=True)
def test_speedup(speedbench: SpeedBench) -> None:
    """Speculation speeds the engine up by as much as it did."""
    if speedbench.target.method == "none":
        pytest.skip("the target has no speculation that could speed it up: its method is none")
    speedbench.measure().assert_no_regression("speedup")
