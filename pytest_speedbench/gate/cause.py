"""Whether the drafter or the system is to blame for a loss."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from pytest_speedbench.gate.baseline import AcceptanceCell, ThroughputCell
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.vocabulary import ACCEPTANCE, THROUGHPUT

TO_BLAME = 1 / 3
"""Share of the loss that a part must carry to be named."""
_NOTHING = 0.001
"""A loss of output TPS, as a logarithm, that is too small to be shared out."""


@dataclass(frozen=True)
class PositionChange:
    """A draft position whose drafts are accepted less often than they were."""

    position: int
    """Counted from 1."""
    baseline: float
    """Conditional acceptance rate."""
    value: float


@dataclass(frozen=True)
class Cause:
    """What a loss is made of. Changes are relative: -0.063 is 6.3 % less; None where they cannot be told."""

    word: str
    """`drafter`, `system`, `both` or `unclear`."""
    acceptance_length_change: float | None
    step_latency_change: float | None
    """More is slower."""
    output_tps_change: float | None
    drafter_share: float | None
    """Of what was lost: the share that fewer tokens per step explain (0..1)."""
    system_share: float | None
    """The share that slower steps explain."""
    rest_share: float | None
    """The share that neither explains: prefill, queueing, an emptier batch."""
    positions: tuple[PositionChange, ...]
    reason: str
    """One line for a person, without the word."""


def explain(
    measurement: Measurement,
    acceptance: AcceptanceCell | None,
    throughput: ThroughputCell | None,
    failed: Collection[str] | None = None,
) -> Cause:
    """Take a loss apart: output TPS ~ acceptance length / step latency x the rest.

    With the logarithms of the changes the parts add up exactly: what fewer tokens per step cost, what slower
    steps cost, and what neither explains. A part that gained carries no share. A part is named if it carries at
    least a third of what was lost; where the rest carries more than half, or nothing was lost, the cause is `unclear`.

    Acceptance length knows nothing of time: where it failed, the drafter is a cause, and where it alone failed,
    the only one, however the machine's speed went.

    Args:
        measurement: of this run.
        acceptance: the cell's acceptance baseline, or None.
        throughput: the cell's throughput baseline on this hardware, or None.
        failed: the gated metrics that regressed; None where it is not known, and the shares alone decide.
    """
    length = _change(measurement, "acceptance_length", acceptance.acceptance_length if acceptance else None)
    latency = _change(measurement, "step_latency_s_mean", throughput.step_latency_s if throughput else None)
    output = _change(measurement, "output_tps", throughput.output_tps if throughput else None)
    by_acceptance = any(metric in ACCEPTANCE for metric in failed or ())
    by_throughput = any(metric in THROUGHPUT for metric in failed or ())
    shares = _shares(length, latency, output)
    word = _word(shares)
    if by_acceptance:
        word = "both" if by_throughput and word in ("system", "both") else "drafter"
    return Cause(
        word=word,
        acceptance_length_change=_relative(length),
        step_latency_change=_relative(latency),
        output_tps_change=_relative(output),
        drafter_share=shares[0] if shares else None,
        system_share=shares[1] if shares else None,
        rest_share=shares[2] if shares else None,
        positions=_fallen(measurement, acceptance),
        reason=_reason(length, latency, output),
    )


def _change(measurement: Measurement, metric: str, baseline: float | None) -> float | None:
    """Logarithm of value / baseline."""
    value = measurement.metrics.get(metric)
    return math.log(value / baseline) if value and baseline else None


def _relative(change: float | None) -> float | None:
    return None if change is None else math.expm1(change)


def _shares(
    length: float | None, latency: float | None, output: float | None
) -> tuple[float, float, float] | None:
    """How much of what was lost the drafter, the system and the rest carry; None where nothing was lost."""
    if length is None or latency is None or output is None:
        return None
    losses = (max(0.0, -length), max(0.0, latency), max(0.0, length - latency - output))
    lost = sum(losses)
    return (losses[0] / lost, losses[1] / lost, losses[2] / lost) if lost > _NOTHING else None


def _word(shares: tuple[float, float, float] | None) -> str:
    if shares is None or shares[2] > 0.5:
        return "unclear"
    drafter, system = shares[0] >= TO_BLAME, shares[1] >= TO_BLAME
    if drafter and system:
        return "both"
    return "drafter" if drafter else "system" if system else "unclear"


def _fallen(measurement: Measurement, acceptance: AcceptanceCell | None) -> tuple[PositionChange, ...]:
    """Positions whose conditional acceptance rate fell by at least half a thousandth, which is seen when printed."""
    if acceptance is None:
        return ()
    now = measurement.per_position.get("conditional_acceptance_rate", ())
    return tuple(
        PositionChange(position, before, after)
        for position, (before, after) in enumerate(
            zip(acceptance.conditional_acceptance_rate, now, strict=False), start=1
        )
        if before - after >= 0.0005
    )


def _reason(
    length: float | None,
    latency: float | None,
    output: float | None,
) -> str:
    if length is None:
        return "acceptance length has no baseline to be compared with."
    if output is None:
        return (
            f"acceptance length {_percent(length)}; throughput has no baseline on this hardware, so that the "
            "system's part is not known."
        )
    if latency is None:
        return (
            f"acceptance length {_percent(length)}, output TPS {_percent(output)}; step latency is not known."
        )
    text = (
        f"acceptance length explains {_percent(length)} of the TPS change, step latency {_percent(-latency)}"
    )
    if abs(latency) >= 0.005:
        text += f" (the time of a step: {_percent(latency)})"
    rest = output - length + latency
    if abs(rest) >= 0.005:
        text += f", prefill, queueing and batch filling {_percent(rest)}"
    return text + "."


def _percent(change: float) -> str:
    percent = round(math.expm1(change) * 100, 1)
    return f"{percent + 0.0:+.1f} %"  # + 0.0: there is no -0.0 %
