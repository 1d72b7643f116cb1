from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from pytest_speedbench.gate.estimate import mean_estimate, rounds_estimate, t_quantile
from pytest_speedbench.gate.noise import MEDIAN_VARIANCE, Sides, median_error, median_variance, shared_noise

CELLS = 11
RUN, BASELINE = 3, 9


@pytest.mark.parametrize("n", range(1, 31))
def test_the_variance_of_a_median_is_that_of_order_statistics(n: int) -> None:
    """Integrals over the (joint) density of the middle order statistics of n standard normal values."""
    from scipy.special import log_ndtr

    nodes, weights = np.polynomial.legendre.leggauss(200)
    u, du = 9 * nodes, 9 * weights
    density = np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
    if n % 2:
        m = n // 2
        scale = math.lgamma(n + 1) - 2 * math.lgamma(m + 1)
        joint = np.exp(scale + m * (log_ndtr(u) + log_ndtr(-u))) * density * du
        variance = float((joint * u**2).sum())
    else:
        m = n // 2 - 1
        gap, dgap = 6 * (nodes + 1), 6 * weights
        v = u[:, None] + gap
        scale = math.lgamma(n + 1) - 2 * math.lgamma(m + 1)
        joint = np.exp(scale + m * (log_ndtr(u)[:, None] + log_ndtr(-v)))
        joint *= (density * du)[:, None] * np.exp(-(v**2) / 2) / math.sqrt(2 * math.pi) * dgap
        variance = float((joint * ((u[:, None] + v) / 2) ** 2).sum())
    assert median_variance(n) == pytest.approx(variance, abs=1e-6)


def test_beyond_the_table_the_limit_is_a_little_too_large() -> None:
    assert median_variance(31) == pytest.approx(0.049966, rel=0.02)
    assert median_variance(31) > 0.049966
    assert len(MEDIAN_VARIANCE) == 30


def test_without_a_second_round_nothing_is_known() -> None:
    assert median_error(([0.1], [0.2]), [([0.1], [0.2]), ([], [0.3])]) is None


def test_rounds_that_are_all_equal_have_no_error() -> None:
    same: Sides = ([0.5] * 3, [0.4] * 3)
    found = median_error(same, [same, same])
    assert found is not None
    assert (found.value, found.degrees_of_freedom) == (0, 8)


def test_a_cell_alone_has_its_own_noise() -> None:
    cell: Sides = ([-0.01, 0.0, 0.01], [-0.02, 0.0, 0.02])
    found = median_error(cell, [cell])
    pooled, own = (0.0002 + 0.0008) / 4, 0.0008 / 2
    assert found is not None
    parts = pooled * median_variance(3), own * median_variance(3)  # the louder side keeps its own
    assert found.value == pytest.approx(sum(parts))
    assert found.degrees_of_freedom == pytest.approx(
        sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 2)
    )


def test_cells_that_are_alike_share_their_degrees_of_freedom() -> None:
    batch: list[Sides] = [([-0.02, 0.0, 0.02], [-0.02, 0.0, 0.02])] * CELLS
    found = median_error(batch[0], batch)
    assert found is not None
    assert found.value == pytest.approx(2 * 0.02**2 * median_variance(3))
    assert found.degrees_of_freedom == pytest.approx(4 * CELLS, rel=1e-6)


def test_a_cell_far_noisier_than_the_batch_keeps_its_own_and_does_not_harm_the_others() -> None:
    calm: list[Sides] = [
        ([-0.02 * k, 0.0, 0.02 * k], [-0.02 / k, 0.0, 0.02 / k]) for k in (0.8, 0.9, 1, 1.1, 1.2)
    ]
    loud: Sides = ([-0.2, 0.0, 0.2], [-0.2, 0.0, 0.2])
    own, others = median_error(loud, [*calm, loud]), median_error(calm[2], [*calm, loud])
    assert own is not None
    assert others is not None
    assert own.value == pytest.approx(2 * 0.2**2 * median_variance(3), rel=0.1)
    assert own.degrees_of_freedom < 4
    assert others.value < 4 * 2 * 0.02**2 * median_variance(3)  # pooled as if all were alike: 17.5 times


def normal(random: np.random.Generator) -> list[Sides]:
    return _rounds(random, np.full((CELLS, 2), 0.02))


