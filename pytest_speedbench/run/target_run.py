"""Measures the cells of one target, round by round: its engine is started when first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench.errors import EngineError, SpeedBenchError
from pytest_speedbench.speed_bench import QUALITATIVE

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell
    from pytest_speedbench.data.prompts import Dataset
    from pytest_speedbench.engines.base import Engine, Hardware
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.engines.launch.process import EngineProcess
    from pytest_speedbench.gate.baseline import Conditions
    from pytest_speedbench.load.conversation import Prepared
    from pytest_speedbench.load.progress import Progress
    from pytest_speedbench.load.token_store import TokenStore
    from pytest_speedbench.metrics.measurement import Measurement
    from pytest_speedbench.metrics.one_round import MeasuredRound
    from pytest_speedbench.settings.read import Settings


TOKENS_FOLDER = "tokens"
"""Of the token ids that were made from prepared data, in its folder."""
STEADY_BATCHES = 4
"""Conversations of a round of a throughput split, in batches: so many that most of its time is steady state."""


def conversations_of(cell: Cell, prompts: int) -> int:
    """How many conversations one round of a cell has.

    On the qualitative split one pass over its prompts: each counts as often as the others in the acceptance length.
    On throughput splits, whose prompts are used in turn, at least `STEADY_BATCHES` times the batch size.
    """
    enough = cell.batch_size * (1 if cell.split == QUALITATIVE else STEADY_BATCHES)
    return max(prompts, enough)


class TargetRun:
    """One target in this session.

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
        self._rounds: dict[Cell, list[MeasuredRound]] = {}
        self._combined: dict[Cell, Measurement] = {}
        self._controls: dict[Cell, dict[str, float]] = {}
        self._control_notes: dict[Cell, str] = {}
        self._errors: dict[Cell, str] = {}
        self._warm: set[Cell] = set()
        self._prepared: dict[tuple[str, str], Prepared] = {}
        """Prompts as they go out, by split and category; further turns are tokenized by the engine that runs."""
        self._notes: dict[tuple[str, str], str] = {}
        self._process: EngineProcess | None = None
        self._control: Control | None = None
        self._start_failure: str | None = None
        self._start_failure_told = False
        self.version = ""
        self.hardware: Hardware | None = None

    @property
    def log(self) -> Path | None:
        """The engine's log, once it was launched."""
        return self._process.log if self._process else None

    def rounds(self, cell: Cell) -> int:
        """How many rounds of a cell are measured."""
        return len(self._rounds.get(cell, ()))

    def add_round(self, cell: Cell) -> bool:
        """Measure a cell once more, unless it has come to grief already.

        What goes wrong is said by `measurement`.

        Returns:
            Whether there is one more sound round.
        """
        done = self._rounds.setdefault(cell, [])
        if cell in self._errors or any(round_.problems for round_ in done) or self._start_failure is not None:
            return False
        try:
            done.append(self._measure(cell, self._running(cell)))
        except EngineError as error:
            if self._start_failure is None:
                self._errors[cell] = str(error)
            return False
        return not done[-1].problems

    def measurement(self, cell: Cell) -> Measurement:
        """All metrics of one cell, from the rounds so far.

        An engine that came to grief after the first round is a problem of the measurement.

        Raises:
            EngineError: the engine could not be started (said in full once, in one line afterwards), is gone, or
                failed a control call, before there was any round.
        """
        from pytest_speedbench.metrics.combine_rounds import combine

        rounds = self._rounds.get(cell, [])
        if self._start_failure is not None and not rounds:
            if self._start_failure_told:
                engine = self.settings.target.engine
                raise EngineError(f"{engine} did not start; the first failure of this run says why")
            self._start_failure_told = True
            raise EngineError(self._start_failure)
        error = self._errors.get(cell) or self._start_failure
        if error is not None and not rounds:
            raise EngineError(error)
        known = self._combined.get(cell)
        if known is None or len(known.rounds) < len(rounds):
            known = combine(cell, self._engine.method, rounds)
            note = self._notes[cell.split, cell.category]
            known = self._combined[cell] = replace(known, notes=(*known.notes, note)) if note else known
        if cell in self._controls:
            known = replace(known, random_control=self._controls[cell])
        if cell in self._control_notes:
            known = replace(known, notes=(*known.notes, self._control_notes[cell]))
        if error is None:
            return known
        return replace(known, problems=(*known.problems, f"round {len(rounds) + 1}: {error}"))

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
        if self._control is None:
            try:
                self._control = self._start()
            except EngineError as error:
                self._start_failure = str(error)
                raise
        death = self._died()
        if death is not None:
            raise EngineError(f"{cell.id} was not measured: {death} in an earlier cell; its log: {self.log}")
        return self._control

    def _start(self) -> Control:
        from pytest_speedbench.engines.control import Control

        target = self.settings.target
        if target.url is None:
            from pytest_speedbench.engines.launch.process import start

            line = self._progress(target.engine)
            try:
                self._process = start(self._engine, target, self._logs, line.say)
            finally:
                line.end()
            url = self._process.url
        else:
            url = target.url
        control = Control(url, headers=self._engine.authorization())
        if target.url is not None:
            control.require_ready(self._engine.ready_path)
        self.version = self._engine.version(control)
        self.hardware = self._engine.hardware(control)
        return control

    def _measure(self, cell: Cell, control: Control) -> MeasuredRound:
        warmup = cell.batch_size if self.settings.warmup is None else self.settings.warmup
        measured = self._round(
            cell,
            control,
            self._prompts(cell, control),
            f"{cell.id} round {self.rounds(cell) + 1}",
            warmup=0 if cell in self._warm else warmup,
        )
        self._warm.add(cell)
        return measured

    def measure_control(self, cell: Cell) -> None:
        """Measure one round of random tokens beside the rounds that a cell has; nothing is judged by it."""
        from pytest_speedbench.load.random_control import random_control

        if not self._rounds.get(cell) or cell in self._errors:
            return
        try:
            control = self._running(cell)
            prompts = random_control(self._engine, self._prompts(cell, control))
            measured = self._round(cell, control, prompts, f"{cell.id} random tokens", warmup=0)
        except SpeedBenchError as error:
            self._control_notes[cell] = f"random tokens were not measured: {error}"
            return
        if measured.problems:
            self._control_notes[cell] = f"random tokens: {'; '.join(measured.problems)}"
        elif measured.figures.acceptance_length and measured.figures.output_tps:
            self._controls[cell] = {
                "output_tps": measured.figures.output_tps,
                "acceptance_length": measured.figures.acceptance_length,
            }

    def _prompts(self, cell: Cell, control: Control) -> Prepared:
        """The prompts of a cell as they go out."""
        from pytest_speedbench.load.conversation import prepare

        key = (cell.split, cell.category)
        if key not in self._prepared:
            prompts = self._datasets[cell.split].of_category(cell.category)
            self._prepared[key] = prepare(
                self._engine,
                control,
                prompts,
                self.settings.sampling,
                model=self.settings.target.model,
                store=self._token_store(),
            )
            self._notes[key] = self._prepared[key].note
        return self._prepared[key]

    def _token_store(self) -> TokenStore | None:
        """None for the sample, which is short. Prepared data may be long, and is nobody's to carry elsewhere."""
        from pytest_speedbench.load.token_store import TokenStore

        if self.settings.data is None:
            return None
        target = self.settings.target
        made_by = (target.engine, target.model or "", target.url or "", *target.engine_args)
        return TokenStore(self.settings.data / TOKENS_FOLDER, made_by, self.version)

    def _round(
        self, cell: Cell, control: Control, prepared: Prepared, label: str, *, warmup: int
    ) -> MeasuredRound:
        from pytest_speedbench.load.other_processes import OtherProcesses
        from pytest_speedbench.load.rounds import measure_rounds
        from pytest_speedbench.metrics.one_round import measure_round

        settings = self.settings
        with OtherProcesses() as neighbours:
            (record,) = measure_rounds(
                self._engine,
                control,
                prepared,
                cell.batch_size,
                conversations=conversations_of(cell, len(prepared.prompts)),
                client_processes=settings.client_processes,
                warmup=warmup,
                request_timeout_s=settings.request_timeout_s,
                alive=self._died,
                progress=self._progress(label),
            )
        if self._process is not None:
            record = replace(record, other_processes_busy=neighbours.share)
        return measure_round(self._engine.method, record, prepared.prompts)

    def _died(self) -> str | None:
        code = self._process.exit_code() if self._process is not None else None
        if code is None:
            return None
        from pytest_speedbench.engines.launch.process import describe_exit

        return f"{self.settings.target.engine} {describe_exit(code)}"

    def pause(self) -> None:
        """End the engine if it was launched here; the next round starts it anew.

        Raises:
            EngineError: a process of the engine's could not be ended.
        """
        self._warm.clear()
        self._prepared.clear()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.stop()
