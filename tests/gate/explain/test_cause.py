"""Who is to blame: the rule for the word, the parts behind it, and how often the word is right."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.baseline import rounded
from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.gate.decide import decide
from pytest_speedbench.gate.estimate import rounds_estimate
from pytest_speedbench.gate.explain.cause import Cause, PositionChange, explain, explain_mean
from pytest_speedbench.gate.explain.decomposition import Breakdown, Compared, Part
from pytest_speedbench.metrics.measurement import Measurement, RoundFigures
from pytest_speedbench.speed_bench import DOMAINS
from tests.gate.measurements import HARDWARE, baseline_of, measurement

TPS = ("output_tps",)
BOTH = ("acceptance_length", "output_tps")
QUIET = (-0.002, 0.0, 0.002)
"""Logarithms of how much faster each of three rounds was."""


def rounds(
    acceptance: float = 0.0,
    latency: float = 0.0,
    rest: float = 0.0,
    plain: float = 0.0,
    *,
    noise: Sequence[float] = QUIET,
) -> tuple[RoundFigures, ...]:
    """Rounds whose acceptance length, step latency, rest and TPS without speculation are off by these shares."""
    found = []
    for faster in noise:
        length, latency_s = 3.0 * (1 + acceptance), 0.03 * (1 + latency) / math.exp(faster)
        output_tps = 25 * length / latency_s * (1 + rest)
        found.append(
            RoundFigures(output_tps, length / latency_s, length, latency_s, output_tps / (1700 * (1 + plain)))
        )
    return tuple(found)


def with_rounds(cell: Cell, figures: Sequence[RoundFigures]) -> Measurement:
    return replace(measurement(cell=cell), rounds=tuple(figures))


def compared(
    now: Sequence[RoundFigures], then: Sequence[RoundFigures] | None = None, category: str = "coding"
) -> Compared:
    cell = Cell("qualitative", category, 32)
    baseline = baseline_of(with_rounds(cell, rounds() if then is None else then))
    return Compared.of(with_rounds(cell, now), baseline, HARDWARE)


def parts_of(cause: Cause) -> Breakdown:
    assert cause.breakdown is not None
    return cause.breakdown


def width(part: Part) -> float:
    assert part.ci_low is not None and part.ci_high is not None
    return math.log(part.ci_high / part.ci_low)


def cause_of(*changes: float, failed: Sequence[str] = TPS, noise: Sequence[float] = QUIET) -> Cause:
    cell = compared(rounds(*changes, noise=noise), rounds(noise=noise))
    return explain(cell, [cell], failed)


@pytest.mark.parametrize(
    ("acceptance", "latency", "rest", "word"),
    [
        (-0.063, -0.001, 0.0, "drafter"),
        (-0.063, +0.020, 0.0, "drafter"),  # a quarter is no third
        (0.0, +0.20, 0.0, "system"),
        (-0.02, +0.20, 0.0, "system"),
        (+0.05, +0.20, 0.0, "system"),  # a part that gained carries nothing
        (-0.20, -0.10, 0.0, "drafter"),
        (-0.10, +0.10, 0.0, "both"),
        (-0.10, +0.10, -0.05, "both"),
        (0.0, 0.0, -0.20, "unclear"),  # the rest carries the most
        (-0.10, +0.10, -0.12, "unclear"),
        (0.0, 0.0, 0.0, "unclear"),
        (+0.10, -0.10, 0.0, "unclear"),
    ],
)
def test_truth_table_where_throughput_failed(
    acceptance: float, latency: float, rest: float, word: str
) -> None:
    assert cause_of(acceptance, latency, rest).word == word


@pytest.mark.parametrize(
    ("acceptance", "latency", "rest", "failed", "word"),
    [
        (-0.05, +0.08, 0.0, ("acceptance_length",), "drafter"),  # a busy machine beside a weaker drafter
        (-0.05, +0.08, 0.0, BOTH, "both"),
        (-0.03, +0.30, 0.0, BOTH, "both"),  # however little of the TPS it cost, acceptance fell
        (-0.10, +0.02, 0.0, BOTH, "drafter"),
        (-0.05, 0.0, -0.20, BOTH, "drafter"),
        (-0.05, +0.08, -0.20, BOTH, "drafter"),  # the rest carries the most: slower steps are not named
    ],
)
def test_truth_table_where_acceptance_length_failed(
    acceptance: float, latency: float, rest: float, failed: tuple[str, ...], word: str
) -> None:
    assert cause_of(acceptance, latency, rest, failed=failed).word == word


def test_a_part_must_be_sure_to_be_named() -> None:
    noisy = (-0.2, 0.0, 0.2)
    cause = cause_of(0.0, 0.10, noise=noisy)
    latency = parts_of(cause).step_latency
    assert latency.share == pytest.approx(1, abs=1e-4)
    assert not latency.surely_lost
    assert cause.word == "unclear"
    assert cause.reason == "Neither fewer tokens a step nor slower steps are sure: either may be noise."
    assert cause_of(-0.05, 0.10, noise=noisy, failed=BOTH).word == "drafter"


def test_what_is_sure_but_small_is_not_named() -> None:
    cause = cause_of(-0.03, 0.20, noise=(-0.3, 0.0, 0.3))
    assert cause.word == "unclear"
    assert cause.reason.startswith("What is sure (fewer tokens a step) is less than a third")


@given(*[st.floats(-0.3, 0.3)] * 3)
def test_the_parts_multiply_to_the_whole_and_the_shares_add_up(
    acceptance: float, latency: float, rest: float
) -> None:
    found = parts_of(cause_of(acceptance, latency, rest))
    parts = (found.acceptance_length, found.step_latency, found.rest)
    assert math.prod(part.ratio for part in parts) == pytest.approx(found.change.ratio)
    assert found.change.ratio == pytest.approx((1 + acceptance) / (1 + latency) * (1 + rest), rel=1e-4)
    shares = [part.share for part in parts if part.share is not None]
    assert sum(shares) == pytest.approx(1) if shares else all(part.ratio > 0.998 for part in parts)


@given(st.lists(st.tuples(*[st.floats(0.9, 1.1)] * 3), min_size=1, max_size=5))
def test_they_multiply_to_the_whole_however_rounds_scatter(factors: list[tuple[float, float, float]]) -> None:
    now = [
        RoundFigures(25 * 3.0 * length / (0.03 * latency) * rest, None, 3.0 * length, 0.03 * latency)
        for length, latency, rest in factors
    ]
    cell = compared(now)
    found = parts_of(explain(cell, [cell], TPS))
    parts = (found.acceptance_length, found.step_latency, found.rest)
    assert math.prod(part.ratio for part in parts) == pytest.approx(found.change.ratio)


def test_what_each_part_is() -> None:
    found = parts_of(cause_of(-0.10, 0.10, -0.05))
    assert found.metric == "output_tps"
    parts = (found.acceptance_length, found.step_latency, found.rest)
    assert [part.ratio for part in parts] == pytest.approx([0.9, 1 / 1.1, 0.95], rel=1e-4)
    assert [part.share for part in parts] == pytest.approx([0.4182, 0.3782, 0.2036], abs=1e-3)
    low, high = found.step_latency.ci_low, found.step_latency.ci_high
    assert low is not None and high is not None
    assert low < 1 / 1.1 < high < 1


def test_user_tps_knows_nothing_of_prefill() -> None:
    cause = cause_of(0.0, 0.10, -0.30, failed=("user_tps",))
    assert (parts_of(cause).metric, cause.word) == ("user_tps", "system")
    assert parts_of(cause).rest.ratio == pytest.approx(1)


def test_rounds_that_were_measured_in_turn_are_compared_in_pairs() -> None:
    """A machine that becomes slower and slower moves both sides alike."""
    drift = (-0.3, 0.0, 0.3)
    cell = compared(rounds(0.0, 0.10, noise=drift), rounds(noise=drift))
    assert explain(cell, [cell], TPS).word == "unclear"
    assert explain(cell, [cell], TPS, paired=True).word == "system"


def test_a_pair_without_one_of_its_rounds_is_left_out() -> None:
    now, then = list(rounds(0.0, 0.10)), list(rounds())
    now[0] = replace(now[0], step_latency_s=None)
    then[0] = replace(then[0], step_latency_s=9.0)
    cell = compared(now, then)
    assert parts_of(explain(cell, [cell], TPS, paired=True)).step_latency.ratio == pytest.approx(
        1 / 1.1, rel=1e-3
    )


class TestSpeedup:
    """Of the target over itself without speculation: measured in units of plain decoding."""

    def test_a_machine_that_slowed_down_as_a_whole_has_lost_none(self) -> None:
        cause = cause_of(-0.08, 0.10, 0.0, 1 / 1.1 - 1, failed=("speedup",))
        assert cause.word == "drafter"
        assert parts_of(cause).step_latency.ratio == pytest.approx(1, rel=1e-4)

    def test_steps_that_became_slower_than_plain_ones_are_the_systems(self) -> None:
        cause = cause_of(0.0, 0.10, failed=("speedup",))
        assert cause.word == "system"
        assert cause.reason == (
            "A step takes 10.0 % longer, measured in steps of plain decoding: 100 % of the loss."
        )

    def test_plain_decoding_that_became_faster_is_said_to_be_so(self) -> None:
        cause = cause_of(0.0, 0.0, 0.0, 0.10, failed=("speedup",))
        assert cause.word == "system"
        plain = parts_of(cause).without_speculation
        assert plain is not None and plain.ratio == pytest.approx(1.1, rel=1e-4)
        assert cause.reason == (
            "Plain decoding became 10.0 % faster, and steps with drafts did not follow: 100 % of the loss."
        )

    def test_is_taken_apart_only_where_no_other_throughput_failed(self) -> None:
        cause = cause_of(0.0, 0.10, failed=("speedup", "output_tps"))
        assert parts_of(cause).metric == "output_tps"


class TestWhatIsNotKnown:
    """Blame needs something to compare with, and rounds to tell noise from change."""

    def test_on_other_hardware_a_loss_of_acceptance_length_is_still_the_drafters(self) -> None:
        cell = replace(compared(rounds(-0.063, 0.2)), throughput=None)
        cause = explain(cell, [cell], ("acceptance_length",))
        assert (cause.word, cause.breakdown) == ("drafter", None)
        assert cause.reason == (
            "Fewer drafts are accepted, which no slow system causes. The system's part is not known: "
            "throughput has no baseline on this hardware."
        )

    def test_rounds_without_step_latency_cannot_be_taken_apart(self) -> None:
        cell = compared([replace(each, step_latency_s=None) for each in rounds(-0.063)])
        cause = explain(cell, [cell], TPS)
        assert cause.word == "unclear"
        assert cause.reason == (
            "The loss cannot be taken apart: acceptance length and step latency are not known of every round."
        )

    def test_one_round_on_either_side_tells_nothing_of_noise(self) -> None:
        cause = cause_of(0.0, 0.20, noise=(0.0,))
        latency = parts_of(cause).step_latency
        assert latency.ratio == pytest.approx(1 / 1.2, rel=1e-4)
        assert (latency.ci_low, latency.ci_high) == (None, None)
        assert (cause.word, cause.reason) == ("unclear", "Single rounds do not tell what is noise.")

    def test_an_invalid_cell_tells_nothing_of_noise(self) -> None:
        single = compared(rounds(0.0, 0.20, noise=(0.0,)), rounds(noise=(0.0,)))
        other = compared(rounds(), category="qa")
        other = replace(other, measurement=replace(other.measurement, problems=("1 request failed",)))
        assert explain(single, [single, other], TPS).word == "unclear"

    def test_one_round_is_enough_where_the_group_knows_the_noise(self) -> None:
        single = compared(rounds(0.0, 0.20, noise=(0.0,)), rounds(noise=(0.0,)))
        others = [compared(rounds(), category=category) for category in ("math", "qa")]
        assert explain(single, [single, *others], TPS).word == "system"


class TestMean:
    """A mean over categories is explained by the mean of what explains them."""

    def test_parts_are_means_over_categories(self) -> None:
        group = [
            compared(rounds(-0.05, 0.0), category="coding"),
            compared(rounds(0.0, 0.10), category="qa"),
        ]
        cause = explain_mean(group, TPS)
        found = parts_of(cause)
        assert found.acceptance_length.ratio == pytest.approx(math.sqrt(0.95), rel=1e-4)
        assert found.step_latency.ratio == pytest.approx(math.sqrt(1 / 1.1), rel=1e-4)
        assert cause.word == "both"

    def test_the_change_is_that_of_the_arithmetic_mean(self) -> None:
        """Each category counts with its tokens per second, as in the check of the mean."""
        then = [rounds(), rounds(-0.5)]
        now = [rounds(0.0, 0.20), rounds(-0.5)]
        group = [
            compared(*sides, category=category)
            for sides, category in zip(zip(now, then, strict=True), ("coding", "qa"), strict=True)
        ]
        found = parts_of(explain_mean(group, TPS))
        assert found.change.ratio == pytest.approx((1 / 1.2 + 0.5) / 1.5, rel=1e-4)
        parts = (found.acceptance_length, found.step_latency, found.rest)
        assert math.prod(part.ratio for part in parts) == pytest.approx(found.change.ratio)

    def test_errors_shrink_with_the_number_of_categories(self) -> None:
        turned = ((QUIET[i:] + QUIET[:i]) for i in range(3))  # no round is quicker in all of them
        group = [
            compared(rounds(0.0, 0.05, noise=noise), rounds(noise=noise), category=category)
            for category, noise in zip(DOMAINS[:3], turned, strict=True)
        ]
        one, mean = parts_of(explain(group[0], group, TPS)), parts_of(explain_mean(group, TPS))
        assert width(mean.step_latency) == pytest.approx(width(one.step_latency) / math.sqrt(3), rel=0.01)

    def test_noise_that_all_categories_share_does_not_shrink(self) -> None:
        group = [compared(rounds(0.0, 0.05), category=category) for category in DOMAINS[:4]]
        one, mean = parts_of(explain(group[0], group, TPS)), parts_of(explain_mean(group, TPS))
        assert width(mean.step_latency) > width(one.step_latency)

    def test_one_category_of_unknown_parts_leaves_the_mean_unknown(self) -> None:
        group = [
            compared(rounds(0.0, 0.10)),
            compared([replace(each, acceptance_length=None) for each in rounds()], category="qa"),
        ]
        assert explain_mean(group, TPS).breakdown is None
        assert explain_mean(group, BOTH).word == "drafter"

    def test_one_category_without_a_baseline_leaves_the_mean_unknown(self) -> None:
        group = [
            compared(rounds(-0.063)),
            replace(compared(rounds(-0.063), category="qa"), throughput=None),
        ]
        assert explain_mean(group, ("acceptance_length",)).reason.endswith(
            "not known: throughput of 1 of 2 categories has no baseline on this hardware."
        )


def busy(figures: Sequence[RoundFigures], *shares: float) -> tuple[RoundFigures, ...]:
    """Rounds of an engine that needs all processors, of which others took these shares."""
    return tuple(
        replace(
            each,
            output_tps=(each.output_tps or 0) * (1 - share),
            user_tps=(each.user_tps or 0) * (1 - share),
            step_latency_s=(each.step_latency_s or 0) / (1 - share),
            other_processes_busy=share,
        )
        for each, share in zip(figures, shares, strict=True)
    )


class TestOtherProcesses:
    """What other processes took is not the system's: rule 4."""

    QUIET_MACHINE = (0.01, 0.0, 0.02)

    def cause(
        self, now: Sequence[RoundFigures], *shares: float, failed: Sequence[str] = BOTH, paired: bool = False
    ) -> Cause:
        cell = compared(busy(now, *shares), busy(rounds(), *self.QUIET_MACHINE))
        return explain(cell, [cell], failed, paired=paired)

    @pytest.mark.parametrize("paired", [False, True])
    def test_a_weaker_drafter_on_a_busy_machine_is_the_drafter_alone(self, paired: bool) -> None:
        weaker = rounds(acceptance=-0.10)
        cause = self.cause(weaker, 0.12, 0.13, 0.11, paired=paired)
        assert cause.word == "drafter"
        assert cause.reason.endswith(
            "and other processes took 12.0 % of the processors (1.0 % in the baseline): that can be all of it."
        )
        without = replace(
            compared(busy(weaker, 0.12, 0.13, 0.11)),
            throughput=baseline_of(with_rounds(Cell("qualitative", "coding", 32), rounds()))
            .throughput[HARDWARE]["qualitative-coding-bs32"]
            .measurement,
        )
        assert explain(without, [without], BOTH).word == "both"  # whose share was not measured

    def test_a_busy_machine_alone_is_not_the_system(self) -> None:
        cause = self.cause(rounds(), 0.2, 0.22, 0.21, failed=TPS)
        assert (cause.word, cause.advice) == (
            "unclear",
            "measure more rounds (--speedbench-rounds), on a quiet machine, before you bisect",
        )
        assert cause.reason.startswith("A step takes 24.8 % longer, and other processes took 21.0 % of")

    def test_steps_that_are_slower_than_others_can_make_them_are_the_system(self) -> None:
        assert self.cause(rounds(latency=0.3), 0.05, 0.06, 0.04, failed=TPS).word == "system"
        assert self.cause(rounds(-0.1, 0.3), 0.02, 0.03, 0.02).word == "both"

    def test_a_baseline_on_a_busy_machine_makes_no_system_of_steps_that_are_as_fast(self) -> None:
        cell = compared(busy(rounds(), 0.0, 0.0, 0.0), busy(rounds(), 0.3, 0.3, 0.3))
        assert explain(cell, [cell], TPS).word == "unclear"

    def test_of_a_mean_as_of_its_categories(self) -> None:
        group = [
            compared(
                busy(rounds(acceptance=-0.1), 0.12, 0.13, 0.11), busy(rounds(), *self.QUIET_MACHINE), name
            )
            for name in DOMAINS[:3]
        ]
        assert explain_mean(group, BOTH).word == "drafter"


