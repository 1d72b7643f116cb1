"""How far rounds scatter: noise pooled over the cells of a batch, as far as these are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Sides: TypeAlias = "tuple[Sequence[float], ...]"
"""Logarithms of one cell's rounds, for each side of a comparison: run and baseline, or their differences alone."""

FAR_NOISIER = 0.05
"""Level of the F test that leaves a cell to its own noise. A lower one overlooks more noisy cells, which are then judged
by too small an error: where one cell of 11 is twice as noisy as the others, checks alarm 1.0, 1.5 and 2.1 times as
often as alpha allows at levels of 10, 5 and 2 %. A higher one leaves more cells alone by chance: of 11 that are alike,
the worst sees a loss of 16, 10 and 10 % (3 rounds against 9, 2 % of noise, alpha 0.005 %; simulated)."""
_FLOOR = 1e-4
"""Of a cell's variance relative to the batch's, where its logarithm is taken: rounds may be equal."""

MEDIAN_VARIANCE = (
    *(1.0, 0.5, 0.448671, 0.298200, 0.286834, 0.214743, 0.210447, 0.168181, 0.166101, 0.138326),
    *(0.137162, 0.117516, 0.116799, 0.102168, 0.101695, 0.090375, 0.090047, 0.081029, 0.080791, 0.073437),
    *(0.073260, 0.067148, 0.067012, 0.061853, 0.061746, 0.057332, 0.057247, 0.053428, 0.053359, 0.050022),
)
"""Of the median of 1, 2, ... 30 standard normal values; the test integrates the densities of order statistics."""


@dataclass(frozen=True)
class Variance:
    """An estimate of a variance."""

    value: float
    degrees_of_freedom: float


def median_variance(n: int) -> float:
    """Variance of the median of n standard normal values; above 30 its limit pi / 2n, 1 to 4 % too large there."""
    return MEDIAN_VARIANCE[n - 1] if n <= len(MEDIAN_VARIANCE) else math.pi / (2 * n)


def median_error(cell: Sides, batch: Sequence[Sides]) -> Variance | None:
    """Squared error of a sum (or difference) of one cell's medians, one median for each side.

    A few rounds know little of their own noise, and rounds of other cells on the same machine at the same batch size
    know something of it. Three steps:

    1. The *level* of each side is pooled over cells and sides, or, where this is larger, over the cells of that side
       alone: a run on a noisier machine than its baseline is not judged by the baseline's quiet.
    2. The *factor* of the cell is how much noisier than the level it is. It is a compromise between the cell's own
       rounds and the batch: variances of cells are taken to follow a scaled inverse chi-squared law, whose width is
       estimated from how the cells of this batch differ (G. K. Smyth, "Linear models and empirical Bayes
       methods for assessing differential expression in microarray experiments", 2004, section 6.2). Where cells
       are alike, the batch decides; where each has a noise of its own, each cell does.
    3. A cell that is noisier than this law expects (F test at 5 %) is judged by its own rounds alone.

    Args:
        cell: logarithms of the cell's rounds by side; at least one on every side.
        batch: the same for every cell of the batch, this one included. Sides may be empty.

    Returns:
        Level x factor x variance factor of the median, summed over sides, with degrees of freedom after
        Satterthwaite; None where no cell has two rounds on any side.
    """
    scatters = [_scatter(each) for each in batch]
    levels = _levels(scatters, len(cell))
    if levels is None:
        return None
    raw, used = levels
    parts = [
        Variance(level.value * median_variance(len(values)), level.degrees_of_freedom)
        for level, values in zip(used, cell, strict=True)
    ]
    level = _sum(parts, pooled=len(set(used)) == 1)
    if not level.value:
        return level
    known = [factor for factor in (_factor(each, raw) for each in scatters) if factor is not None]
    factor = _moderated(_factor(_scatter(cell), raw), known)
    return Variance(
        level.value * factor.value, 1 / (1 / level.degrees_of_freedom + 1 / factor.degrees_of_freedom)
    )


def shared_noise(batch: Sequence[Sides]) -> Variance | None:
    """How much more the mean over a batch scatters from round to round than that of independent cells, where it does.

    The cells of a batch are measured in turn, one round of each and then the next: what disturbs a machine for some
    seconds falls on the same round of several cells, and their errors do not average out. A two-way analysis of
    variance tells: k cells that vary independently have a k-th of their squares between rounds.

    Args:
        batch: logarithms of every cell's rounds by side, in the order in which they were measured. Rounds that not
            every cell has tell nothing of it.

    Returns:
        The factor of the mean's variance, at most the number of cells, with degrees of freedom; None where it is not
        above 1, or nobody can tell: of a single cell, or of single rounds.
    """
    sides = [_between(side) for side in zip(*batch, strict=True)]
    freedom = sum(side.degrees_of_freedom for side in sides)
    if not freedom:
        return None
    factor = math.fsum(side.value * side.degrees_of_freedom for side in sides) / freedom
    return Variance(factor, freedom) if factor > 1 else None


