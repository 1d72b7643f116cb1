"""What a repository that gates vLLM would hold: acceptance length, here in four of the eleven categories."""

from __future__ import annotations

import pytest

from pytest_speedbench import SpeedBench

CATEGORIES = ["coding", "math", "qa", "roleplay"]


@pytest.mark.speedbench(split="qualitative", categories=CATEGORIES, batch_sizes=[8])
def test_acceptance_length(speedbench: SpeedBench) -> None:
    """A step of the target model delivers as many tokens as it did."""
    speedbench.measure().assert_no_regression("acceptance_length")