class TestPrefill:
    """A longer time to first token is named where it explains the loss: rule 5."""

    @staticmethod
    def cause(rest: float, ttft_s: float, failed: Sequence[str] = TPS) -> Cause:
        cell = compared(rounds(rest=rest))
        assert cell.throughput is not None
        timed = {"ttft_s_mean": ttft_s, "end_to_end_s_mean": 1.0}
        now = replace(cell.measurement, metrics={**cell.measurement.metrics, **timed})
        then = replace(cell.throughput, metrics={**cell.throughput.metrics, "ttft_s_mean": 0.1})
        cell = replace(cell, measurement=now, throughput=then)
        return explain(cell, [cell], failed)

    def test_that_explains_the_rest(self) -> None:
        cause = self.cause(-0.10, 0.2)
        assert cause.word == "system"
        assert cause.reason == "The first token takes 200 ms, and took 100 ms: 100 % of the loss."
        assert cause.advice.startswith("profile prefill")

    def test_that_explains_less_than_half_of_it(self) -> None:
        assert self.cause(-0.10, 0.12).word == "unclear"
        assert self.cause(-0.10, 0.08).word == "unclear"

    def test_beside_a_loss_of_acceptance(self) -> None:
        assert self.cause(-0.10, 0.2, BOTH).word == "both"


