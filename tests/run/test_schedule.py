"""The order in which rounds are measured, and what becomes of rounds that fail."""

from __future__ import annotations

import pytest

from pytest_speedbench.cells import Cell, Plan
from pytest_speedbench.errors import EngineError, NotMeasured
from pytest_speedbench.run.ledger import Role
from tests.run.diary import TEST, Run, measured_round

CODING, MATH, MEAN = (Cell("qualitative", category, 4) for category in ("coding", "math", "mean"))
OTHER_BATCH_SIZE = Cell("qualitative", "coding", 8)
MIXED = Cell("throughput_1k", "mixed", 4)
LATE = "the load client was late"


def test_the_cells_of_a_group_take_turns_round_by_round() -> None:
    run = Run((CODING, MATH, MEAN, OTHER_BATCH_SIZE), rounds="2")
    assert run.measure(CODING) == 2
    assert run.diary == ["start A", "A coding4", "A math4", "A coding4", "A math4"]
    run.measure(MATH)
    run.measure(MEAN)
    assert len(run.diary) == 5, "measured once, however often it is asked for"
    run.measure(OTHER_BATCH_SIZE)
    assert run.diary[5:] == ["A coding8", "A coding8"]


def test_what_is_saved_has_the_most_rounds() -> None:
    assert Run([CODING], rounds="2", max_rounds="5", save="true").measure(CODING) == 5


def test_a_group_has_the_most_rounds_that_a_test_asks_of_one_of_its_cells() -> None:
    run = Run({CODING: Plan(rounds=4), MATH: Plan(), OTHER_BATCH_SIZE: Plan()}, rounds="2")
    assert [run.measure(cell) for cell in (CODING, MATH, OTHER_BATCH_SIZE)] == [4, 4, 2]


def test_only_the_open_cell_gets_more_rounds() -> None:
    run = Run((CODING, MATH, MEAN), rounds="2", max_rounds="3")
    run.measure(CODING)
    del run.diary[:]
    run.schedule.bring_to([CODING], 3)
    assert run.diary == ["A coding4"]
    run.schedule.bring_to([CODING, MATH], 3)
    assert run.diary == ["A coding4", "A math4"]


def test_two_targets_in_turn_are_measured_a_b_b_a_and_never_together() -> None:
    run = Run((CODING, OTHER_BATCH_SIZE), against=True, rounds="3")
    run.measure(CODING)
    a, b = ["A coding4", "A coding8"], ["B coding4", "B coding8"]
    assert run.diary == ["start A", *a, "start B", *b, *b, "start A", *a, *a, "start B", *b]
    assert run.schedule.max_rounds("output_tps", CODING) == 3, "engines are not started again for one cell"


def test_two_targets_together_are_measured_a_b_b_a_cell_by_cell() -> None:
    run = Run((CODING, MATH), against=True, rounds="2", concurrent_targets="true")
    run.measure(CODING)
    assert [entry for entry in run.diary if not entry.startswith("start")] == [
        "A coding4", "B coding4", "A math4", "B math4", "B coding4", "A coding4", "B math4", "A math4",
    ]  # fmt: skip
    run.schedule.bring_to([CODING], 4)
    assert run.diary[-4:] == ["A coding4", "B coding4", "B coding4", "A coding4"]


def test_every_round_has_its_speedup() -> None:
    run = Run({CODING: Plan(speedup=True)}, rounds="2", max_rounds="3", method="draft_model")
    run.measure(CODING)
    assert run.diary[:4] == ["start N", "N coding4", "N coding4", "start A"]
    measurement = run.ledger[CODING].measurement
    assert measurement is not None
    assert measurement.metrics["speedup"] == 2
    assert [figures.speedup for figures in measurement.rounds] == [2, 2]
    most = [run.schedule.max_rounds(metric, CODING) for metric in ("output_tps", "speedup")]
    assert most == [3, 2], "it is not started again"


def test_what_is_saved_has_its_speedup_in_the_most_rounds() -> None:
    run = Run({CODING: Plan(speedup=True)}, rounds="2", max_rounds="4", save="true", method="draft_model")
    run.measure(CODING)
    measurement = run.ledger[CODING].measurement
    assert measurement is not None
    assert [figures.speedup for figures in measurement.rounds] == [2, 2, 2, 2]


