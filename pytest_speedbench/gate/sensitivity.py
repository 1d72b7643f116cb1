"""What a run could have seen: the losses that its checks would have found, had they been there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.check import Check
from pytest_speedbench.gate.estimate import t_quantile
from pytest_speedbench.speed_bench import GATED


@dataclass(frozen=True)
class Sensitivity:
    """The smallest loss that every check of one metric would have failed with a chance of 95 %."""

    metric: str
    of_means: bool
    """Whether this is about means over categories, or about single categories."""
    loss: float
    """Relative: 0.021 is 2.1 %. That of the check which sees least."""


@dataclass(frozen=True)
class Underpowered:
    """A check that could not have seen the loss which it is there to see."""

    cell: str
    """Id."""
    metric: str
    tolerance: float
    detectable_loss: float | None


def sensitivities(checks: Mapping[Cell, Mapping[str, Check]]) -> tuple[Sensitivity, ...]:
    """What a run could have seen, categories before means, in the order of the metrics.

    Args:
        checks: by cell and metric; those that compared nothing, or know nothing of their error, are left out.
    """
    return tuple(
        Sensitivity(metric, of_means, max(losses))
        for of_means in (False, True)
        for metric in GATED
        if (
            losses := [
                check.detectable_loss
                for cell, of_cell in checks.items()
                for check in of_cell.values()
                if check.metric == metric
                if cell.is_mean is of_means
                if check.ratio is not None and check.detectable_loss is not None
            ]
        )
    )


def underpowered(checks: Mapping[Cell, Mapping[str, Check]]) -> tuple[Underpowered, ...]:
    """The checks that could not have seen a loss of their own tolerance, the worst first.

    Args:
        checks: by cell and metric.
    """
    found = [
        Underpowered(cell.id, check.metric, check.tolerance, check.detectable_loss)
        for cell, of_cell in checks.items()
        for check in of_cell.values()
        if check.ratio is not None and not sees_tolerance(check)
    ]
    return tuple(sorted(found, key=_excess, reverse=True))


def sees_tolerance(check: Check) -> bool:
    """Whether a loss of just the tolerance, estimated without any error, would be told from no change.

    A regression takes an estimate beyond the tolerance *and* a ratio of 1 that is rejected. Where the second asks
    for a greater loss than the first, the tolerance is a number on paper: t(1 - alpha) x standard error > -log(1 -
    tolerance). A check that knows nothing of its error has not seen anything.
    """
    if check.standard_error is None or check.degrees_of_freedom is None:
        return False
    if not (0 < check.alpha < 1 and 0 < check.tolerance < 1):
        return True  # there is no such loss, or no such level

    needed = t_quantile(1 - check.alpha, check.degrees_of_freedom) * check.standard_error
    return needed <= -math.log1p(-check.tolerance)


def _excess(check: Underpowered) -> float:
    loss = math.inf if check.detectable_loss is None else check.detectable_loss
    return loss / check.tolerance if check.tolerance else loss
