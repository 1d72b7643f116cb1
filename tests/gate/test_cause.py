from __future__ import annotations

import pytest

from pytest_speedbench.gate.baseline import AcceptanceCell, ThroughputCell, rounded
from pytest_speedbench.gate.cause import PositionChange, explain
from pytest_speedbench.metrics.measurement import Measurement
from tests.gate.measurements import CELL, HARDWARE, STEPS, baseline_of, measurement

BASELINE = baseline_of(
    measurement(metrics={"acceptance_length": 3.0, "step_latency_s_mean": 0.03, "output_tps": 2518.0})
)
ACCEPTANCE: AcceptanceCell = BASELINE.acceptance[CELL.id]
THROUGHPUT: ThroughputCell = BASELINE.throughput[HARDWARE][CELL.id]


def run(acceptance: float, latency: float, rest: float = 0.0) -> Measurement:
    """A run whose acceptance length, step latency and all the rest changed by these shares."""
    return measurement(
        metrics={
            "acceptance_length": 3.0 * (1 + acceptance),
            "step_latency_s_mean": 0.03 * (1 + latency),
            "output_tps": 2518.0 * (1 + acceptance) / (1 + latency) * (1 + rest),
        }
    )


@pytest.mark.parametrize(
    ("acceptance", "latency", "rest", "word"),
    [
        (-0.063, -0.001, 0.0, "drafter"),
        (-0.063, +0.001, 0.0, "drafter"),
        (-0.063, +0.020, 0.0, "drafter"),
        (0.0, +0.20, 0.0, "system"),
        (-0.02, +0.20, 0.0, "system"),
        (+0.05, +0.20, 0.0, "system"),
        (-0.20, -0.10, 0.0, "drafter"),
        (-0.10, +0.10, 0.0, "both"),
        (-0.10, +0.10, -0.05, "both"),
        (0.0, 0.0, -0.20, "unclear"),
        (-0.03, +0.03, -0.20, "unclear"),
        (0.0, 0.0, 0.0, "unclear"),
        (+0.10, -0.10, 0.0, "unclear"),
    ],
)
def test_truth_table(acceptance: float, latency: float, rest: float, word: str) -> None:
    assert explain(run(acceptance, latency, rest), ACCEPTANCE, THROUGHPUT).word == word


@pytest.mark.parametrize(
    ("acceptance", "latency", "failed", "word"),
    [
        (-0.05, +0.08, ("acceptance_length",), "drafter"),  # a busy machine beside a weaker drafter
        (-0.05, +0.08, ("acceptance_length", "output_tps"), "both"),
        (-0.05, +0.30, ("acceptance_length", "output_tps"), "both"),
        (-0.10, +0.02, ("acceptance_length", "output_tps"), "drafter"),
        (-0.02, +0.15, ("output_tps",), "system"),
        (-0.15, 0.0, ("output_tps",), "drafter"),
    ],
)
def test_what_failed_narrows_the_cause(
    acceptance: float, latency: float, failed: tuple[str, ...], word: str
) -> None:
    assert explain(run(acceptance, latency), ACCEPTANCE, THROUGHPUT, failed).word == word


def test_the_parts_add_up_to_the_loss() -> None:
    cause = explain(run(-0.10, +0.10, -0.05), ACCEPTANCE, THROUGHPUT)
    assert cause.acceptance_length_change == pytest.approx(-0.10, abs=1e-5)
    assert cause.step_latency_change == pytest.approx(0.10, abs=1e-5)
    assert cause.output_tps_change == pytest.approx(0.9 / 1.1 * 0.95 - 1, abs=1e-5)
    shares = (cause.drafter_share, cause.system_share, cause.rest_share)
    assert shares == pytest.approx((0.41820, 0.37822, 0.20358), abs=1e-4)
    assert sum(share or 0 for share in shares) == pytest.approx(1)


def test_a_part_that_gained_carries_no_share_of_the_loss() -> None:
    cause = explain(run(+0.05, +0.20), ACCEPTANCE, THROUGHPUT)
    assert cause.drafter_share == 0
    assert cause.system_share == pytest.approx(1, abs=1e-4)


def test_the_line_for_a_person() -> None:
    assert explain(run(-0.063, -0.001), ACCEPTANCE, THROUGHPUT).reason == (
        "acceptance length explains -6.3 % of the TPS change, step latency +0.1 %."
    )
    assert explain(run(0.0, +0.20, -0.05), ACCEPTANCE, THROUGHPUT).reason == (
        "acceptance length explains +0.0 % of the TPS change, step latency -16.7 % (the time of a step: +20.0 %), "
        "prefill, queueing and batch filling -5.0 %."
    )


def test_on_other_hardware_a_failed_acceptance_length_is_the_drafters_and_the_rest_is_not_known() -> None:
    cause = explain(run(-0.063, 0.2), ACCEPTANCE, None, ("acceptance_length",))
    assert cause.word == "drafter"
    assert (cause.step_latency_change, cause.system_share) == (None, None)
    assert cause.reason == (
        "acceptance length -6.3 %; throughput has no baseline on this hardware, so that the system's part is not known."
    )


def test_without_any_baseline_nothing_is_known() -> None:
    cause = explain(run(-0.063, 0.2), None, None)
    assert (cause.word, cause.acceptance_length_change, cause.positions) == ("unclear", None, ())


def test_positions_whose_acceptance_fell_are_named() -> None:
    then, now = measurement(), measurement([count + 10 for count in STEPS])
    baseline = baseline_of(then)
    positions = explain(now, baseline.acceptance[CELL.id], None).positions
    rates = then.per_position["conditional_acceptance_rate"], now.per_position["conditional_acceptance_rate"]
    assert [change.position for change in positions] == [
        number for number, (before, after) in enumerate(zip(*rates, strict=True), 1) if after < before
    ]
    assert PositionChange(1, rounded(rates[0][0]), rates[1][0]) == positions[0]
    assert explain(then, baseline.acceptance[CELL.id], None).positions == ()
