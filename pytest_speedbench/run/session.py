"""One run: what is measured, judged and stored, from collection to the end of the pytest session."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_speedbench import data, engines
from pytest_speedbench.cells import Cell, Plan, in_grid_order
from pytest_speedbench.data.prompts import Dataset
from pytest_speedbench.errors import EngineError, NotMeasured, SpeedBenchError
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.explain.break_even import break_evens_of
from pytest_speedbench.gate.store import load
from pytest_speedbench.load.progress import Progress, wanted
from pytest_speedbench.metrics.pareto import pareto_curves
from pytest_speedbench.run.judge import Judge, measured, refuse_unfit
from pytest_speedbench.run.ledger import CellRun, Explanation, Ledger, Role, Side
from pytest_speedbench.run.outcome import explanations, outcome_of
from pytest_speedbench.run.provenance import provenance
from pytest_speedbench.run.results import RunResult
from pytest_speedbench.run.running_engine import RunningEngine
from pytest_speedbench.run.save import counted, save_run
from pytest_speedbench.run.schedule import Schedule
from pytest_speedbench.run.target_run import TargetRun
from pytest_speedbench.settings.methods import Method
from pytest_speedbench.settings.read import Settings
from pytest_speedbench.settings.target import Target

if TYPE_CHECKING:
    import pytest

STATE_FOLDER = ".speedbench"
EX_TEMPFAIL = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a run in which no check failed, but something could not be measured."""
_FAILED, _INTERRUPTED = 1, 2
"""pytest's exit statuses."""


@dataclass(frozen=True)
class Judgement:
    """What a test has to do about its checks."""

    failing: tuple[Check, ...] = ()
    skip: str | None = None
    """Why the test is skipped, where nothing fails it."""
    not_measured: bool = False
    """Whether everything that fails it is invalid: nothing is known of the engine, and it is safe to try again."""
    explained: Mapping[Explanation, Cell] = field(default_factory=dict)
    """What failures of other cells have explained before, and which cells those are."""


