from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pytest

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.gate.baseline import Baseline
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.sequential import Measured, Rule, judge_group
from pytest_speedbench.metrics.measurement import Measurement
from tests.gate.measurements import CONDITIONS, HARDWARE, STEPS, baseline_of, measurement

CODING, MATH, QA = (Cell("qualitative", name, 32) for name in ("coding", "math", "qa"))
THE_MEAN = Cell("qualitative", MEAN, 32)
NINE = (0.985, 0.99, 0.995, 1.0, 1.0, 1.0, 1.005, 1.01, 1.015)


class Machine:
    """Gives each cell's rounds in the order in which they are asked for, and keeps what was asked."""

    def __init__(self, speeds: Mapping[Cell, Sequence[float]], baseline: Baseline | None = None) -> None:
        self.speeds = speeds
        self.baseline = baseline or baseline_of(*(measurement(cell=cell, speeds=NINE) for cell in speeds))
        self.asked: list[tuple[tuple[str, ...], int]] = []
        self.measured: dict[Cell, Measurement] = {}

    def measure(self, cells: Collection[Cell], rounds: int) -> Measured:
        self.asked.append((tuple(cell.category for cell in cells), rounds))
        for cell in cells:
            self.measured[cell] = measurement(cell=cell, speeds=self.speeds[cell][:rounds])
        return Measured(dict(self.measured), self.baseline)


def rule(checks: int = 3, rounds: int = 3, max_rounds: int = 9, in_a_category: float = 0.05) -> Rule:
    return Rule(
        alpha=0.01,
        checks=checks,
        rounds=rounds,
        max_rounds=max_rounds,
        tolerance=lambda metric, cell: 0.02 if cell.is_mean else in_a_category,
        conditions=CONDITIONS,
        hardware_key=HARDWARE,
        other_hardware_tolerance=0.04,
        degenerate_share=0.1,
    )


def judge(
    machine: Machine, asked: Mapping[Cell, Sequence[str]], by: Rule | None = None
) -> dict[Cell, dict[str, Check]]:
    return judge_group(asked, machine.measure, by or rule())[0]


STEADY = (1.0, 0.995, 1.005) * 3
SLOW_AT_FIRST = (0.94, 0.955, 0.97, 1.0, 1.0, 0.995, 1.005, 1.0, 1.0)
"""Whose first rounds look slow, and whose later ones do not."""


def test_what_is_clear_at_once_is_measured_once() -> None:
    machine = Machine({CODING: STEADY, MATH: STEADY})
    found = judge(machine, {CODING: ["output_tps"], MATH: ["output_tps"], THE_MEAN: ["output_tps"]})
    assert [check.verdict for checks in found.values() for check in checks.values()] == [Verdict.PASS] * 3
    assert list(found) == [CODING, MATH, THE_MEAN]
    assert machine.asked == [(("coding", "math"), 3)]


def test_only_what_is_inconclusive_is_measured_again() -> None:
    machine = Machine({CODING: STEADY, MATH: SLOW_AT_FIRST, QA: STEADY})
    found = judge(machine, {cell: ["output_tps"] for cell in (CODING, MATH, QA)})
    assert machine.asked[0] == (("coding", "math", "qa"), 3)
    assert machine.asked[1] == (("math",), 6)
    assert found[MATH]["output_tps"].verdict is Verdict.PASS
    assert found[MATH]["output_tps"].rounds > 3
    assert found[CODING]["output_tps"].rounds == 3


def test_a_check_that_was_decided_stays_as_it_was() -> None:
    """Its cell may be measured further for the sake of another metric."""
    machine = Machine({MATH: SLOW_AT_FIRST})
    found = judge(machine, {MATH: ["acceptance_length", "output_tps"]})
    assert found[MATH]["acceptance_length"].rounds == 3
    assert found[MATH]["output_tps"].rounds > 3


def test_an_inconclusive_mean_has_all_its_categories_measured_again() -> None:
    uneven = (0.95, 0.975, 1.0, *STEADY)
    machine = Machine({CODING: uneven, MATH: STEADY, QA: uneven})
    asked = {CODING: ["output_tps"], MATH: ["output_tps"], QA: ["user_tps"], THE_MEAN: ["output_tps"]}
    found = judge(machine, asked, rule(in_a_category=0.3))
    assert machine.asked == [(("coding", "math", "qa"), 3), (("coding", "math"), 6)]
    assert found[CODING]["output_tps"].rounds == 3
    assert found[THE_MEAN]["output_tps"].rounds == 6
    assert found[THE_MEAN]["output_tps"].verdict is Verdict.PASS


