"""Up to which batch size speculation pays: where the speedup crosses 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from pytest_speedbench.gate.estimate import CONFIDENCE, Estimate, mean_estimate, t_quantile
from pytest_speedbench.gate.noise import median_error
from pytest_speedbench.metrics.measurement import Measurement


@dataclass(frozen=True)
class SpeedupAt:
    """The speedup at one batch size."""

    batch_size: int
    log_speedup: float
    standard_error: float | None = None
    """Of `log_speedup`; None where nothing is known of its error."""
    degrees_of_freedom: float = 0.0

    def limits(self) -> tuple[float, float] | None:
        """95 % confidence interval of `log_speedup`."""
        if self.standard_error is None:
            return None
        reach = self.standard_error * t_quantile((1 + CONFIDENCE) / 2, self.degrees_of_freedom)
        return self.log_speedup - reach, self.log_speedup + reach


@dataclass(frozen=True)
class BreakEven:
    """The largest batch size at which speculation still pays, in one split."""

    split: str
    speedups: Mapping[int, float]
    """By the batch sizes that were measured."""
    batch_size: float | None
    """Interpolated; None where the speedup does not cross 1: it pays at the largest batch size, or at none."""
    ci_low: float | None
    """95 % confidence limit; None below the smallest batch size, or where nothing is known of the error."""
    ci_high: float | None
    """95 % confidence limit; None above the largest batch size, or where nothing is known of the error."""
    monotone: bool
    """False where speculation pays at a larger batch size than one at which it does not."""
    text: str
    """For a person."""


def break_evens_of(measurements: Iterable[Measurement]) -> tuple[BreakEven, ...]:
    """The break-even point of every split whose speedup was measured at two batch sizes or more.

    Only categories that were measured at all of these batch sizes count, so that one mixture is compared.

    Args:
        measurements: of one run; mean cells and invalid ones are left out.
    """
    splits: dict[str, dict[int, dict[str, list[float]]]] = {}
    for measurement in measurements:
        rounds = [figures.speedup for figures in measurement.rounds if figures.speedup]
        if rounds and not measurement.problems and not measurement.cell.is_mean:
            cell = measurement.cell
            splits.setdefault(cell.split, {}).setdefault(cell.batch_size, {})[cell.category] = rounds
    found = []
    for split, sizes in splits.items():
        common = set.intersection(*(set(categories) for categories in sizes.values()))
        if len(sizes) > 1 and common:
            points = [
                speedup_at(size, [categories[name] for name in sorted(common)])
                for size, categories in sizes.items()
            ]
            found.append(break_even(split, points))
    return tuple(found)


def speedup_at(batch_size: int, rounds: Sequence[Sequence[float]]) -> SpeedupAt:
    """The arithmetic mean of the speedup over categories, each taken from its median round.

    Its error is that of the verdicts: the noise of rounds is pooled over the categories, and what a round of all of
    them has in common does not average out (`estimate.mean_estimate`).

    Args:
        batch_size: requests in flight.
        rounds: the speedup in each round, by category.
    """
    medians = [median(category) for category in rounds]
    group = [([math.log(speedup) for speedup in category],) for category in rounds]
    errors = [median_error(cell, group) for cell in group]
    estimates = [
        Estimate(
            math.log(value),
            math.sqrt(error.value) if error else None,
            error.degrees_of_freedom if error else 0.0,
            "round",
        )
        for value, error in zip(medians, errors, strict=True)
    ]
    mean = mean_estimate(
        math.log(fmean(medians)),
        estimates,
        [value / math.fsum(medians) for value in medians],
        [(category, ()) for category in rounds],
    )
    return SpeedupAt(batch_size, mean.log_ratio, mean.standard_error, mean.degrees_of_freedom)


def break_even(split: str, points: Sequence[SpeedupAt]) -> BreakEven:
    """Interpolate where the speedup crosses 1.

    Between two measured batch sizes the logarithm of the speedup is taken as straight over the logarithm
    of the batch size. Where it crosses 0 more than once the largest crossing counts, and `monotone` is False. The
    limits of the interval are the crossings of the speedup's own lower and upper 95 % limits: batch sizes between them
    are those at which a speedup of 1 cannot be excluded.

    Args:
        split: of all points.
        points: at least one, of different batch sizes.
    """
    points = sorted(points, key=lambda point: point.batch_size)
    sizes = [point.batch_size for point in points]
    logs = [point.log_speedup for point in points]
    bounds = [limits for point in points if (limits := point.limits()) is not None]
    crossing = _crossing(sizes, logs)
    interval = None
    if len(bounds) == len(points):
        interval = (
            _crossing(sizes, [low for low, _ in bounds]),
            _crossing(sizes, [high for _, high in bounds]),
        )
    speedups = {size: math.exp(log) for size, log in zip(sizes, logs, strict=True)}
    return BreakEven(
        split=split,
        speedups=speedups,
        batch_size=_finite(crossing),
        ci_low=_finite(interval[0]) if interval else None,
        ci_high=_finite(interval[1]) if interval else None,
        monotone=not any(before <= 0 < after for before, after in pairwise(logs)),
        text=_text(split, speedups, crossing, interval),
    )


def _crossing(sizes: Sequence[int], logs: Sequence[float]) -> float:
    """Where the largest batch size that pays is followed by one that does not; infinite beyond either end."""
    pays = [index for index, log in enumerate(logs) if log > 0]
    if not pays:
        return -math.inf
    last = pays[-1]
    if last == len(sizes) - 1:
        return math.inf
    share = logs[last] / (logs[last] - logs[last + 1])
    return float(sizes[last] * (sizes[last + 1] / sizes[last]) ** share)


def _finite(crossing: float) -> float | None:
    return crossing if math.isfinite(crossing) else None


def _text(
    split: str, speedups: Mapping[int, float], crossing: float, interval: tuple[float, float] | None
) -> str:
    sizes = list(speedups)

    def at(size: int) -> str:
        return f"{speedups[size]:.2f} at {size}"

    def limit(value: float) -> str:
        return (
            f"{math.floor(value)}"
            if math.isfinite(value)
            else f"< {sizes[0]}"
            if value < 0
            else f"> {sizes[-1]}"
        )

    below = [
        size
        for size in sizes
        if speedups[size] <= 1 and any(speedups[more] > 1 for more in sizes if more > size)
    ]
    if crossing == -math.inf:
        best = max(sizes, key=lambda size: speedups[size])
        text = f"speculation pays at no batch size: break-even < {sizes[0]}"
        detail = f"speedup at best {at(best)}"
    elif crossing == math.inf:
        where = "batch size" if below else "all batch sizes up to"
        text = f"speculation pays at {where} {sizes[-1]}: break-even >= {sizes[-1]}"
        detail = f"speedup {at(sizes[-1])}"
    else:
        text = f"speculation pays up to batch size {math.floor(crossing)}"
        before = max(size for size in sizes if speedups[size] > 1)
        detail = f"speedup {at(before)}, {at(sizes[sizes.index(before) + 1])}"
    if interval is None:
        detail += "; single rounds tell no interval"
    elif interval[0] == interval[1]:  # both beyond the same end
        text += ", surely"
    else:
        text += f" [95 % CI {limit(interval[0])} .. {limit(interval[1])}]"
    if below:
        detail += f"; not monotone: only {' and '.join(at(size) for size in below)}"
    return f"{split}: {text} ({detail})"
