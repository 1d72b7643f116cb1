"""The mean over the categories of one split and batch size, which sees smaller losses than any category can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.compare import judged
from pytest_speedbench.gate.estimate import Estimate, mean_estimate

_PASSED_ON = (Verdict.INVALID, Verdict.NO_BASELINE, Verdict.INCOMPARABLE)
"""Worst first."""


def compare_mean(
    cell: Cell,
    metric: str,
    checks: Sequence[Check],
    categories: Sequence[str],
    rounds: Sequence[tuple[Sequence[float], Sequence[float]]],
    *,
    tolerance: float,
    alpha: float,
    paired: bool = False,
) -> Check:
    """Judge the arithmetic mean of a metric over categories.

    The mean is what published SPEED-Bench tables hold: each category counts once, however many prompts it has. Its
    ratio is the mean of the categories' ratios, each weighted with the category's part of the baseline's sum. Its
    error is that of `estimate.mean_estimate`.

    Args:
        cell: the mean's; named in errors.
        metric: one of `speed_bench.GATED`.
        checks: of that metric, one per category.
        categories: their names, in the same order.
        rounds: (run, baseline) of the metric in every round of each category.
        tolerance: allowed relative loss of the mean.
        alpha: chance that this judgement fails an unchanged engine.
        paired: whether round i was measured beside round i of the baseline.

    Returns:
        The check. Where a category has no comparison, neither has the mean, for the same reasons.

    Raises:
        ValueError: no check, or not one per category.
    """
    if not checks or len(checks) != len(categories):
        raise ValueError(f"{cell.id}: {len(checks)} checks for {len(categories)} categories")
    mean = Check(
        metric,
        Verdict.INCONCLUSIVE,
        tolerance,
        alpha,
        value=_mean([check.value for check in checks]),
        baseline=_mean([check.baseline for check in checks]),
        paired=sum(check.paired for check in checks),
        prompts=sum(check.prompts for check in checks),
        rounds=min(check.rounds for check in checks),
        baseline_rounds=min(check.baseline_rounds for check in checks),
        differs=tuple(dict.fromkeys(line for check in checks for line in check.differs)),
    )
    for verdict in _PASSED_ON:
        concerned = [
            (check, name) for check, name in zip(checks, categories, strict=True) if check.verdict is verdict
        ]
        if concerned:
            return replace(
                mean,
                verdict=verdict,
                reasons=tuple(f"{name}: {reason}" for check, name in concerned for reason in check.reasons),
                across_machines=all(check.across_machines for check, _ in concerned),
            )
    return judged(
        replace(mean, reasons=_reasons(checks, categories)), _estimate(checks, rounds, paired), alpha
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _estimate(
    checks: Sequence[Check], rounds: Sequence[tuple[Sequence[float], Sequence[float]]], paired: bool
) -> Estimate | None:
    whole = math.fsum(check.baseline or 0.0 for check in checks)
    weights, estimates = [], []
    for check in checks:
        if check.estimate is None or check.baseline is None:
            return None
        weights.append(check.baseline / whole)
        estimates.append(check.estimate)
    ratio = math.fsum(weight * each.ratio for weight, each in zip(weights, estimates, strict=True))
    return mean_estimate(math.log(ratio), estimates, weights, rounds, paired=paired)


def _reasons(checks: Sequence[Check], categories: Sequence[str]) -> tuple[str, ...]:
    """What has to be said of the categories, once each, with the names of those that it is said of."""
    said: dict[str, list[str]] = {}
    for check, name in zip(checks, categories, strict=True):
        for reason in check.reasons:
            said.setdefault(reason, []).append(name)
    return tuple(
        reason if len(names) == len(categories) else f"{', '.join(names)}: {reason}"
        for reason, names in said.items()
    )