def test_the_last_look_is_the_last() -> None:
    wild = (0.7, 1.0, 1.4) * 3
    machine = Machine({CODING: wild})
    found = judge(machine, {CODING: ["output_tps"]}, rule(rounds=3, max_rounds=8))
    assert [rounds for _, rounds in machine.asked] == [3, 6, 8]
    assert found[CODING]["output_tps"].verdict is Verdict.INCONCLUSIVE


def test_later_looks_have_a_smaller_share_of_alpha() -> None:
    wild = (0.7, 1.0, 1.4) * 3
    once = judge(Machine({CODING: wild}), {CODING: ["output_tps"]}, rule(checks=4, max_rounds=3))
    thrice = judge(Machine({CODING: wild}), {CODING: ["output_tps"]}, rule(checks=4))
    assert once[CODING]["output_tps"].alpha == pytest.approx(0.01 / 4)
    assert thrice[CODING]["output_tps"].alpha == pytest.approx(0.01 / 4 / 4)


def test_categories_of_a_fallen_mean_are_judged_at_the_whole_alpha() -> None:
    slow = (0.91, 0.93, 0.95) * 3
    cells = {CODING: slow, MATH: slow[1:] + slow[:1], QA: slow[2:] + slow[:2]}
    before = baseline_of(
        *(
            measurement(cell=cell, speeds=NINE[turned:] + NINE[:turned])
            for cell, turned in zip(cells, (0, 3, 6), strict=True)
        )
    )
    asked: dict[Cell, Sequence[str]] = {cell: ["output_tps"] for cell in cells}
    by = rule(checks=400, max_rounds=3)
    without = judge(Machine(cells, before), asked, by)
    found = judge(Machine(cells, before), {**asked, THE_MEAN: ["output_tps"]}, by)
    assert found[THE_MEAN]["output_tps"].verdict is Verdict.REGRESSION
    assert found[THE_MEAN]["output_tps"].alpha == pytest.approx(0.01 / 400)
    assert {without[cell]["output_tps"].verdict for cell in cells} == {Verdict.INCONCLUSIVE}
    assert {found[cell]["output_tps"].verdict for cell in cells} == {Verdict.REGRESSION}
    assert {found[cell]["output_tps"].alpha for cell in cells} == {0.01}


def test_a_slow_moment_that_all_categories_share_is_one_and_not_many() -> None:
    """The same rounds, all slow at once: their mean knows no more of them than a single category."""
    slow = (0.91, 0.93, 0.95) * 3
    cells = {CODING: slow, MATH: slow, QA: slow}
    asked: dict[Cell, Sequence[str]] = {cell: ["output_tps"] for cell in (*cells, THE_MEAN)}
    found = judge(Machine(cells), asked, rule(checks=400, max_rounds=3))
    assert found[THE_MEAN]["output_tps"].verdict is Verdict.INCONCLUSIVE


def test_outputs_that_repeat_exactly_are_not_measured_again_in_vain() -> None:
    """One prompt alone lost a lot, which no further round can tell from a loss of all prompts like it."""
    before = measurement([*STEPS[:-1], STEPS[-1] - 40], cell=CODING, speeds=NINE)
    machine = Machine({CODING: STEADY}, baseline_of(before))
    found = judge(machine, {CODING: ["acceptance_length"]})
    assert found[CODING]["acceptance_length"].verdict is Verdict.INCONCLUSIVE
    assert len(machine.asked) == 1


def test_without_a_comparison_nothing_is_measured_again() -> None:
    machine = Machine({CODING: STEADY}, baseline_of(measurement(cell=MATH)))
    found = judge(machine, {CODING: ["output_tps"]})
    assert found[CODING]["output_tps"].verdict is Verdict.NO_BASELINE
    assert len(machine.asked) == 1


def test_cells_of_two_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="no group: qualitative-coding-bs32, qualitative-coding-bs1"):
        judge(Machine({CODING: STEADY}), {CODING: [], Cell("qualitative", "coding", 1): []})
    with pytest.raises(ValueError, match="no group: qualitative-mean-bs32"):
        judge(Machine({CODING: STEADY}), {THE_MEAN: []})
