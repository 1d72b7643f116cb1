"""How sure a ratio is: prompts are the clusters, and each is compared with itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Pair:
    """One prompt in both runs: what is divided (such as tokens) by what (such as steps)."""

    baseline_numerator: float
    baseline_denominator: float
    numerator: float
    denominator: float


@dataclass(frozen=True)
class RatioEstimate:
    """This run's ratio of sums over the baseline's, and its 95 % interval."""

    ratio: float
    standard_error: float | None
    """Of the logarithm of `ratio`; None where no interval can be had."""
    pairs: int

    def interval(self, around: float | None = None) -> tuple[float, float] | None:
        """Limits of the 95 % interval, or None without a standard error.

        Args:
            around: another estimate of the same ratio to centre the interval on; default `ratio`.
        """
        if self.standard_error is None:
            return None
        centre = self.ratio if around is None else around
        reach = math.exp(_t_quantile(self.pairs - 1) * self.standard_error)
        return centre / reach, centre * reach


def ratio_of_ratios(pairs: Sequence[Pair]) -> RatioEstimate | None:
    """(sum n' / sum d') / (sum n / sum d) over paired prompts; None where a sum is not positive.

    Steps of one prompt are alike (a prompt is easy to draft for or it is not), so that prompts, not steps,
    are independent: a step-wise error would be far too small. The same prompt in both runs is alike too,
    so that pairs remove what differs between prompts. The standard error is the delete-one jackknife
    of the log ratio, prompts left out one by one (Efron and Stein, "The jackknife estimate of variance", 1981),
    and the interval takes Student's t with one degree of freedom less than there are pairs. At 8
    prompts whose steps vary by 50 % between prompts and by 20 % between runs this covers 93.7 % of the time in
    simulation, and the delta method's error 93.1 %; at 80 prompts both cover 95 %.

    Args:
        pairs: one per prompt.
    """
    n = len(pairs)
    sums = [
        math.fsum(pair.baseline_numerator for pair in pairs),
        math.fsum(pair.baseline_denominator for pair in pairs),
        math.fsum(pair.numerator for pair in pairs),
        math.fsum(pair.denominator for pair in pairs),
    ]
    if not n or min(sums) <= 0:
        return None
    ratio = (sums[2] / sums[3]) / (sums[0] / sums[1])
    without: list[float] = []
    for pair in pairs:
        rest = (
            sums[0] - pair.baseline_numerator,
            sums[1] - pair.baseline_denominator,
            sums[2] - pair.numerator,
            sums[3] - pair.denominator,
        )
        if min(rest) <= 0:
            return RatioEstimate(ratio, None, n)
        without.append(math.log(rest[2] / rest[3]) - math.log(rest[0] / rest[1]))
    mean = math.fsum(without) / n
    variance = (n - 1) / n * math.fsum((value - mean) ** 2 for value in without)
    return RatioEstimate(ratio, math.sqrt(variance), n)


def _t_quantile(degrees_of_freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))
