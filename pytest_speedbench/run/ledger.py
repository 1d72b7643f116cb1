"""What a run knows of each cell: one place, which tests, hooks, reports and files all read.

Everything here is frozen data. The ledger replaces a `CellRun` by its successor; what follows from the rounds of a
cell (its measurement) is computed from them and kept nowhere else, so that there is no second figure to be stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any, TypeAlias

from pytest_speedbench.cells import Cell, Plan
from pytest_speedbench.gate.check import SEVERITY, Check, Verdict
from pytest_speedbench.gate.explain.cause import Cause
from pytest_speedbench.gate.explain.pattern import Pattern
from pytest_speedbench.metrics.combine_rounds import combine, mean_over_categories
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.metrics.one_round import MeasuredRound
from pytest_speedbench.metrics.speedup import with_speedup
from pytest_speedbench.settings.methods import Method

Explanation: TypeAlias = tuple[str, ...]
"""Identifies what a failure explains at length, once in a run; see `outcome.explanations`."""


class Role(str, Enum):
    """What a target is in a run."""

    MAIN = "main"
    """The target that is gated."""
    AGAINST = "against"
    """The target that it is compared with in this same run."""
    WITHOUT_SPECULATION = "without_speculation"
    """The gated target with method `none`, which its speedup is over."""


@dataclass(frozen=True)
class Side:
    """What the engine of one target gave of one cell."""

    cell: Cell
    target: str
    """Name of the target."""
    method: Method
    rounds: tuple[MeasuredRound, ...] = ()
    """In the order in which they were measured; a round that was measured again is not among them."""
    remeasured: int = 0
    """Rounds that were measured again because the load client had been late."""
    error: str | None = None
    """Why no further round can be measured: the engine did not start, died, or a test was interrupted."""
    output_length: int | None = None
    """Output tokens of each request, where tests ask for another number than the run."""
    note: str = ""
    """About the prompts as they went out."""
    random_control: Mapping[str, float] | None = None
    """Metrics of one round of random tokens."""
    control_note: str = ""
    """Why there is no random control, or what is wrong with it."""
    measuring_s: float = 0.0
    """Wall time of all its rounds, warm-up included."""

    @property
    def is_sound(self) -> bool:
        """Whether a further round could add to it."""
        return self.error is None and not any(round_.problems for round_ in self.rounds)

    @cached_property
    def measurement(self) -> Measurement | None:
        """All metrics from the rounds so far; None before the first.

        An engine that failed after the first round is a problem of the measurement.
        """
        if not self.rounds:
            return None
        whole = combine(self.cell, self.method, self.rounds)
        notes = [self.note, self.control_note]
        if self.remeasured:
            rounds = "1 round was" if self.remeasured == 1 else f"{self.remeasured} rounds were"
            notes.append(f"{rounds} measured again: the load client had been late")
        problems = () if self.error is None else (f"round {len(self.rounds) + 1}: {self.error}",)
        return replace(
            whole,
            notes=(*whole.notes, *(note for note in notes if note)),
            problems=(*whole.problems, *problems),
            random_control=self.random_control,
            output_length=self.output_length,
        )


@dataclass(frozen=True)
class CellRun:
    """One cell of a run: what was asked, measured, judged and shown of it."""

    cell: Cell
    plan: Plan
    """What tests ask of it."""
    sides: Mapping[Role, Side] = field(default_factory=dict)
    """By role; empty for a mean."""
    members: tuple[CellRun, ...] = ()
    """Of a mean: the cells that it is the mean over."""
    speedup_over: Role | None = None
    """Whose output TPS the speedup is over; None where no speedup is wanted, or there is none."""
    no_speedup: str | None = None
    """Why a speedup that is wanted cannot be known."""
    asked_by: tuple[str, ...] = ()
    """Node ids of the tests that measured it."""
    settled: Mapping[str, Check] = field(default_factory=dict)
    """By metric, judged with its group, whether a test asserts it or not."""
    asserted: tuple[str, ...] = ()
    """Metrics that tests assert, in that order."""
    failing: tuple[str, ...] = ()
    """Metrics whose check fails a test."""
    notable: tuple[str, ...] = ()
    """Metrics whose check fails nothing, and that a person should look at: stale baselines, inconclusive ones."""
    refused: str | None = None
    """Why it cannot become a baseline, where it was to be saved."""
    cause: Cause | None = None
    """Set where a check is a regression."""
    pattern: Pattern | None = None
    """Of a mean: what the losses of its categories have in common."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """What tests show that fail, by node id."""
    explained: tuple[Explanation, ...] = ()
    """What its failures explain at length; those of other cells refer to it."""

    @property
    def main(self) -> Side:
        """What the gated target gave."""
        return self.sides[Role.MAIN]

    @cached_property
    def measurement(self) -> Measurement | None:
        """All metrics of the gated target; None where nothing was measured.

        Of a mean: the unweighted mean over its members, None unless all of them were measured.
        """
        if self.cell.is_mean:
            every = [member.measurement for member in self.members]
            known = [each for each in every if each is not None]
            return mean_over_categories(self.cell, known) if known and len(known) == len(every) else None
        measured = self.main.measurement
        if measured is None or (self.speedup_over is None and self.no_speedup is None):
            return measured
        if self.speedup_over is None:
            return with_speedup(measured, None, self.no_speedup)
        plain = self.sides[self.speedup_over]
        reason = None if plain.rounds else f"without speculation: {plain.error or 'not measured'}"
        return with_speedup(measured, plain.measurement, reason)

    @property
    def error(self) -> str | None:
        """Why nothing was measured; None where there is a measurement, or nothing was tried yet."""
        if self.measurement is not None:
            return None
        if self.cell.is_mean:
            return next((member.error for member in self.members if member.error is not None), None)
        return self.main.error

    @property
    def checks(self) -> tuple[Check, ...]:
        """What tests judged of it."""
        return tuple(self.settled[metric] for metric in self.asserted if metric in self.settled)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Every metric as it is shown: as judged where a check has judged it, else as measured last."""
        measured = {} if self.measurement is None else dict(self.measurement.metrics)
        judged = {check.metric: check.value for check in self.checks if check.value is not None}
        return {**measured, **{metric: value for metric, value in judged.items() if metric in measured}}

    @property
    def shown_measurement(self) -> Measurement | None:
        """The measurement with every metric as it is shown: what tests and hooks are given."""
        return None if self.measurement is None else replace(self.measurement, metrics=self.metrics)

    @property
    def measuring_s(self) -> float:
        """Wall time of measuring this cell, on every target; 0 for a mean."""
        return sum(side.measuring_s for side in self.sides.values())

    @property
    def verdict(self) -> Verdict | None:
        """The worst of its checks; `invalid` where the measurement is, None where nothing was judged."""
        if self.error is not None or (self.measurement is not None and self.measurement.problems):
            return Verdict.INVALID
        return max((check.verdict for check in self.checks), key=SEVERITY.index, default=None)


