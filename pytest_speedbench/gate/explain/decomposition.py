"""What a change of throughput is made of: fewer tokens per step, slower steps, and the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean, median
from typing import TypeAlias

from pytest_speedbench.gate.baseline import Reference, References
from pytest_speedbench.gate.estimate import CONFIDENCE, Estimate, mean_estimate, rounds_estimate
from pytest_speedbench.metrics.measurement import Measurement, RoundFigures

_NOTHING = 0.001
"""A loss, as a logarithm, that is too small to be shared out."""


@dataclass(frozen=True)
class Compared:
    """One cell of this run and what it is compared with."""

    measurement: Measurement
    acceptance: Measurement | None
    throughput: Measurement | None
    """On this hardware."""

    @classmethod
    def of(cls, measurement: Measurement, references: References, hardware_key: str) -> Compared:
        """A measurement beside what its cell is compared with.

        Args:
            measurement: of this run.
            references: where that comes from.
            hardware_key: `Hardware.key` of this run.
        """
        acceptance, throughput = (
            found.measurement if isinstance(found, Reference) else None
            for found in (
                references.find(metric, measurement.cell, hardware_key)
                for metric in ("acceptance_length", "output_tps")
            )
        )
        return cls(measurement, acceptance, throughput)


def without_other_processes(cell: Compared) -> Compared | None:
    """The same rounds, this run's steps as long as they would have been with the processors that the baseline had.

    At the most: an engine that is left half of the processors that it had takes twice as long, if it needs all of
    them, and no longer if it needs few. Shares are means over rounds, so that their own scatter adds no noise to that of
    the steps. A run that was left more than its baseline stays as it is.

    Returns:
        The cell; None where a share is not known of every round that has a step latency, on either side.
    """
    then = cell.throughput
    if then is None:
        return None
    now, before = (_left(side.rounds) for side in (cell.measurement, then))
    if now is None or before is None:
        return None
    factor = min(1.0, now / before)
    rounds = tuple(
        figures
        if figures.step_latency_s is None
        else replace(figures, step_latency_s=figures.step_latency_s * factor)
        for figures in cell.measurement.rounds
    )
    return Compared(replace(cell.measurement, rounds=rounds), cell.acceptance, then)


def _left(rounds: Sequence[RoundFigures]) -> float | None:
    """The share of the processors that other processes left, mean over rounds; None where it is not known."""
    busy = [figures.other_processes_busy for figures in rounds if figures.step_latency_s is not None]
    known = [share for share in busy if share is not None]
    if not known or len(known) < len(busy):
        return None
    return max(1 - fmean(known), _NOTHING)


@dataclass(frozen=True)
class Part:
    """What one factor did to a throughput metric: alone, it would have changed it by this ratio."""

    ratio: float
    """0.9 cost a tenth."""
    ci_low: float | None
    """95 % confidence interval; None where nothing is known of its error."""
    ci_high: float | None
    share: float | None
    """Of what was lost (0..1); 0 for a part that gained, None where nothing was lost."""

    @property
    def surely_lost(self) -> bool:
        """Whether the whole interval is a loss."""
        return self.ci_high is not None and self.ci_high < 1

    @property
    def surely_gained(self) -> bool:
        """Whether the whole interval is a gain."""
        return self.ci_low is not None and self.ci_low > 1


@dataclass(frozen=True)
class Breakdown:
    """A throughput metric's change with its parts, whose logarithms add up to that of `change`."""

    metric: str
    change: Part
    """Of `metric`: the ratio of its rounds."""
    acceptance_length: Part
    """What fewer tokens per step cost."""
    step_latency: Part
    """What slower steps cost; of `speedup`, steps that became slower than those without speculation did."""
    rest: Part
    """What neither explains: prefill, queueing, the client, an emptier batch."""
    without_speculation: Part | None
    """Of `speedup` only: what became of the output TPS of the target without speculation, a share of nothing."""

    @property
    def rest_leads(self) -> bool:
        """Whether the rest carries more of the loss than either of the two other parts."""
        named = max(self.acceptance_length.share or 0.0, self.step_latency.share or 0.0)
        return (self.rest.share or 0.0) > named


