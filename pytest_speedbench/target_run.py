"""Measures the cells of one target: its engine is started when first needed, and ended by `close`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench.errors import EngineError

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell
    from pytest_speedbench.data.prompts import Dataset
    from pytest_speedbench.engines.base import Engine, Hardware
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.engines.process import EngineProcess
    from pytest_speedbench.gate.baseline import Conditions
    from pytest_speedbench.load.conversation import Prepared
    from pytest_speedbench.load.progress import Progress
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.settings import Settings


class TargetRun:
    """One target in this session. Each cell is measured once, however often it is asked for.

    Args:
        settings: the target and how to measure it.
        engine: built from the target, checked.
        datasets: prompts by split.
        logs: where the engine's log goes.
        progress: makes the progress line of a cell.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        datasets: Mapping[str, Dataset],
        logs: Path,
        progress: Callable[[str], Progress],
    ) -> None:
        self.settings = settings
        self._engine = engine
        self._datasets = datasets
        self._logs = logs
        self._progress = progress
        self._measured: dict[Cell, Measurement] = {}
        self._errors: dict[Cell, str] = {}
        self._prepared: dict[tuple[str, str], Prepared] = {}
        self._process: EngineProcess | None = None
        self._control: Control | None = None
        self._did_not_start = False
        self._closed = False
        self.version = ""
        self.hardware: Hardware | None = None

    @property
    def log(self) -> Path | None:
        """The engine's log, once it was launched."""
        return self._process.log if self._process else None

    def measure(self, cell: Cell) -> Measurement:
        """All metrics of one cell.

        Raises:
            EngineError: the engine could not be started (said in full for the first cell, in one line for those
                after it), is gone, or failed a control call.
        """
        if cell not in self._measured and cell not in self._errors:
            try:
                self._measured[cell] = self._measure(cell, self._running(cell))
            except EngineError as error:
                self._errors[cell] = str(error)
        if cell in self._errors:
            raise EngineError(self._errors[cell])
        return self._measured[cell]

    def measure_ahead(self, cells: Iterable[Cell]) -> None:
        """Measure cells before anybody asks for them, and end the engine; what goes wrong is said when they do."""
        for cell in cells:
            with suppress(EngineError):
                self.measure(cell)
        self.close()

    def conditions(self, date: str, commit: str | None) -> Conditions:
        """How this target is measured.

        Args:
            date: of the run, ISO 8601.
            commit: of the repository under test.
        """
        from pytest_speedbench import __version__
        from pytest_speedbench.gate.baseline import Conditions

        settings, target = self.settings, self.settings.target
        return Conditions(
            date=date,
            commit=commit,
            plugin_version=__version__,
            engine=target.engine,
            engine_version=self.version,
            model=target.model,
            draft_model=target.draft_model,
            method=target.method,
            draft_length=target.draft_length,
            engine_args=target.engine_args,
            temperature=settings.temperature,
            ignore_eos=settings.ignore_eos,
            seed=settings.sampling.seed,
            output_length=settings.output_length,
            dataset="sample" if settings.data is None else settings.data.name,
            rounds=settings.rounds,
        )

    def _running(self, cell: Cell) -> Control:
        engine = self.settings.target.engine
        if self._did_not_start:
            raise EngineError(f"{engine} did not start; the first failure of this run says why")
        if self._closed:
            raise EngineError(
                f"{cell.id} was not measured on {self.settings.target.name} before it was ended"
            )
        if self._control is None:
            try:
                self._control = self._start()
            except EngineError:
                self._did_not_start = True
                raise
        death = self._died()
        if death is not None:
            raise EngineError(f"{cell.id} was not measured: {death} in an earlier cell; its log: {self.log}")
        return self._control

    def _start(self) -> Control:
        from pytest_speedbench.engines.base import Authorized
        from pytest_speedbench.engines.control import Control

        target = self.settings.target
        if target.url is None:
            from pytest_speedbench.engines.process import start

            line = self._progress(target.engine)
            try:
                self._process = start(self._engine, target, self._logs, line.say)
            finally:
                line.end()
            url = self._process.url
        else:
            url = target.url
        control = Control(
            url, headers=self._engine.authorization() if isinstance(self._engine, Authorized) else None
        )
        if target.url is not None and not control.answers(self._engine.ready_path):
            raise EngineError(
                f"--speedbench-url={url}: GET {self._engine.ready_path} is not answered with 200; is the server running?"
            )
        self.version = self._engine.version(control)
        self.hardware = self._engine.hardware(control)
        return control

    def _measure(self, cell: Cell, control: Control) -> Measurement:
        from pytest_speedbench.load.conversation import prepare
        from pytest_speedbench.load.rounds import measure_rounds
        from pytest_speedbench.metrics.measure import build

        settings = self.settings
        prompts = self._datasets[cell.split].of_category(cell.category)
        key = (cell.split, cell.category)
        if key not in self._prepared:
            self._prepared[key] = prepare(
                self._engine, control, prompts, settings.sampling, model=settings.target.model
            )
        rounds = measure_rounds(
            self._engine,
            control,
            self._prepared[key],
            cell.batch_size,
            rounds=settings.rounds,
            warmup=cell.batch_size if settings.warmup is None else settings.warmup,
            request_timeout_s=settings.request_timeout_s,
            alive=self._died,
            progress=self._progress(cell.id),
        )
        measurement = build(cell, settings.target.method, rounds, prompts)
        note = self._prepared[key].note
        return replace(measurement, notes=(*measurement.notes, note)) if note else measurement

    def _died(self) -> str | None:
        code = self._process.exit_code() if self._process is not None else None
        if code is None:
            return None
        from pytest_speedbench.engines.process import describe_exit

        return f"{self.settings.target.engine} {describe_exit(code)}"

    def close(self) -> None:
        """End the engine if it was launched here. May be called more than once.

        Raises:
            EngineError: a process of the engine's could not be ended.
        """
        self._closed = True
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.stop()