class TestRoundsInWhichTheClientWasLate:
    def test_are_measured_again_and_counted(self) -> None:
        run = Run([MIXED], rounds="2")
        run.main.faults = [None, measured_round(overload=LATE)]
        assert run.measure(MIXED) == 2
        assert run.diary == ["start A", "A mixed4", "A mixed4", "A mixed4"]
        measurement = run.ledger[MIXED].measurement
        assert measurement is not None and measurement.overload is None
        assert "1 round was measured again: the load client had been late" in measurement.notes

    def test_stay_as_they_are_after_three_more_attempts(self) -> None:
        run = Run([MIXED], rounds="2")
        run.main.faults = [measured_round(overload=LATE)] * 5
        assert run.measure(MIXED) == 2
        assert len(run.diary) == 1 + 2 + 3
        measurement = run.ledger[MIXED].measurement
        assert measurement is not None and measurement.overload is not None

    def test_end_a_save_as_soon_as_they_stay(self) -> None:
        run = Run((MIXED, Cell("throughput_1k", "low_entropy", 4)), rounds="2", max_rounds="9", save="true")
        run.main.faults = [measured_round(overload=LATE)] * 4
        run.measure(MIXED)
        assert run.diary == ["start A", *["A mixed4"] * 4]
        with pytest.raises(
            NotMeasured, match="throughput_1k-mixed-bs4 is invalid, so that nothing can be saved"
        ):
            run.measure(Cell("throughput_1k", "low_entropy", 4))


class TestAnEngineThatFails:
    def test_leaves_the_rounds_before_and_a_problem(self) -> None:
        run = Run([CODING], rounds="3")
        run.main.faults = [None, EngineError("exited with code 70")]
        assert run.measure(CODING) == 1
        assert len(run.diary) == 3, "it is not asked again"
        measurement = run.ledger[CODING].measurement
        assert measurement is not None
        assert measurement.problems == ("round 2: exited with code 70",)

    def test_leaves_nothing_but_the_reason_before_the_first_round(self) -> None:
        run = Run([CODING], rounds="3")
        run.main.faults = [EngineError("did not start")]
        assert run.measure(CODING) == 0
        assert run.ledger[CODING].error == "did not start"

    def test_can_be_asked_again(self) -> None:
        run = Run((CODING, MATH), rounds="2")
        run.main.faults = [measured_round(problem="1 request failed")]
        run.measure(CODING)
        assert not run.ledger[CODING].main.is_sound
        del run.diary[:]
        run.schedule.measure_again([CODING, MATH])
        assert run.measure(CODING) == 2
        assert run.diary == ["retry A", "A coding4", "A coding4"], "what is sound is not measured again"


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt(), pytest.fail.Exception("Timeout (>2.0s)\nstack")]
)
def test_what_an_interrupted_test_leaves_unmeasured_says_so(interruption: BaseException) -> None:
    """pytest-timeout raises in the middle of whatever a test does, and a person does at a debugger's prompt."""
    run = Run((CODING, MATH, OTHER_BATCH_SIZE), rounds="2")
    run.main.faults = [None, None, interruption]
    with pytest.raises(type(interruption)):
        run.measure(CODING)
    words = "Timeout (>2.0s)" if str(interruption) else "KeyboardInterrupt"
    for cell in (CODING, MATH):
        assert run.measure(cell, "test_gate.py::later") == 1
        measurement = run.ledger[cell].measurement
        assert measurement is not None
        assert measurement.problems == (f"round 2: {TEST} was interrupted ({words})",)
    assert run.measure(OTHER_BATCH_SIZE) == 2, "another group is not concerned"


def test_time_is_booked_on_the_cell_that_it_was_spent_on() -> None:
    run = Run((CODING, MATH, OTHER_BATCH_SIZE))
    run.measure(CODING)
    assert run.ledger[CODING].measuring_s > 0
    assert run.ledger[MATH].measuring_s > 0
    assert run.ledger[OTHER_BATCH_SIZE].measuring_s == 0


def test_the_other_target_has_its_own_side() -> None:
    run = Run([CODING], against=True, rounds="1")
    run.measure(CODING)
    assert set(run.ledger[CODING].sides) == {Role.MAIN, Role.AGAINST}
    assert all(len(side.rounds) == 1 for side in run.ledger[CODING].sides.values())
