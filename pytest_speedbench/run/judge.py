"""Judges the cells of a session by the rules of `gate`, with more rounds where a check is inconclusive."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import BaselineError, NotMeasured, SpeedBenchError
from pytest_speedbench.gate.baseline import (
    Baseline,
    Conditions,
    OtherTarget,
    Reference,
    References,
    refuse,
)
from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.gate.explain.cause import Cause, explain, explain_mean
from pytest_speedbench.gate.explain.decomposition import Compared
from pytest_speedbench.gate.explain.pattern import Pattern, pattern_of
from pytest_speedbench.gate.sequential import Measured, Rule, judge_group
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.run.ledger import Ledger, Role
from pytest_speedbench.run.schedule import Schedule
from pytest_speedbench.settings.read import Settings


class Judge:
    """Every check of a session, each settled once and then kept in the ledger.

    Args:
        settings: of the run.
        ledger: what is known of each cell, and what tests ask of it.
        schedule: measures what is judged.
        baseline: what is stored of the target; None where nothing is, or where another target is compared with.
        date: of the run, ISO 8601.
        commit: of the repository under test.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        schedule: Schedule,
        baseline: Baseline | None,
        date: str,
        commit: str | None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._schedule = schedule
        self._baseline = baseline
        self._date = date
        self._commit = commit
        self._possible = sum(len(ledger[cell].plan.judged) for cell in ledger)
        """Upper bound on the number of checks; unused ones make the run stricter than alpha."""

    @property
    def conditions(self) -> Conditions:
        """Conditions of the run's target."""
        return self._schedule.main.conditions(self._date, self._commit)

    def settle(self, cell: Cell, metric: str) -> None:
        """Judge a metric of a cell unless that is done; its whole group is judged with it.

        Args:
            cell: measured before.
            metric: one of the gated ones.

        Raises:
            SpeedBenchError: nothing could be measured, or the other target cannot serve as a reference.
        """
        if metric in self._ledger[cell].settled:
            return
        sound = []
        for each in self._ledger.group_of(cell):
            try:
                measured(self._ledger, each)
                self._refuse_other(each)
            except SpeedBenchError:
                if each == cell or cell.is_mean:
                    raise
            else:
                sound.append(each)
        asked = dict.fromkeys(sound, (metric,))
        mean = self._ledger.mean_of(cell)
        if mean is not None and {member.cell for member in self._ledger[mean].members} <= set(sound):
            asked[mean] = (metric,)

        def measure(cells: Collection[Cell], rounds: int) -> Measured:
            self._schedule.bring_to(cells, rounds)
            measurements = {each: measured(self._ledger, each) for each in sound}
            return Measured(measurements, self._compared_with(sound))

        checks, _ = judge_group(asked, measure, self._rule(metric, cell))
        for each, of_cell in checks.items():
            if metric not in self._ledger[each].settled:
                settled = {**self._ledger[each].settled, metric: of_cell[metric]}
                self._ledger.update(each, settled=settled)

    def explain(self, cell: Cell) -> None:
        """Note who is to blame for what tests found to have regressed in a cell, and what a mean's losses share."""
        known = self._ledger[cell]
        regressed = [check.metric for check in known.checks if check.verdict is Verdict.REGRESSION]
        pattern = self.pattern(cell) if cell.is_mean else None
        self._ledger.update(cell, cause=self._cause(cell, regressed), pattern=pattern)

    def pattern(self, cell: Cell) -> Pattern | None:
        """What the losses of acceptance length over the categories of a cell's group have in common."""
        mean = self._ledger.mean_of(cell)
        cells = (*self._ledger.group_of(cell), *(() if mean is None else (mean,)))
        checks = {
            each.category: self._ledger[each].settled["acceptance_length"]
            for each in cells
            if "acceptance_length" in self._ledger[each].settled
        }
        return pattern_of(cell.split, cell.batch_size, checks)

    def _rule(self, metric: str, cell: Cell) -> Rule:
        hardware = self._schedule.main.hardware
        assert hardware is not None
        mean = self._ledger.mean_of(cell)
        return Rule(
            alpha=self._settings.alpha,
            checks=self._possible,
            rounds=self._schedule.rounds(cell),
            max_rounds=self._schedule.max_rounds(metric, cell),
            tolerance=self._tolerance,
            conditions=self.conditions,
            hardware_key=hardware.key,
            paired=Role.AGAINST in self._schedule.runs,
            degenerate_share=self._settings.degenerate,
            left_out_of_mean=() if mean is None else self._ledger[mean].plan.exclude_from_mean,
        )

    def _tolerance(self, metric: str, cell: Cell) -> float:
        return self._ledger[cell].plan.tolerance.get(metric, self._settings.tolerance(metric, cell))

    def _refuse_other(self, cell: Cell) -> None:
        """Raise where the other target's measurement of a cell cannot serve as a reference."""
        run = self._schedule.runs.get(Role.AGAINST)
        if run is None:
            return
        try:
            refuse(measured(self._ledger, cell, Role.AGAINST), run.settings.target.method)
        except SpeedBenchError as error:
            text = f"{run.settings.target.name} cannot serve as a reference: {error}"
            if isinstance(error, NotMeasured):
                raise NotMeasured(text, error.reason) from None
            raise BaselineError(text) from None

    def _compared_with(self, cells: Sequence[Cell]) -> References | None:
        """The file's content, or the other target's measurements of this run."""
        other = self._schedule.runs.get(Role.AGAINST)
        if other is None:
            return self._baseline
        assert other.hardware is not None
        conditions, hardware_key = other.conditions(self._date, self._commit), other.hardware.key
        references = {}
        for cell in cells:
            try:
                self._refuse_other(cell)
            except SpeedBenchError:
                continue
            measurement = measured(self._ledger, cell, Role.AGAINST)
            references[cell] = Reference(measurement, conditions.of(measurement), hardware_key)
        return OtherTarget(other.settings.target.name, references)

    def _cause(self, cell: Cell, regressed: Sequence[str]) -> Cause | None:
        """Who is to blame for what regressed in a cell; None where nothing did."""
        hardware = self._schedule.main.hardware
        group = self._ledger.group_of(cell)
        references = self._compared_with(group) if regressed else None
        if references is None or hardware is None:
            return None
        compared = {
            each: Compared.of(measured(self._ledger, each), references, hardware.key)
            for each in group
            if any(metric in self._ledger[each].settled for metric in regressed)
        }
        paired = Role.AGAINST in self._schedule.runs
        if cell.is_mean:
            return explain_mean(list(compared.values()), regressed, paired=paired)
        return explain(compared[cell], list(compared.values()), regressed, paired=paired)


def measured(ledger: Ledger, cell: Cell, role: Role = Role.MAIN) -> Measurement:
    """The measurement of one cell by one target.

    Args:
        ledger: of the run.
        cell: which may be a mean for `Role.MAIN`.
        role: which target's.

    Raises:
        NotMeasured: there is none, for the reason that the ledger has.
    """
    known = ledger[cell]
    if role is Role.MAIN:
        measurement, error = known.measurement, known.error
    else:
        measurement, error = known.sides[role].measurement, known.sides[role].error
    if measurement is None:
        reason = error or "no test asked for it"
        raise NotMeasured(f"{cell.id} was not measured: {reason}", reason)
    return measurement


def refuse_unfit(ledger: Ledger, cell: Cell, method: str) -> None:
    """Raise where a cell's measurement cannot become a baseline, and note why.

    Args:
        ledger: of the run.
        cell: measured before, not a mean.
        method: of the target.

    Raises:
        BaselineError: it must never be compared with; says why.
    """
    try:
        refuse(measured(ledger, cell), method)
    except BaselineError as error:
        ledger.update(cell, refused=str(error))
        raise
