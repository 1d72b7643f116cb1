"""Numbers, changes and targets in words."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.report.wording import number, percent, target_line
from pytest_speedbench.settings.target import Target
from tests.report.samples import METRICS, TARGET


@given(st.sampled_from(METRICS), st.floats(0.001, 999_999))
def test_a_number_has_the_digits_it_deserves(metric: str, value: float) -> None:
    text = number(metric, value)
    exact = Decimal(value)  # half a unit of the last digit is allowed, and 0.875 lies half-way
    assert abs(Decimal(text) - exact) <= Decimal("0.005") * max(exact, Decimal(1))
    assert len(text) <= 9


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.937, "-6.3 %"), (1.0, "+0.0 %"), (0.99999, "+0.0 %"), (2.5, "+150.0 %")]
)
def test_a_ratio_is_shown_as_a_change(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_a_target_in_one_line() -> None:
    assert target_line(TARGET) == "vllm, llama-3.3-70b, eagle3 k=3"
    assert target_line(Target("t", "reference", "none", 0)) == "reference, none"
