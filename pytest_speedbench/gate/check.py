"""A check: one metric of one cell, judged against its baseline."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum

from pytest_speedbench.gate.estimate import Estimate


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
    """One metric of one cell against its baseline. What follows from its estimate is a property."""

    metric: str
    verdict: Verdict
    tolerance: float
    """Allowed relative loss: 0.03 lets 3 % go."""
    alpha: float
    """Chance that this check fails although nothing changed: its share of the run's."""
    value: float | None = None
    baseline: float | None = None
    estimate: Estimate | None = None
    """Of value / baseline; None where nothing was compared."""
    detectable_loss: float | None = None
    """The smallest relative loss that this check would have failed with a chance of 95 %."""
    paired: int = 0
    """Prompts of this run that the baseline holds too."""
    prompts: int = 0
    """Prompts of this run."""
    rounds: int = 0
    """Rounds of this run."""
    baseline_rounds: int = 0
    reasons: tuple[str, ...] = ()
    """Why there is no comparison, in words for a person."""
    differs: tuple[str, ...] = ()
    """What differs between the baseline's conditions and this run's: `engine_version 0.31.0 -> 0.32.0`."""
    across_machines: bool = False
    """Incomparable only because the hardware differs: the test skips rather than fails."""

    @property
    def ratio(self) -> float | None:
        """Estimate of value / baseline."""
        return None if self.estimate is None else self.estimate.ratio

    @property
    def ci_low(self) -> float | None:
        """Lower limit of the ratio's 95 % confidence interval; None where its error is not known."""
        interval = None if self.estimate is None else self.estimate.interval()
        return None if interval is None else interval[0]

    @property
    def ci_high(self) -> float | None:
        """Upper limit of the ratio's 95 % confidence interval; None where its error is not known."""
        interval = None if self.estimate is None else self.estimate.interval()
        return None if interval is None else interval[1]

    @property
    def standard_error(self) -> float | None:
        """Standard error of the logarithm of the ratio; None where it is not known."""
        return None if self.estimate is None else self.estimate.standard_error

    @property
    def degrees_of_freedom(self) -> float | None:
        """Degrees of freedom of the standard error; None where there is no standard error."""
        if self.estimate is None or self.estimate.standard_error is None:
            return None
        return self.estimate.degrees_of_freedom

    def plain(self) -> dict[str, object]:
        """Every figure by name, as JSON holds it: the estimate as its ratio, interval and error."""
        figures: dict[str, object] = {}
        for item in fields(self):
            if item.name == "estimate":
                figures |= {name: getattr(self, name) for name in _OF_THE_ESTIMATE}
            else:
                figures[item.name] = getattr(self, item.name)
        return {**figures, "verdict": self.verdict.value}


_OF_THE_ESTIMATE = ("ratio", "ci_low", "ci_high", "standard_error", "degrees_of_freedom")
