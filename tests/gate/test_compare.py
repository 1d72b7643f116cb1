from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.baseline import Conditions, OtherTarget, Reference, References, merge
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.compare import compare, rounds_of
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.speed_bench import THROUGHPUT
from tests.gate.measurements import CONDITIONS, HARDWARE, STEPS, baseline_of, measurement, tally


def check(
    metric: str,
    run: Measurement,
    references: References | None = None,
    *,
    group: Sequence[Measurement] = (),
    tolerance: float = 0.03,
    alpha: float = 0.01,
    conditions: Conditions = CONDITIONS,
    hardware: str = HARDWARE,
    paired: bool = False,
    degenerate_share: float = 0.1,
) -> Check:
    references = references if references is not None else baseline_of()
    found = {each.cell: references.find(metric, each.cell, hardware) for each in (run, *group)}
    return compare(
        metric,
        run,
        found[run.cell],
        group=[
            (each, of.measurement if isinstance(of := found[each.cell], Reference) else None)
            for each in group or [run]
        ],
        tolerance=tolerance,
        alpha=alpha,
        conditions=conditions,
        hardware_key=hardware,
        paired=paired,
        degenerate_share=degenerate_share,
    )


def without_steps(run: Measurement) -> Measurement:
    """As of an engine that counts per server only."""
    tallies = tuple(
        replace(item, steps=None, drafted_steps=None, accepted_per_position=None) for item in run.prompts
    )
    return replace(run, prompts=tallies)


def test_the_same_run_again_is_exactly_the_baseline() -> None:
    found = check("acceptance_length", measurement())
    assert (found.verdict, found.ratio, found.ci_low, found.ci_high) == (Verdict.PASS, 1, 1, 1)
    assert (found.paired, found.prompts, found.reasons, found.differs) == (8, 8, (), ())
    assert (found.rounds, found.baseline_rounds) == (3, 3)
    assert (found.standard_error, found.degrees_of_freedom, found.alpha) == (0, 7, 0.01)
    assert found.detectable_loss == pytest.approx(0.03)


def test_fewer_tokens_per_step_on_every_prompt_are_a_regression() -> None:
    found = check("acceptance_length", measurement([count + 4 for count in STEPS]))
    assert found.verdict is Verdict.REGRESSION
    assert found.ratio is not None
    assert found.ratio == pytest.approx(sum(STEPS) / (sum(STEPS) + 32))
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low < found.ratio < found.ci_high < 1
    assert found.baseline == pytest.approx(127 * 8 / sum(STEPS), rel=1e-5)
    assert found.value == 127 * 8 / (sum(STEPS) + 32)


def test_a_loss_within_the_tolerance_passes_however_sure() -> None:
    assert check("acceptance_length", measurement([count + 1 for count in STEPS])).verdict is Verdict.PASS


def test_a_loss_that_one_prompt_alone_carries_is_inconclusive() -> None:
    found = check("acceptance_length", measurement([*STEPS[:-1], STEPS[-1] + 40]))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.ci_high is not None
    assert found.ci_high > 1
    assert found.detectable_loss is not None
    assert found.detectable_loss > 0.2


def test_a_smaller_share_of_alpha_asks_for_more() -> None:
    run = measurement([count + 4 for count in STEPS])
    assert check("acceptance_length", run, alpha=1e-3).verdict is Verdict.REGRESSION
    assert check("acceptance_length", run, alpha=1e-9).verdict is Verdict.INCONCLUSIVE


def test_more_tokens_per_step_are_an_improvement() -> None:
    assert (
        check("acceptance_length", measurement([count - 4 for count in STEPS])).verdict is Verdict.IMPROVEMENT
    )


@pytest.mark.parametrize("metric", ["acceptance_length", "output_tps"])
def test_a_cell_that_is_not_in_the_baseline_has_none(metric: str) -> None:
    found = check(metric, measurement(cell=Cell("qualitative", "math", 32)))
    assert found.verdict is Verdict.NO_BASELINE
    assert found.reasons == ("the baseline of llama has no qualitative-math-bs32",)


def test_a_metric_that_the_baseline_does_not_hold_has_none() -> None:
    found = check("speedup", measurement(metrics={"speedup": 1.9}))
    assert found.verdict is Verdict.NO_BASELINE
    assert found.reasons == ("the baseline has no speedup for qualitative-coding-bs32",)


