from __future__ import annotations

import pytest

from pytest_speedbench.gate.checks import Verdict
from pytest_speedbench.gate.decide import decide


@pytest.mark.parametrize(
    ("ratio", "interval", "verdict"),
    [
        (1.00, (0.99, 1.01), Verdict.PASS),
        (0.98, (0.975, 0.985), Verdict.PASS),  # surely worse, but within the tolerance
        (0.97, (0.96, 0.98), Verdict.PASS),  # exactly the tolerance
        (0.96, (0.95, 0.97), Verdict.REGRESSION),
        (0.96, (0.93, 0.999), Verdict.REGRESSION),
        (0.96, (0.92, 1.0), Verdict.INCONCLUSIVE),
        (0.96, (0.90, 1.02), Verdict.INCONCLUSIVE),
        (0.96, None, Verdict.REGRESSION),
        (0.98, None, Verdict.PASS),
        (1.02, (1.01, 1.03), Verdict.PASS),  # surely better, but within the tolerance
        (1.03, (1.02, 1.04), Verdict.PASS),
        (1.05, (1.01, 1.09), Verdict.IMPROVEMENT),
        (1.05, (1.0, 1.10), Verdict.PASS),
        (1.05, (0.98, 1.12), Verdict.PASS),
        (1.05, None, Verdict.IMPROVEMENT),
    ],
)
def test_truth_table_at_a_tolerance_of_3_percent(
    ratio: float, interval: tuple[float, float] | None, verdict: Verdict
) -> None:
    low, high = interval or (None, None)
    assert decide(ratio, low, high, 0.03) is verdict


def test_without_tolerance_any_sure_loss_is_a_regression() -> None:
    assert decide(0.999, 0.998, 0.9995, 0.0) is Verdict.REGRESSION
    assert decide(1.0, 1.0, 1.0, 0.0) is Verdict.PASS
