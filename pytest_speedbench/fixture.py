"""What a test holds: the `speedbench` fixture, and a measured cell to assert on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from pytest_speedbench.errors import SpeedBenchError
from pytest_speedbench.metrics.catalogue import UNITS
from pytest_speedbench.speed_bench import GATED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_speedbench.cells import Cell, Plan
    from pytest_speedbench.data.prompts import Dataset
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.run.session import Session
    from pytest_speedbench.settings.target import Target


if TYPE_CHECKING:

    class _Failed(BaseException):  # type checkers do not take an attribute for a base class
        def __init__(self, msg: str | None = None, pytrace: bool = True) -> None: ...
else:
    _Failed = pytest.fail.Exception


class NotMeasured(_Failed):
    """What a test asked for could not be measured: nothing is known of the engine, and a retry is safe.

    Reported as an error of the test, not as its failure.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, pytrace=False)


class SpeedBench:
    """One cell of SPEED-Bench, on the engine of this run."""

    def __init__(self, cell: Cell, plan: Plan, session: Session, item: pytest.Item) -> None:
        self.cell = cell
        """The split, category and batch size that this test is about."""
        self._plan = plan
        self._session = session
        self._item = item

    @property
    def target(self) -> Target:
        """What is measured: engine, model, method."""
        return self._session.settings.target

    def measure(self) -> MeasuredCell:
        """Measure the cell; once per session, however many tests ask.

        Raises:
            NotMeasured: the engine could not be started, or is gone.

        A measurement that cannot be trusted is returned as it
        is, for its `problems` to be looked at; every assertion on it fails.
        """
        __tracebackhide__ = True
        try:
            measurement = self._session.measure(self.cell)
        except SpeedBenchError as error:
            failure = str(error)
        else:
            return MeasuredCell(measurement, self._plan, self._session, self._item)
        raise NotMeasured(failure)  # out of the except block, or pytest shows both


@dataclass(frozen=True)
class DatasetLoader:
    """Loads prompts as the run does: of the same folder, with the same limit."""

    folder: Path | None
    """Prepared SPEED-Bench data; None for the bundled sample."""
    limit: int | None
    """Prompts at most per category."""

    def __call__(self, split: str, categories: Sequence[str] | None = None) -> Dataset:
        """The prompts of a split.

        Fails the test if the data cannot be read.

        Args:
            split: such as `qualitative` or `throughput_1k`.
            categories: such as `["coding", "qa"]`; None for all of the split.
        """
        __tracebackhide__ = True
        from pytest_speedbench.data import load

        try:
            return load(split, self.folder, None if categories is None else tuple(categories), self.limit)
        except SpeedBenchError as error:
            failure = str(error)
        pytest.fail(failure, pytrace=False)


class MeasuredCell:
    """A measured cell, to be asserted on."""

    def __init__(self, measurement: Measurement, plan: Plan, session: Session, item: pytest.Item) -> None:
        self.measurement = measurement
        """All metrics, the prompts' own records, and what is wrong with them, if anything."""
        self._plan = plan
        self._session = session
        self._item = item

    def metric(self, name: str) -> float:
        """A metric's value, in the unit of `metrics.catalogue.UNITS`.

        Args:
            name: for example `acceptance_length` or `ttft_s_p99`.

        Fails the test if the measurement has no such metric: a missing metric is never a pass.

        Raises:
            NotMeasured: the measurement is invalid.
        """
        __tracebackhide__ = True
        if name not in UNITS:
            pytest.fail(f"no such metric: {name!r}; there are {', '.join(UNITS)}", pytrace=False)
        cell = self.measurement.cell
        if self.measurement.problems:
            raise NotMeasured(f"{cell.id}: invalid measurement: {'; '.join(self.measurement.problems)}")
        if name not in self.measurement.metrics:
            reason = self.measurement.missing.get(name, "not measured")
            pytest.fail(f"{cell.id}: {name} is missing: {reason}", pytrace=False)
        return self.measurement.metrics[name]

    def assert_no_regression(self, *metrics: str) -> None:
        """Judge metrics against their baseline, and fail the test for those that regressed.

        With `--speedbench-save` nothing is compared: the measurement has only to be fit for a baseline.

        Args:
            metrics: one or more of `acceptance_length`, `output_tps`, `user_tps`, `speedup`; where the marker names
                metrics, of those.
        """
        __tracebackhide__ = True
        unknown = [metric for metric in metrics if metric not in GATED]
        if unknown or not metrics:
            wrong = f"{unknown[0]!r} cannot be gated" if unknown else "no metric named"
            pytest.fail(f"assert_no_regression: {wrong}; there are {', '.join(GATED)}", pytrace=False)
        unplanned = [metric for metric in metrics if metric not in (self._plan.metrics or metrics)]
        if unplanned:
            pytest.fail(
                f"assert_no_regression: {unplanned[0]!r} is not among the marker's "
                f"metrics={list(self._plan.metrics or ())}, which share the run's alpha; add it there",
                pytrace=False,
            )
        judgement = self._session.judge(self.measurement.cell, metrics)
        for metric in metrics:
            if metric in self.measurement.metrics:
                self._item.user_properties.append((f"speedbench_{metric}", self.measurement.metrics[metric]))
        if judgement.failure and judgement.not_measured:
            raise NotMeasured(judgement.failure)
        if judgement.failure:
            pytest.fail(judgement.failure, pytrace=False)
        if judgement.skip:
            pytest.skip(judgement.skip)
