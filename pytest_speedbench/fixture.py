"""What a test holds: the `speedbench` fixture, and a measured cell to assert on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_speedbench.catalogue import UNITS
from pytest_speedbench.errors import NotMeasured, SpeedBenchError
from pytest_speedbench.report.failure import failure_text
from pytest_speedbench.report.junit import properties
from pytest_speedbench.speed_bench import GATED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_speedbench.cells import Cell, Plan
    from pytest_speedbench.data.prompts import Dataset
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.run.session import Judgement, Session
    from pytest_speedbench.settings.target import Target


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
            pytest.fail.Exception: the engine could not be started, or is gone; an error of the test, not its failure.

        A measurement that cannot be trusted is returned as it
        is, for its `problems` to be looked at; every assertion on it fails.
        """
        __tracebackhide__ = True
        try:
            self._session.measure(self.cell, self._item.nodeid)
        except SpeedBenchError as error:
            fail_with(error)
        return MeasuredCell(self.cell, self._plan, self._session, self._item)


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

    def __init__(self, cell: Cell, plan: Plan, session: Session, item: pytest.Item) -> None:
        self._cell = cell
        self._plan = plan
        self._session = session
        self._item = item

    @property
    def measurement(self) -> Measurement:
        """All metrics, the prompts' own records, and what is wrong with them, if anything.

        As they are now: a check that is inconclusive has more rounds measured, and a metric is shown as it was judged.
        """
        measurement = self._session.cell_run(self._cell).shown_measurement
        assert measurement is not None
        return measurement

    def metric(self, name: str) -> float:
        """A metric's value, in the unit of `catalogue.UNITS`: as judged, once it was.

        Args:
            name: for example `acceptance_length` or `ttft_s_p99`.

        Fails the test if the measurement has no such metric: a missing metric is never a pass.

        Raises:
            pytest.fail.Exception: the measurement is invalid, or has no such metric.
        """
        __tracebackhide__ = True
        if name not in UNITS:
            pytest.fail(f"no such metric: {name!r}; there are {', '.join(UNITS)}", pytrace=False)
        measurement = self.measurement
        if measurement.problems:
            fail_with(NotMeasured(f"{self._cell.id}: invalid measurement: {'; '.join(measurement.problems)}"))
        value = self._session.cell_run(self._cell).metrics.get(name)
        if value is None:
            reason = measurement.missing.get(name, "not measured")
            pytest.fail(f"{self._cell.id}: {name} is missing: {reason}", pytrace=False)
        return value

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
        planned = self._plan.metrics or metrics
        unplanned = [metric for metric in metrics if metric not in planned]
        if unplanned:
            pytest.fail(
                f"assert_no_regression: {unplanned[0]!r} is not among the marker's metrics={list(planned)}, "
                "which share the run's alpha; add it there",
                pytrace=False,
            )
        try:
            judgement = self._session.judge(self._cell, metrics, self._item.nodeid)
        except SpeedBenchError as error:
            fail_with(error)
        known = self._session.cell_run(self._cell)
        self._item.user_properties += properties(known, metrics)
        if judgement.failing:
            text = self._failure_text(judgement)
            fail_with(NotMeasured(text) if judgement.not_measured else SpeedBenchError(text))
        if judgement.skip:
            pytest.skip(judgement.skip)

    def _failure_text(self, judgement: Judgement) -> str:
        result = self._session.result()
        return failure_text(
            self._session.cell_run(self._cell),
            judgement.failing,
            result.target,
            baseline=result.compared_with,
            log=result.log,
            save_command=result.save_command,
            explained=judgement.explained,
        )


def fail_with(error: SpeedBenchError) -> NoReturn:
    """Fail the test with a message and no traceback; the error stays as its context, for `plugin` to know its kind."""
    __tracebackhide__ = True
    failure = pytest.fail.Exception(str(error), pytrace=False)
    failure.__context__ = error
    raise failure from None
