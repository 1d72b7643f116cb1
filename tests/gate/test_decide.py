from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.gate.decide import decide, detectable_loss, interim_analyses, share_of_alpha
from pytest_speedbench.gate.estimate import Estimate

NORMAL = 1e6
"""Degrees of freedom at which t(0.95) is 1.645 and t(0.99) is 2.326."""


@pytest.mark.parametrize(
    ("ratio", "error", "verdict"),
    [
        (1.00, 0.0, Verdict.PASS),
        (1.00, 0.018, Verdict.PASS),  # 1.645 x 1.8 % = 3.0 %
        (1.00, 0.019, Verdict.INCONCLUSIVE),  # nothing lost, and 3 % might have been
        (0.98, 0.006, Verdict.PASS),  # surely worse, but surely within the tolerance
        (0.98, 0.0, Verdict.PASS),
        (0.98, 0.007, Verdict.INCONCLUSIVE),  # 0.98 - 1.645 x 0.7 % lies below 0.97
        (0.969, 0.0, Verdict.REGRESSION),
        (0.96, 0.017, Verdict.REGRESSION),  # 2.326 x 1.7 % = 4.0 %: a ratio of 1 is refuted
        (0.96, 0.018, Verdict.INCONCLUSIVE),
        (0.5, 0.297, Verdict.REGRESSION),
        (0.5, 0.299, Verdict.INCONCLUSIVE),
        (0.96, None, Verdict.INCONCLUSIVE),
        (1.00, None, Verdict.INCONCLUSIVE),
        (1.50, None, Verdict.INCONCLUSIVE),
        (1.03, 0.01, Verdict.PASS),
        (1.05, 0.011, Verdict.IMPROVEMENT),  # 1.645 x 1.1 % = 1.8 %
        (1.05, 0.012, Verdict.PASS),
        (1.05, 0.05, Verdict.INCONCLUSIVE),  # better, but so vague that 3 % less is not excluded
    ],
)
def test_truth_table_at_a_tolerance_of_3_percent_and_an_alpha_of_1_percent(
    ratio: float, error: float | None, verdict: Verdict
) -> None:
    assert decide(Estimate(math.log(ratio), error, NORMAL, "prompt"), 0.03, 0.01) is verdict


def test_without_tolerance_any_sure_loss_is_a_regression_and_a_repeat_passes() -> None:
    assert decide(Estimate(math.log(0.999), 0.0001, NORMAL, "prompt"), 0.0, 0.01) is Verdict.REGRESSION
    assert decide(Estimate(0.0, 0.0, 79, "prompt"), 0.0, 0.01) is Verdict.PASS


def test_fewer_degrees_of_freedom_need_more_of_a_loss() -> None:
    assert decide(Estimate(math.log(0.95), 0.015, NORMAL, "prompt"), 0.03, 0.001) is Verdict.REGRESSION
    assert decide(Estimate(math.log(0.95), 0.015, 5, "prompt"), 0.03, 0.001) is Verdict.INCONCLUSIVE


@given(
    st.floats(-0.5, 0.5),
    st.floats(0, 0.2),
    st.floats(1, 1000),
    st.floats(0, 0.3),
    st.floats(1e-6, 0.05),
    st.floats(1e-6, 0.05),
)
def test_a_smaller_share_of_alpha_never_adds_a_failure_and_never_changes_a_pass(
    log_ratio: float, error: float, freedom: float, tolerance: float, one: float, other: float
) -> None:
    estimate = Estimate(log_ratio, error, freedom, "prompt")
    strict, lax = (decide(estimate, tolerance, alpha) for alpha in sorted((one, other)))
    assert strict is lax or (strict, lax) == (Verdict.INCONCLUSIVE, Verdict.REGRESSION)


@pytest.mark.parametrize(
    ("error", "freedom", "alpha"), [(0.01, 40, 0.0001), (0.005, 20, 0.01), (0.02, 8, 0.01)]
)
def test_the_detectable_loss_is_failed_95_times_in_100(error: float, freedom: int, alpha: float) -> None:
    random = np.random.default_rng(5)
    trials, tolerance = 4000, 0.03
    loss = detectable_loss(Estimate(0.0, error, freedom, "prompt"), tolerance, alpha)
    assert loss is not None
    failed = 0
    for _ in range(trials):
        seen = error * math.sqrt(random.chisquare(freedom) / freedom)
        estimate = Estimate(math.log1p(-loss) + random.normal(0, error), seen, freedom, "prompt")
        failed += decide(estimate, tolerance, alpha) is Verdict.REGRESSION
    assert failed / trials >= 0.91
    assert failed / trials <= 0.985


def test_a_check_that_repeats_exactly_sees_any_loss_beyond_its_tolerance() -> None:
    assert detectable_loss(Estimate(0.0, 0.0, 79, "prompt"), 0.03, 1e-4) == pytest.approx(0.03)


def test_without_an_error_no_loss_is_detectable() -> None:
    assert detectable_loss(Estimate(0.0, None, 0, "prompt"), 0.03, 0.01) is None


@pytest.mark.parametrize(
    ("rounds", "max_rounds", "expected"),
    [(3, 9, (3, 6, 9)), (3, 8, (3, 6, 8)), (3, 3, (3,)), (3, 1, (3,)), (1, 3, (1, 2, 3)), (5, 7, (5, 7))],
)
def test_interim_analyses_come_every_so_many_rounds(
    rounds: int, max_rounds: int, expected: tuple[int, ...]
) -> None:
    assert interim_analyses(rounds, max_rounds) == expected


@given(st.floats(1e-6, 0.5), st.integers(1, 500), st.integers(1, 10), st.integers(1, 30))
def test_all_interim_analyses_of_all_checks_spend_alpha_and_no_more(
    alpha: float, checks: int, rounds: int, max_rounds: int
) -> None:
    shares = [
        share_of_alpha(alpha, checks, rounds, max_rounds, analysis)
        for analysis in range(len(interim_analyses(rounds, max_rounds)))
    ]
    assert checks * math.fsum(shares) == pytest.approx(alpha)
    assert shares[0] == max(shares)


def test_a_look_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="analysis 3 of 3"):
        share_of_alpha(0.01, 10, 3, 9, 3)
    with pytest.raises(ValueError, match="0 checks"):
        share_of_alpha(0.01, 0, 3, 9, 0)
