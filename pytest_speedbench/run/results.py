"""What a run found, as plain data: every report is made from this and from nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_speedbench.engines.base import Hardware
from pytest_speedbench.gate.baseline import Conditions
from pytest_speedbench.gate.explain.break_even import BreakEven
from pytest_speedbench.gate.explain.pattern import Pattern
from pytest_speedbench.metrics.pareto import ParetoCurve
from pytest_speedbench.run.ledger import CellRun
from pytest_speedbench.run.provenance import Provenance
from pytest_speedbench.settings.target import Target


@dataclass(frozen=True)
class RunResult:
    """A whole run."""

    target: Target
    against: str | None
    """Name of the target compared with, or None where a baseline file was."""
    compared_with: str
    """What was compared with, for a person: the baseline file as shown, or the other target's name."""
    save_command: str | None
    """Stores this run's measurements; None where there is no file to store them in."""
    log: str | None
    """The engine's log, as shown; None where it was not launched here."""
    conditions: Conditions
    hardware: Hardware | None
    """None where the engine never ran."""
    provenance: Provenance
    cells: tuple[CellRun, ...]
    """Every cell that a test asked for or that was measured, in the order of the grid."""
    warnings: tuple[str, ...]
    """About the data."""
    saving: bool
    """Whether this run's measurements become the baseline: nothing is judged then."""
    messages: tuple[str, ...]
    """What became of the baseline file and the reports."""
    failures: Mapping[str, str]
    """What tests show that fail without having a cell of their own, by node id."""
    failed_tests: tuple[str, ...]
    """Node ids of the tests that failed, whatever of."""
    not_measured_tests: tuple[str, ...]
    """Those of them that failed only because something could not be measured."""
    not_made: tuple[str, ...]
    """Checks that a test asserts and that were not made, with the reason: throughput of other hardware."""
    measuring_s: float
    """Wall time of measuring."""
    patterns: tuple[Pattern, ...] = ()
    """What losses of acceptance length have in common, by split and batch size."""
    break_evens: tuple[BreakEven, ...] = ()
    """Up to which batch size speculation pays, by split; where its speedup was measured."""
    pareto_curves: tuple[ParetoCurve, ...] = ()
    """Output TPS against user TPS, by throughput split; where several batch sizes were measured."""

    @property
    def verdicts(self) -> Mapping[str, int]:
        """How many checks have each verdict."""
        return Counter(check.verdict.value for cell in self.cells for check in cell.checks)
