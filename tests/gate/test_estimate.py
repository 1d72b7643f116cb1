from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.gate.estimate import Estimate, Pair, ratio_of_ratios, rounds_estimate

numbers = st.integers(1, 1000)
pairs_of_prompts = st.lists(st.builds(Pair, numbers, numbers, numbers, numbers), min_size=2, max_size=20)


def test_the_ratio_is_of_sums_and_not_a_mean_of_ratios() -> None:
    estimate = ratio_of_ratios([Pair(100, 50, 100, 100), Pair(900, 300, 900, 300)])
    assert estimate is not None
    assert estimate.ratio == pytest.approx((1000 / 400) / (1000 / 350))


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=40))
def test_a_run_that_repeats_its_baseline_has_an_interval_of_no_width_at_1(
    sums: list[tuple[int, int]],
) -> None:
    estimate = ratio_of_ratios([Pair(tokens, steps, tokens, steps) for tokens, steps in sums])
    assert estimate is not None
    assert estimate.ratio == 1
    assert estimate.interval() == (1, 1)


@given(pairs_of_prompts, st.floats(0.5, 2))
def test_the_same_change_for_every_prompt_is_known_exactly(pairs: list[Pair], factor: float) -> None:
    scaled = [
        Pair(p.baseline_numerator, p.baseline_denominator, p.baseline_numerator * factor, p.baseline_denominator)
        for p in pairs
    ]  # fmt: skip
    estimate = ratio_of_ratios(scaled)
    assert estimate is not None
    assert estimate.ratio == pytest.approx(factor)
    assert estimate.interval() == pytest.approx((factor, factor), rel=1e-6)


@given(pairs_of_prompts, st.integers(2, 9))
def test_more_rounds_of_the_same_change_nothing(pairs: list[Pair], rounds: int) -> None:
    """Each prompt's sums grow with the rounds, but there are no more prompts."""
    once = ratio_of_ratios(pairs)
    more = ratio_of_ratios(
        [Pair(p.baseline_numerator, p.baseline_denominator, p.numerator * rounds, p.denominator * rounds) for p in pairs]
    )  # fmt: skip
    assert once is not None
    assert more is not None
    assert more.ratio == pytest.approx(once.ratio)
    assert more.standard_error == pytest.approx(once.standard_error, abs=1e-9)


@given(pairs_of_prompts)
def test_swapping_run_and_baseline_inverts_ratio_and_interval(pairs: list[Pair]) -> None:
    forth = ratio_of_ratios(pairs)
    back = ratio_of_ratios(
        [Pair(p.numerator, p.denominator, p.baseline_numerator, p.baseline_denominator) for p in pairs]
    )
    assert forth is not None
    assert back is not None
    assert back.ratio == pytest.approx(1 / forth.ratio)
    assert back.standard_error == pytest.approx(forth.standard_error, abs=1e-9)


def test_one_prompt_gives_a_ratio_and_no_interval() -> None:
    estimate = ratio_of_ratios([Pair(100, 50, 100, 40)])
    assert estimate is not None
    assert estimate.ratio == pytest.approx(1.25)
    assert estimate.interval() is None


def test_no_prompt_or_no_steps_give_nothing() -> None:
    assert ratio_of_ratios([]) is None
    assert ratio_of_ratios([Pair(0, 0, 0, 0), Pair(0, 0, 0, 0)]) is None


def test_another_confidence_gives_another_width() -> None:
    estimate = Estimate(math.log(0.9), 0.02, 10, "prompt")
    assert estimate.interval() == pytest.approx(
        (0.9 * math.exp(-0.02 * 2.2281), 0.9 * math.exp(0.02 * 2.2281))
    )
    assert estimate.interval(0.9) == pytest.approx(
        (0.9 * math.exp(-0.02 * 1.8125), 0.9 * math.exp(0.02 * 1.8125))
    )


