"""What a larger batch buys and what its users pay: output TPS against user TPS, as SPEED-Bench plots them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.speed_bench import QUALITATIVE


@dataclass(frozen=True)
class ParetoPoint:
    """One batch size of a split."""

    batch_size: int
    output_tps: float
    """Of the whole batch, tokens/s; mean over categories."""
    user_tps: float
    """Of one request, tokens/s; mean over categories."""
    on_frontier: bool
    """Whether no other batch size measured is better in one of the two and not worse in the other."""


@dataclass(frozen=True)
class ParetoCurve:
    """A throughput split at the batch sizes at which it was measured."""

    split: str
    points: tuple[ParetoPoint, ...]
    """By batch size."""


def pareto_curves(measurements: Iterable[Measurement]) -> tuple[ParetoCurve, ...]:
    """The curve of every throughput split that was measured at two batch sizes or more.

    Only categories that were measured at all of these batch sizes count, so that one mixture is compared.

    Args:
        measurements: of one run; mean cells, invalid ones and those that could not be timed are left out.
    """
    splits: dict[str, dict[int, dict[str, tuple[float, float]]]] = {}
    for measurement in measurements:
        cell, metrics = measurement.cell, measurement.metrics
        if cell.split == QUALITATIVE or cell.is_mean or measurement.problems:
            continue
        if "output_tps" in metrics and "user_tps" in metrics:
            sizes = splits.setdefault(cell.split, {})
            sizes.setdefault(cell.batch_size, {})[cell.category] = metrics["output_tps"], metrics["user_tps"]
    curves = []
    for split, sizes in splits.items():
        common = set.intersection(*(set(categories) for categories in sizes.values()))
        if len(sizes) < 2 or not common:
            continue
        means = {
            size: (
                fmean(sizes[size][name][0] for name in common),
                fmean(sizes[size][name][1] for name in common),
            )
            for size in sorted(sizes)
        }
        points = (
            ParetoPoint(size, *mean, on_frontier=not any(_beats(other, mean) for other in means.values()))
            for size, mean in means.items()
        )
        curves.append(ParetoCurve(split, tuple(points)))
    return tuple(curves)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]