def cells_of_unlike_noise(random: np.random.Generator) -> list[Sides]:
    return _rounds(random, 0.02 * np.exp(0.5 * random.standard_normal((CELLS, 1))) * np.ones((1, 2)))


def a_run_noisier_than_its_baseline(random: np.random.Generator) -> list[Sides]:
    return _rounds(random, np.full((CELLS, 1), 0.02) * np.array([[1.5, 1.0]]))


def one_cell_three_times_as_noisy(random: np.random.Generator) -> list[Sides]:
    spread = np.full((CELLS, 2), 0.02)
    spread[0] *= 3
    return _rounds(random, spread)


def _rounds(
    random: np.random.Generator, spread: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> list[Sides]:
    return [
        ([*random.normal(0, run, RUN)], [*random.normal(0, baseline, BASELINE)]) for run, baseline in spread
    ]


@pytest.mark.parametrize(
    "draw",
    [normal, cells_of_unlike_noise, a_run_noisier_than_its_baseline, one_cell_three_times_as_noisy],
)
def test_false_alarms_stay_below_alpha(draw: Callable[[np.random.Generator], list[Sides]]) -> None:
    """At an alpha of 1 % and at one of 0.1 %, counted over all cells; 5 standard deviations are allowed for."""
    random = np.random.default_rng(11)
    trials = 250
    alarms = {0.01: 0, 0.001: 0}
    for _ in range(trials):
        batch = draw(random)
        for cell in batch:
            error = median_error(cell, batch)
            assert error is not None
            loss = float(np.median(cell[1]) - np.median(cell[0]))
            for alpha in alarms:
                reach = t_quantile(1 - alpha, error.degrees_of_freedom) * math.sqrt(error.value)
                alarms[alpha] += loss > reach
    for alpha, count in alarms.items():
        expected = alpha * trials * CELLS
        assert count <= expected + 5 * math.sqrt(expected)


def test_cells_that_move_together_have_a_mean_as_noisy_as_one_of_them() -> None:
    batch: list[Sides] = [([-0.02, 0.0, 0.02], [0.01, -0.01, 0.0])] * CELLS
    found = shared_noise(batch)
    assert found is not None
    assert found.value == pytest.approx(CELLS)
    assert found.degrees_of_freedom == 4


def test_what_averages_out_over_the_cells_is_not_shared() -> None:
    assert shared_noise([([-0.02, 0.0, 0.02],), ([0.02, 0.0, -0.02],)]) is None
    assert shared_noise([([0.1, 0.1],), ([0.2, 0.2],)]) is None


def test_only_rounds_that_every_cell_has_tell_what_is_shared() -> None:
    batch: list[Sides] = [([-0.02, 0.02, 0.3],), ([-0.02, 0.02],), ([],)]
    found = shared_noise(batch)
    assert found is not None
    assert found.value == pytest.approx(2)
    assert found.degrees_of_freedom == 1


@pytest.mark.parametrize("batch", [[([0.1, 0.2],)], [([0.1],), ([0.2],)], [([],)]])
def test_one_cell_or_one_round_shares_nothing(batch: list[Sides]) -> None:
    assert shared_noise(batch) is None


@pytest.mark.parametrize("together", [0.0, 0.1, 0.5, 1.0])
def test_the_mean_covers_the_truth_however_much_of_the_noise_its_cells_share(together: float) -> None:
    """Log figures of a whole batch, a part of whose variance is the same in all cells; nothing changed."""
    random = np.random.default_rng(7)
    missed = 0
    trials = 400
    for _ in range(trials):
        logs = [
            0.02
            * (
                math.sqrt(1 - together) * random.standard_normal((CELLS, n))
                + math.sqrt(together) * random.standard_normal(n)
            )
            for n in (RUN, BASELINE)
        ]
        group = [(list(np.exp(logs[0][cell])), list(np.exp(logs[1][cell]))) for cell in range(CELLS)]
        estimates = [rounds_estimate(*rounds, group) for rounds in group]
        known = [estimate for estimate in estimates if estimate is not None]
        mean = sum(estimate.log_ratio for estimate in known) / CELLS
        interval = mean_estimate(mean, known, [1 / CELLS] * CELLS, group).interval()
        assert interval is not None
        missed += not interval[0] < 1 < interval[1]
    assert missed <= 0.07 * trials  # 5 % are meant; 400 trials are off by 1.1 % on average