class Ledger:
    """The cells of one run, by what tests planned.

    Args:
        cells: as they stand before anything is measured; means have no members yet.
    """

    def __init__(self, cells: Mapping[Cell, CellRun]) -> None:
        self._cells = dict(cells)

    def __getitem__(self, cell: Cell) -> CellRun:
        """What is known of a cell now."""
        known = self._cells[cell]
        if not cell.is_mean:
            return known
        counted = (each for each in self.group_of(cell) if each.category not in known.plan.exclude_from_mean)
        return replace(known, members=tuple(map(self._cells.__getitem__, counted)))

    def __iter__(self) -> Iterator[Cell]:
        """Every cell that is planned, means among them, in the order of the tests."""
        return iter(self._cells)

    def __contains__(self, cell: object) -> bool:
        return cell in self._cells

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that are measured: all but the means."""
        return tuple(cell for cell in self._cells if not cell.is_mean)

    def group_of(self, cell: Cell) -> tuple[Cell, ...]:
        """The cells that are measured together with one: of the same split and batch size, means left out."""
        return tuple(other for other in self.cells if other.shares_group(cell))

    def mean_of(self, cell: Cell) -> Cell | None:
        """The planned mean over the group of a cell."""
        means = (other for other in self._cells if other.is_mean and other.shares_group(cell))
        return next(means, None)

    def update(self, cell: Cell, **changes: Any) -> None:
        """Replace fields of a cell's `CellRun`."""
        self._cells[cell] = replace(self._cells[cell], **changes)

    def update_side(self, cell: Cell, role: Role, **changes: Any) -> None:
        """Replace fields of one side of a cell."""
        known = self._cells[cell]
        side = replace(known.sides[role], **changes)
        self.update(cell, sides={**known.sides, role: side})

    def unsettle_invalid(self, cell: Cell) -> None:
        """Forget the checks of a cell that found it to be invalid, and of those that share its fate: it is judged anew."""
        for each in (cell, *self.group_of(cell), *filter(None, [self.mean_of(cell)])):
            known = self._cells[each]
            sound = {m: check for m, check in known.settled.items() if check.verdict is not Verdict.INVALID}
            invalid = known.settled.keys() - sound.keys()
            self.update(
                each,
                settled=sound,
                failing=tuple(metric for metric in known.failing if metric not in invalid),
            )

    def forget_measurements(self, cell: Cell) -> None:
        """Forget what was measured of a cell that was never judged, so that it can be measured anew."""
        fresh = {
            role: Side(
                cell, side.target, side.method, output_length=side.output_length, measuring_s=side.measuring_s
            )
            for role, side in self._cells[cell].sides.items()
        }
        self.update(cell, sides=fresh, refused=None)
