"""The rule that turns an estimate of a ratio into a verdict, and shares the run's error rate out among its checks."""

from __future__ import annotations

import math

from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.gate.estimate import Estimate, t_quantile

SURE = 0.95
"""Confidence of `pass` and `improvement`, and chance with which a detectable loss is failed."""
FIRST_ANALYSIS = 0.5
"""Part of a check's share that its first interim analysis may spend where others can follow."""


def decide(estimate: Estimate, tolerance: float, alpha: float) -> Verdict:
    """Judge a metric of which more is better.

    With r the estimated log ratio, SE its standard error, t(p) the quantile of Student's t, and d the tolerance:

    | r                                       | verdict      |
    |-----------------------------------------|--------------|
    | < log(1 - d), and r + t(1-alpha) SE < 0 | regression   |
    | - t(0.95) SE > log(1 + d)               | improvement  |
    | - t(0.95) SE >= log(1 - d)              | pass         |
    | anything else, or SE not known          | inconclusive |

    The first row fails a run of an unchanged engine with a chance of at most alpha, whatever the tolerance. The third
    passes an engine that lost more than the tolerance with a chance of at most 5 %.

    Args:
        estimate: of this run's value / the baseline's.
        tolerance: allowed relative loss, 0.03 for 3 %.
        alpha: chance that this judgement fails an unchanged engine.
    """
    error = estimate.standard_error
    if error is None:
        return Verdict.INCONCLUSIVE
    reach = _reach(1 - alpha, error, estimate.degrees_of_freedom)
    if estimate.log_ratio < math.log1p(-tolerance) and estimate.log_ratio + reach < 0:
        return Verdict.REGRESSION
    low = estimate.log_ratio - _reach(SURE, error, estimate.degrees_of_freedom)
    if low > math.log1p(tolerance):
        return Verdict.IMPROVEMENT
    return Verdict.PASS if low >= math.log1p(-tolerance) else Verdict.INCONCLUSIVE


def detectable_loss(estimate: Estimate, tolerance: float, alpha: float) -> float | None:
    """The smallest true loss that `decide` fails with a chance of 95 %; None where nothing is known of the error.

    The estimate has to fall below the tolerance, and below what alpha asks for; a true loss that lies t(0.95) SE
    further does so 95 times in 100.

    Args:
        estimate: whose error decides; its value does not.
        tolerance: allowed relative loss.
        alpha: of the judgement.
    """
    error, freedom = estimate.standard_error, estimate.degrees_of_freedom
    if error is None:
        return None
    needed = max(-math.log1p(-tolerance), _reach(1 - alpha, error, freedom))
    return -math.expm1(-needed - _reach(SURE, error, freedom))


def _reach(probability: float, error: float, degrees_of_freedom: float) -> float:
    return t_quantile(probability, degrees_of_freedom) * error if error else 0.0


def interim_analyses(rounds: int, max_rounds: int) -> tuple[int, ...]:
    """After how many rounds a check is judged: `rounds`, then as many more each time, up to `max_rounds`.

    Args:
        rounds: measured in any case.
        max_rounds: to which an inconclusive check may take its cell; no less than `rounds` counts.
    """
    last = max(rounds, max_rounds)
    return (*range(rounds, last, rounds), last)


def share_of_alpha(alpha: float, checks: int, rounds: int, max_rounds: int, analysis: int) -> float:
    """The chance of a false alarm that one interim analysis of one check may spend.

    A run of an unchanged engine fails if any interim analysis of any check fails it. The chance of that is at most the sum of
    the chances of all interim analyses of all checks, however they depend on each other (Bonferroni's inequality), and that
    sum is alpha: each check has alpha / checks, of which its first interim analysis spends half and later ones the rest in
    equal parts (alpha spending; K. K. G. Lan and D. L. DeMets, "Discrete sequential boundaries for clinical trials",
    1983). Looks that are not taken spend nothing.

    A mean over categories is one of the checks. Once it regressed at its own share, the run has failed, and no alarm
    of its categories can fail it any more: they are then judged at the whole alpha, to say which of them fell.
    What is kept is the chance that a run of an unchanged engine fails at all (weak control), not the
    chance that some category is named beside one that did change.

    Args:
        alpha: of the run.
        checks: that may be judged, means included.
        rounds: measured in any case.
        max_rounds: to which an inconclusive check may take its cell.
        analysis: counted from 0.

    Raises:
        ValueError: there is no such analysis, or no check.
    """
    number = len(interim_analyses(rounds, max_rounds))
    if not 0 <= analysis < number or checks < 1:
        raise ValueError(f"analysis {analysis} of {number}, {checks} checks")
    share = alpha / checks
    if number == 1:
        return share
    return share * FIRST_ANALYSIS if analysis == 0 else share * (1 - FIRST_ANALYSIS) / (number - 1)
