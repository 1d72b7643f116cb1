"""The closed form: target and draft distribution over a short list of candidates, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CANDIDATES = 8
RHO = 0.35
"""Each candidate of the target model is this much less likely than the one before it, at temperature 1."""


@dataclass(frozen=True)
class Shape:
    """Candidate i of the target has a probability proportional to `rho ** i`; the opposite has the reverse.

    With candidates 0 to m-1, `p` the target's probabilities and `r` the same in reversed order, the drafter's
    are `q = (1 - d) p + d r`, where the disagreement `d` in [0, 1] depends on the context. From this:

        sum_i min(p_i, q_i) = 1 - d * TV(p, r)         (the acceptance rate)
        TV(p, r) = (1 - rho**(m/2)) / (1 + rho**(m/2))  for even m

    because p exceeds r exactly in the first half of the list.

    Args:
        rho: in [0, 1]; 0 puts everything on the first candidate (temperature 0).
        candidates: m, even.
    """

    rho: float = RHO
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        if not 0.0 <= self.rho <= 1.0 or self.candidates < 2 or self.candidates % 2:
            raise ValueError(f"no shape with rho {self.rho} and {self.candidates} candidates")

    def at(self, temperature: float) -> Shape:
        """The shape of `p ** (1 / temperature)`, normalized, which is geometric again.

        At temperature 0 only the first and the last candidate keep a probability (in p and in r), so that a
        list of two says the same. The drafter is *sampled* there too: it proposes the last with probability d.
        """
        if temperature == 0.0:
            return Shape(0.0, 2)
        return Shape(self.rho ** (1.0 / temperature), self.candidates)

    def target(self) -> tuple[float, ...]:
        """p, most likely candidate first."""
        weights = [1.0]
        for _ in range(self.candidates - 1):
            weights.append(weights[-1] * self.rho)
        total = math.fsum(weights)  # `sum` rounds differently from Python 3.12 on
        return tuple(weight / total for weight in weights)

    def draft(self, disagreement: float) -> tuple[float, ...]:
        """q, in the order of p."""
        p = self.target()
        return mixture(p, disagreement)

    def total_variation(self) -> float:
        """TV(p, r) = sum_i max(0, p_i - r_i), in closed form."""
        half = self.rho ** (self.candidates // 2)
        return (1.0 - half) / (1.0 + half)

    def acceptance_rate(self, disagreement: float) -> float:
        """Probability that a drafted token is accepted: sum_i min(p_i, q_i), in closed form."""
        return 1.0 - disagreement * self.total_variation()


def mixture(p: Sequence[float], disagreement: float) -> tuple[float, ...]:
    """Mix `p` with its reverse r: q = (1 - d) p + d r."""
    return tuple(a + disagreement * (b - a) for a, b in zip(p, reversed(p), strict=True))


def accept_probability(p: float, q: float) -> float:
    """min(1, p / q) for a token drawn from q (Leviathan et al. 2023, algorithm 1; Chen et al. 2023)."""
    return 1.0 if p >= q else p / q


def residual(p: Sequence[float], q: Sequence[float]) -> tuple[float, ...]:
    """norm(max(0, p - q)): where the token comes from after a rejection (same sources)."""
    excess = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    total = math.fsum(excess)
    return tuple(weight / total for weight in excess)


def choose(probabilities: Sequence[float], uniform: float) -> int:
    """Index at which the cumulated probability passes `uniform` in [0, 1).

    Because r favours later candidates, a drafter that disagrees more never chooses an earlier candidate for the
    same `uniform`, and its candidate is never accepted where the other's was not.
    """
    last = 0
    for index, probability in enumerate(probabilities):
        if probability > 0.0:
            if uniform < probability:
                return index
            uniform -= probability
            last = index
    return last