class Session:
    """One pytest session with an engine. Hooks and fixtures call it; it calls the parts of a run.

    Args:
        settings: of the run.
        config: pytest's.

    Raises:
        SettingsError: there is no such engine.
    """

    def __init__(self, settings: Settings, config: pytest.Config) -> None:
        self.settings = settings
        self._config = config
        self._terminal = _terminal(config)
        both = (settings,) if settings.against is None else (settings, settings.against)
        self._engines = {each.target.engine: engines.load(each.target.engine) for each in both}
        self._ledger = Ledger({})
        self._schedule: Schedule | None = None
        self._judge: Judge | None = None
        self._provenance = provenance(config.rootpath)
        self._failed: dict[str, bool] = {}
        """Node ids of failed tests, and whether they failed only because something could not be measured."""
        self._failures: dict[str, str] = {}
        self._billed_s: dict[Cell, float] = {}
        self._others_s: dict[str, float] = {}
        self._warnings: list[str] = []
        self._messages: list[str] = []
        self._interrupted = False
        self._saved = True
        self._sigterm: Any = None

    # before anything is launched

    def prepare(self, planned: Mapping[Cell, Plan]) -> None:
        """Read and check all that a run needs.

        Args:
            planned: the cells that tests ask for, and what they ask of each.

        Raises:
            SpeedBenchError: targets, data or baseline are not fit for a run.
        """
        settings = self.settings
        if settings.save and settings.against is not None:
            raise SpeedBenchError(
                "--speedbench-save does not go with --speedbench-against: no file is compared with"
            )
        targets = {Role.MAIN: settings}
        if settings.against is not None:
            targets[Role.AGAINST] = settings.against
        speedup = any(plan.speedup for plan in planned.values())
        if speedup and _speedup_needs_another(settings):
            plain = replace(settings, target=_without_speculation(settings.target))
            targets[Role.WITHOUT_SPECULATION] = plain
        built = {}
        for role, each in targets.items():
            built[role] = self._engines[each.target.engine](each.target)
            built[role].check()
        baseline = load(settings.baseline_path) if settings.against is None else None
        datasets = self._load_data(planned)
        logs = self._config.rootpath / STATE_FOLDER / "logs"
        runs = {
            role: TargetRun(each, built[role], datasets, logs, self._progress)
            for role, each in targets.items()
        }
        self._ledger = ledger_of(
            planned,
            {role: each.target for role, each in targets.items()},
            {role: engine.method for role, engine in built.items()},
        )
        self._schedule = Schedule(settings, self._ledger, runs)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        commit = self._provenance.described
        self._judge = Judge(settings, self._ledger, self._schedule, baseline, date, commit)
        self._heed_sigterm()

    def _load_data(self, planned: Mapping[Cell, Plan]) -> dict[str, Dataset]:
        datasets = {}
        for split in dict.fromkeys(cell.split for cell in planned):
            cells = [cell for cell in planned if cell.split == split and not cell.is_mean]
            categories = tuple(dict.fromkeys(cell.category for cell in cells))
            limits = [
                self.settings.limit if planned[cell].limit is None else planned[cell].limit for cell in cells
            ]
            known = [limit for limit in limits if limit is not None]
            most = max(known) if len(known) == len(limits) else None
            datasets[split] = data.load(split, self.settings.data, categories, most)
            self._warnings.extend(datasets[split].warnings)
        return datasets

    # while tests run

    def measure(self, cell: Cell, test: str) -> CellRun:
        """Measure a cell of the run's target; once, however often it is asked for.

        A test that asks again for a cell that it found to be invalid, as a plugin that reruns failed tests makes it do,
        has it measured anew. What was judged never is.

        Args:
            cell: planned.
            test: node id of the test that asks.

        Raises:
            NotMeasured: an engine could not be started, or is gone; says why, in full for the first cell.
        """
        assert self._schedule is not None
        known = self._ledger[cell]
        again = test in known.asked_by
        if not again:
            self._ledger.update(cell, asked_by=(*known.asked_by, test))
        elif not known.settled or known.verdict is Verdict.INVALID:
            cells = self._ledger.group_of(cell) if cell.is_mean else (cell,)
            self._schedule.measure_again(cells)
            self._ledger.unsettle_invalid(cell)
        with self._billing(cell, test):
            self._schedule.measure(cell, test)
        with self._said_once(cell):
            measured(self._ledger, cell)
        return self._ledger[cell]

    def judge(self, cell: Cell, metrics: Sequence[str], test: str) -> Judgement:
        """Judge metrics of a measured cell, and decide what the test has to do about it.

        Args:
            cell: measured before.
            metrics: gated metrics' names.
            test: node id of the test that asserts.

        Raises:
            SpeedBenchError: nothing could be measured, or the other target cannot serve as a reference.
        """
        assert self._judge is not None
        if self.settings.save and not cell.is_mean:
            refuse_unfit(self._ledger, cell, self.settings.target.method)
        with self._billing(cell, test), self._said_once(cell):
            for metric in metrics:
                self._judge.settle(cell, metric)
        known = self._ledger[cell]
        checks = [known.settled[metric] for metric in metrics]
        outcome = outcome_of(
            checks,
            inconclusive=self.settings.inconclusive,
            incomparable=self.settings.incomparable,
            saving=self.settings.save,
        )
        new = [metric for metric in metrics if metric not in known.asserted]
        self._ledger.update(
            cell,
            asserted=(*known.asserted, *new),
            failing=_joined(known.failing, outcome.failing),
            notable=_joined(known.notable, outcome.notable),
        )
        self._judge.explain(cell)
        for metric in new:
            self._config.hook.pytest_speedbench_checked(
                config=self._config, cell=cell, check=known.settled[metric]
            )
        if outcome.failing:
            known = self._ledger[cell]
            unmeasured = all(_is_unmeasured(check, known) for check in outcome.failing)
            explained = self._explained(cell, outcome.failing)
            return Judgement(outcome.failing, not_measured=unmeasured, explained=explained)
        reasons = (reason for check in outcome.skipping for reason in check.reasons)
        return Judgement(skip="; ".join(reasons) or None)

    def _explained(self, cell: Cell, checks: Sequence[Check]) -> Mapping[Explanation, Cell]:
        """What failures of other cells explain already; the rest is noted as explained by this one."""
        if self._config.get_verbosity() > 0:
            return {}
        wanted = explanations(self._ledger[cell], checks)
        before = {
            each: other
            for other in self._ledger
            if other != cell
            for each in self._ledger[other].explained
            if each in wanted
        }
        new = (each for each in wanted if each not in before)
        self._ledger.update(cell, explained=tuple(dict.fromkeys((*self._ledger[cell].explained, *new))))
        return before

    def cell_run(self, cell: Cell) -> CellRun:
        """What is known of a cell now."""
        return self._ledger[cell]

    def engine(self) -> RunningEngine:
        """The engine of the run's target, started.

        Raises:
            SpeedBenchError: it could not be started, or the run is not fit to start it.
        """
        if self._schedule is None:  # no cell is gated
            self.prepare({})
        assert self._schedule is not None
        self._schedule.start_main()
        return RunningEngine(self._schedule)

    @contextmanager
    def _said_once(self, cell: Cell) -> Iterator[None]:
        """Give a reason of several lines why a cell was not measured in full for one cell alone."""
        try:
            yield
        except NotMeasured as error:
            gist, _, rest = error.reason.partition("\n")
            for other in self._ledger if rest else ():
                texts = self._ledger[other].failures.values()
                if other != cell and any(error.reason in text for text in texts):
                    text = f"{cell.id} was not measured, for the reason that {other.id} gives: {gist}"
                    raise NotMeasured(text, error.reason) from None
            raise

    @contextmanager
    def _billing(self, cell: Cell, test: str) -> Iterator[None]:
        """Note how much of the time that passes is spent on other cells than a test's own."""
        before_s = self._measuring_s
        try:
            yield
        finally:
            own_s = self._ledger[cell].measuring_s
            others_s = self._measuring_s - before_s - (own_s - self._billed_s.get(cell, 0.0))
            self._billed_s[cell] = own_s
            self._others_s[test] = self._others_s.get(test, 0.0) + others_s

    @property
    def _measuring_s(self) -> float:
        return sum(self._ledger[cell].measuring_s for cell in self._ledger.cells)

    def others_s(self, test: str) -> float:
        """Seconds that a test spent on measuring cells of other tests, less what others spent on its own; read once."""
        return self._others_s.pop(test, 0.0)

    def note_failure(self, test: str, cell: Cell | None, text: str, *, not_measured: bool) -> None:
        """Note that a test failed.

        Args:
            test: its node id.
            cell: that it gates, if it gates one.
            text: what it shows.
            not_measured: whether it failed only because something could not be measured.
        """
        self._failed[test] = self._failed.get(test, True) and not_measured
        if cell is None or cell not in self._ledger:
            self._failures[test] = text
        else:
            self._ledger.update(cell, failures={**self._ledger[cell].failures, test: text})

    def forget_failure(self, test: str, cell: Cell | None) -> None:
        """Note that a test that failed before passed when it was run again."""
        self._failed.pop(test, None)
        self._failures.pop(test, None)
        if cell is not None and cell in self._ledger:
            left = {other: text for other, text in self._ledger[cell].failures.items() if other != test}
            explained = (
                self._ledger[cell].explained if left else ()
            )  # what passed shows no failure to refer to
            self._ledger.update(cell, failures=left, explained=explained)

    # at the end

    @property
    def used(self) -> bool:
        """Whether any cell was asked for, or anything is to be said."""
        return bool(self._shown_cells() or self._messages)

    def close(self) -> None:
        """End every engine that was launched. May be called more than once."""
        if self._sigterm is not None:
            signal.signal(signal.SIGTERM, self._sigterm)
            self._sigterm = None
        for run in self._schedule.runs.values() if self._schedule else ():
            try:
                run.pause()
            except EngineError as error:
                self._messages.append(str(error))

    def finish(self, status: int) -> None:
        """Store what is to be stored.

        Args:
            status: pytest's exit status so far.
        """
        if self._schedule is None:
            return
        self._interrupted = status == _INTERRUPTED
        self._saved = self._save(status) if self.settings.save else True

    def announce(self) -> None:
        """Call the hooks that others have for what was measured: every figure is final now."""
        if self._schedule is None:
            return
        for known in self._shown_cells():
            if known.shown_measurement is not None:
                self._config.hook.pytest_speedbench_measured(
                    config=self._config, measurement=known.shown_measurement
                )
        if self.used:
            self._config.hook.pytest_speedbench_finished(config=self._config, result=self.result())

    def note_written(self, message: str, *, failed: bool) -> None:
        """Note what became of a report."""
        self._messages.append(message)
        self._saved = self._saved and not failed

    def exit_status(self, status: int) -> int:
        """The exit status of the run: 75 where no check failed, but something could not be measured.

        Args:
            status: pytest's.
        """
        if status == 0 and not self._saved:
            return _FAILED
        if status == _FAILED and self._saved and self._failed and all(self._failed.values()):
            return EX_TEMPFAIL
        return status

    def result(self) -> RunResult:
        """All that this run found."""
        assert self._schedule is not None and self._judge is not None
        cells = self._shown_cells()
        measurements = [known.measurement for known in cells if known.measurement is not None]
        log = self._schedule.main.log
        against = self.settings.against
        return RunResult(
            target=self.settings.target,
            against=None if against is None else against.target.name,
            compared_with=self._shown(self.settings.baseline_path)
            if against is None
            else against.target.name,
            save_command=self._save_command() if against is None else None,
            log=None if log is None else self._shown(log),
            conditions=self._judge.conditions,
            hardware=self._schedule.main.hardware,
            provenance=self._provenance,
            cells=cells,
            warnings=tuple(dict.fromkeys(self._warnings)),
            saving=self.settings.save,
            messages=tuple(self._messages),
            failures=dict(self._failures),
            failed_tests=tuple(self._failed),
            not_measured_tests=tuple(test for test, not_measured in self._failed.items() if not_measured),
            not_made=self._not_made(cells),
            measuring_s=self._measuring_s,
            patterns=self._patterns(cells),
            break_evens=break_evens_of(measurements),
            pareto_curves=pareto_curves(measurements),
        )

    def _shown_cells(self) -> tuple[CellRun, ...]:
        """Every cell that a test asked for; where the run was interrupted, also those that were measured for others."""
        every = [self._ledger[cell] for cell in in_grid_order(self._ledger)]
        return tuple(
            known
            for known in every
            if known.asked_by or (self._interrupted and any(side.rounds for side in known.sides.values()))
        )

    def _not_made(self, cells: Sequence[CellRun]) -> tuple[str, ...]:
        if self.settings.save or self.settings.incomparable == "fail":
            return ()
        return tuple(
            f"{known.cell.id} {check.metric}: {'; '.join(check.reasons)}"
            for known in cells
            for check in known.checks
            if check.verdict is Verdict.INCOMPARABLE and check.across_machines
        )

    def _patterns(self, cells: Sequence[CellRun]) -> tuple[Any, ...]:
        assert self._judge is not None
        groups = {(known.cell.split, known.cell.batch_size): known.cell for known in cells}
        found = (self._judge.pattern(cell) for cell in groups.values())
        return tuple(pattern for pattern in found if pattern is not None)

    def _save(self, status: int) -> bool:
        assert self._schedule is not None and self._judge is not None
        why_not = None
        failed = sum(len(self._ledger[cell].failures) for cell in self._ledger)
        if failed:
            why_not = f"{counted(failed, 'gated test')} failed"
        elif status not in (0, 1):
            why_not = "the run did not end by itself"
        asked = [cell for cell in self._ledger if self._ledger[cell].asked_by]
        cells = dict.fromkeys(
            each for cell in asked for each in (self._ledger.group_of(cell) if cell.is_mean else (cell,))
        )
        saved, messages = save_run(
            self.settings,
            [measured(self._ledger, cell) for cell in cells] if why_not is None else [],
            self._judge.conditions,
            self._schedule.main.hardware,
            why_not=why_not,
            shown=self._shown,
        )
        self._messages += messages
        return saved

    def _save_command(self) -> str:
        return shlex.join(["pytest", *self._config.invocation_params.args, "--speedbench-save"])

    def _shown(self, path: Path) -> str:
        return os.path.relpath(path, self._config.rootpath)

    def _heed_sigterm(self) -> None:
        """End as Ctrl-C does on SIGTERM, which is how CI systems end a job: results are written and engines ended."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return  # another plugin heeds it

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt("SIGTERM")

        self._sigterm = signal.signal(signal.SIGTERM, interrupt)

    def _progress(self, label: str) -> Progress:
        if self._terminal is None or not self._config.pluginmanager.hasplugin("terminalreporter"):
            return Progress(label, None)
        writer = self._config.get_terminal_writer()
        return Progress(
            label, self._terminal, columns=writer.fullwidth, column=lambda: writer.width_of_current_line
        )


def ledger_of(
    planned: Mapping[Cell, Plan], targets: Mapping[Role, Target], methods: Mapping[Role, Method]
) -> Ledger:
    """The ledger of a run before anything is measured.

    Args:
        planned: the cells that tests ask for, and what they ask of each.
        targets: of the run, by role.
        methods: theirs.
    """
    main, against = targets[Role.MAIN], targets.get(Role.AGAINST)
    over_other = against is not None and against.method == "none" and main.method != "none"
    cells = {}
    for cell, plan in planned.items():
        if cell.is_mean:
            cells[cell] = CellRun(cell, plan)
            continue
        wanted = plan.speedup or over_other
        over, reason = None, None
        if wanted and main.method == "none":
            reason = "speedup is over method none, which this target is"
        elif over_other:
            over = Role.AGAINST
        elif wanted and Role.WITHOUT_SPECULATION in targets:
            over = Role.WITHOUT_SPECULATION
        elif wanted:
            reason = "speedup needs the same target without speculation, which --speedbench-url cannot launch"
        roles = [role for role in targets if role is not Role.WITHOUT_SPECULATION or over is role]
        sides = {
            role: Side(cell, targets[role].name, methods[role], output_length=plan.output_length)
            for role in roles
        }
        cells[cell] = CellRun(cell, plan, sides, speedup_over=over, no_speedup=reason)
    return Ledger(cells)


def _is_unmeasured(check: Check, known: CellRun) -> bool:
    """Whether a check failed for want of a measurement, and not for what was measured."""
    measurement = known.measurement
    if check.verdict is not Verdict.INVALID or measurement is None:
        return check.verdict is Verdict.INVALID
    # a sound measurement that lacks a metric will lack it again: that is a failure
    return bool(measurement.problems or measurement.overload)


def _joined(known: tuple[str, ...], checks: Sequence[Check]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *(check.metric for check in checks))))


def _speedup_needs_another(settings: Settings) -> bool:
    """Whether the target without speculation has to be launched too."""
    compared = settings.against is not None and settings.against.target.method == "none"
    return settings.target.method != "none" and settings.target.url is None and not compared


def _without_speculation(target: Target) -> Target:
    return replace(
        target, name=f"{target.name}-without-speculation", method="none", draft_model=None, draft_length=0
    )


def _terminal(config: pytest.Config) -> Callable[[str], None] | None:
    """Writes to the terminal past pytest's capture, or None where a line that rewrites itself would not be seen."""
    if not wanted(is_terminal=os.isatty(1), verbosity=config.get_verbosity(), environment=os.environ):
        return None
    descriptor = os.dup(1)  # the terminal itself: descriptor 1 is captured while a test runs

    def write(text: str) -> None:
        os.write(descriptor, text.encode())

    return write
