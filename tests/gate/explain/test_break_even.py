"""Up to which batch size speculation pays."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.gate.explain.break_even import (
    BreakEven,
    SpeedupAt,
    break_even,
    break_evens_of,
    speedup_at,
)
from pytest_speedbench.metrics.measurement import Measurement, RoundFigures
from tests.gate.measurements import measurement


def found(speedups: Mapping[int, float], error: float | None = None) -> BreakEven:
    return break_even(
        "throughput_1k",
        [SpeedupAt(size, math.log(speedup), error, 20.0) for size, speedup in speedups.items()],
    )


def test_it_is_interpolated_where_the_speedup_crosses_one() -> None:
    result = found({1: 2.0, 8: 1.25, 32: 1 / 1.25})
    assert result.batch_size == pytest.approx(16)  # half way from 8 to 32 in log batch size
    assert result.monotone
    assert result.text == (
        "throughput_1k: speculation pays up to batch size 16 (speedup 1.25 at 8, 0.80 at 32; "
        "single rounds tell no interval)"
    )


def test_its_interval_is_where_a_speedup_of_one_cannot_be_excluded() -> None:
    result = found({1: 2.0, 8: 1.25, 32: 1 / 1.25}, error=0.02)
    assert result.batch_size is not None and result.ci_low is not None and result.ci_high is not None
    reach = 2.085963 * 0.02 / (2 * math.log(1.25)) * math.log(4)
    assert math.log(result.ci_low) == pytest.approx(math.log(16) - reach, rel=1e-4)
    assert math.log(result.ci_high) == pytest.approx(math.log(16) + reach, rel=1e-4)
    assert "up to batch size 16 [95 % CI 14 .. 18] (speedup" in result.text


def test_an_interval_may_reach_beyond_what_was_measured() -> None:
    result = found({1: 1.02, 32: 0.98}, error=0.05)
    assert (result.ci_low, result.ci_high) == (None, None)
    assert "[95 % CI < 1 .. > 32]" in result.text


def test_it_pays_at_all_sizes() -> None:
    result = found({1: 2.0, 64: 1.2}, error=0.01)
    assert (result.batch_size, result.ci_high) == (None, None)
    assert result.text == (
        "throughput_1k: speculation pays at all batch sizes up to 64: break-even >= 64, surely (speedup 1.20 at 64)"
    )
    unsure = found({1: 2.0, 64: 1.02}, error=0.02)
    assert unsure.ci_low is not None and 32 < unsure.ci_low < 64
    assert ">= 64 [95 % CI 62 .. > 64]" in unsure.text or ">= 64 [95 % CI 5" in unsure.text


def test_it_pays_at_none() -> None:
    result = found({1: 0.9, 64: 0.5}, error=0.01)
    assert result.batch_size is None
    assert result.text == (
        "throughput_1k: speculation pays at no batch size: break-even < 1, surely (speedup at best 0.90 at 1)"
    )


def test_of_several_crossings_the_largest_counts_and_it_is_said() -> None:
    result = found({1: 1.2, 8: 0.97, 16: 1.25, 64: 0.8})
    assert result.batch_size == pytest.approx(32)
    assert not result.monotone
    assert result.text.endswith("not monotone: only 0.97 at 8)")


def test_it_may_pay_at_the_largest_batch_size_only() -> None:
    result = found({1: 0.9, 8: 1.3})
    assert (result.batch_size, result.monotone) == (None, False)
    assert "pays at batch size 8: break-even >= 8 (" in result.text


@given(
    st.lists(st.floats(0.3, 3), min_size=2, max_size=6),
    st.floats(0.001, 0.3),
)
def test_the_interval_holds_the_estimate(speedups: list[float], error: float) -> None:
    sizes = [2**power for power in range(len(speedups))]
    result = found(dict(zip(sizes, speedups, strict=True)), error)
    if result.batch_size is None:
        return
    assert speedups[-1] <= 1 < max(speedups)
    assert 1 <= result.batch_size <= sizes[-1]
    assert result.ci_low is None or result.ci_low <= result.batch_size
    assert result.ci_high is None or result.ci_high >= result.batch_size


def test_the_interval_covers_the_true_point_as_often_as_it_says() -> None:
    random_ = random.Random(5)
    true = {1: 1.9, 8: 1.25, 32: 0.8, 64: 0.6}
    runs, covered = 300, 0
    for _ in range(runs):
        points = [
            speedup_at(
                size,
                [[speedup * math.exp(random_.gauss(0, 0.03)) for _ in range(3)] for _ in range(4)],
            )
            for size, speedup in true.items()
        ]
        result = break_even("throughput_1k", points)
        covered += (result.ci_low or 0) <= 16 <= (result.ci_high or 64)
    assert 0.93 * runs <= covered


class TestSpeedupAt:
    """The mean over categories."""

    def test_is_arithmetic_over_the_median_rounds(self) -> None:
        point = speedup_at(8, [[1.0, 0.9, 1.2], [4.0, 4.0, 9.0]])
        assert math.exp(point.log_speedup) == pytest.approx(2.5)

    def test_pools_the_noise_of_rounds_over_categories(self) -> None:
        noisy, quiet = (
            [math.exp(log) for log in (-0.1, 0.0, 0.1)],
            [math.exp(log) for log in (0.05, 0.0, -0.05)],
        )
        alone = speedup_at(8, [noisy])
        pooled = speedup_at(8, [noisy, quiet])
        assert alone.standard_error == pytest.approx(
            0.1 * math.sqrt(0.448671), rel=1e-5
        )  # of a median of three
        assert alone.degrees_of_freedom == 2
        assert pooled.degrees_of_freedom > 2
        variance = (0.1**2 + 0.05**2) / 2
        assert pooled.standard_error == pytest.approx(math.sqrt(variance * 0.448671 / 2), rel=1e-5)

    def test_what_all_categories_share_in_a_round_does_not_average_out(self) -> None:
        rounds = [math.exp(log) for log in (-0.1, 0.0, 0.1)]
        alone, together = speedup_at(8, [rounds]), speedup_at(8, [rounds] * 4)
        assert together.standard_error == pytest.approx(alone.standard_error)

    def test_of_single_rounds_has_no_error(self) -> None:
        assert speedup_at(8, [[1.5], [1.2]]).standard_error is None


class TestOfMeasurements:
    """Which measurements make a point."""

    @staticmethod
    def measured(category: str, batch_size: int, speedup: float | None) -> Measurement:
        rounds = tuple(RoundFigures(100.0, 10.0, 2.0, 0.1, speedup) for _ in range(2))
        return replace(measurement(cell=Cell("throughput_1k", category, batch_size)), rounds=rounds)

    def test_one_per_batch_size_and_split(self) -> None:
        cells = [
            self.measured(category, size, speedup)
            for category in ("low_entropy", "mixed")
            for size, speedup in ((1, 1.5), (64, 0.9))
        ]
        (result,) = break_evens_of(cells)
        assert result.speedups == pytest.approx({1: 1.5, 64: 0.9})

    def test_the_categories_are_the_same_at_every_batch_size(self) -> None:
        cells = [
            self.measured("mixed", 1, 1.5),
            self.measured("mixed", 64, 0.9),
            self.measured("low_entropy", 1, 9.0),
        ]
        (result,) = break_evens_of(cells)
        assert result.speedups == pytest.approx({1: 1.5, 64: 0.9})

    def test_means_invalid_cells_and_unknown_speedups_do_not_count(self) -> None:
        cells = [
            self.measured("mixed", 1, 1.5),
            self.measured(MEAN, 8, 1.5),
            self.measured("mixed", 16, None),
            replace(self.measured("mixed", 64, 0.9), problems=("1 request failed",)),
        ]
        assert break_evens_of(cells) == ()
