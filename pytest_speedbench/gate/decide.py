"""The rule that turns a ratio and its interval into a verdict."""

from __future__ import annotations

from pytest_speedbench.gate.checks import Verdict


def decide(ratio: float, ci_low: float | None, ci_high: float | None, tolerance: float) -> Verdict:
    """Judge a metric of which more is better.

    | ratio                     | 95 % interval     | verdict      |
    |---------------------------|-------------------|--------------|
    | below 1 - tolerance       | below 1, or none  | regression   |
    | below 1 - tolerance       | reaches 1         | inconclusive |
    | above 1 + tolerance       | above 1, or none  | improvement  |
    | anything else             |                   | pass         |

    Args:
        ratio: estimate of this run's value / the baseline's.
        ci_low: lower limit of its 95 % interval; None where no interval can be had, and the ratio then stands
            alone: a loss that cannot be doubted by an interval is a loss.
        ci_high: upper limit, or None.
        tolerance: allowed relative loss, 0.03 for 3 %.
    """
    if ratio < 1 - tolerance:
        sure = ci_high is None or ci_high < 1
        return Verdict.REGRESSION if sure else Verdict.INCONCLUSIVE
    if ratio > 1 + tolerance and (ci_low is None or ci_low > 1):
        return Verdict.IMPROVEMENT
    return Verdict.PASS
