"""A check: one metric of one cell, judged against its baseline."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(str, Enum):
    """What a check found."""

    PASS = "pass"
    IMPROVEMENT = "improvement"
    REGRESSION = "regression"
    INCONCLUSIVE = "inconclusive"
    INCOMPARABLE = "incomparable"
    NO_BASELINE = "no-baseline"
    INVALID = "invalid"


SEVERITY = (
    Verdict.PASS,
    Verdict.IMPROVEMENT,
    Verdict.INCONCLUSIVE,
    Verdict.INCOMPARABLE,
    Verdict.NO_BASELINE,
    Verdict.INVALID,
    Verdict.REGRESSION,
)
"""Least first."""


@dataclass(frozen=True)
class Check:
    """One metric of one cell against its baseline. Plain data, written to the results as it is."""

    metric: str
    verdict: Verdict
    tolerance: float
    """Allowed relative loss: 0.03 lets 3 % go."""
    alpha: float
    """Chance that this check fails although nothing changed: its share of the run's."""
    value: float | None = None
    baseline: float | None = None
    ratio: float | None = None
    """Estimate of value / baseline."""
    ci_low: float | None = None
    """95 % confidence interval of the ratio; None where nothing is known of its error."""
    ci_high: float | None = None
    standard_error: float | None = None
    """Of the logarithm of the ratio."""
    degrees_of_freedom: float | None = None
    """Of the standard error."""
    detectable_loss: float | None = None
    """The smallest relative loss that this check would have failed with a chance of 95 %."""
    paired: int = 0
    """Prompts of this run that the baseline holds too."""
    prompts: int = 0
    """Prompts of this run."""
    rounds: int = 0
    """Of this run."""
    baseline_rounds: int = 0
    reasons: tuple[str, ...] = ()
    """Why there is no comparison, in words for a person."""
    differs: tuple[str, ...] = ()
    """What differs between the baseline's conditions and this run's: `engine_version 0.31.0 -> 0.32.0`."""
    across_machines: bool = False
    """Incomparable only because the hardware differs: the test skips rather than fails."""