class TestPositions:
    """Where in the draft the acceptance fell."""

    def test_positions_whose_acceptance_fell_are_named(self) -> None:
        then, now = measurement(), measurement([count + 10 for count in (40, 45, 50, 55, 60, 65, 70, 75)])
        stored = baseline_of(then).acceptance[HARDWARE][then.cell.id].measurement
        rates = [each.per_position["conditional_acceptance_rate"] for each in (then, now)]
        cell = Compared(now, stored, None)
        positions = explain(cell, [cell], ("acceptance_length",)).positions
        assert [change.position for change in positions] == [
            number
            for number, (before, after) in enumerate(zip(*rates, strict=True), 1)
            if before - after >= 0.0005
        ]
        assert PositionChange(1, rounded(rates[0][0]), rates[1][0]) == positions[0]
        unchanged = Compared(then, stored, None)
        assert explain(unchanged, [unchanged], ("acceptance_length",)).positions == ()

    def test_of_a_mean_they_are_means(self) -> None:
        group = []
        for category, rates in (("coding", (0.6, 0.5)), ("qa", (0.8, 0.9))):
            cell = compared(rounds(), category=category)
            assert cell.acceptance is not None
            then = replace(cell.acceptance, per_position={"conditional_acceptance_rate": (0.8, 0.7)})
            now = replace(cell.measurement, per_position={"conditional_acceptance_rate": rates})
            group.append(replace(cell, acceptance=then, measurement=now))
        (change,) = explain_mean(group, ("acceptance_length",)).positions
        assert (change.position, change.baseline, change.value) == pytest.approx((1, 0.8, 0.7))