def test_problems_make_a_check_invalid_whatever_the_numbers() -> None:
    found = check(
        "acceptance_length", measurement(problems=("1 of 8 requests failed, first q1 turn 1: lost",))
    )
    assert (found.verdict, found.ratio) == (Verdict.INVALID, None)
    assert found.reasons == ("1 of 8 requests failed, first q1 turn 1: lost",)


def test_a_missing_metric_is_invalid_and_never_a_pass() -> None:
    run = measurement(metrics={"user_tps": None}, missing={"user_tps": "tokens arrived all at once"})
    found = check("user_tps", run)
    assert (found.verdict, found.value) == (Verdict.INVALID, None)
    assert found.reasons == ("user_tps is missing: tokens arrived all at once",)


def test_a_value_that_is_no_number_is_invalid() -> None:
    assert check("output_tps", measurement(metrics={"output_tps": float("nan")})).verdict is Verdict.INVALID


def test_a_metric_that_cannot_be_gated_is_refused() -> None:
    with pytest.raises(ValueError, match="ttft_s_mean cannot be gated"):
        check("ttft_s_mean", measurement())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (replace(CONDITIONS, temperature=1.0), "temperature 0.0 -> 1.0: another quantity"),
        (replace(CONDITIONS, output_length=256), "output_length 128 -> 256: another quantity"),
        (replace(CONDITIONS, ignore_eos=False), "ignore_eos True -> False: another quantity"),
    ],
)
@pytest.mark.parametrize("metric", ["acceptance_length", "output_tps"])
def test_other_sampling_is_incomparable(metric: str, other: Conditions, reason: str) -> None:
    found = check(metric, measurement(), conditions=other)
    assert (found.verdict, found.reasons) == (Verdict.INCOMPARABLE, (reason,))
    assert not found.across_machines


def test_other_conditions_are_told_and_compared() -> None:
    newer = replace(
        CONDITIONS,
        date="2026-12-01",
        commit="fedcba9",
        engine_version="0.32.0",
        draft_model=None,
        engine_args=("--tensor-parallel-size=8", "--enforce-eager"),
    )
    found = check("acceptance_length", measurement(), conditions=newer)
    assert found.verdict is Verdict.PASS
    assert found.differs == (
        "engine_version 0.31.0 -> 0.32.0",
        "draft_model nvidia/Llama-3.3-70B-Instruct-Eagle3 -> none",
        "engine_args --tensor-parallel-size=8 -> --tensor-parallel-size=8 --enforce-eager",
    )


def test_what_the_measurement_knows_is_told_too() -> None:
    run = replace(measurement(), counter_source="prometheus", tokenization="messages", prompt_tokens=88)
    assert check("acceptance_length", run).differs == (
        "tokenization engine -> messages",
        "counter_source response -> prometheus",
        "prompt_tokens 80 -> 88",
    )


def test_prompts_that_changed_their_text_are_incomparable() -> None:
    run = measurement()
    changed = [replace(item, digest="f" * 16) for item in run.prompts[:5]]
    found = check("acceptance_length", measurement(prompts=[*changed, *run.prompts[5:]]))
    assert found.verdict is Verdict.INCOMPARABLE
    assert found.reasons == ("only 3 of 8 prompts are those of the baseline: 5 changed text",)
    assert (found.paired, found.prompts) == (3, 8)


def test_prompts_that_the_baseline_has_not_are_incomparable() -> None:
    changed = replace(tally("q1", 45), digest="f" * 16)
    run = measurement(prompts=[tally("q0", 40), changed, tally("new", 50)])
    assert check("acceptance_length", run).reasons == (
        "only 1 of 3 prompts are those of the baseline: 1 changed text, 1 is not in it",
    )


def test_one_prompt_alone_is_no_comparison() -> None:
    found = check("acceptance_length", measurement(prompts=[tally("q0", 40)]))
    assert found.reasons == ("only 1 of 1 prompts are those of the baseline, and a comparison takes 2",)


def test_acceptance_length_of_fewer_prompts_is_compared_over_those() -> None:
    found = check("acceptance_length", measurement(STEPS[:4]))
    assert (found.verdict, found.ratio, found.paired) == (Verdict.PASS, 1, 4)
    assert found.value == found.baseline == 127 * 4 / sum(STEPS[:4])
    assert found.reasons == ("over the 4 prompts that both runs have",)


def test_throughput_of_fewer_prompts_is_another_batch() -> None:
    found = check("output_tps", measurement(STEPS[:4]))
    assert found.verdict is Verdict.INCOMPARABLE
    assert found.reasons == (
        "only 4 of the baseline's 8 prompts were run, and the others were part of its batch",
    )


