"""What a run found, as plain data: every report is made from this and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_speedbench.engines.base import Hardware
    from pytest_speedbench.gate.baseline import Conditions
    from pytest_speedbench.gate.check import Check
    from pytest_speedbench.gate.explain.break_even import BreakEven
    from pytest_speedbench.gate.explain.cause import Cause
    from pytest_speedbench.gate.explain.pattern import Pattern
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.metrics.pareto import ParetoCurve
    from pytest_speedbench.settings.target import Target


@dataclass(frozen=True)
class CellResult:
    """One cell: what was measured, and what was judged of it."""

    measurement: Measurement
    checks: tuple[Check, ...]
    cause: Cause | None = None
    """Set where a check is a regression."""
    failure: str | None = None
    """The text that failed a test, if one did."""
    pattern: Pattern | None = None
    """Of a mean cell: what the losses of its categories have in common."""


@dataclass(frozen=True)
class RunResult:
    """A whole run."""

    target: Target
    against: str | None
    """Name of the target compared with, or None where a baseline file was."""
    conditions: Conditions
    hardware: Hardware | None
    """None where the engine never ran."""
    cells: tuple[CellResult, ...]
    """In the order in which they were measured."""
    warnings: tuple[str, ...]
    """About the data."""
    notices: tuple[str, ...]
    """What a person should look at although no test failed for it: inconclusive checks, stale baselines."""
    saving: bool
    """Whether this run's measurements become the baseline: nothing is judged then."""
    messages: tuple[str, ...]
    """What became of the baseline file and the reports."""
    patterns: tuple[Pattern, ...] = ()
    """What losses of acceptance length have in common, by split and batch size."""
    break_evens: tuple[BreakEven, ...] = ()
    """Up to which batch size speculation pays, by split; where its speedup was measured."""
    pareto_curves: tuple[ParetoCurve, ...] = ()
    """Output TPS against user TPS, by throughput split; where several batch sizes were measured."""
