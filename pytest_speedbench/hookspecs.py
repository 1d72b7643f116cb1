"""Hooks that other plugins and `conftest.py` files may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell
    from pytest_speedbench.gate.check import Check
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.run.results import RunResult


@pytest.hookspec
def pytest_speedbench_measured(config: pytest.Config, measurement: Measurement) -> None:
    """Called once for each cell of the run's target, as soon as it is measured."""


@pytest.hookspec
def pytest_speedbench_checked(config: pytest.Config, cell: Cell, check: Check) -> None:
    """Called once for each metric of a cell that a test judged."""


@pytest.hookspec
def pytest_speedbench_finished(config: pytest.Config, result: RunResult) -> None:
    """Called once at the end of a run, when every check is settled and baselines and reports are written.

    Args:
        config: pytest's.
        result: all cells as they were judged, the same that the table, the JSON file and the report are made from.
    """