@pytest.mark.parametrize("metric", THROUGHPUT)
def test_throughput_on_other_hardware_is_incomparable_across_machines(metric: str) -> None:
    found = check(metric, measurement(metrics={"speedup": 1.9}), hardware="CPU x 4")
    assert (found.verdict, found.across_machines) == (Verdict.INCOMPARABLE, True)
    assert found.reasons == (f"throughput of this cell is stored for {HARDWARE}, and this is CPU x 4",)


def test_acceptance_length_of_other_hardware_is_compared_and_it_is_said() -> None:
    found = check("acceptance_length", measurement(), hardware="CPU x 4")
    assert (found.verdict, found.reasons) == (Verdict.PASS, ())
    assert found.differs == (f"hardware {HARDWARE} -> CPU x 4: compared at a tolerance of 3 %",)


def test_acceptance_length_of_this_hardware_goes_before_that_of_any_other() -> None:
    baseline = merge("llama", baseline_of(), [measurement(STEPS[::-1])], CONDITIONS, "CPU x 4").baseline
    assert check("acceptance_length", measurement(), baseline).differs == ()
    assert check("acceptance_length", measurement(), baseline, hardware="CPU x 4").differs == ()


def test_of_several_other_hardwares_the_one_saved_last_is_compared_with() -> None:
    later = replace(CONDITIONS, date="2026-11-24T12:00:00+00:00")
    baseline = merge("llama", baseline_of(), [measurement()], later, "A100 x 1").baseline
    found = check("acceptance_length", measurement(), baseline, hardware="CPU x 4")
    assert found.differs == ("hardware A100 x 1 -> CPU x 4: compared at a tolerance of 3 %",)


@pytest.mark.parametrize("metric", ["output_tps", "user_tps"])
def test_slower_steps_are_a_regression_of_throughput(metric: str) -> None:
    run = measurement(step_s=0.012, wait_s=0.06)
    found = check(metric, run, tolerance=0.10)
    assert found.verdict is Verdict.REGRESSION
    assert found.ratio == pytest.approx(1 / 1.2, rel=1e-5)
    assert found.ci_high is not None
    assert found.ci_high < 1
    assert check("acceptance_length", run).verdict is Verdict.PASS


def test_throughput_is_compared_by_its_rounds() -> None:
    """Six rounds with a standard deviation of 1 %: 4 degrees of freedom, and medians of three."""
    found = check("output_tps", measurement(), tolerance=0.05)
    assert (found.verdict, found.ratio, found.rounds, found.baseline_rounds) == (Verdict.PASS, 1, 3, 3)
    assert found.standard_error == pytest.approx(0.01 * (2 * 0.448671) ** 0.5, rel=1e-3)
    assert found.degrees_of_freedom == pytest.approx(4)
    assert found.ci_low == pytest.approx(1 - 2.776 * 0.00947, abs=5e-4)


def test_other_cells_tell_how_far_rounds_scatter() -> None:
    others = [measurement(cell=Cell("qualitative", name, 32)) for name in ("math", "qa", "rag")]
    run = measurement(speeds=(0.999, 1.0, 1.001))
    alone = check("output_tps", run)
    among = check("output_tps", run, baseline_of(measurement(), *others), group=[run, *others])
    assert alone.degrees_of_freedom is not None
    assert among.degrees_of_freedom is not None
    assert among.degrees_of_freedom > 2 * alone.degrees_of_freedom


def test_cells_that_are_invalid_tell_nothing_of_noise() -> None:
    other = measurement(cell=Cell("qualitative", "math", 32), speeds=(0.5, 1.0, 2.0), problems=("lost",))
    run = measurement()
    assert check("output_tps", run, group=[run, other]) == check("output_tps", run)


def test_one_round_each_is_inconclusive_and_says_what_to_do() -> None:
    baseline = baseline_of(measurement(speeds=[1.0]))
    found = check("output_tps", measurement(step_s=0.1, speeds=[1.0]), baseline)
    assert (found.verdict, found.ci_low, found.detectable_loss) == (Verdict.INCONCLUSIVE, None, None)
    assert found.ratio is not None
    assert found.ratio < 0.2
    assert found.reasons == (
        "no interval: one round does not show how far rounds scatter; measure more with --speedbench-rounds",
    )


def test_rounds_that_do_not_hold_the_metric_are_inconclusive() -> None:
    run = measurement(metrics={"speedup": 2.0})
    without = replace(run, rounds=tuple(replace(figures, speedup=None) for figures in run.rounds))
    found = check("speedup", run, baseline_of(without))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reasons == ("no interval: the baseline has no speedup of single rounds",)


