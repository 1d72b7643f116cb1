"""Acceptance length on the qualitative split, category by category."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_speedbench.fixture import SpeedBench


@pytest.mark.speedbench(split="qualitative")
def test_acceptance_length(speedbench: SpeedBench) -> None:
    """Each step of the target model delivers as many tokens as it did."""
    speedbench.measure().assert_no_regression("acceptance_length")
