"""Whether all categories fell alike, unlike, or only a few of them did."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from pytest_speedbench.cells import MEAN
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.estimate import Estimate
from pytest_speedbench.gate.explain.pattern import Pattern, pattern_of
from pytest_speedbench.speed_bench import DOMAINS

PUBLISHED = {
    "coding": -0.0228,
    "math": -0.0294,
    "multilingual": -0.1022,
    "rag": -0.1005,
    "summarization": -0.0951,
    "writing": -0.0065,
}
"""SPEED-Bench's figures for an EAGLE3 head with a pruned vocabulary."""


def check(change: float, error: float | None = 0.005, verdict: Verdict = Verdict.PASS) -> Check:
    return Check(
        "acceptance_length",
        verdict,
        tolerance=0.03,
        alpha=1e-4,
        estimate=Estimate(math.log1p(change), error, 79.0, "prompt"),
    )


def pattern(changes: Mapping[str, float], error: float = 0.005) -> Pattern | None:
    """Of these changes, where the mean regressed."""
    checks = {name: check(change, error) for name, change in changes.items()}
    return pattern_of("qualitative", 32, {**checks, MEAN: check(-0.05, verdict=Verdict.REGRESSION)})


def every(change: float, **others: float) -> dict[str, float]:
    return {name: others.get(name, change) for name in DOMAINS}


def test_all_alike() -> None:
    found = pattern({name: -0.05 - 0.001 * number for number, name in enumerate(DOMAINS)})
    assert found is not None
    assert (found.kind, found.fallen[0], found.categories) == ("alike", "writing", 11)
    assert found.sentence == (
        "all 11 categories fell alike, -5.5 % on average (-6.0 % to -5.0 %): a worse drafter or another "
        "configuration, whatever the prompts are about."
    )


def test_alike_for_a_person_although_the_difference_is_sure() -> None:
    found = pattern(every(-0.04, coding=-0.06), error=0.0001)
    assert found is not None and found.kind == "alike"


def test_alike_as_far_as_the_noise_lets_tell() -> None:
    found = pattern(every(-0.03, coding=-0.08, qa=0.002), error=0.015)
    assert found is not None and found.kind == "alike"
    assert found.sentence == (
        "all 11 categories fell, -3.2 % on average (-8.0 % to +0.2 %): their losses differ no more than their errors; "
        "whether the prompts matter is not known."
    )


def test_all_but_unlike() -> None:
    found = pattern(every(-0.02, coding=-0.15, math=-0.12))
    assert found is not None
    assert (found.kind, found.pruned_vocabulary) == ("unlike", False)
    assert found.sentence.startswith(
        "all 11 categories fell, but unlike: most in coding -15.0 %, math -12.0 %"
    )


def test_two_of_two() -> None:
    """As a run of two categories has it."""
    alike, unlike = (pattern({"coding": -0.15, "math": other}) for other in (-0.15, -0.02))
    assert alike is not None and alike.sentence.startswith("both categories fell alike, -15.0 % on average")
    assert unlike is not None
    assert unlike.sentence.startswith(
        "both categories fell, but unlike: most in coding -15.0 %, least in math -2.0 %."
    )


def test_the_published_figures_of_a_pruned_vocabulary_are_named() -> None:
    found = pattern(every(-0.0528, **PUBLISHED))
    surer = pattern(every(-0.0528, **PUBLISHED), error=0.001)
    assert surer is not None and (surer.kind, surer.pruned_vocabulary) == ("unlike", True)
    assert found is not None
    assert (found.kind, found.pruned_vocabulary) == ("few", True)
    assert found.sentence.startswith(
        "10 of 11 categories fell, most in multilingual -10.2 %, rag -10.1 % and summarization -9.5 %; not surely: "
        "writing. That is where"
    )
    assert set(found.fallen[:3]) == {"multilingual", "rag", "summarization"}
    assert found.sentence.endswith(
        "That is where a drafter with a reduced vocabulary loses: compare the draft model's vocabulary and token "
        "map with the baseline's."
    )


