"""Speedup: output TPS over that of the same target without speculation."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from pytest_speedbench.metrics.measurement import Measurement


def with_speedup(
    measurement: Measurement, without: Measurement | None, reason: str | None = None
) -> Measurement:
    """A measurement with its speedup: of every round, and as their median; or with the reason why there is none.

    Round i is divided by round i without speculation, as both were measured under the same conditions where they
    were measured in pairs. Rounds that only one side has get no speedup, nor do those that were not timed.

    Args:
        measurement: of a target with speculation.
        without: the same cell of the same target with method `none`; None where it was not measured.
        reason: why this target has no speedup whatever was measured, in words for a person; None where it has one.

    Returns:
        `measurement` with `speedup` in `metrics` and `rounds`, or in `missing`.
    """
    reason = reason or _why_none(measurement, without)
    rounds = measurement.rounds
    if reason is None and without is not None:
        paired = tuple(
            replace(ours, speedup=ours.output_tps / theirs.output_tps)
            if ours.output_tps and theirs.output_tps
            else ours
            for ours, theirs in zip(rounds, without.rounds, strict=False)
        )
        speedups = [figures.speedup for figures in paired if figures.speedup is not None]
        if speedups:
            return replace(
                measurement,
                metrics={**measurement.metrics, "speedup": median(speedups)},
                rounds=(*paired, *rounds[len(paired) :]),
            )
    missing = reason or "no round was timed both with speculation and without"
    return replace(measurement, missing={**measurement.missing, "speedup": missing})


def _why_none(measurement: Measurement, without: Measurement | None) -> str | None:
    """What is lacking on either side."""
    if "output_tps" not in measurement.metrics:
        return measurement.missing.get("output_tps", "output TPS was not measured")
    if without is None:
        return "the target was not measured without speculation"
    if without.problems or "output_tps" not in without.metrics:
        why = "; ".join(without.problems) or without.missing.get("output_tps", "output TPS was not measured")
        return f"without speculation: {why}"
    return None
