"""The mean over the categories of one split and batch size, which sees smaller losses than any category can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.checks import Check, Verdict
from pytest_speedbench.gate.compare import judged
from pytest_speedbench.gate.noise import Variance, satterthwaite
from pytest_speedbench.gate.statistics import Estimate

_PASSED_ON = (Verdict.INVALID, Verdict.NO_BASELINE, Verdict.INCOMPARABLE)
"""Worst first."""


def compare_mean(
    cell: Cell,
    metric: str,
    checks: Sequence[Check],
    categories: Sequence[str],
    *,
    tolerance: float,
    alpha: float,
) -> Check:
    """Judge the arithmetic mean of a metric over categories.

    The mean is what published SPEED-Bench tables hold: each category counts once, however many prompts it has. Its
    ratio is the mean of the categories' ratios, each weighted with the category's part of the baseline's sum. The
    categories vary independently, so that their squared errors add up with squared weights.

    Args:
        cell: the mean's; named in errors.
        metric: one of `vocabulary.GATED`.
        checks: of that metric, one per category.
        categories: their names, in the same order.
        tolerance: allowed relative loss of the mean.
        alpha: chance that this judgement fails an unchanged engine.

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
    return judged(replace(mean, reasons=_reasons(checks, categories)), _estimate(checks), alpha)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _estimate(checks: Sequence[Check]) -> Estimate | None:
    whole = math.fsum(check.baseline or 0.0 for check in checks)
    ratio, parts = 0.0, []
    for check in checks:
        if check.ratio is None or check.baseline is None:
            return None
        weight = check.baseline / whole
        ratio += weight * check.ratio
        if check.standard_error is not None and check.degrees_of_freedom is not None:
            parts.append(Variance((weight * check.standard_error) ** 2, check.degrees_of_freedom))
    if len(parts) < len(checks):
        return Estimate(math.log(ratio), None, 0.0)
    total = math.fsum(part.value for part in parts)
    freedom = max(part.degrees_of_freedom for part in parts)
    if total and all(check.degrees_of_freedom == check.paired - 1 for check in checks):
        freedom = satterthwaite(parts, total)  # each knows its error from its own prompts
    elif total:
        # rounds: categories of one batch share what is known of their noise, so that it does not add up
        freedom = min(freedom, satterthwaite(parts, total))
    return Estimate(math.log(ratio), math.sqrt(total), freedom)


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