def test_rounds_measured_in_pairs_are_compared_in_pairs() -> None:
    """A machine that slows down by half while both targets are measured on it."""
    drifting = (1.0, 0.8, 0.5)
    baseline = baseline_of(measurement(speeds=drifting))
    run = measurement(step_s=0.0125, wait_s=0.0625, speeds=drifting)
    in_pairs, apart = (check("output_tps", run, baseline, paired=paired) for paired in (True, False))
    assert (in_pairs.verdict, apart.verdict) == (Verdict.REGRESSION, Verdict.INCONCLUSIVE)
    assert in_pairs.ratio == pytest.approx(0.8, rel=1e-5)


def test_counters_per_server_are_compared_by_rounds() -> None:
    run = without_steps(measurement([count + 4 for count in STEPS]))
    found = check("acceptance_length", run)
    assert found.verdict is Verdict.REGRESSION
    assert found.ratio == pytest.approx(sum(STEPS) / (sum(STEPS) + 32), rel=1e-5)
    assert (found.standard_error, found.reasons) == (0, ())
    assert check("acceptance_length", without_steps(measurement())).verdict is Verdict.PASS


def test_counters_per_server_in_the_baseline_are_compared_the_same_way() -> None:
    found = check("acceptance_length", measurement(), baseline_of(without_steps(measurement())))
    assert (found.verdict, found.degrees_of_freedom) == (Verdict.PASS, 4)


def test_counters_per_server_of_other_prompts_are_incomparable() -> None:
    found = check("acceptance_length", without_steps(measurement(STEPS[:4])))
    assert found.verdict is Verdict.INCOMPARABLE
    assert "4 in this run, 8 in the baseline, 4 in both" in found.reasons[0]


def other(run: Measurement, hardware: str = HARDWARE) -> OtherTarget:
    """Another target of the same run."""
    conditions = replace(CONDITIONS, method="ngram").of(run)
    return OtherTarget("main", {run.cell: Reference(run, conditions, hardware)})


def test_another_target_of_the_same_run_is_compared_with_as_it_is() -> None:
    run = measurement(step_s=1 / 30)
    found = check("output_tps", run, other(run), paired=True)
    assert (found.verdict, found.differs) == (Verdict.PASS, ("method ngram -> eagle3",))
    assert found.ratio == 1  # and not 1 but for six digits
    assert found.baseline == run.metrics["output_tps"]


def test_what_was_not_timed_of_the_other_target_says_why() -> None:
    void = measurement(
        metrics={"output_tps": None}, missing={"output_tps": "the load client was the bottleneck"}
    )
    found = check("output_tps", measurement(), other(void))
    assert (found.verdict, found.reasons) == (
        Verdict.INVALID,
        ("output_tps of main is missing in qualitative-coding-bs32: the load client was the bottleneck",),
    )
    failed = check("output_tps", measurement(), other(measurement(problems=("1 of 8 requests failed",))))
    assert (failed.verdict, failed.reasons) == (Verdict.INVALID, ("main: 1 of 8 requests failed",))
    nothing = check("output_tps", measurement(), OtherTarget("main", {}))
    assert nothing.reasons == ("main was not measured in qualitative-coding-bs32",)
    elsewhere = check("output_tps", measurement(), other(measurement(), "CPU x 4"))
    assert (elsewhere.verdict, elsewhere.across_machines) == (Verdict.INCOMPARABLE, True)


@pytest.mark.parametrize("number", [3, 4])
def test_value_over_baseline_is_the_ratio_of_paired_rounds_too(number: int) -> None:
    """The medians of both sides would say -4 % of rounds of which most are 2 % faster."""
    then = measurement(speeds=(1.0, 1.2, 0.8, 1.1)[:number])
    now = measurement(step_s=1 / 102, wait_s=5 / 102, speeds=(1.0, 0.96, 0.9, 1.15)[:number])
    found = check("output_tps", now, other(then), paired=True)
    assert found.value and found.baseline
    assert found.value / found.baseline == pytest.approx(found.ratio)
    if number == 3:
        assert found.value in [figures.output_tps for figures in now.rounds]
        assert found.baseline in [figures.output_tps for figures in then.rounds]


def test_value_over_baseline_is_the_ratio_of_rounds_of_which_some_lack_the_metric() -> None:
    now = measurement(metrics={"speedup": 2.0}, speeds=(0.9, 1.0, 1.3))
    without = replace(now, rounds=(*now.rounds[:2], replace(now.rounds[2], speedup=None)))
    found = check("speedup", without, baseline_of(now))
    assert found.value and found.baseline
    assert found.value / found.baseline == pytest.approx(found.ratio)


