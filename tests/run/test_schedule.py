"""The order in which rounds are measured, told by targets that only write down what they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from pytest_speedbench.cells import Cell, Plan
from pytest_speedbench.metrics.measurement import Measurement, RoundFigures
from pytest_speedbench.run.schedule import Schedule
from pytest_speedbench.run.target_run import TargetRun
from pytest_speedbench.settings.options import Option
from pytest_speedbench.settings.read import Settings, read

CODING, MATH, MEAN = (Cell("qualitative", category, 4) for category in ("coding", "math", "mean"))
OTHER_BATCH = Cell("qualitative", "coding", 8)


class Recorder:
    """Stands in for a `TargetRun`: each round is a letter and a cell in a shared diary."""

    def __init__(self, letter: str, diary: list[str], output_tps: float = 100.0) -> None:
        self.letter = letter
        self.settings = settings(method="none" if letter == "N" else "draft_model")
        self.diary = diary
        self.output_tps = output_tps
        self.running = False
        self.done: dict[Cell, int] = {}

    def add_round(self, cell: Cell) -> bool:
        if not self.running:
            self.diary.append(f"start {self.letter}")
        self.running = True
        self.done[cell] = self.rounds(cell) + 1
        self.diary.append(f"{self.letter} {cell.category}{cell.batch_size}")
        return True

    def rounds(self, cell: Cell) -> int:
        return self.done.get(cell, 0)

    def pause(self) -> None:
        self.running = False

    def measurement(self, cell: Cell) -> Measurement:
        rounds = (RoundFigures(self.output_tps, None, 2.0, None),) * self.rounds(cell)
        return Measurement(cell, {"output_tps": self.output_tps}, (), {}, rounds, 1, 1, 0, {})


def settings(**options: str) -> Settings:
    def command_line(option: Option) -> tuple[str, str, Path] | None:
        given = {"engine": "reference", **options}
        return (given[option.field], option.option, Path("/")) if option.field in given else None

    found = read(Path("/"), command_line, lambda option: None)
    assert found is not None
    return found


def schedule(
    diary: list[str], planned: Mapping[Cell, Plan], *, against: bool = False, **options: str
) -> Schedule:
    main = cast(TargetRun, Recorder("A", diary))
    other = cast(TargetRun, Recorder("B", diary)) if against else None
    without = (
        cast(TargetRun, Recorder("N", diary, 50.0))
        if any(plan.speedup for plan in planned.values())
        else None
    )
    return Schedule(settings(**options), planned, main, other, without)


def test_the_cells_of_a_batch_size_take_turns_round_by_round() -> None:
    diary: list[str] = []
    planned = dict.fromkeys((CODING, MATH, MEAN, OTHER_BATCH), Plan())
    plan = schedule(diary, planned, rounds="2")
    assert len(plan.measurement(CODING).rounds) == 2
    assert diary == ["start A", "A coding4", "A math4", "A coding4", "A math4"]
    plan.measurement(MATH)
    plan.measurement(MEAN)
    assert len(diary) == 5, "measured once, however often it is asked for"
    plan.measurement(OTHER_BATCH)
    assert diary[5:] == ["A coding8", "A coding8"]


def test_what_is_saved_has_the_most_rounds() -> None:
    plan = schedule([], {CODING: Plan()}, rounds="2", max_rounds="5", save="true")
    assert len(plan.measurement(CODING).rounds) == 5


def test_only_the_open_cell_gets_more_rounds() -> None:
    diary: list[str] = []
    plan = schedule(diary, dict.fromkeys((CODING, MATH, MEAN), Plan()), rounds="2", max_rounds="3")
    plan.measurement(CODING)
    del diary[:]
    plan.bring_to([CODING], 3)
    assert diary == ["A coding4"]
    plan.bring_to([CODING, MATH], 3)
    assert diary == ["A coding4", "A math4"]


def test_two_targets_in_turn_are_measured_a_b_b_a_and_never_at_once() -> None:
    diary: list[str] = []
    plan = schedule(diary, dict.fromkeys((CODING, OTHER_BATCH), Plan()), against=True, rounds="3")
    plan.measurement(CODING)
    a, b = ["A coding4", "A coding8"], ["B coding4", "B coding8"]
    assert diary == ["start A", *a, "start B", *b, *b, "start A", *a, *a, "start B", *b]
    assert plan.max_rounds("output_tps") == 3, "engines are not started again for one cell"


def test_two_targets_at_once_are_measured_a_b_b_a_cell_by_cell() -> None:
    diary: list[str] = []
    plan = schedule(
        diary, dict.fromkeys((CODING, MATH), Plan()), against=True, rounds="2", concurrent_targets="true"
    )
    plan.measurement(CODING)
    assert [entry for entry in diary if not entry.startswith("start")] == [
        "A coding4", "B coding4", "A math4", "B math4", "B coding4", "A coding4", "B math4", "A math4",
    ]  # fmt: skip
    plan.bring_to([CODING], 4)
    assert diary[-4:] == ["A coding4", "B coding4", "B coding4", "A coding4"]


def test_speedup_is_told_of_every_round() -> None:
    diary: list[str] = []
    plan = schedule(diary, {CODING: Plan(speedup=True)}, rounds="2", max_rounds="3", method="draft_model")
    measured = plan.measurement(CODING)
    assert diary[:4] == ["start N", "N coding4", "N coding4", "start A"]
    assert measured.metrics["speedup"] == 2
    assert [figures.speedup for figures in measured.rounds] == [2, 2]
    assert (plan.max_rounds("output_tps"), plan.max_rounds("speedup")) == (3, 2), "it is not started again"


def test_what_is_saved_has_its_speedup_in_the_most_rounds() -> None:
    plan = schedule(
        [], {CODING: Plan(speedup=True)}, rounds="2", max_rounds="4", save="true", method="draft_model"
    )
    measured = plan.measurement(CODING)
    assert [figures.speedup for figures in measured.rounds] == [2, 2, 2, 2]


def test_the_mean_is_that_of_the_planned_categories() -> None:
    plan = schedule([], dict.fromkeys((CODING, MATH, MEAN, OTHER_BATCH), Plan()))
    mean = plan.measurement(MEAN)
    assert mean.cell == MEAN
    assert replace(mean, cell=CODING).metrics == {"output_tps": 100}
    assert mean.sent == 2
