"""A cell of a run as a report meets it, without a run."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_speedbench.cells import Plan
from pytest_speedbench.gate.check import Check
from pytest_speedbench.gate.explain.cause import Cause
from pytest_speedbench.gate.explain.pattern import Pattern
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.run.ledger import CellRun


def cell_run(
    measurement: Measurement,
    checks: Sequence[Check] = (),
    cause: Cause | None = None,
    failure: str | None = None,
    pattern: Pattern | None = None,
    refused: str | None = None,
) -> CellRun:
    """A cell that one test asked for, with what is given as its measurement."""
    known = CellRun(
        measurement.cell,
        Plan(),
        asked_by=("test_gate.py::test",),
        settled={check.metric: check for check in checks},
        asserted=tuple(check.metric for check in checks),
        failures={} if failure is None else {"test_gate.py::test": failure},
        cause=cause,
        pattern=pattern,
        refused=refused,
    )
    known.__dict__["measurement"] = measurement  # where the property keeps what it computes from rounds
    return known
