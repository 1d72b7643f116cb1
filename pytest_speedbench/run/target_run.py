"""The engine of one target: started when first needed, asked for one round of one cell at a time.

It remembers what belongs to the running engine (its process, prompts as they go out, which cells are warm), and
nothing of what was measured: that is the ledger's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pytest_speedbench import __version__
from pytest_speedbench.cells import Cell, Plan
from pytest_speedbench.data.prompts import Dataset, Prompt
from pytest_speedbench.engines.base import Engine, Hardware
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.launch.environment import environment_in_force
from pytest_speedbench.engines.launch.process import EngineProcess, describe_exit, start
from pytest_speedbench.errors import EngineError
from pytest_speedbench.gate.baseline import Conditions
from pytest_speedbench.load.conversation import Prepared, prepare
from pytest_speedbench.load.plan import RoundPlan
from pytest_speedbench.load.progress import Progress
from pytest_speedbench.load.random_control import random_control
from pytest_speedbench.load.rounds import record_round
from pytest_speedbench.load.token_store import TokenStore
from pytest_speedbench.metrics.one_round import MeasuredRound, measure_round
from pytest_speedbench.settings.read import Settings
from pytest_speedbench.speed_bench import QUALITATIVE

TOKENS_FOLDER = "tokens"
"""Folder of the token ids that were made from prepared data, beside that data."""
STEADY_BATCHES = 4
"""A round of a throughput split sends this many times the batch size: most of its time is then steady state."""


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
        datasets: prompts by split, at least as many of each category as any cell wants.
        logs: folder of the engine's log.
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
        self.version = ""
        self.hardware: Hardware | None = None
        self._engine = engine
        self._datasets = datasets
        self._logs = logs
        self._progress = progress
        self._warm: set[Cell] = set()
        self._prepared: dict[tuple[object, ...], Prepared] = {}
        """Prompts as they go out; further turns are tokenized by the engine that runs."""
        self._process: EngineProcess | None = None
        self._control: Control | None = None
        self._start_failure: str | None = None

    @property
    def log(self) -> Path | None:
        """The engine's log, once it was launched."""
        return self._process.log if self._process else None

    def start(self) -> str:
        """Start the engine unless it runs already.

        Returns:
            Its base URL.

        Raises:
            EngineError: it could not be started, or it died.
        """
        return self._running().url

    def measure(self, cell: Cell, plan: Plan, number: int) -> MeasuredRound:
        """Measure one round of a cell, after a warm-up if it is the first since the engine started.

        Args:
            cell: not a mean.
            plan: what tests ask of it.
            number: of the round, from 1, for the progress line.

        Raises:
            EngineError: the engine could not be started, is gone, or failed a control call.
        """
        control = self._running()
        warmup = cell.batch_size if self.settings.warmup is None else self.settings.warmup
        measured = self._round(
            cell,
            control,
            self._prompts(cell, plan, control),
            f"{cell.id} round {number}",
            warmup=0 if cell in self._warm else warmup,
        )
        self._warm.add(cell)
        return measured

    def measure_control(self, cell: Cell, plan: Plan) -> MeasuredRound:
        """Measure one round of random tokens in place of a cell's prompts; nothing is judged by it.

        Raises:
            SpeedBenchError: as `measure`; or the engine takes no token ids.
        """
        control = self._running()
        prompts = random_control(self._engine, self._prompts(cell, plan, control))
        return self._round(cell, control, prompts, f"{cell.id} random tokens", warmup=0)

    def note(self, cell: Cell, plan: Plan) -> str:
        """What a reader should know of how a cell's prompts went out; empty before its first round."""
        prepared = self._prepared.get(self._key(cell, plan))
        return "" if prepared is None else prepared.note

    def conditions(self, date: str, commit: str | None) -> Conditions:
        """How this target is measured.

        Args:
            date: of the run, ISO 8601.
            commit: of the repository under test.
        """
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
            environment=environment_in_force(target),
        )

    def forget_failure(self) -> None:
        """Let an engine that could not be started, or has died, be started once more."""
        self._start_failure = None
        if self._died() is not None:
            self.pause()

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

    def _running(self) -> Control:
        if self._start_failure is not None:
            raise EngineError(self._start_failure)
        if self._control is None:
            try:
                self._control = self._start()
            except EngineError as error:
                self._start_failure = str(error)
                raise
        death = self._died()
        if death is not None:
            raise EngineError(f"{death} in an earlier cell; its log: {self.log}")
        return self._control

    def _start(self) -> Control:
        target = self.settings.target
        if target.url is None:
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

    def _key(self, cell: Cell, plan: Plan) -> tuple[object, ...]:
        return cell.split, cell.category, plan.limit, plan.output_length

    def _prompts(self, cell: Cell, plan: Plan, control: Control) -> Prepared:
        """The prompts of a cell as they go out."""
        key = self._key(cell, plan)
        if key not in self._prepared:
            sampling = self.settings.sampling
            if plan.output_length is not None:
                sampling = replace(sampling, output_length=plan.output_length)
            self._prepared[key] = prepare(
                self._engine,
                control,
                self._of_category(cell, plan),
                sampling,
                model=self.settings.target.model,
                store=self._token_store(),
            )
        return self._prepared[key]

    def _of_category(self, cell: Cell, plan: Plan) -> tuple[Prompt, ...]:
        limit = self.settings.limit if plan.limit is None else plan.limit
        return tuple(self._datasets[cell.split].of_category(cell.category))[:limit]

    def _token_store(self) -> TokenStore | None:
        """None for the sample, which is short. Prepared data may be long, and is not for others to carry away."""
        if self.settings.data is None:
            return None
        target = self.settings.target
        made_by = (target.engine, target.model or "", target.url or "", *target.engine_args)
        return TokenStore(self.settings.data / TOKENS_FOLDER, made_by, self.version)

    def _round(
        self, cell: Cell, control: Control, prepared: Prepared, label: str, *, warmup: int
    ) -> MeasuredRound:
        conversations = conversations_of(cell, len(prepared.prompts))
        record = record_round(
            self._engine,
            control,
            prepared,
            RoundPlan(cell.batch_size, conversations, self.settings.request_timeout_s),
            warmup=warmup,
            alive=self._died,
            progress=self._progress(label),
            watch_others=self._process is not None,
        )
        return measure_round(self._engine.method, record, prepared.prompts)

    def _died(self) -> str | None:
        code = self._process.exit_code() if self._process is not None else None
        return None if code is None else f"{self.settings.target.engine} {describe_exit(code)}"
