"""Output TPS against user TPS, by batch size."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.metrics.pareto import pareto_curves

SPLIT = "throughput_1k"
TPS = st.floats(1, 1e6)


def cell(
    batch_size: int,
    output_tps: float | None,
    user_tps: float | None,
    *,
    category: str = "mixed",
    split: str = SPLIT,
    problems: tuple[str, ...] = (),
) -> Measurement:
    told = {"output_tps": output_tps, "user_tps": user_tps}
    return Measurement(
        cell=Cell(split, category, batch_size),
        metrics={name: value for name, value in told.items() if value is not None},
        prompts=(),
        per_position={},
        rounds=(),
        sent=1,
        finished=1,
        failed=0,
        missing={},
        problems=problems,
    )


def test_a_size_that_another_one_beats_in_both_is_off_the_frontier() -> None:
    (curve,) = pareto_curves([cell(32, 900, 20), cell(1, 100, 100), cell(8, 1000, 50)])
    assert curve.split == SPLIT
    assert [(point.batch_size, point.on_frontier) for point in curve.points] == [
        (1, True),
        (8, True),
        (32, False),
    ]


def test_a_tie_in_one_of_the_two_is_decided_by_the_other() -> None:
    (curve,) = pareto_curves([cell(1, 100, 100), cell(8, 100, 50), cell(32, 100, 100)])
    assert [point.on_frontier for point in curve.points] == [True, False, True]


def test_it_is_the_mean_over_categories_that_every_size_has() -> None:
    (curve,) = pareto_curves(
        [
            cell(1, 100, 90),
            cell(1, 300, 50, category="low_entropy"),
            cell(1, 7, 7, category="high_entropy"),
            cell(8, 500, 40),
            cell(8, 700, 20, category="low_entropy"),
        ]
    )
    assert [(point.output_tps, point.user_tps) for point in curve.points] == [(200, 70), (600, 30)]


@pytest.mark.parametrize(
    "other",
    [
        cell(8, 500, None),
        cell(8, 500, 50, problems=("1 request failed",)),
        cell(8, 500, 50, category=MEAN),
        cell(8, 500, 50, category="low_entropy"),
        cell(8, 500, 50, split="throughput_2k"),
    ],
)
def test_one_size_makes_no_curve(other: Measurement) -> None:
    assert pareto_curves([cell(1, 100, 100), other]) == ()


def test_it_is_drawn_of_throughput_splits() -> None:
    assert pareto_curves([cell(size, 100, 100, split="qualitative") for size in (1, 8)]) == ()


@given(st.dictionaries(st.integers(1, 512), st.tuples(TPS, TPS), min_size=2, max_size=8))
def test_the_best_of_either_is_on_the_frontier_and_no_point_of_it_beats_another(
    sizes: Mapping[int, tuple[float, float]],
) -> None:
    (curve,) = pareto_curves([cell(size, *tps) for size, tps in sizes.items()])
    assert [point.batch_size for point in curve.points] == sorted(sizes)
    frontier = sorted((point.output_tps, -point.user_tps) for point in curve.points if point.on_frontier)
    assert frontier[-1][0] == max(output_tps for output_tps, _ in sizes.values())
    assert max(-negative for _, negative in frontier) == max(user_tps for _, user_tps in sizes.values())
    assert [negative for _, negative in frontier] == sorted(negative for _, negative in frontier)