class TestProof:
    """How often the word is right: simulated rounds, 3 against 3, 2 % noise a round and 1 % of it in acceptance."""

    RUNS = 400

    def words(self, acceptance: float, latency: float, failed: Sequence[str], categories: int) -> list[str]:
        """Of the runs whose output TPS is caught, where that is what failed."""
        random_ = random.Random(20261123)

        def noisy(length: float, latency_s: float) -> tuple[RoundFigures, ...]:
            figures = []
            for _ in range(3):
                tokens = length * math.exp(random_.gauss(0, 0.01))
                step_s = latency_s * math.exp(random_.gauss(0, 0.02))
                rest = math.exp(random_.gauss(0, 0.005))
                figures.append(RoundFigures(25 * tokens / step_s * rest, tokens / step_s, tokens, step_s))
            return tuple(figures)

        words = []
        for _ in range(self.RUNS):
            group = [
                compared(noisy(3 * (1 + acceptance), 0.03 * (1 + latency)), noisy(3, 0.03), category)
                for category in DOMAINS[:categories]
            ]
            if failed != TPS or self.caught(group):
                words.append(explain(group[0], group, failed).word)
        return words

    @staticmethod
    def caught(group: Sequence[Compared]) -> bool:
        values = [
            tuple(
                [each.output_tps for each in rounds if each.output_tps]
                for rounds in (cell.measurement.rounds, cell.throughput.rounds if cell.throughput else ())
            )
            for cell in group
        ]
        estimate = rounds_estimate(values[0][0], values[0][1], [(now, then) for now, then in values])
        return estimate is not None and decide(estimate, 0.05, 0.01 / 9) is Verdict.REGRESSION

    @pytest.mark.parametrize("categories", [1, 3])
    def test_steps_slower_by_a_tenth_are_the_systems(self, categories: int) -> None:
        words = self.words(0.0, 0.10, TPS, categories)
        assert len(words) > 50
        assert words.count("system") >= 0.95 * len(words)

    @pytest.mark.parametrize("failed", [BOTH, ("acceptance_length",)], ids="-".join)
    def test_acceptance_length_lower_by_a_twentieth_is_the_drafters(self, failed: Sequence[str]) -> None:
        assert self.words(-0.05, 0.0, failed, 3).count("drafter") >= 0.95 * self.RUNS