def _between(cells: Sequence[Sequence[float]]) -> Variance:
    """Squares between the rounds of one side over all squares, times the number of cells."""
    cells = [rounds for rounds in cells if rounds]
    common = min((len(rounds) for rounds in cells), default=0)
    if len(cells) < 2 or common < 2:
        return Variance(1.0, 0)
    aligned = [rounds[:common] for rounds in cells]
    means = [math.fsum(values) / len(cells) for values in zip(*aligned, strict=True)]
    total = math.fsum(_squares(rounds) for rounds in aligned)
    return Variance(len(cells) ** 2 * _squares(means) / total if total else 1.0, common - 1)


def _scatter(cell: Sides) -> list[tuple[float, int]]:
    """Sum of squared deviations from the mean, and degrees of freedom, of each side."""
    return [(_squares(values), max(len(values) - 1, 0)) for values in cell]


def _squares(values: Sequence[float]) -> float:
    if len(values) < 2 or min(values) == max(values):
        return 0.0  # exactly, where a mean would be off by a rounding
    mean = math.fsum(values) / len(values)
    return math.fsum([(value - mean) ** 2 for value in values])


def _levels(
    batch: Sequence[list[tuple[float, int]]], sides: int
) -> tuple[tuple[float, ...], tuple[Variance, ...]] | None:
    """The variance of each side as its own rounds show it, and as it is used."""
    squares = [math.fsum([each[side][0] for each in batch]) for side in range(sides)]
    freedom = [sum([each[side][1] for each in batch]) for side in range(sides)]
    if not sum(freedom):
        return None
    pool = Variance(math.fsum(squares) / sum(freedom), sum(freedom))
    own = [Variance(s / n, n) if n else pool for s, n in zip(squares, freedom, strict=True)]
    used = tuple(each if each.value > pool.value else pool for each in own)
    return tuple(each.value or pool.value for each in own), used


def _factor(cell: list[tuple[float, int]], levels: Sequence[float]) -> Variance | None:
    """A cell's variance relative to the levels; None where it has no two rounds."""
    freedom = sum([n for _, n in cell])
    if not freedom:
        return None
    squares = math.fsum([squares / level for (squares, _), level in zip(cell, levels, strict=True)])
    return Variance(squares / freedom, freedom)


def _moderated(own: Variance | None, batch: Sequence[Variance]) -> Variance:
    prior = _prior(batch)
    if own is None:
        return prior
    if own.value > prior.value * _f_quantile(
        1 - FAR_NOISIER, own.degrees_of_freedom, prior.degrees_of_freedom
    ):
        return own
    if math.isinf(prior.degrees_of_freedom):
        return prior
    freedom = prior.degrees_of_freedom + own.degrees_of_freedom
    both = prior.degrees_of_freedom * prior.value + own.degrees_of_freedom * own.value
    return Variance(both / freedom, freedom)


def _prior(batch: Sequence[Variance]) -> Variance:
    """Location and degrees of freedom of the law that the cells' factors follow: Smyth's moments of log variances."""
    from scipy.special import psi

    if len(batch) < 2:
        return Variance(1.0, math.inf)
    halves = [each.degrees_of_freedom / 2 for each in batch]
    logs = [
        math.log(max(each.value, _FLOOR)) - float(psi(half)) + math.log(half)
        for each, half in zip(batch, halves, strict=True)
    ]
    mean = math.fsum(logs) / len(logs)
    seen = math.fsum((value - mean) ** 2 for value in logs) / (len(logs) - 1)
    by_chance = math.fsum(_trigamma(half) for half in halves) / len(halves)
    if seen <= by_chance:
        return Variance(1.0, math.inf)
    half = _inverse_trigamma(seen - by_chance)
    return Variance(math.exp(mean + float(psi(half)) - math.log(half)), 2 * half)


def _trigamma(x: float) -> float:
    from scipy.special import zeta

    return float(zeta(2, x))


def _inverse_trigamma(value: float) -> float:
    """Solve trigamma(x) = value by Newton's method for 1 / trigamma, which converges from below (Smyth 2004)."""
    from scipy.special import zeta

    if value < 1e-7:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = _trigamma(x)
        step = trigamma * (1 - trigamma / value) / (-2 * float(zeta(3, x)))
        x += step
        if -step < 1e-8 * x:
            break
    return x


def _sum(parts: Sequence[Variance], *, pooled: bool) -> Variance:
    """The variance of a sum of independent values."""
    total = math.fsum(part.value for part in parts)
    if pooled or not total:
        return Variance(total, min(part.degrees_of_freedom for part in parts))
    return Variance(total, satterthwaite(parts, total))


def satterthwaite(parts: Sequence[Variance], total: float) -> float:
    """Degrees of freedom of a sum of independently estimated variances (F. E. Satterthwaite, 1946).

    Args:
        parts: what is added.
        total: their sum, above 0.
    """
    return total**2 / math.fsum(part.value**2 / part.degrees_of_freedom for part in parts)


def _f_quantile(probability: float, numerator: float, denominator: float) -> float:
    from scipy.special import chdtri, fdtri

    if math.isinf(denominator):
        return float(chdtri(numerator, 1 - probability)) / numerator
    return float(fdtri(numerator, denominator, probability))