def breakdown_of(
    metric: str, cell: Compared, group: Sequence[Compared], *, paired: bool = False
) -> Breakdown | None:
    """Take the change of one cell's throughput apart.

    Output TPS = acceptance length / step latency x the rest, in every round: the rest is what prefill,
    queueing, the client and a batch that was not full leave of the product. `user_tps` has the same factors, without
    prefill. `speedup` is divided by the output TPS without speculation, so that its step latency counts in
    units of that: a machine on which everything became slower by the same factor has lost no speedup, and
    steps that stay as they were lose it when plain decoding becomes faster.

    Each part is estimated from its rounds as the metric itself is, with the noise of the whole group.

    Args:
        metric: one of `speed_bench.THROUGHPUT`.
        cell: of this run.
        group: all cells of its split and batch size: they share their noise. Invalid ones tell nothing of it.
        paired: whether rounds of the run and of the baseline were measured in turn, as pairs.

    Returns:
        The parts; None where a factor is not known of both runs.
    """
    parts = _parts(metric, cell, group, paired)
    return None if parts is None else _breakdown(metric, parts)


def mean_breakdown(metric: str, group: Sequence[Compared], *, paired: bool = False) -> Breakdown | None:
    """Take the change of a mean over categories apart.

    The change is that of the arithmetic mean, as in `mean.compare_mean`: the mean of the categories' ratios,
    weighted with each category's part of the baseline's sum. The parts are the means of the categories' parts, as
    logarithms, with the same weights.

    Args:
        metric: one of `speed_bench.THROUGHPUT`.
        group: the categories of one split and batch size.
        paired: as for `breakdown_of`.

    Returns:
        The parts; None where those of a category are not known.
    """
    every = [_parts(metric, cell, group, paired) for cell in group]
    known = [parts for parts in every if parts is not None]
    if not known or len(known) < len(every):
        return None
    return _breakdown(metric, _mean_parts(known, _rounds_of_group(metric, group, paired), paired))


@dataclass(frozen=True)
class _Parts:
    """Logarithms of what each factor did to a metric, below 0 for a loss."""

    baseline: float
    """The metric itself, median of the baseline's rounds."""
    change: Estimate
    acceptance_length: Estimate
    step_latency: Estimate
    rest: Estimate
    without_speculation: Estimate | None


@dataclass(frozen=True)
class _Factors:
    """One round's metric as a product, and what `speedup` is divided by."""

    change: float
    acceptance_length: float
    step_latency: float
    """Its inverse: more is better."""
    rest: float
    without_speculation: float


_Both: TypeAlias = tuple[list[_Factors], list[_Factors]]


def _parts(metric: str, cell: Compared, group: Sequence[Compared], paired: bool) -> _Parts | None:
    """The parts of one cell's change; None where a factor is not known of both runs."""
    members = (cell, *(each for each in group if each.measurement.cell != cell.measurement.cell))
    both = _rounds_of_group(metric, members, paired)
    if cell.measurement.problems or cell.throughput is None or not (both[0][0] and both[0][1]):
        return None

    def estimate(name: str) -> Estimate | None:
        values = _values(name, both)
        return rounds_estimate(*values[0], values, paired=paired)

    estimates = [estimate(item.name) for item in fields(_Factors)]
    change, length, latency, rest, plain = estimates
    if change is None or length is None or latency is None or rest is None:
        return None
    baseline = median(factors.change for factors in both[0][1])
    return _whole(_Parts(baseline, change, length, latency, rest, plain if metric == "speedup" else None))


