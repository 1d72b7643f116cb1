"""Targets that only write down what they are asked for, and the rounds that they give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from pytest_speedbench import engines
from pytest_speedbench.cells import Cell, Plan
from pytest_speedbench.engines.base import Hardware
from pytest_speedbench.gate.baseline import Conditions
from pytest_speedbench.metrics.one_round import MeasuredRound, measure_round
from pytest_speedbench.run.ledger import Ledger, Role
from pytest_speedbench.run.schedule import Schedule
from pytest_speedbench.run.session import ledger_of
from pytest_speedbench.run.target_run import TargetRun
from pytest_speedbench.settings.methods import method_of
from pytest_speedbench.settings.options import Option
from pytest_speedbench.settings.read import Settings, read
from pytest_speedbench.settings.target import Target
from tests.gate.measurements import CONDITIONS
from tests.metrics.records import prompt, request, round_of

TEST = "test_gate.py::test"


def measured_round(
    output_tps: float = 100.0, *, problem: str | None = None, overload: str | None = None
) -> MeasuredRound:
    """A round of two prompts, as few as can be compared, with another throughput."""
    record = round_of(request("q1"), request("q2"), batch_size=1)
    measured = measure_round(method_of("draft_model"), record, [prompt("q1"), prompt("q2")])
    figures = replace(measured.figures, output_tps=None if overload else output_tps)
    times = {} if overload else {**measured.times, "output_tps": output_tps}
    problems = () if problem is None else (problem,)
    return replace(measured, figures=figures, times=times, problems=problems, overload=overload)


class Recorder:
    """Stands in for a `TargetRun`: each round is a letter and a cell in a shared diary."""

    def __init__(self, letter: str, diary: list[str], output_tps: float = 100.0) -> None:
        self.letter = letter
        self.diary = diary
        self.output_tps = output_tps
        self.running = False
        self.faults: list[MeasuredRound | BaseException | None] = []
        """What the next rounds come to; None for a sound one."""

    hardware = Hardware("modelled accelerator")
    log: Path | None = None
    version = "1.0"
    settings: Settings
    """Of the target that is compared with."""

    def start(self) -> str:
        if not self.running:
            self.diary.append(f"start {self.letter}")
        self.running = True
        return f"http://{self.letter}"

    def conditions(self, date: str, commit: str | None) -> Conditions:
        return replace(CONDITIONS, date=date, commit=commit)

    def measure(self, cell: Cell, plan: Plan, number: int) -> MeasuredRound:
        self.start()
        self.diary.append(f"{self.letter} {cell.category}{cell.batch_size}")
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, BaseException):
            raise fault
        return fault or measured_round(self.output_tps)

    def note(self, cell: Cell, plan: Plan) -> str:
        return ""

    def pause(self) -> None:
        self.running = False

    def forget_failure(self) -> None:
        self.diary.append(f"retry {self.letter}")


def settings(**options: str) -> Settings:
    def command_line(option: Option) -> tuple[str, str, Path] | None:
        given = {"engine": "reference", **options}
        return (given[option.field], option.option, Path("/")) if option.field in given else None

    found = read(Path("/"), command_line, lambda option: None, engines.offer)
    assert found is not None
    return found


class Run:
    """A schedule over recorders, and what it knows.

    Args:
        planned: the cells, and what tests ask of them; or cells alone.
        against: whether another target is compared with.
        options: of the run.
    """

    def __init__(
        self, planned: Mapping[Cell, Plan] | Iterable[Cell], *, against: bool = False, **options: str
    ) -> None:
        plans = planned if isinstance(planned, Mapping) else dict.fromkeys(planned, Plan())
        self.diary: list[str] = []
        self.settings = settings(**options)
        self.main = Recorder("A", self.diary)
        recorders = {Role.MAIN: self.main}
        targets = {Role.MAIN: self.settings.target}
        if against:
            recorders[Role.AGAINST] = Recorder("B", self.diary)
            targets[Role.AGAINST] = Target("other", "reference", "draft_model", 3)
            recorders[Role.AGAINST].settings = replace(self.settings, target=targets[Role.AGAINST])
        if any(plan.speedup for plan in plans.values()):
            recorders[Role.WITHOUT_SPECULATION] = Recorder("N", self.diary, 50.0)
            targets[Role.WITHOUT_SPECULATION] = Target("plain", "reference", "none", 0)
        self.ledger: Ledger = ledger_of(
            plans, targets, {role: method_of(target.method) for role, target in targets.items()}
        )
        runs = {role: cast(TargetRun, recorder) for role, recorder in recorders.items()}
        self.schedule = Schedule(self.settings, self.ledger, runs)

    def measure(self, cell: Cell, test: str = TEST) -> int:
        """Measure a cell; how many rounds it has then."""
        self.schedule.measure(cell, test)
        measurement = self.ledger[cell].measurement
        return 0 if measurement is None else len(measurement.rounds)
