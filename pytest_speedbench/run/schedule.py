"""Which round of which cell on which target is measured when; what comes of it goes into the ledger.

The cells of one split and batch size are a group: they are measured together, round by round in turn, so that a
machine that slows down for a minute shows in the noise between rounds, and not as the loss of one cell. Two
targets are compared in pairs of rounds, A B B A, so that what changes slowly is in both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import EngineError, NotMeasured, SpeedBenchError
from pytest_speedbench.metrics.one_round import MeasuredRound
from pytest_speedbench.run.ledger import Ledger, Role, Side
from pytest_speedbench.run.target_run import TargetRun
from pytest_speedbench.settings.read import Settings
from pytest_speedbench.speed_bench import QUALITATIVE, THROUGHPUT

REMEASURED_AT_MOST = 3
"""Rounds of one side of a cell that are measured again because the load client was late."""


class Schedule:
    """The measuring of one session.

    Args:
        settings: of the run's target.
        ledger: where rounds are written; knows the cells.
        runs: the targets by role.
    """

    def __init__(self, settings: Settings, ledger: Ledger, runs: Mapping[Role, TargetRun]) -> None:
        self.runs = runs
        self._settings = settings
        self._ledger = ledger
        self._in_turn = Role.AGAINST in runs and not settings.concurrent_targets

    @property
    def main(self) -> TargetRun:
        """The gated target."""
        return self.runs[Role.MAIN]

    def start_main(self) -> str:
        """Start the engine of the gated target unless it runs already; its base URL.

        Raises:
            EngineError: it could not be started, or it died.
        """
        if self._in_turn:
            self._pause_others(Role.MAIN)
        return self.main.start()

    def max_rounds(self, metric: str, cell: Cell) -> int:
        """Rounds at most of a metric. An engine that does not run all the time is not started again for one cell."""
        once = self._in_turn or (metric == "speedup" and Role.WITHOUT_SPECULATION in self.runs)
        rounds = self.rounds(cell)
        return rounds if once else max(rounds, self._settings.max_rounds)

    def rounds(self, cell: Cell) -> int:
        """Rounds that each cell of a group has before anything is judged: the most that a test asks of one of them."""
        asked = (self._ledger[each].plan.rounds for each in self._ledger.group_of(cell))
        return max([rounds for rounds in asked if rounds is not None], default=self._settings.rounds)

    def measure(self, cell: Cell, test: str) -> None:
        """Measure what has to be measured before a cell can be judged: its whole group, unless it is done already.

        Args:
            cell: which may be a mean.
            test: node id of the test that asks, named in later cells if it is interrupted.

        Raises:
            NotMeasured: it is to be saved, and a cell that was measured before is invalid, so that nothing can be.
        """
        group = self._ledger.cells if self._in_turn else self._ledger.group_of(cell)
        wanted = {each: self._wanted_rounds(each) for each in group}
        if not any(self._lacks_rounds(each, rounds) for each, rounds in wanted.items()):
            return
        if self._settings.save and (spoilt := self._spoils_save(self._ledger.cells)):
            raise NotMeasured(
                f"{cell.id} was not measured: {spoilt} is invalid, so that nothing can be saved"
            )
        self._interruptible(test, wanted, lambda: self._first_rounds(wanted))

    def bring_to(self, cells: Collection[Cell], rounds: int) -> None:
        """Measure cells again until they have as many rounds, on every target that they are compared on.

        Args:
            cells: measured before; those whose engine failed stay as they are.
            rounds: in total.
        """
        done = {cell: len(self._ledger[cell].main.rounds) for cell in cells}
        for number in range(min(done.values(), default=rounds), rounds):
            self._round(number, [cell for cell in cells if done[cell] <= number])

    def measure_again(self, cells: Iterable[Cell]) -> None:
        """Forget the measurements of cells that are not sound, for `measure` to measure them anew."""
        for cell in cells:
            if not all(side.is_sound for side in self._ledger[cell].sides.values()):
                self._ledger.forget_measurements(cell)
                for run in self.runs.values():
                    run.forget_failure()

    def _wanted_rounds(self, cell: Cell) -> int:
        rounds = self.rounds(cell)
        return max(rounds, self._settings.max_rounds) if self._settings.save else rounds

    def _lacks_rounds(self, cell: Cell, rounds: int) -> bool:
        """Whether a side that could have more rounds has fewer than are wanted."""
        sides = self._ledger[cell].sides.values()
        return any(side.is_sound and len(side.rounds) < rounds for side in sides)

    def _spoils_save(self, cells: Iterable[Cell]) -> str | None:
        """The first cell for which nothing will be saved: it is invalid, or lacks times that a test asserts."""
        for cell in cells:
            known = self._ledger[cell]
            asserted = known.plan.metrics
            timed = asserted is None or any(metric in asserted for metric in THROUGHPUT)
            for side in known.sides.values():
                late = any(round_.overload for round_ in side.rounds)
                if not side.is_sound or (late and timed and cell.split != QUALITATIVE):
                    return cell.id
        return None

    def _interruptible(self, test: str, wanted: Mapping[Cell, int], measure: Callable[[], None]) -> None:
        """Call `measure`; what it leaves undone when it is interrupted is marked so, with the test that was."""
        try:
            measure()
        except BaseException as interruption:
            words = str(interruption).strip().partition("\n")[0]
            kind = type(interruption).__name__
            error = f"{test} was interrupted ({words or kind})"
            for cell, rounds in wanted.items():
                for role, side in self._ledger[cell].sides.items():
                    if side.is_sound and len(side.rounds) < rounds:
                        self._ledger.update_side(cell, role, error=error)
            raise

    def _first_rounds(self, wanted: Mapping[Cell, int]) -> None:
        self._measure_without_speculation(wanted)
        for number in range(max(wanted.values())):
            cells = [cell for cell, rounds in wanted.items() if number < rounds]
            if not self._round(number, cells):
                break
        if self._settings.random_control:
            for cell in wanted:
                if cell.split != QUALITATIVE:
                    self._measure_control(cell)
        if self._in_turn:
            self._pause(self.runs.values())

    def _round(self, number: int, cells: Sequence[Cell]) -> bool:
        """One more round of each cell, on both targets where there are two; False where going on is useless."""
        for role, cell in self._order(number, cells):
            if self._in_turn:
                self._pause_others(role)
            self._add_round(role, cell, number)
            if self._settings.save and self._spoils_save([cell]):
                return False
        return True

    def _order(self, number: int, cells: Sequence[Cell]) -> Iterator[tuple[Role, Cell]]:
        """The gated target leads in even rounds and the other in odd ones: A B B A."""
        if Role.AGAINST not in self.runs:
            return ((Role.MAIN, cell) for cell in cells)
        pair = (Role.MAIN, Role.AGAINST) if number % 2 == 0 else (Role.AGAINST, Role.MAIN)
        if self._settings.concurrent_targets:
            return ((role, cell) for cell in cells for role in pair)
        return ((role, cell) for role in pair for cell in cells)

    def _measure_without_speculation(self, wanted: Mapping[Cell, int]) -> None:
        """Measure every cell whose speedup is wanted without speculation, in one start of that engine."""
        role = Role.WITHOUT_SPECULATION
        if role not in self.runs:
            return
        rounds = {
            cell: self._wanted_rounds(cell) for cell in self._ledger.cells if role in self._ledger[cell].sides
        }
        if not any(self._side_lacks(cell, role, rounds.get(cell, 0)) for cell in wanted):
            return
        self._pause_others(role)
        for number in range(max(rounds.values(), default=0)):
            for cell, least in rounds.items():
                if number < least and self._side_lacks(cell, role, number + 1):
                    self._add_round(role, cell, number)
        self._pause([self.runs[role]])

    def _side_lacks(self, cell: Cell, role: Role, rounds: int) -> bool:
        side = self._ledger[cell].sides.get(role)
        return side is not None and side.is_sound and len(side.rounds) < rounds

    def _pause_others(self, role: Role) -> None:
        self._pause(run for other, run in self.runs.items() if other is not role)

    def _pause(self, runs: Iterable[TargetRun]) -> None:
        for run in runs:
            run.pause()

    def _add_round(self, role: Role, cell: Cell, number: int) -> None:
        """Measure one round into the ledger, and again where the load client was late; an engine's fault is noted."""
        side = self._ledger[cell].sides.get(role)
        if side is None or not side.is_sound or len(side.rounds) > number:
            return
        run, plan = self.runs[role], self._ledger[cell].plan
        remeasured = side.remeasured
        begun_s = time.monotonic()
        try:
            measured = run.measure(cell, plan, len(side.rounds) + 1)
            while measured.overload and not measured.problems and remeasured < REMEASURED_AT_MOST:
                remeasured += 1
                measured = run.measure(cell, plan, len(side.rounds) + 1)
        except EngineError as error:
            self._ledger.update_side(cell, role, error=str(error))
        else:
            self._note_round(role, side, measured, remeasured, run.note(cell, plan))
        finally:
            spent_s = side.measuring_s + time.monotonic() - begun_s
            self._ledger.update_side(cell, role, measuring_s=spent_s)

    def _note_round(
        self, role: Role, side: Side, measured: MeasuredRound, remeasured: int, note: str
    ) -> None:
        rounds = (*side.rounds, measured)
        self._ledger.update_side(side.cell, role, rounds=rounds, remeasured=remeasured, note=note)

    def _measure_control(self, cell: Cell) -> None:
        """Measure one round of random tokens beside the rounds that a cell has; nothing is judged by it."""
        known = self._ledger[cell]
        if not known.main.rounds or known.main.error is not None:
            return
        try:
            measured = self.main.measure_control(cell, known.plan)
        except SpeedBenchError as error:
            self._ledger.update_side(
                cell, Role.MAIN, control_note=f"random tokens were not measured: {error}"
            )
            return
        figures = measured.figures
        if measured.problems:
            note = f"random tokens: {'; '.join(measured.problems)}"
            self._ledger.update_side(cell, Role.MAIN, control_note=note)
        elif figures.acceptance_length and figures.output_tps:
            control = {"output_tps": figures.output_tps, "acceptance_length": figures.acceptance_length}
            self._ledger.update_side(cell, Role.MAIN, random_control=control)