def test_a_pair_of_rounds_stays_whole_or_is_left_out() -> None:
    now = measurement(metrics={"speedup": 2.0}, speeds=(1.0, 0.8, 0.5))
    lacking = replace(now, rounds=(replace(now.rounds[0], speedup=None), *now.rounds[1:]))
    ours, theirs = rounds_of("speedup", now, lacking, paired=True)
    assert ours == theirs == [figures.speedup for figures in now.rounds[1:]]
    assert len(rounds_of("speedup", now, lacking)[0]) == 3


def test_bounds_of_single_prompts_do_not_bend_the_ratio_of_exact_sums() -> None:
    """An n-gram engine that counts drafted steps per response, and all steps per server only."""
    loose = [replace(item, steps=(item.steps or 0) - 5, steps_exact=False) for item in measurement().prompts]
    run = replace(measurement([count + 4 for count in STEPS]), prompts=tuple(loose))
    found = check("acceptance_length", run)
    assert found.ratio == pytest.approx(sum(STEPS) / (sum(STEPS) + 32), rel=1e-5)
    assert found.value and found.baseline
    assert found.value / found.baseline == pytest.approx(found.ratio)
    assert found.standard_error is not None and found.estimate is not None
    assert found.estimate.by == "prompt"


def test_an_environment_that_changed_is_shown_variable_by_variable() -> None:
    before = replace(CONDITIONS, environment={"VLLM_X": "0", "SGLANG_Y": "1"})
    now = replace(CONDITIONS, environment={"VLLM_X": "1", "SGLANG_Y": "1", "CUDA_VISIBLE_DEVICES": "0"})
    found = check("acceptance_length", measurement(), baseline_of(conditions=before), conditions=now)
    assert found.differs == ("environment CUDA_VISIBLE_DEVICES none -> 0", "environment VLLM_X 0 -> 1")


def test_another_way_of_streaming_is_shown_with_throughput() -> None:
    def streamed(first: float, later: float) -> Measurement:
        return measurement(metrics={"first_arrival_tokens": first, "tokens_per_arrival": later})

    length = measurement().metrics["acceptance_length"]
    before = baseline_of(streamed(1.0, length))
    assert check("user_tps", streamed(1.2, 1.1 * length), before).differs == ()
    assert check("user_tps", streamed(1 + length, length), before).differs == (
        "streaming: the first arrival of a request brings 3.21 tokens, and brought 1.00",
    )
    assert check("user_tps", streamed(1.0, 2 * length), before).differs == (
        "streaming: a later arrival brings 2.00 steps, and brought 1.00",
    )
    assert check("acceptance_length", streamed(1 + length, length), before).differs == ()


def latching(requests: int) -> Measurement:
    run = measurement([count - 8 for count in STEPS])
    tallies = [replace(item, latched=int(number < requests)) for number, item in enumerate(run.prompts)]
    return replace(run, prompts=tuple(tallies))


def test_more_than_a_tenth_of_requests_that_repeat_themselves_are_no_measurement() -> None:
    found = check("acceptance_length", latching(1))
    assert (found.verdict, found.ratio) == (Verdict.INVALID, None)
    assert found.reasons == ("degenerate output: of 8 requests 1 repeat themselves (12.5%)",)


def test_an_improvement_carried_by_such_requests_says_so() -> None:
    found = check("acceptance_length", latching(1), degenerate_share=0.5)
    assert found.verdict is Verdict.IMPROVEMENT
    assert found.reasons == (
        "part of this improvement may be degenerate output: of 8 requests 1 repeat themselves (12.5%)",
    )
    assert check("acceptance_length", latching(0)).reasons == ()


@pytest.mark.parametrize("metric", ["acceptance_length", "output_tps"])
def test_replies_far_shorter_than_the_baselines_are_no_measurement(metric: str) -> None:
    run = measurement()
    short = [replace(item, output_tokens=31, steps=10) for item in run.prompts[:2]]
    found = check(metric, replace(run, prompts=(*short, *run.prompts[2:])))
    assert found.verdict is Verdict.INVALID
    assert found.reasons == (
        "degenerate output: of 8 requests 2 end far below the baseline's length (25.0%)",
    )
    terse = [replace(item, output_tokens=32, steps=10) for item in run.prompts[:2]]
    assert check(metric, replace(run, prompts=(*terse, *run.prompts[2:]))).verdict is not Verdict.INVALID
