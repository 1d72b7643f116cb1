"""Judges the cells of one session by the rules of `gate`, with more rounds where a check is inconclusive."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.errors import BaselineError, SpeedBenchError
from pytest_speedbench.gate.baseline import Baseline, OtherTarget, Reference, References, refuse
from pytest_speedbench.gate.explain.cause import explain, explain_mean
from pytest_speedbench.gate.explain.decomposition import Compared
from pytest_speedbench.gate.explain.pattern import pattern_of
from pytest_speedbench.gate.sequential import Measured, Rule, judge_group
from pytest_speedbench.speed_bench import GATED

if TYPE_CHECKING:
    from pytest_speedbench.gate.baseline import Conditions
    from pytest_speedbench.gate.check import Check
    from pytest_speedbench.gate.explain.cause import Cause
    from pytest_speedbench.gate.explain.pattern import Pattern
    from pytest_speedbench.run.schedule import Schedule
    from pytest_speedbench.settings.read import Settings


class Judge:
    """Every check of a session, each settled once.

    Args:
        settings: of the run.
        schedule: measures what is judged.
        planned: the cells that tests ask for, and whether their speedup is asked for too: they share alpha.
        baseline: what is stored of the target; None where nothing is, or where another target is compared with.
        date: of the run, ISO 8601.
        commit: of the repository under test.
    """

    def __init__(
        self,
        settings: Settings,
        schedule: Schedule,
        planned: Mapping[Cell, bool],
        baseline: Baseline | None,
        date: str,
        commit: str | None,
    ) -> None:
        self._settings = settings
        self._schedule = schedule
        self._planned = planned
        self._baseline = baseline
        self._date = date
        self._commit = commit
        self._checks: dict[tuple[Cell, str], Check] = {}
        self._possible = sum(len(GATED) - (not speedup) for speedup in planned.values())
        """Checks that may be made. Not every test makes every one, so that the run's alpha is kept with room."""

    @property
    def conditions(self) -> Conditions:
        """Of the run's target."""
        return self._schedule.main.conditions(self._date, self._commit)

    def check(self, cell: Cell, metric: str) -> Check:
        """A metric of a cell, judged. The whole batch of the cell is judged with it, and settled.

        Raises:
            SpeedBenchError: nothing could be measured, or the other target is nothing to compare with.
        """
        if (cell, metric) not in self._checks:
            self._settle(cell, metric)
        return self._checks[cell, metric]

    def _settle(self, cell: Cell, metric: str) -> None:
        sound = []
        for each in self._schedule.group_of(cell):
            try:
                self._schedule.measurement(each)
                self._refuse_other(each)
            except SpeedBenchError:
                if each == cell or cell.is_mean:
                    raise
            else:
                sound.append(each)
        asked = dict.fromkeys(sound, (metric,))
        mean = Cell(cell.split, MEAN, cell.batch_size)
        if mean in self._planned and len(sound) == len(self._schedule.group_of(cell)):
            asked[mean] = (metric,)

        def measure(cells: Collection[Cell], rounds: int) -> Measured:
            self._schedule.bring_to(cells, rounds)
            measurements = {each: self._schedule.measurement(each) for each in sound}
            return Measured(measurements, self._compared_with(sound))

        checks, _ = judge_group(asked, measure, self._rule(metric))
        for each, of_cell in checks.items():
            self._checks[each, metric] = of_cell[metric]

    def _rule(self, metric: str) -> Rule:
        hardware = self._schedule.main.hardware
        assert hardware is not None
        return Rule(
            alpha=self._settings.alpha,
            checks=self._possible,
            rounds=self._settings.rounds,
            max_rounds=self._schedule.max_rounds(metric),
            tolerance=self._settings.tolerance,
            conditions=self.conditions,
            hardware_key=hardware.key,
            paired=self._schedule.against is not None,
            degenerate_share=self._settings.degenerate,
        )

    def _refuse_other(self, cell: Cell) -> None:
        """Raise where the other target's measurement of a cell is nothing to compare with."""
        other = self._schedule.against
        if other is None:
            return
        try:
            refuse(other.measurement(cell), other.settings.target.method)
        except SpeedBenchError as error:
            name = other.settings.target.name
            raise BaselineError(f"{name} is nothing to compare with: {error}") from None

    def _compared_with(self, cells: Sequence[Cell]) -> References | None:
        """The file's content, or the other target's measurements of this run."""
        other = self._schedule.against
        if other is None:
            return self._baseline
        assert other.hardware is not None
        conditions = other.conditions(self._date, self._commit)
        measured = {}
        for cell in cells:
            try:
                self._refuse_other(cell)
            except SpeedBenchError:
                continue
            measurement = other.measurement(cell)
            measured[cell] = Reference(measurement, conditions.of(measurement), other.hardware.key)
        return OtherTarget(other.settings.target.name, measured)

    def cause(self, cell: Cell, regressed: Sequence[str]) -> Cause | None:
        """Who is to blame for what regressed in a cell; None where nothing did.

        Args:
            cell: judged before.
            regressed: metrics of it.
        """
        hardware = self._schedule.main.hardware
        batch = self._schedule.group_of(cell)
        references = self._compared_with(batch)
        if not regressed or references is None or hardware is None:
            return None
        group = {
            each: Compared.of(self._schedule.measurement(each), references, hardware.key)
            for each in batch
            if any((each, metric) in self._checks for metric in regressed)
        }
        paired = self._schedule.against is not None
        if cell.is_mean:
            return explain_mean(list(group.values()), regressed, paired=paired)
        return explain(group[cell], list(group.values()), regressed, paired=paired)

    def pattern(self, cell: Cell) -> Pattern | None:
        """What the losses of acceptance length over the categories of a cell's batch have in common."""
        checks = {
            each.category: self._checks[each, "acceptance_length"]
            for each in (*self._schedule.group_of(cell), Cell(cell.split, MEAN, cell.batch_size))
            if (each, "acceptance_length") in self._checks
        }
        return pattern_of(cell.split, cell.batch_size, checks)
