"""One run: what is measured, judged, stored and reported, from collection to the end of the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_speedbench.errors import BaselineError, EngineError, SpeedBenchError

if TYPE_CHECKING:
    import pytest

    from pytest_speedbench.cells import Cell, Plan
    from pytest_speedbench.data.prompts import Dataset
    from pytest_speedbench.gate.check import Check
    from pytest_speedbench.gate.explain.cause import Cause
    from pytest_speedbench.gate.explain.pattern import Pattern
    from pytest_speedbench.load.progress import Progress
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.report.results import CellResult, RunResult
    from pytest_speedbench.run.judge import Judge
    from pytest_speedbench.run.running_engine import RunningEngine
    from pytest_speedbench.run.schedule import Schedule
    from pytest_speedbench.settings.read import Settings
    from pytest_speedbench.settings.target import Target

STATE_FOLDER = ".speedbench"
EX_TEMPFAIL = 75
"""Exit status of a run that may be repeated: no check failed. Named as in sysexits.h."""


@dataclass(frozen=True)
class Judgement:
    """What a test has to say about its checks."""

    failure: str | None = None
    not_measured: bool = False
    """Whether the failure says nothing about the engine, but that it could not be measured."""
    skip: str | None = None


class Session:
    """State of one pytest session with an engine. Hooks and fixtures call it; it calls the rooms.

    Args:
        settings: of the run.
        config: pytest's.

    Raises:
        SettingsError: there is no such engine.
    """

    def __init__(self, settings: Settings, config: pytest.Config) -> None:
        from pytest_speedbench.engines import load

        self.settings = settings
        self.failed: list[str] = []
        """Node ids of failed tests that gate a cell: nothing is saved then."""
        self.not_measured: set[str] = set()
        """Node ids of tests that failed only because something could not be measured."""
        self._config = config
        self._terminal = _terminal(config)
        self._engines = {each.target.engine: load(each.target.engine) for each in self._both(settings)}
        self._schedule: Schedule | None = None
        self._judge: Judge | None = None
        self._measured: dict[Cell, Measurement] = {}
        """Of the cells that a test asked for, in that order."""
        self._judged: dict[Cell, dict[str, Check]] = {}
        self._causes: dict[Cell, Cause | None] = {}
        self._failures: dict[Cell, str] = {}
        self._warnings: list[str] = []
        self._notices: list[str] = []
        self._messages: list[str] = []

    @staticmethod
    def _both(settings: Settings) -> tuple[Settings, ...]:
        return (settings,) if settings.against is None else (settings, settings.against)

    def prepare(self, planned: Mapping[Cell, Plan]) -> None:
        """Read and check all that a run needs before anything is launched.

        Args:
            planned: the cells that tests ask for, and what they ask of each.

        Raises:
            SpeedBenchError: targets, data or baseline are not fit for a run.
        """
        from pytest_speedbench.gate.store import load
        from pytest_speedbench.run.judge import Judge
        from pytest_speedbench.run.schedule import Schedule
        from pytest_speedbench.run.target_run import TargetRun

        settings = self.settings
        if settings.save and settings.against is not None:
            raise SpeedBenchError(
                "--speedbench-save does not go with --speedbench-against: no file is compared with"
            )
        wanted = {"main": settings}
        if settings.against is not None:
            wanted["against"] = settings.against
        if any(plan.speedup for plan in planned.values()) and _speedup_needs_another(settings):
            wanted["without_speculation"] = replace(settings, target=_without_speculation(settings.target))
        engines = {}
        for role, each in wanted.items():
            engines[role] = self._engines[each.target.engine](each.target)
            engines[role].check()
        baseline = load(settings.baseline_path) if settings.against is None else None
        datasets = self._load_data(planned)
        logs = self._config.rootpath / STATE_FOLDER / "logs"
        runs = {
            role: TargetRun(each, engines[role], datasets, logs, self._progress)
            for role, each in wanted.items()
        }
        self._schedule = Schedule(settings, planned, **runs)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._judge = Judge(settings, self._schedule, planned, baseline, date, _commit(self._config.rootpath))

    def _load_data(self, planned: Mapping[Cell, Plan]) -> dict[str, Dataset]:
        from pytest_speedbench.data import load

        datasets = {}
        for split in dict.fromkeys(cell.split for cell in planned):
            cells = [cell for cell in planned if cell.split == split and not cell.is_mean]
            categories = tuple(dict.fromkeys(cell.category for cell in cells))
            datasets[split] = load(split, self.settings.data, categories, self.settings.limit)
            self._warnings.extend(datasets[split].warnings)
        return datasets

    def engine(self) -> RunningEngine:
        """The engine of the run's target, started.

        Raises:
            SpeedBenchError: it could not be started, or the run is not fit to start it.
        """
        from pytest_speedbench.run.running_engine import RunningEngine

        if self._schedule is None:  # no cell is gated
            self.prepare({})
        assert self._schedule is not None
        self._schedule.start_main()
        return RunningEngine(self._schedule)

    def measure(self, cell: Cell) -> Measurement:
        """Measure a cell of the run's target; once, however often it is asked for.

        Raises:
            SpeedBenchError: an engine could not be started, or is gone.
        """
        assert self._schedule is not None
        measurement = self._schedule.measurement(cell)
        if cell not in self._measured:
            self._measured[cell] = measurement
            self._config.hook.pytest_speedbench_measured(config=self._config, measurement=measurement)
        return measurement

    def judge(self, cell: Cell, metrics: Sequence[str]) -> Judgement:
        """Judge metrics of a measured cell, and say what the test has to do about it.

        Args:
            cell: measured before.
            metrics: gated metrics' names.
        """
        from pytest_speedbench.gate.baseline import refuse
        from pytest_speedbench.gate.check import Verdict
        from pytest_speedbench.report.failure import failure_text
        from pytest_speedbench.run.outcome import outcome_of

        assert self._schedule is not None and self._judge is not None
        try:
            if self.settings.save and not cell.is_mean:
                refuse(self._schedule.measurement(cell), self.settings.target.method)
            checks = [self._judge.check(cell, metric) for metric in metrics]
            self._measured[cell] = self._schedule.measurement(cell)  # it may have had more rounds
        except SpeedBenchError as error:
            return Judgement(failure=str(error), not_measured=isinstance(error, EngineError))
        judged = self._judged.setdefault(cell, {})
        for check in checks:
            if check.metric not in judged:
                judged[check.metric] = check
                self._config.hook.pytest_speedbench_checked(config=self._config, cell=cell, check=check)
        regressed = [metric for metric, check in judged.items() if check.verdict is Verdict.REGRESSION]
        self._causes[cell] = self._judge.cause(cell, regressed)
        outcome = outcome_of(checks, inconclusive=self.settings.inconclusive, saving=self.settings.save)
        log = self._schedule.main.log

        def text(shown: Sequence[Check]) -> str:
            return failure_text(
                self._cell_result(cell),
                shown,
                self.settings.target,
                baseline=self._compared_with(),
                log=self._shown(log) if log else None,
                save_command=self._save_command(),
            )

        if outcome.failing:
            self._failures[cell] = text(checks)
            # a sound measurement that lacks a metric will lack it again: that is a failure
            invalid = all(check.verdict is Verdict.INVALID for check in outcome.failing)
            not_measured = invalid and bool(self._measured[cell].problems)
            return Judgement(failure=self._failures[cell], not_measured=not_measured)
        if outcome.notable:
            self._notices.append(text(outcome.notable))
        return Judgement(
            skip="; ".join(reason for check in outcome.skipping for reason in check.reasons) or None
        )

    def _compared_with(self) -> str:
        if self.settings.against is not None:
            return self.settings.against.target.name
        return self._shown(self.settings.baseline_path)

    def _save_command(self) -> str | None:
        import shlex

        if self.settings.against is not None:
            return None
        return shlex.join(["pytest", *self._config.invocation_params.args, "--speedbench-save"])

    def _cell_result(self, cell: Cell) -> CellResult:
        from pytest_speedbench.report.results import CellResult

        return CellResult(
            self._measured[cell],
            tuple(self._judged.get(cell, {}).values()),
            self._causes.get(cell),
            self._failures.get(cell),
            self._judge.pattern(cell) if self._judge is not None and cell.is_mean else None,
        )

    @property
    def used(self) -> bool:
        """Whether any cell was measured, or anything is to be said."""
        return bool(self._measured or self._messages)

    def close(self) -> None:
        """End every engine that was launched. May be called more than once."""
        for run in self._schedule.runs if self._schedule else ():
            try:
                run.pause()
            except EngineError as error:
                self._messages.append(str(error))

    def exit_status(self, status: int, failures: int) -> int:
        """The run's exit status: `EX_TEMPFAIL` where nothing failed but what could not be measured.

        Args:
            status: pytest's own.
            failures: tests that failed or had errors, ours and others, and files that could not be collected.
        """
        only = status == 1 and 0 < failures == len(self.not_measured)
        return EX_TEMPFAIL if only else status

    def finish(self, exit_status: int) -> bool:
        """Write baselines and results.

        Args:
            exit_status: of the session so far.

        Returns:
            Whether everything that was to be written could be written.
        """
        if self._schedule is None:
            return True
        written = self._save(exit_status) if self.settings.save else True
        for path, write in ((self.settings.json, "json_file"), (self.settings.report, "markdown")):
            if path is None:
                continue
            from importlib import import_module

            module: Any = import_module(f"pytest_speedbench.report.{write}")
            try:
                module.write(path, self.result())
            except OSError as error:
                self._messages.append(f"{path} could not be written: {error.strerror}")
                written = False
        return written

    def _save(self, exit_status: int) -> bool:
        from pytest_speedbench.gate.baseline import merge
        from pytest_speedbench.gate.store import load, save

        assert self._schedule is not None and self._judge is not None
        path, hardware = self.settings.baseline_path, self._schedule.main.hardware
        why_not = None
        if self.failed:
            why_not = f"{_counted(len(self.failed), 'gated test')} failed"
        elif exit_status not in (0, 1):
            why_not = "the run did not end by itself"
        elif hardware is None or not self._measured:
            why_not = "no cell was measured"
        if why_not is not None or hardware is None:
            self._messages.append(f"nothing was saved to {self._shown(path)}: {why_not}")
            return True
        measured = {
            each: self._schedule.measurement(each)
            for cell in self._measured
            for each in (self._schedule.group_of(cell) if cell.is_mean else (cell,))
        }
        try:
            merged = merge(
                self.settings.target.name,
                load(path),  # again: another run may have saved other cells meanwhile
                list(measured.values()),
                self._judge.conditions,
                hardware.key,
            )
            save(path, merged)
        except BaselineError as error:
            self._messages.append(f"nothing was saved: {error}")
            return False
        self._messages.append(
            f"saved {_counted(len(measured), 'cell')} to {self._shown(path)}; look at the change before you commit it"
        )
        return True

    def _shown(self, path: Path) -> str:
        return os.path.relpath(path, self._config.rootpath)

    def result(self) -> RunResult:
        """All that this run found, for the report."""
        from pytest_speedbench.gate.explain.break_even import break_evens_of
        from pytest_speedbench.metrics.pareto import pareto_curves
        from pytest_speedbench.report.results import RunResult

        assert self._schedule is not None and self._judge is not None
        return RunResult(
            target=self.settings.target,
            against=self.settings.against.target.name if self.settings.against else None,
            conditions=self._judge.conditions,
            hardware=self._schedule.main.hardware,
            cells=tuple(self._cell_result(cell) for cell in self._measured),
            warnings=tuple(dict.fromkeys(self._warnings)),
            notices=tuple(self._notices),
            saving=self.settings.save,
            messages=tuple(self._messages),
            patterns=self._patterns(),
            break_evens=break_evens_of(self._measured.values()),
            pareto_curves=pareto_curves(self._measured.values()),
        )

    def _patterns(self) -> tuple[Pattern, ...]:
        assert self._judge is not None
        batches = {(cell.split, cell.batch_size): cell for cell in self._measured}
        found = (self._judge.pattern(cell) for cell in batches.values())
        return tuple(pattern for pattern in found if pattern is not None)

    def _progress(self, label: str) -> Progress:
        from pytest_speedbench.load.progress import Progress

        if self._terminal is None or not self._config.pluginmanager.hasplugin("terminalreporter"):
            return Progress(label, None)
        writer = self._config.get_terminal_writer()
        return Progress(
            label, self._terminal, columns=writer.fullwidth, column=lambda: writer.width_of_current_line
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _speedup_needs_another(settings: Settings) -> bool:
    """Whether the target without speculation has to be launched besides."""
    compared = settings.against is not None and settings.against.target.method == "none"
    return settings.target.method != "none" and settings.target.url is None and not compared


def _without_speculation(target: Target) -> Target:
    return replace(
        target, name=f"{target.name}-without-speculation", method="none", draft_model=None, draft_length=0
    )


def _commit(folder: Path) -> str | None:
    """The commit checked out in a folder, or None outside git."""
    import subprocess

    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _terminal(config: pytest.Config) -> Callable[[str], None] | None:
    """Writes to the terminal past pytest's capture, or None where nobody would see a line rewrite itself."""
    from pytest_speedbench.load.progress import wanted

    if not wanted(is_terminal=os.isatty(1), verbosity=config.get_verbosity(), environment=os.environ):
        return None
    descriptor = os.dup(1)  # the terminal itself: descriptor 1 is captured while a test runs

    def write(text: str) -> None:
        os.write(descriptor, text.encode())

    return write
