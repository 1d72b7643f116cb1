"""What the marker asks of each cell, and how the tests that share a cell agree."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_speedbench.cells import Asked, Cell, Grid, Narrowing, Plan, merged, read_marker
from pytest_speedbench.errors import SettingsError

CODING, QA, MATH, MEAN = (Cell("qualitative", category, 1) for category in ("coding", "qa", "math", "mean"))


def grid(**keywords: Any) -> Grid:
    return read_marker(
        (),
        {"split": "qualitative", "categories": ["coding", "qa", "math"], "batch_sizes": 1, **keywords},
    )


def test_every_argument_reaches_the_plan_of_a_cell() -> None:
    asked = grid(
        metrics="acceptance_length",
        rounds=5,
        limit=40,
        output_length=256,
        tolerance={"acceptance_length": 0.1, "mean_acceptance_length": 0.02},
        exclude_from_mean=["math"],
    )
    plan = Plan(
        metrics=("acceptance_length",),
        rounds=5,
        limit=40,
        output_length=256,
        tolerance={"acceptance_length": 0.1},
    )
    assert asked.plan(CODING) == plan
    assert asked.plan(MEAN).tolerance == {"acceptance_length": 0.02}
    assert asked.plan(MEAN).exclude_from_mean == ("math",)


def test_a_tolerance_for_all() -> None:
    assert grid(tolerance=0.1).plan(MEAN).tolerance["user_tps"] == 0.1
    assert grid(tolerance=0.1, metrics="speedup").plan(QA).tolerance == {"speedup": 0.1}


def test_alpha_is_shared_among_the_metrics_that_are_named() -> None:
    assert grid().plan(QA).judged == ("acceptance_length", "output_tps", "user_tps")
    assert grid(speedup=True).plan(QA).judged == ("acceptance_length", "output_tps", "user_tps", "speedup")
    assert grid(metrics=["user_tps"]).plan(QA).judged == ("user_tps",)
    assert grid(metrics=["speedup"]).plan(QA).speedup, "what is judged has to be measured"


def test_a_category_left_out_of_the_mean_is_a_test_of_its_own() -> None:
    asked = grid(exclude_from_mean=["math"])
    assert set(asked.cells(Narrowing())) == {CODING, QA, MATH, MEAN}
    assert set(asked.measured_for(MEAN, Narrowing())) == {CODING, QA, MEAN}
    assert asked.measured_for(MATH, Narrowing()) == (MATH,)


def test_no_mean_of_one_category() -> None:
    assert MEAN not in grid(exclude_from_mean=["math", "qa"]).cells(Narrowing())


def test_tests_of_one_cell_add_up() -> None:
    one = Plan(metrics=("acceptance_length",), tolerance={"acceptance_length": 0.1})
    other = Plan(metrics=("speedup",), tolerance={"speedup": 0.2}, speedup=True)
    plans = merged([Asked("a", QA, one), Asked("b", QA, other), Asked("b", CODING, other)])
    assert list(plans) == [QA, CODING]
    assert plans[QA] == Plan(
        speedup=True,
        metrics=("acceptance_length", "speedup"),
        tolerance={"acceptance_length": 0.1, "speedup": 0.2},
    )


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (Plan(rounds=3), Plan(rounds=5), "rounds=3 and rounds=5"),
        (Plan(limit=40), Plan(), "limit=40 and limit=None"),
        (Plan(), Plan(output_length=64), "output_length=None and output_length=64"),
        (
            Plan(tolerance={"user_tps": 0.1}),
            Plan(),
            "tolerance of user_tps=0.1 and tolerance of user_tps=None",
        ),
    ],
)
def test_tests_that_disagree_about_a_cell_are_both_named(one: Plan, other: Plan, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        merged([Asked("test_a.py::test_one", QA, one), Asked("test_b.py::test_two", QA, other)])
    assert str(refused.value).startswith(
        "test_a.py::test_one and test_b.py::test_two name qualitative-qa-bs1"
    )
    assert said in str(refused.value)


def test_two_marks_of_one_test_that_disagree() -> None:
    with pytest.raises(SettingsError, match=r"^test_a: two marks name qualitative-qa-bs1 with rounds=3 and"):
        merged([Asked("test_a", QA, Plan(rounds=3)), Asked("test_a", QA, Plan(rounds=5))])


def test_a_test_has_no_say_in_the_tolerance_of_what_it_does_not_judge() -> None:
    one = Plan(metrics=("user_tps",), tolerance={"user_tps": 0.1})
    other = Plan(metrics=("acceptance_length",))
    assert merged([Asked("a", QA, one), Asked("b", QA, other)])[QA].tolerance == {"user_tps": 0.1}


def test_a_test_that_names_no_metrics_may_judge_all() -> None:
    one, other = Plan(metrics=("user_tps",)), Plan()
    assert merged([Asked("a", QA, one), Asked("b", QA, other)])[QA].metrics is None
