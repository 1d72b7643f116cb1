"""What is known of a cell is computed from its rounds, wherever it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.cells import Cell, Plan
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.run.ledger import Ledger, Role
from pytest_speedbench.run.session import ledger_of
from pytest_speedbench.settings.methods import method_of
from pytest_speedbench.settings.target import Target
from tests.run.diary import measured_round

CODING, MATH, QA, MEAN = (Cell("qualitative", category, 4) for category in ("coding", "math", "qa", "mean"))
TARGET = Target("t", "reference", "draft_model", 3)


def ledger(plans: dict[Cell, Plan]) -> Ledger:
    return ledger_of(plans, {Role.MAIN: TARGET}, {Role.MAIN: method_of("draft_model")})


def with_rounds(known: Ledger, cell: Cell, *output_tps: float) -> None:
    known.update_side(cell, Role.MAIN, rounds=tuple(map(measured_round, output_tps)))


def test_a_measurement_follows_the_rounds() -> None:
    known = ledger({CODING: Plan()})
    assert known[CODING].measurement is None
    with_rounds(known, CODING, 100.0)
    assert known[CODING].metrics["output_tps"] == 100
    with_rounds(known, CODING, 100.0, 200.0, 300.0)
    assert known[CODING].metrics["output_tps"] == 200


def test_a_mean_follows_its_categories_and_leaves_out_what_a_test_excludes() -> None:
    known = ledger({CODING: Plan(), MATH: Plan(), QA: Plan(), MEAN: Plan(exclude_from_mean=("qa",))})
    with_rounds(known, CODING, 100.0)
    assert known[MEAN].measurement is None, "one category is not measured yet"
    with_rounds(known, MATH, 300.0)
    with_rounds(known, QA, 1000.0)
    assert known[MEAN].metrics["output_tps"] == 200
    with_rounds(known, MATH, 500.0)
    assert known[MEAN].metrics["output_tps"] == 300


def test_a_value_is_shown_as_it_was_judged() -> None:
    """Another metric's inconclusive check may have had more rounds measured since."""
    known = ledger({CODING: Plan()})
    with_rounds(known, CODING, 100.0)
    check = Check("output_tps", Verdict.PASS, 0.05, 0.01, value=100.0)
    known.update(CODING, settled={"output_tps": check}, asserted=("output_tps",))
    with_rounds(known, CODING, 100.0, 300.0)
    assert known[CODING].metrics["output_tps"] == 100
    measurement = known[CODING].measurement
    assert measurement is not None and len(measurement.rounds) == 2


def test_only_what_a_test_asserts_is_its_check() -> None:
    known = ledger({CODING: Plan()})
    known.update(CODING, settled={"output_tps": Check("output_tps", Verdict.REGRESSION, 0.05, 0.01)})
    assert known[CODING].checks == ()
    assert known[CODING].verdict is None


def test_what_an_invalid_check_concerned_is_judged_anew() -> None:
    known = ledger({CODING: Plan(), MEAN: Plan()})
    invalid = Check("acceptance_length", Verdict.INVALID, 0.03, 0.01)
    regressed = replace(invalid, metric="output_tps", verdict=Verdict.REGRESSION)
    settled = {check.metric: check for check in (invalid, regressed)}
    for cell in (CODING, MEAN):
        known.update(cell, settled=settled, failing=tuple(settled))
    known.unsettle_invalid(CODING)
    for cell in (CODING, MEAN):
        assert known[cell].settled == {"output_tps": regressed}, "what was judged stays"
        assert known[cell].failing == ("output_tps",)


def test_forgetting_keeps_the_time_that_was_spent() -> None:
    known = ledger({CODING: Plan()})
    with_rounds(known, CODING, 100.0)
    known.update_side(CODING, Role.MAIN, error="died", measuring_s=3.0)
    known.forget_measurements(CODING)
    assert known[CODING].main.is_sound
    assert known[CODING].measurement is None
    assert known[CODING].measuring_s == 3


@pytest.mark.parametrize(
    ("method", "roles", "speedup_over", "reason"),
    [
        ("draft_model", (Role.WITHOUT_SPECULATION,), Role.WITHOUT_SPECULATION, None),
        ("draft_model", (Role.AGAINST,), Role.AGAINST, None),
        ("draft_model", (), None, "speedup needs the same target without speculation*"),
        ("none", (), None, "speedup is over method none, which this target is"),
    ],
)
def test_what_a_speedup_is_over(
    method: str, roles: tuple[Role, ...], speedup_over: Role | None, reason: str | None
) -> None:
    targets = {Role.MAIN: replace(TARGET, method=method)}
    targets |= {role: Target("plain", "reference", "none", 0) for role in roles}
    known = ledger_of(
        {CODING: Plan(speedup=True)},
        targets,
        {role: method_of(target.method) for role, target in targets.items()},
    )[CODING]
    assert known.speedup_over is speedup_over
    assert (known.no_speedup or "").startswith((reason or "").rstrip("*"))
