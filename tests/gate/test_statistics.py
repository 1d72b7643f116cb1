from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.gate.statistics import Pair, ratio_of_ratios

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


def test_an_interval_can_be_centred_on_another_estimate() -> None:
    estimate = ratio_of_ratios([Pair(100, 50, 100, 40), Pair(100, 50, 100, 45), Pair(100, 50, 100, 50)])
    assert estimate is not None
    own, moved = estimate.interval(), estimate.interval(around=2 * estimate.ratio)
    assert own is not None
    assert moved == pytest.approx((2 * own[0], 2 * own[1]))


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
