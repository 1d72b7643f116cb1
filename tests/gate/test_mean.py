from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.estimate import Estimate, Replicate
from pytest_speedbench.gate.mean import compare_mean

CELL = Cell("qualitative", MEAN, 32)


def category(
    ratio: float | None,
    *,
    baseline: float = 3.0,
    error: float | None = 0.01,
    freedom: float = 79,
    by: Replicate = "prompt",
    verdict: Verdict = Verdict.PASS,
    reasons: tuple[str, ...] = (),
) -> Check:
    return Check(
        "acceptance_length",
        verdict,
        0.03,
        0.0001,
        value=None if ratio is None else ratio * baseline,
        baseline=None if ratio is None else baseline,
        estimate=None if ratio is None else Estimate(math.log(ratio), error, freedom, by),
        paired=79,
        prompts=80,
        rounds=3,
        baseline_rounds=9,
        reasons=reasons,
        differs=("engine_version 1 -> 2",),
    )


def judge(*checks: Check, alpha: float = 0.001) -> Check:
    names = ["coding", "math", "qa", "rag"][: len(checks)]
    return compare_mean(CELL, "acceptance_length", checks, names, (), tolerance=0.01, alpha=alpha)


def test_a_loss_that_no_category_shows_is_seen_in_their_mean() -> None:
    found = judge(*[category(0.98, error=0.008)] * 4)
    assert found.verdict is Verdict.REGRESSION
    assert found.ratio == pytest.approx(0.98)
    assert found.standard_error == pytest.approx(0.004)
    assert found.value == pytest.approx(2.94)
    assert found.baseline == 3.0
    assert (found.tolerance, found.alpha, found.metric) == (0.01, 0.001, "acceptance_length")
    assert (found.paired, found.prompts, found.rounds, found.baseline_rounds) == (316, 320, 3, 9)
    assert found.differs == ("engine_version 1 -> 2",)


def test_the_mean_is_of_the_values_and_not_of_the_ratios() -> None:
    found = judge(category(0.9, baseline=6.0), category(1.1, baseline=2.0))
    assert found.ratio == pytest.approx((5.4 + 2.2) / 8)
    assert found.value == pytest.approx(3.8)
    assert found.standard_error == pytest.approx(math.hypot(6 / 8, 2 / 8) * 0.01)


def test_degrees_of_freedom_are_no_more_than_the_best_known_category_has() -> None:
    same = judge(*[category(1.0, by="round")] * 4)
    assert same.degrees_of_freedom == 79
    one_vague = judge(category(1.0, error=0.1, freedom=2, by="round"), category(1.0), category(1.0))
    assert one_vague.degrees_of_freedom == pytest.approx(2, rel=0.1)


def test_an_error_of_rounds_is_never_taken_for_one_of_prompts() -> None:
    """Even where it has as many degrees of freedom as there are pairs of prompts, less one."""
    rounds = [([100.0, 104.0, 98.0], [100.0, 101.0, 99.0])] * 4
    by_prompt = [category(1.0, freedom=78)] * 4
    by_round = [category(1.0, freedom=78, by="round")] * 4
    names = ["coding", "math", "qa", "rag"]
    found = [
        compare_mean(CELL, "output_tps", each, names, rounds, tolerance=0.01, alpha=0.001)
        for each in (by_prompt, by_round)
    ]
    assert found[0].standard_error == pytest.approx(0.005)
    assert found[1].standard_error == pytest.approx(0.01)  # they share every round
    assert found[1].degrees_of_freedom == 4


def test_categories_that_repeat_exactly_have_a_mean_that_does() -> None:
    found = judge(*[category(1.0, error=0.0)] * 4)
    assert (found.verdict, found.standard_error, found.degrees_of_freedom) == (Verdict.PASS, 0, 79)


def test_a_category_of_unknown_error_makes_the_mean_inconclusive() -> None:
    vague = category(0.5, error=None, verdict=Verdict.INCONCLUSIVE, reasons=("no interval: why",))
    found = judge(category(0.5), vague)
    assert found.ratio == pytest.approx(0.5)
    assert (found.verdict, found.ci_low) == (Verdict.INCONCLUSIVE, None)
    assert found.reasons == ("math: no interval: why",)


def test_what_all_categories_say_is_said_once() -> None:
    vague = category(0.5, error=None, verdict=Verdict.INCONCLUSIVE, reasons=("no interval: why",))
    assert judge(vague, vague).reasons == ("no interval: why",)


def test_a_category_without_an_estimate_leaves_the_mean_without_one() -> None:
    found = judge(category(1.0), replace(category(1.0), estimate=None, verdict=Verdict.INCONCLUSIVE))
    assert (found.verdict, found.ratio) == (Verdict.INCONCLUSIVE, None)


@pytest.mark.parametrize("verdict", [Verdict.INVALID, Verdict.NO_BASELINE, Verdict.INCOMPARABLE])
def test_without_a_comparison_of_every_category_there_is_none_of_the_mean(verdict: Verdict) -> None:
    found = judge(category(0.5), category(None, verdict=verdict, reasons=("lost", "found")))
    assert (found.verdict, found.ratio, found.value) == (verdict, None, None)
    assert found.reasons == ("math: lost", "math: found")


def test_the_worst_is_told() -> None:
    found = judge(
        category(None, verdict=Verdict.INCOMPARABLE, reasons=("other text",)),
        category(None, verdict=Verdict.NO_BASELINE, reasons=("nothing stored",)),
        category(None, verdict=Verdict.INVALID, reasons=("1 of 8 requests failed",)),
    )
    assert (found.verdict, found.reasons) == (Verdict.INVALID, ("qa: 1 of 8 requests failed",))


def test_on_other_hardware_the_mean_skips_as_its_categories_do() -> None:
    elsewhere = replace(category(None, verdict=Verdict.INCOMPARABLE), across_machines=True)
    assert judge(elsewhere, elsewhere).across_machines
    assert not judge(elsewhere, category(None, verdict=Verdict.INCOMPARABLE)).across_machines


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="qualitative-mean-bs32: 0 checks"):
        judge()