def _rounds_of_group(metric: str, cells: Sequence[Compared], paired: bool) -> list[_Both]:
    """The factors of every round of every cell that can be told of, in this run and in the baseline."""
    return [
        _known(metric, cell.measurement.rounds, cell.throughput.rounds, paired)
        for cell in cells
        if cell.throughput is not None and not cell.measurement.problems
    ]


def _values(name: str, both: Sequence[_Both]) -> list[tuple[list[float], list[float]]]:
    """One factor of every round, of the cells that have rounds in both."""
    return [
        ([getattr(factors, name) for factors in now], [getattr(factors, name) for factors in then])
        for now, then in both
        if now and then
    ]


def _whole(parts: _Parts) -> _Parts:
    """Parts that multiply to the change: factors do so in every round, medians and means nearly. The rest takes it."""
    named = parts.acceptance_length.log_ratio + parts.step_latency.log_ratio
    return replace(parts, rest=replace(parts.rest, log_ratio=parts.change.log_ratio - named))


def _known(
    metric: str, now: Sequence[RoundFigures], then: Sequence[RoundFigures], paired: bool
) -> tuple[list[_Factors], list[_Factors]]:
    """The rounds of either side whose factors are all known; a pair stays whole or is left out."""
    ours = [_factors(metric, figures) for figures in now]
    theirs = [_factors(metric, figures) for figures in then]
    if paired:
        pairs = [(one, other) for one, other in zip(ours, theirs, strict=False) if one and other]
        return [one for one, _ in pairs], [other for _, other in pairs]
    return [each for each in ours if each], [each for each in theirs if each]


def _factors(metric: str, figures: RoundFigures) -> _Factors | None:
    value: float | None = getattr(figures, metric)
    length, latency, output = figures.acceptance_length, figures.step_latency_s, figures.output_tps
    if not (value and length and latency and output):
        return None
    plain = output / value if metric == "speedup" else 1.0
    return _Factors(value, length, 1 / (latency * plain), value * latency * plain / length, plain)


def _mean_parts(every: Sequence[_Parts], both: Sequence[_Both], paired: bool) -> _Parts:
    whole = math.fsum(parts.baseline for parts in every)
    weights = [parts.baseline / whole for parts in every]

    def mean(name: str, estimates: Sequence[Estimate]) -> Estimate:
        log_ratio = math.fsum(
            weight * each.log_ratio for weight, each in zip(weights, estimates, strict=True)
        )
        return mean_estimate(log_ratio, estimates, weights, _values(name, both), paired=paired)

    plain = [parts.without_speculation for parts in every if parts.without_speculation is not None]
    ratio = math.fsum(weight * parts.change.ratio for weight, parts in zip(weights, every, strict=True))
    return _whole(
        _Parts(
            baseline=whole / len(every),
            change=replace(mean("change", [parts.change for parts in every]), log_ratio=math.log(ratio)),
            acceptance_length=mean("acceptance_length", [parts.acceptance_length for parts in every]),
            step_latency=mean("step_latency", [parts.step_latency for parts in every]),
            rest=mean("rest", [parts.rest for parts in every]),
            without_speculation=mean("without_speculation", plain) if plain else None,
        )
    )


def _breakdown(metric: str, parts: _Parts) -> Breakdown:
    logs = [each.log_ratio for each in (parts.acceptance_length, parts.step_latency, parts.rest)]
    lost = math.fsum(max(0.0, -log) for log in logs)
    length, latency, rest = (max(0.0, -log) / lost if lost > _NOTHING else None for log in logs)
    plain = parts.without_speculation
    return Breakdown(
        metric,
        _part(parts.change, None),
        _part(parts.acceptance_length, length),
        _part(parts.step_latency, latency),
        _part(parts.rest, rest),
        None if plain is None else _part(plain, None),
    )


def _part(estimate: Estimate, share: float | None) -> Part:
    interval = estimate.interval(CONFIDENCE)
    low, high = (None, None) if interval is None else interval
    return Part(math.exp(estimate.log_ratio), low, high, share)