@pytest.mark.parametrize("error", [0.012, 0.015, 0.02, 0.03])
def test_the_published_figures_are_never_called_alike_whatever_the_prompts_are_about(error: float) -> None:
    """Errors of few prompts, which hide most single differences."""
    found = pattern(every(-0.0528, **PUBLISHED), error=error)
    assert found is not None
    assert "whatever the prompts are about" not in found.sentence
    assert found.pruned_vocabulary


@pytest.mark.parametrize(
    ("fallen", "pruned"),
    [
        (("multilingual", "rag", "summarization"), True),
        (("rag", "multilingual"), True),
        (("rag", "coding"), False),
        (("multilingual", "rag", "coding"), False),
    ],
)
def test_a_few(fallen: tuple[str, ...], pruned: bool) -> None:
    found = pattern(every(0.0, **dict.fromkeys(fallen, -0.07)))
    assert found is not None
    assert (found.kind, set(found.fallen), found.pruned_vocabulary) == ("few", set(fallen), pruned)
    assert found.sentence.startswith(f"{len(fallen)} of 11 categories fell: ")


def test_one() -> None:
    found = pattern(every(0.001, multilingual=-0.07))
    assert found is not None
    assert (found.kind, found.fallen, found.pruned_vocabulary) == ("one", ("multilingual",), False)
    assert found.sentence == (
        "only 1 of 11 categories fell: multilingual -7.0 %. The drafter as a whole works: ask what these prompts "
        "have in common."
    )


def test_where_most_fell_the_others_are_named() -> None:
    found = pattern({**every(-0.06), "qa": 0.0, "stem": 0.002})
    assert found is not None and found.kind == "few"
    assert found.sentence.endswith("; not surely: qa and stem.")


def test_losses_too_small_for_any_one_category_are_seen_in_all_of_them_together() -> None:
    found = pattern(every(-0.02), error=0.015)
    assert found is not None and found.kind == "alike"


def test_no_loss_has_no_pattern() -> None:
    assert pattern(every(0.0)) is None
    assert pattern(every(0.05)) is None


def test_one_category_alone_is_none() -> None:
    assert pattern({"coding": -0.5}) is None


def test_a_regression_fell_even_where_its_error_is_not_known() -> None:
    checks = {name: check(0.0) for name in DOMAINS}
    checks["rag"] = check(-0.2, error=None, verdict=Verdict.REGRESSION)
    found = pattern_of("qualitative", 32, checks)
    assert found is not None and (found.kind, found.fallen) == ("one", ("rag",))


def test_checks_that_compared_nothing_do_not_count() -> None:
    checks = {name: check(-0.05, verdict=Verdict.REGRESSION) for name in DOMAINS[:3]}
    checks["writing"] = Check("acceptance_length", Verdict.NO_BASELINE, 0.03, 1e-4)
    found = pattern_of("qualitative", 32, checks)
    assert found is not None and found.categories == 3


def test_healthy_categories_are_named_in_one_run_of_twenty_at_most() -> None:
    random_ = random.Random(4)
    runs = 2000
    named = 0
    for _ in range(runs):
        losses = every(0.0, coding=-0.08)
        found = pattern(
            {name: math.expm1(change + random_.gauss(0, 0.01)) for name, change in losses.items()}, 0.01
        )
        named += found is not None and found.fallen != ("coding",)
    assert named <= 0.05 * runs + 2 * math.sqrt(0.05 * 0.95 * runs)


def test_where_nothing_regressed_there_is_nothing_to_explain() -> None:
    small = {name: check(-0.01, error=0.001) for name in DOMAINS}
    assert pattern_of("qualitative", 32, small) is None
    assert pattern_of("qualitative", 32, {**small, MEAN: check(-0.01)}) is None
    regressed = check(-0.01, verdict=Verdict.REGRESSION)
    found = pattern_of("qualitative", 32, {**small, MEAN: regressed})
    assert found is not None and (found.kind, found.categories) == ("alike", 11)