@pytest.mark.parametrize("prompts", [8, 20, 80])
def test_the_interval_covers_the_truth_95_times_in_100(prompts: int) -> None:
    """Prompts differ (SD 30 %), and each drifts by itself between the runs (SD 10 %), as greedy outputs do.

    An error computed step by step, as if all steps were independent, covers far less.
    """
    random = np.random.default_rng(20260604)
    trials, tokens, drift = 2000, 512, 0.1
    truth = math.exp(-(drift**2) / 2)  # the mean of exp(drift z) multiplies the steps
    covered = covered_by_steps = 0
    for _ in range(trials):
        steps = 200 * np.exp(0.3 * random.standard_normal(prompts))
        later = steps * np.exp(drift * random.standard_normal(prompts))
        estimate = ratio_of_ratios([Pair(tokens, y, tokens, z) for y, z in zip(steps, later, strict=True)])
        assert estimate is not None
        interval = estimate.interval()
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
        spread_of_a_step = 0.5  # SD of a step's tokens over their mean, as in SPEED-Bench's histogram
        error = spread_of_a_step * math.sqrt(1 / steps.sum() + 1 / later.sum())
        covered_by_steps += abs(math.log(estimate.ratio / truth)) <= 1.96 * error
    assert 0.93 <= covered / trials <= 0.97
    assert covered_by_steps / trials < 0.85


QUIET = ([100.0, 101.0, 99.0], [100.0, 100.5, 99.5, 101.0, 99.0])


def test_rounds_are_compared_by_their_medians() -> None:
    run, baseline = [90.0, 80.0, 91.0], [100.0, 101.0, 50.0]
    estimate = rounds_estimate(run, baseline, [(run, baseline)])
    assert estimate is not None
    assert estimate.ratio == pytest.approx(0.9)


def test_pairs_of_rounds_are_compared_by_the_median_of_their_ratios() -> None:
    run, baseline = [90.0, 45.0, 180.0], [100.0, 50.0, 200.0]
    estimate = rounds_estimate(run, baseline, [(run, baseline)], paired=True)
    assert estimate is not None
    assert estimate.ratio == pytest.approx(0.9)
    assert estimate.standard_error == pytest.approx(0, abs=1e-12)
    assert estimate.degrees_of_freedom == 2


def test_a_round_without_a_partner_is_left_out() -> None:
    run, baseline = [90.0, 45.0, 180.0, 1.0], [100.0, 50.0, 200.0]
    estimate = rounds_estimate(run, baseline, [(run, baseline)], paired=True)
    assert estimate is not None
    assert estimate.ratio == pytest.approx(0.9)


def test_one_round_on_either_side_gives_a_ratio_and_no_error() -> None:
    estimate = rounds_estimate([90.0], [100.0], [([90.0], [100.0]), ([80.0], [70.0])])
    assert estimate is not None
    assert estimate.log_ratio == pytest.approx(math.log(0.9))
    assert (estimate.standard_error, estimate.degrees_of_freedom) == (None, 0)
    assert estimate.interval() is None


def test_one_round_has_the_noise_of_the_other_cells() -> None:
    """A variance of 1 % squared (2 degrees of freedom) in the run, of 0.79 % squared (4) in the baseline."""
    estimate = rounds_estimate([90.0], [100.0], [([90.0], [100.0]), QUIET])
    run, pool = 1e-4, (2 * 1e-4 + 4 * 0.625e-4) / 6
    assert estimate is not None
    assert estimate.standard_error == pytest.approx(math.sqrt(run + pool), rel=0.01)
    freedom = (run + pool) ** 2 / (run**2 / 2 + pool**2 / 6)
    assert estimate.degrees_of_freedom == pytest.approx(freedom, rel=0.01)


def test_no_rounds_give_nothing() -> None:
    assert rounds_estimate([], [100.0], [QUIET]) is None
    assert rounds_estimate([100.0], [], [QUIET]) is None


def test_a_figure_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"positive"):
        rounds_estimate([0.0], [1.0], [QUIET])


figures = st.lists(st.floats(50, 200), min_size=1, max_size=6)


@given(figures, figures, st.lists(st.tuples(figures, figures), max_size=4), st.floats(0.01, 100))
def test_units_do_not_matter(
    run: list[float],
    baseline: list[float],
    others: list[tuple[list[float], list[float]]],
    unit: float,
) -> None:
    group = [(run, baseline), *others]
    once = rounds_estimate(run, baseline, group)
    scaled = [([x * unit for x in now], [x * unit for x in then]) for now, then in group]
    again = rounds_estimate(*scaled[0], scaled)
    assert once is not None
    assert again is not None
    assert again.log_ratio == pytest.approx(once.log_ratio, abs=1e-9)
    if once.standard_error is None:
        assert again.standard_error is None
    elif once.standard_error > 1e-6:
        assert again.standard_error == pytest.approx(once.standard_error, rel=1e-3)
