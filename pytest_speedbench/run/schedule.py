"""Which round of which cell on which target is measured when.

The cells of one split and batch size are measured together, round by round in turn: a machine that slows down
for a minute then shows in the noise between rounds, and not as the loss of one cell. Two targets are compared
in pairs of rounds, A B B A, so that what changes slowly is in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from pytest_speedbench.speed_bench import QUALITATIVE

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell, Plan
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.run.target_run import TargetRun
    from pytest_speedbench.settings.read import Settings


class Schedule:
    """The measuring of one session.

    Args:
        settings: of the run's target.
        planned: the cells that tests ask for, and what they ask of each.
        main: the run's target.
        against: the target to compare with, in pairs of rounds; if its method is `none`, the speedup is over it.
        without_speculation: the run's target with method `none`, for the speedup.
    """

    def __init__(
        self,
        settings: Settings,
        planned: Mapping[Cell, Plan],
        main: TargetRun,
        against: TargetRun | None = None,
        without_speculation: TargetRun | None = None,
    ) -> None:
        self.main = main
        self.against = against
        self._settings = settings
        self._without_speculation = without_speculation
        self._cells = [cell for cell in planned if not cell.is_mean]
        plain = against if against is not None and _is_plain(against) and not _is_plain(main) else None
        self._plain = plain or without_speculation
        """Whose output TPS the speedup is over."""
        self._speedup = {cell for cell in self._cells if planned[cell].speedup or plain is not None}
        self._in_turn = against is not None and not settings.concurrent_targets
        self._prepared = False
        self._begun: set[Cell] = set()

    def max_rounds(self, metric: str) -> int:
        """Rounds at most of a metric. An engine that does not run all the time is not started again for one cell."""
        once = self._in_turn or (metric == "speedup" and self._without_speculation is not None)
        return self._settings.rounds if once else self._settings.max_rounds

    @property
    def _planned_rounds(self) -> int:
        """How many every cell has, before anything is judged."""
        return self._settings.max_rounds if self._settings.save else self._settings.rounds

    @property
    def runs(self) -> tuple[TargetRun, ...]:
        """Every target of this session."""
        every = (self.main, self.against, self._without_speculation)
        return tuple(run for run in every if run is not None)

    def group_of(self, cell: Cell) -> tuple[Cell, ...]:
        """The planned cells of the same split and batch size, in the order of the grid."""
        return tuple(other for other in self._cells if other.shares_group(cell))

    def measurement(self, cell: Cell) -> Measurement:
        """All metrics of one cell of the run's target; measures its whole batch if it is not yet measured.

        Raises:
            EngineError: the engine could not be started, or is gone.
        """
        self._first_rounds(cell)
        if cell.is_mean:
            from pytest_speedbench.metrics.combine_rounds import mean_over_categories

            return mean_over_categories(cell, [self.measurement(each) for each in self.group_of(cell)])
        return self._with_speedup(self.main.measurement(cell))

    def bring_to(self, cells: Iterable[Cell], rounds: int) -> None:
        """Measure cells again until they have as many rounds, on every target that they are compared on.

        Args:
            cells: measured before; those that came to grief stay as they are.
            rounds: in total.
        """
        missing = {cell: rounds - self.main.rounds(cell) for cell in cells}
        for number in range(max(missing.values(), default=0)):
            self._round(number, [cell for cell, more in missing.items() if more > number])

    def start_main(self) -> str:
        """Start the engine of the run's target unless it runs already; its base URL.

        Raises:
            EngineError: it could not be started, or it died.
        """
        if self._in_turn:
            self._pause_others(self.main)
        return self.main.start()

    def _pause_others(self, run: TargetRun) -> None:
        for other in self.runs:
            if other is not run:
                other.pause()

    def _first_rounds(self, cell: Cell) -> None:
        """Measure what has to be measured before a cell can be judged."""
        cells = self._cells if self._in_turn else self.group_of(cell)
        if self._begun.issuperset(cells):
            return
        self._begun.update(cells)
        self._measure_without_speculation()
        for number in range(self._planned_rounds):
            self._round(number, cells)
        if self._settings.random_control:
            for each in cells:
                if each.split != QUALITATIVE:
                    self.main.measure_control(each)
        if self._in_turn:
            for run in self.runs:
                run.pause()

    def _round(self, number: int, cells: Iterable[Cell]) -> None:
        """One more round of each cell, on both targets where there are two."""
        for run, cell in self._order(number, list(cells)):
            if self._in_turn:
                self._pause_others(run)
            run.add_round(cell)

    def _order(self, number: int, cells: list[Cell]) -> Iterator[tuple[TargetRun, Cell]]:
        """The first target leads in even rounds and the other in odd ones: A B B A."""
        if self.against is None:
            return ((self.main, cell) for cell in cells)
        pair = (self.main, self.against) if number % 2 == 0 else (self.against, self.main)
        if self._settings.concurrent_targets:
            return ((run, cell) for cell in cells for run in pair)
        return ((run, cell) for run in pair for cell in cells)

    def _measure_without_speculation(self) -> None:
        run = self._without_speculation
        if run is None or self._prepared:
            return
        self._prepared = True
        self._pause_others(run)  # a test may have started the engine before any cell is measured
        cells = [cell for cell in self._cells if cell in self._speedup]
        for _ in range(self._planned_rounds):
            for cell in cells:
                run.add_round(cell)
        run.pause()

    def _with_speedup(self, measurement: Measurement) -> Measurement:
        """Add the speedup, of every round and of the cell, or the reason why there is none."""
        cell = measurement.cell
        if cell not in self._speedup:
            return measurement
        reason = None
        without = None
        if _is_plain(self.main):
            reason = "speedup is over method none, which this target is"
        elif self._plain is None:
            reason = "speedup needs the same target without speculation, which --speedbench-url cannot launch"
        else:
            without = self._plain.measurement(cell)
            if without.problems or "output_tps" not in without.metrics:
                reason = (
                    f"without speculation: {'; '.join(without.problems) or without.missing.get('output_tps')}"
                )
        if "output_tps" not in measurement.metrics:
            reason = measurement.missing.get("output_tps", "there is no output TPS")
        if reason is not None or without is None:
            return replace(measurement, missing={**measurement.missing, "speedup": reason or ""})
        rounds = [
            replace(figures, speedup=figures.output_tps / other.output_tps)
            if figures.output_tps and other.output_tps
            else figures
            for figures, other in zip(measurement.rounds, without.rounds, strict=False)
        ]
        speedups = [figures.speedup for figures in rounds if figures.speedup is not None]
        return replace(
            measurement,
            metrics={**measurement.metrics, "speedup": median(speedups)},
            rounds=(*rounds, *measurement.rounds[len(rounds) :]),
        )


def _is_plain(run: TargetRun) -> bool:
    return run.settings.target.method == "none"
