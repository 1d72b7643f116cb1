"""One run: what is measured, judged, stored and reported, from collection to the end of the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_speedbench.errors import BaselineError, EngineError, SpeedBenchError

if TYPE_CHECKING:
    import pytest

    from pytest_speedbench.cells import Cell
    from pytest_speedbench.data.prompts import Dataset
    from pytest_speedbench.gate.baseline import Baseline, Conditions
    from pytest_speedbench.gate.cause import Cause
    from pytest_speedbench.gate.checks import Check
    from pytest_speedbench.load.progress import Progress
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.report.results import CellResult, RunResult
    from pytest_speedbench.settings import Settings, Target
    from pytest_speedbench.target_run import TargetRun

STATE_FOLDER = ".speedbench"


@dataclass(frozen=True)
class Judgement:
    """What a test has to say about its checks."""

    failure: str | None = None
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
        self._config = config
        self._terminal = _terminal(config)
        self._engines = {each.target.engine: load(each.target.engine) for each in self._both(settings)}
        self._runs: dict[str, TargetRun] = {}
        self._planned: Mapping[Cell, bool] = {}
        self._others_measured = False
        self._baseline: Baseline | None = None
        self._measured: dict[Cell, Measurement] = {}
        self._checks: dict[Cell, dict[str, Check]] = {}
        self._causes: dict[Cell, Cause | None] = {}
        self._failures: dict[Cell, str] = {}
        self._warnings: list[str] = []
        self._notices: list[str] = []
        self._messages: list[str] = []
        self._date = datetime.now(timezone.utc).isoformat(timespec="seconds")

    @staticmethod
    def _both(settings: Settings) -> tuple[Settings, ...]:
        return (settings,) if settings.against is None else (settings, settings.against)

    def prepare(self, planned: Mapping[Cell, bool]) -> None:
        """Read and check all that a run needs before anything is launched.

        Args:
            planned: the cells that tests ask for, and whether their speedup is asked for too.

        Raises:
            SpeedBenchError: targets, data or baseline are not fit for a run.
        """
        from pytest_speedbench.gate.store import load

        self._planned = planned
        settings = self.settings
        wanted = {"main": settings}
        if settings.against is not None:
            wanted["against"] = settings.against
        if any(planned.values()) and settings.target.method != "none" and settings.target.url is None:
            wanted["without speculation"] = replace(settings, target=_without_speculation(settings.target))
        engines = {}
        for role, each in wanted.items():
            engines[role] = self._engines[each.target.engine](each.target)
            engines[role].check()
        if settings.against is None:
            self._baseline = load(settings.baseline_path)
        if settings.save and settings.against is not None:
            raise SpeedBenchError(
                "--speedbench-save does not go with --speedbench-against: no file is compared with"
            )
        datasets = self._load_data(planned)
        from pytest_speedbench.target_run import TargetRun

        logs = self._config.rootpath / STATE_FOLDER / "logs"
        for role, each in wanted.items():
            self._runs[role] = TargetRun(each, engines[role], datasets, logs, self._progress)

    def _load_data(self, planned: Mapping[Cell, bool]) -> dict[str, Dataset]:
        from pytest_speedbench.data import load

        datasets = {}
        for split in dict.fromkeys(cell.split for cell in planned):
            categories = tuple(dict.fromkeys(cell.category for cell in planned if cell.split == split))
            datasets[split] = load(split, self.settings.data, categories, self.settings.limit)
            self._warnings.extend(datasets[split].warnings)
        return datasets

    def measure(self, cell: Cell) -> Measurement:
        """Measure a cell of the run's target; once, however often it is asked for.

        The targets to compare with are measured first, all their planned cells in a row, so that every engine
        is started once and never runs beside another.

        Raises:
            SpeedBenchError: an engine could not be started, or is gone.
        """
        if cell in self._measured:
            return self._measured[cell]
        if not self._others_measured:
            self._others_measured = True
            self._measure_others()
        measurement = self._with_speedup(self._runs["main"].measure(cell))
        self._measured[cell] = measurement
        self._config.hook.pytest_speedbench_measured(config=self._config, measurement=measurement)
        return measurement

    def _measure_others(self) -> None:
        for role, run in self._runs.items():
            if role != "main":
                run.measure_ahead(
                    cell for cell, speedup in self._planned.items() if role == "against" or speedup
                )

    def _with_speedup(self, measurement: Measurement) -> Measurement:
        if not self._planned.get(measurement.cell, False):
            return measurement
        reason = None
        if self.settings.target.method == "none":
            reason = "speedup is over method none, which this target is"
        elif self.settings.target.url is not None:
            reason = "speedup needs the same target without speculation, which --speedbench-url cannot launch"
        else:
            without = self._runs["without speculation"].measure(measurement.cell)
            if without.problems or "output_tps" not in without.metrics:
                reason = (
                    f"without speculation: {'; '.join(without.problems) or without.missing.get('output_tps')}"
                )
        if reason is not None:
            return replace(measurement, missing={**measurement.missing, "speedup": reason})
        if "output_tps" not in measurement.metrics:
            return measurement
        speedup = measurement.metrics["output_tps"] / without.metrics["output_tps"]
        return replace(measurement, metrics={**measurement.metrics, "speedup": speedup})

    def judge(self, measurement: Measurement, metrics: Sequence[str]) -> Judgement:
        """Judge metrics of a measured cell, and say what the test has to do about it.

        Args:
            measurement: of this session.
            metrics: gated metrics' names.
        """
        from pytest_speedbench.gate.baseline import refuse
        from pytest_speedbench.gate.compare import compare
        from pytest_speedbench.report.failure import failure_text
        from pytest_speedbench.report.outcome import outcome_of

        run, cell = self._runs["main"], measurement.cell
        assert run.hardware is not None
        try:
            baseline = self._baseline_for(cell)
            if self.settings.save:
                refuse(measurement, self.settings.target.method)
        except SpeedBenchError as error:
            return Judgement(failure=str(error))
        checks = [
            compare(
                metric,
                measurement,
                baseline,
                tolerance=self.settings.tolerances[metric],
                conditions=self._conditions(),
                hardware_key=run.hardware.key,
            )
            for metric in metrics
        ]
        for check in checks:
            self._checks.setdefault(cell, {})[check.metric] = check
            self._config.hook.pytest_speedbench_checked(config=self._config, cell=cell, check=check)
        self._causes[cell] = self._cause(cell, baseline)
        outcome = outcome_of(checks, inconclusive=self.settings.inconclusive, saving=self.settings.save)

        def text(shown: Sequence[Check]) -> str:
            return failure_text(
                self._cell_result(cell),
                shown,
                self.settings.target,
                baseline=self._compared_with(),
                log=self._shown(run.log) if run.log else None,
                save_command=self._save_command(),
            )

        if outcome.failing:
            self._failures[cell] = text(checks)
            return Judgement(failure=self._failures[cell])
        if outcome.notable:
            self._notices.append(text(outcome.notable))
        return Judgement(
            skip="; ".join(reason for check in outcome.skipping for reason in check.reasons) or None
        )

    def _cause(self, cell: Cell, baseline: Baseline | None) -> Cause | None:
        from pytest_speedbench.gate.cause import explain
        from pytest_speedbench.gate.checks import Verdict

        regressed = [
            metric for metric, check in self._checks[cell].items() if check.verdict is Verdict.REGRESSION
        ]
        hardware = self._runs["main"].hardware
        if not regressed or baseline is None or hardware is None:
            return None
        return explain(
            self._measured[cell],
            baseline.acceptance.get(cell.id),
            baseline.throughput.get(hardware.key, {}).get(cell.id),
            failed=regressed,
        )

    def _compared_with(self) -> str:
        if self.settings.against is not None:
            return self.settings.against.target.name
        return self._shown(self.settings.baseline_path)

    def _baseline_for(self, cell: Cell) -> Baseline | None:
        """What a cell is compared with: the file's content, or the other target's measurement of this run.

        Raises:
            SpeedBenchError: the other target could not be measured, or is nothing to compare with.
        """
        from pytest_speedbench.gate.baseline import merge

        run = self._runs.get("against")
        if run is None:
            return self._baseline
        name, measurement = run.settings.target.name, run.measure(cell)
        assert run.hardware is not None
        try:
            return merge(name, None, [measurement], self._conditions("against"), run.hardware.key)
        except BaselineError as error:
            raise BaselineError(f"{name} is nothing to compare with: {error}") from None

    def _conditions(self, role: str = "main") -> Conditions:
        return self._runs[role].conditions(self._date, self._commit)

    @cached_property
    def _commit(self) -> str | None:
        return _commit(self._config.rootpath)

    def _save_command(self) -> str | None:
        import shlex

        if self.settings.against is not None:
            return None
        return shlex.join(["pytest", *self._config.invocation_params.args, "--speedbench-save"])

    def _cell_result(self, cell: Cell) -> CellResult:
        from pytest_speedbench.report.results import CellResult

        return CellResult(
            self._measured[cell],
            tuple(self._checks.get(cell, {}).values()),
            self._causes.get(cell),
            self._failures.get(cell),
        )

    @property
    def used(self) -> bool:
        """Whether any cell was measured, or anything is to be said."""
        return bool(self._measured or self._messages)

    def close(self) -> None:
        """End every engine that was launched. May be called more than once."""
        for run in self._runs.values():
            try:
                run.close()
            except EngineError as error:
                self._messages.append(str(error))

    def finish(self, exit_status: int) -> bool:
        """Write baselines and results.

        Args:
            exit_status: of the session so far.

        Returns:
            Whether everything that was to be written could be written.
        """
        if not self._runs:
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

        path = self.settings.baseline_path
        run = self._runs["main"]
        if self.failed:
            self._messages.append(
                f"nothing was saved to {self._shown(path)}: {_counted(len(self.failed), 'gated test')} failed"
            )
            return True
        if exit_status not in (0, 1):
            self._messages.append(f"nothing was saved to {self._shown(path)}: the run did not end by itself")
            return True
        if run.hardware is None or not self._measured:
            self._messages.append(f"nothing was saved to {self._shown(path)}: no cell was measured")
            return True
        try:
            merged = merge(
                self.settings.target.name,
                load(path),  # again: another run may have saved other cells meanwhile
                list(self._measured.values()),
                self._conditions(),
                run.hardware.key,
            )
            save(path, merged)
        except BaselineError as error:
            self._messages.append(f"nothing was saved: {error}")
            return False
        self._messages.append(
            f"saved {_counted(len(self._measured), 'cell')} to {self._shown(path)}; look at the change before you commit it"
        )
        return True

    def _shown(self, path: Path) -> str:
        return os.path.relpath(path, self._config.rootpath)

    def result(self) -> RunResult:
        """All that this run found, for the report."""
        from pytest_speedbench.report.results import RunResult

        run = self._runs["main"]
        return RunResult(
            target=self.settings.target,
            against=self.settings.against.target.name if self.settings.against else None,
            conditions=self._conditions(),
            hardware=run.hardware,
            cells=tuple(self._cell_result(cell) for cell in self._measured),
            warnings=tuple(dict.fromkeys(self._warnings)),
            notices=tuple(self._notices),
            saving=self.settings.save,
            messages=tuple(self._messages),
        )

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
