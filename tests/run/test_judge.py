"""Every check of a run is settled once, with its group, by the rules that tests and options gave."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_speedbench.cells import Cell, Plan
from pytest_speedbench.errors import BaselineError, EngineError, NotMeasured, SpeedBenchError
from pytest_speedbench.gate.baseline import Baseline, merge
from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.run.judge import Judge, measured, refuse_unfit
from pytest_speedbench.run.ledger import Role
from tests.gate.measurements import CONDITIONS
from tests.run.diary import Recorder, Run, measured_round

CODING, MATH, QA, MEAN = (Cell("qualitative", category, 4) for category in ("coding", "math", "qa", "mean"))
NOISE = (0.995, 1.0, 1.005)


def rounds_of(run: Run, recorder: Recorder, cells: int, output_tps: float = 100.0) -> None:
    """Let each of the next three rounds of so many cells come out a little differently."""
    recorder.faults = [measured_round(output_tps * factor) for factor in NOISE for _ in range(cells)]


def baseline_of(*cells: Cell) -> Baseline:
    """What a run at 100 tokens per second stored."""
    run = Run(cells, rounds="3")
    rounds_of(run, run.main, len(cells))
    for cell in cells:
        run.measure(cell)
    stored = [measured(run.ledger, cell) for cell in cells]
    return merge("t", None, stored, CONDITIONS, Recorder.hardware.key).baseline


def judged(
    planned: Mapping[Cell, Plan], output_tps: float = 100.0, *, baseline: Baseline | None = None
) -> tuple[Run, Judge]:
    """A run whose cells are measured, and its judge."""
    run = Run(planned, rounds="3", max_rounds="3")
    cells = run.ledger.cells
    rounds_of(run, run.main, len(cells), output_tps)
    run.measure(cells[0])
    stored = baseline_of(*cells) if baseline is None else baseline
    return run, Judge(run.settings, run.ledger, run.schedule, stored, "2026-11-25", "0123abc")


def verdict(run: Run, cell: Cell) -> Verdict:
    return run.ledger[cell].settled["output_tps"].verdict


def test_a_check_is_settled_once_together_with_its_group() -> None:
    run, judge = judged(dict.fromkeys((CODING, MATH, MEAN), Plan()), output_tps=80.0)
    judge.settle(CODING, "output_tps")
    assert {cell: verdict(run, cell) for cell in run.ledger} == dict.fromkeys(
        (CODING, MATH, MEAN), Verdict.REGRESSION
    )
    before = {cell: run.ledger[cell].settled["output_tps"] for cell in run.ledger}
    del run.diary[:]
    run.main.output_tps = 100.0
    for cell in run.ledger:
        judge.settle(cell, "output_tps")
        assert run.ledger[cell].settled["output_tps"] is before[cell]
    assert run.diary == [], "nothing is measured for it either"


def test_a_check_is_no_test_of_a_metric_that_was_not_asked_for() -> None:
    run, judge = judged({CODING: Plan()})
    judge.settle(CODING, "output_tps")
    assert set(run.ledger[CODING].settled) == {"output_tps"}
    assert run.ledger[CODING].checks == (), "a test has to assert it"


def test_alpha_is_shared_by_every_check_that_the_run_may_make() -> None:
    def alpha(planned: Mapping[Cell, Plan]) -> float:
        run, judge = judged(planned)
        judge.settle(CODING, "output_tps")
        return run.ledger[CODING].settled["output_tps"].alpha

    one = Plan(metrics=("output_tps",))
    alone = alpha({CODING: one})
    assert alpha({CODING: one, MATH: one}) == pytest.approx(alone / 2)
    assert alpha({CODING: Plan(metrics=("output_tps", "user_tps"))}) == pytest.approx(alone / 2)
    assert alpha({CODING: one, MATH: one, MEAN: one}) == pytest.approx(alone / 3)


def test_the_tolerance_of_a_marker_goes_before_that_of_the_run() -> None:
    run, judge = judged({CODING: Plan(), MATH: Plan(tolerance={"output_tps": 0.5})}, output_tps=80.0)
    judge.settle(CODING, "output_tps")
    assert (verdict(run, CODING), verdict(run, MATH)) == (Verdict.REGRESSION, Verdict.PASS)
    assert run.ledger[MATH].settled["output_tps"].tolerance == 0.5


def test_without_a_baseline_there_is_none_for_any_cell() -> None:
    run, judge = judged({CODING: Plan()}, baseline=Baseline("t"))
    judge.settle(CODING, "output_tps")
    assert verdict(run, CODING) is Verdict.NO_BASELINE


def test_a_cell_that_was_not_measured_leaves_the_others_their_checks_and_the_mean_none() -> None:
    run = Run((CODING, MATH, QA, MEAN), rounds="1", max_rounds="1")
    run.main.faults = [None, EngineError("exited with code 70")]
    run.measure(CODING)
    judge = Judge(run.settings, run.ledger, run.schedule, baseline_of(CODING, MATH, QA), "", None)
    judge.settle(CODING, "output_tps")
    assert "output_tps" in run.ledger[QA].settled
    for cell in (MATH, MEAN):
        with pytest.raises(NotMeasured, match=r"^qualitative-math-bs4 was not measured: exited with code 70"):
            judge.settle(cell, "output_tps")
        assert run.ledger[cell].settled == {}


class TestAgainstAnotherTarget:
    def compared(self, theirs: float, faults: tuple[BaseException, ...] = ()) -> tuple[Run, Judge]:
        run = Run([CODING], against=True, rounds="3")
        other = run.schedule.runs[Role.AGAINST]
        assert isinstance(other, Recorder)
        rounds_of(run, run.main, 1)
        rounds_of(run, other, 1, theirs)
        other.faults[:0] = faults
        run.measure(CODING)
        return run, Judge(run.settings, run.ledger, run.schedule, None, "", None)

    def test_its_measurement_is_the_reference(self) -> None:
        run, judge = self.compared(theirs=125.0)
        judge.settle(CODING, "output_tps")
        check = run.ledger[CODING].settled["output_tps"]
        assert check.verdict is Verdict.REGRESSION
        assert check.ratio == pytest.approx(0.8)
        assert check.value == pytest.approx(100, rel=0.01)
        assert check.baseline == pytest.approx(125, rel=0.01)

    def test_one_that_was_not_measured_cannot_serve_as_a_reference(self) -> None:
        run, judge = self.compared(theirs=125.0, faults=(EngineError("did not start"),))
        reason = "^other cannot serve as a reference: qualitative-coding-bs4 was not measured: did not start$"
        with pytest.raises(SpeedBenchError, match=reason):
            judge.settle(CODING, "output_tps")
        assert run.ledger[CODING].settled == {}


def test_what_cannot_become_a_baseline_is_noted_with_its_cell() -> None:
    run = Run([CODING], rounds="1")
    run.main.faults = [measured_round(problem="1 request failed")]
    run.measure(CODING)
    with pytest.raises(BaselineError, match="1 request failed"):
        refuse_unfit(run.ledger, CODING, "draft_model")
    refused = run.ledger[CODING].refused
    assert refused is not None and "1 request failed" in refused
