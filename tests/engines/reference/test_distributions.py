from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_speedbench.engines.reference.distributions import (
    Shape,
    accept_probability,
    choose,
    mixture,
    residual,
)

RATIOS = st.floats(0.0, 1.0)
UNITS = st.floats(0.0, 1.0, exclude_max=True)
SHAPES = st.builds(Shape, RATIOS, st.integers(1, 10).map(lambda half: 2 * half))
TEMPERATURES = st.one_of(st.just(0.0), st.floats(0.05, 20.0))


@given(SHAPES, RATIOS, TEMPERATURES)
def test_the_closed_form_is_the_sum_of_the_smaller(
    shape: Shape, disagreement: float, temperature: float
) -> None:
    shape = shape.at(temperature)
    p, q = shape.target(), shape.draft(disagreement)
    assert math.isclose(sum(map(min, p, q)), shape.acceptance_rate(disagreement), abs_tol=1e-12)


@given(SHAPES, RATIOS)
def test_target_and_draft_are_distributions(shape: Shape, disagreement: float) -> None:
    for probabilities in (shape.target(), shape.draft(disagreement)):
        assert math.isclose(sum(probabilities), 1.0, abs_tol=1e-12)
        assert min(probabilities) >= 0.0


@given(SHAPES, st.floats(0.05, 20.0))
def test_temperature_is_the_power_of_the_probabilities(shape: Shape, temperature: float) -> None:
    powers = [p ** (1.0 / temperature) for p in shape.target()]
    assume(sum(powers) > 1e-200)
    expected = [power / sum(powers) for power in powers]
    assert shape.at(temperature).target() == pytest.approx(expected, abs=1e-9)


@given(SHAPES.filter(lambda shape: shape.rho < 0.9), RATIOS)
def test_temperature_zero_is_the_limit(shape: Shape, disagreement: float) -> None:
    cold, zero = shape.at(1e-3), shape.at(0.0)
    assert (cold.target()[0], cold.target()[-1]) == pytest.approx(zero.target(), abs=1e-9)
    assert zero.acceptance_rate(disagreement) == pytest.approx(1.0 - disagreement)
    assert cold.acceptance_rate(disagreement) == pytest.approx(1.0 - disagreement, abs=1e-9)


@given(SHAPES, RATIOS)
def test_the_residual_is_the_distribution_of_what_the_draft_lacks(shape: Shape, disagreement: float) -> None:
    p, q = shape.target(), shape.draft(disagreement)
    assume(1.0 - shape.acceptance_rate(disagreement) > 1e-6)
    rest = residual(p, q)
    assert math.isclose(sum(rest), 1.0, abs_tol=1e-9)
    assert min(rest) >= 0.0
    assert all(weight == 0.0 for weight, a, b in zip(rest, p, q, strict=True) if a <= b)


@given(SHAPES, RATIOS)
def test_accepted_and_residual_together_are_the_target(shape: Shape, disagreement: float) -> None:
    p, q = shape.target(), shape.draft(disagreement)
    rejected = 1.0 - shape.acceptance_rate(disagreement)
    assume(rejected > 1e-6)
    rest = residual(p, q)
    output = [b * accept_probability(a, b) + rejected * c for a, b, c in zip(p, q, rest, strict=True)]
    assert output == pytest.approx(p, abs=1e-9)


@given(SHAPES, RATIOS, RATIOS, UNITS, UNITS)
def test_more_disagreement_never_accepts_what_less_rejected(
    shape: Shape, one: float, other: float, proposing: float, accepting: float
) -> None:
    less, more = sorted((one, other))
    # Two cumulated sums that are equal in theory may differ in their last bits.
    assume(more - less > 1e-6)

    def accepted(disagreement: float) -> bool:
        q = mixture(shape.target(), disagreement)
        index = choose(q, proposing)
        return accepting < accept_probability(shape.target()[index], q[index])

    assert accepted(less) or not accepted(more)


@given(SHAPES, UNITS)
def test_only_what_has_a_probability_is_chosen(shape: Shape, uniform: float) -> None:
    for probabilities in (shape.target(), shape.at(0.0).target()):
        assert probabilities[choose(probabilities, uniform)] > 0.0


@pytest.mark.parametrize(
    ("uniform", "index"), [(0.0, 0), (0.249, 0), (0.25, 1), (0.749, 1), (0.75, 3), (0.999, 3)]
)
def test_choice_follows_the_cumulated_probability(uniform: float, index: int) -> None:
    assert choose((0.25, 0.5, 0.0, 0.25), uniform) == index


@pytest.mark.parametrize(("rho", "candidates"), [(-0.1, 8), (1.1, 8), (0.5, 3), (0.5, 0)])
def test_an_impossible_shape_is_refused(rho: float, candidates: int) -> None:
    with pytest.raises(ValueError, match="no shape"):
        Shape(rho, candidates)
