"""What a run could have seen, and what it could not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.estimate import Estimate
from pytest_speedbench.gate.sensitivity import Sensitivity, sees_tolerance, sensitivities, underpowered

CHECK = Check(
    "output_tps",
    Verdict.PASS,
    tolerance=0.05,
    alpha=0.001,
    estimate=Estimate(0.0, 0.01, 30.0, "round"),
    detectable_loss=0.065,
)
CODING, QA, MEAN_CELL = (Cell("qualitative", category, 32) for category in ("coding", "qa", MEAN))


def with_error(error: float | None, detectable_loss: float | None = 0.065) -> Check:
    return replace(CHECK, estimate=Estimate(0.0, error, 30.0, "round"), detectable_loss=detectable_loss)


def test_the_worst_check_of_each_metric_counts_and_means_apart() -> None:
    checks = {
        CODING: {"output_tps": CHECK, "acceptance_length": replace(CHECK, metric="acceptance_length")},
        QA: {"output_tps": replace(CHECK, detectable_loss=0.09)},
        MEAN_CELL: {"output_tps": replace(CHECK, detectable_loss=0.02)},
    }
    assert sensitivities(checks) == (
        Sensitivity("acceptance_length", False, 0.065),
        Sensitivity("output_tps", False, 0.09),
        Sensitivity("output_tps", True, 0.02),
    )


def test_what_compared_nothing_saw_nothing() -> None:
    nothing = Check("output_tps", Verdict.NO_BASELINE, 0.05, 0.001)
    unknown = with_error(None, detectable_loss=None)
    assert sensitivities({CODING: {"output_tps": nothing}, QA: {"output_tps": unknown}}) == ()


@pytest.mark.parametrize(
    ("error", "sees"),
    [
        (0.0, True),
        (0.0151, True),  # 3.385 standard errors are 5.11 %, and the tolerance is 5.13 %, as logarithms
        (0.0152, False),
        (None, False),
    ],
)
def test_a_loss_of_the_tolerance_must_be_told_from_none(error: float | None, sees: bool) -> None:
    assert sees_tolerance(with_error(error)) is sees


def test_a_smaller_share_of_alpha_needs_a_smaller_error() -> None:
    noisy = with_error(0.014)
    assert sees_tolerance(noisy)
    assert not sees_tolerance(replace(noisy, alpha=0.0001))


def test_the_worst_of_those_that_cannot_see_comes_first() -> None:
    noisy = with_error(0.02, detectable_loss=0.1)
    checks = {
        CODING: {"output_tps": CHECK},
        QA: {"output_tps": noisy, "user_tps": replace(noisy, metric="user_tps", detectable_loss=0.2)},
    }
    assert [(each.cell, each.metric) for each in underpowered(checks)] == [
        (QA.id, "user_tps"),
        (QA.id, "output_tps"),
    ]
