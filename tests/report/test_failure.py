"""A failure in full says what fell, how sure that is, who is to blame and what to do, in 80 columns."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.gate.explain.cause import Cause
from pytest_speedbench.gate.explain.decomposition import Breakdown, Part
from pytest_speedbench.report.failure import change, failure_text
from tests.report.samples import (
    CODING,
    DRAFTER,
    MEAN_CELL,
    PATTERN,
    POSITIONS,
    SAVE,
    SLOWER,
    TARGET,
    check,
    estimate,
    measurement,
    text_of,
)
from tests.run.cell_runs import cell_run


def test_a_failure_says_what_fell_how_sure_that_is_who_is_to_blame_and_what_to_do() -> None:
    result = cell_run(measurement(CODING), (check(), SLOWER), DRAFTER)
    assert text_of(result, log=".speedbench/logs/vllm-1.log", save=SAVE) == [
        "qualitative / coding / batch size 32: output_tps -6.7 %, drafter",
        "vllm, llama-3.3-70b, eagle3 k=3",
        "  acceptance_length 3.00 -> 2.81   -6.3 %  [95 % CI -7.0 .. -5.6]",
        "                    REGRESSION (tolerance -3 %)",
        "  output_tps        2518 -> 2349   -6.7 %  [95 % CI -8.9 .. -4.4]",
        "                    REGRESSION (tolerance -5 %)",
        "  cause: drafter. A step yields 6.3 % fewer tokens: 94 % of the loss.",
        "    what changed output_tps (-6.7 %), each with its 95 % CI:",
        "      fewer tokens a step     -6.3 %  [-7.0 .. -5.6]  94 % of the loss",
        "      steps as fast           +0.0 %  [-2.0 .. +2.0]",
        "      prefill, queue, client  -0.4 %  [-1.9 .. +1.1]  6 % of the loss",
        "  accepted less often at position 1: 0.681 -> 0.640, 2: 0.698 -> 0.690",
        "  next: check the draft model.",
        "  78 of 80 prompts paired with baselines/t.yaml",
        "  3 rounds against 9",
        "  engine log: .speedbench/logs/vllm-1.log",
        "  if this is intended, store it as the new baseline:",
        f"    {SAVE}",
    ]


def test_slower_steps_are_told_without_the_positions_of_the_drafter() -> None:
    cause = Cause(
        "system",
        "A step takes 7.2 % longer: 100 % of the loss.",
        "profile a decode step.",
        Breakdown(
            "output_tps",
            change=Part(0.933, 0.911, 0.956, None),
            acceptance_length=Part(1.002, 1.002, 1.002, 0.0),
            step_latency=Part(0.933, 0.911, 0.956, 1.0),
            rest=Part(0.998, 0.98, 1.01, 0.0),
            without_speculation=None,
        ),
        POSITIONS,
    )
    assert text_of(cell_run(measurement(CODING), (SLOWER,), cause)) == [
        "qualitative / coding / batch size 32: output_tps -6.7 %, system",
        "vllm, llama-3.3-70b, eagle3 k=3",
        "  output_tps        2518 -> 2349   -6.7 %  [95 % CI -8.9 .. -4.4]",
        "                    REGRESSION (tolerance -5 %)",
        "  cause: system. A step takes 7.2 % longer: 100 % of the loss.",
        "    what changed output_tps (-6.7 %), each with its 95 % CI:",
        "      more tokens a step      +0.2 %  [+0.2 .. +0.2]  a gain",
        "      slower steps            -6.7 %  [-8.9 .. -4.4]  100 % of the loss",
        "      prefill, queue, client  -0.2 %  [-2.0 .. +1.0]",
        "  next: profile a decode step.",
        "  78 of 80 prompts paired with baselines/t.yaml",
        "  3 rounds against 9",
    ]


def test_speedup_is_told_beside_plain_decoding() -> None:
    breakdown = Breakdown(
        "speedup",
        change=Part(0.933, 0.911, 0.956, None),
        acceptance_length=Part(1.0, 1.0, 1.0, 0.0),
        step_latency=Part(0.933, None, None, 1.0),
        rest=Part(1.0, 0.98, 1.01, 0.0),
        without_speculation=Part(1.07, 1.05, 1.09, None),
    )
    cause = Cause("system", "Plain decoding became 7.0 % faster.", "profile a decode step.", breakdown)
    result = cell_run(measurement(CODING), (replace(SLOWER, metric="speedup"),), cause)
    assert text_of(result)[4:10] == [
        "  cause: system. Plain decoding became 7.0 % faster.",
        "    what changed speedup (-6.7 %), each with its 95 % CI:",
        "      as many tokens a step   +0.0 %  [+0.0 .. +0.0]",
        "      slower against plain    -6.7 %                  100 % of the loss",
        "      prefill, queue, client  +0.0 %  [-2.0 .. +1.0]",
        "    without speculation, output_tps +7.0 %  [+5.0 .. +9.0]",
    ]


def test_where_acceptance_alone_failed_the_parts_of_throughput_are_not_shown() -> None:
    lines = text_of(cell_run(measurement(CODING), (check(),), DRAFTER))
    assert not any("what changed" in line for line in lines)


def test_a_mean_that_fell_says_what_its_categories_have_in_common() -> None:
    mean = check(ratio=0.96, error=0.00523, baseline=2.5, value=2.4, tolerance=0.01, paired=0)
    result = cell_run(measurement(MEAN_CELL), (mean,), None, pattern=PATTERN)
    assert text_of(result, save=SAVE) == [
        "qualitative / mean / batch size 32: acceptance_length -4.0 %",
        "vllm, llama-3.3-70b, eagle3 k=3",
        "  acceptance_length 2.50 -> 2.40   -4.0 %  [95 % CI -5.0 .. -3.0]",
        "                    REGRESSION (tolerance -1 %)",
        "  pattern: 2 of 11 categories fell: multilingual -10.2 % and rag -9.5 %. Ask",
        "    what these prompts have in common.",
        "  if this is intended, store it as the new baseline:",
        f"    {SAVE}",
    ]


def test_what_is_inconclusive_states_its_sensitivity_and_is_not_to_be_stored() -> None:
    unsure = replace(SLOWER, verdict=Verdict.INCONCLUSIVE, estimate=estimate(0.97, 0.0387))
    assert text_of(cell_run(measurement(CODING), (unsure,)), save=SAVE) == [
        "qualitative / coding / batch size 32: output_tps -3.0 %",
        "vllm, llama-3.3-70b, eagle3 k=3",
        "  output_tps        2518 -> 2349   -3.0 %  [95 % CI -10.2 .. +4.8]",
        "                    INCONCLUSIVE (tolerance -5 %, sensitivity 6.1 %)",
        "  to be surer, measure more rounds (--speedbench-max-rounds), or raise the",
        "    tolerance (--speedbench-tolerance)",
        "  78 of 80 prompts paired with baselines/t.yaml",
        "  3 rounds against 9",
    ]


def test_beside_a_regression_what_is_inconclusive_asks_for_nothing() -> None:
    unsure = replace(SLOWER, metric="speedup", verdict=Verdict.INCONCLUSIVE, rounds=9)
    lines = text_of(cell_run(measurement(CODING), (SLOWER, replace(SLOWER, metric="user_tps"), unsure)))
    assert not any("to be surer" in line for line in lines)
    assert lines[-2:] == [
        "  3 rounds against 9 for output_tps and user_tps",
        "  9 rounds against 9 for speedup",
    ]


def test_a_better_result_says_that_the_baseline_is_stale_and_what_speaks_against_it() -> None:
    better = check(
        Verdict.IMPROVEMENT,
        ratio=1.1,
        error=0.0091,
        value=3.3,
        reasons=("3 of 80 requests loop",),
    )
    result = cell_run(measurement(CODING), (better,))
    assert text_of(result, save="pytest --speedbench-save")[2:5] == [
        "  acceptance_length 3.00 -> 3.30   +10.0 %  [95 % CI +8.0 .. +12.0]",
        "                    IMPROVEMENT (by more than 3 %): the baseline is stale; 3 of",
        "                      80 requests loop",
    ]
    beside_another_target = text_of(result)
    assert beside_another_target[3].strip() == "IMPROVEMENT (by more than 3 %): 3 of 80 requests loop"


def test_a_note_of_the_measurement_is_told() -> None:
    random = "random-token prompts gave 23 % more output TPS"
    result = cell_run(replace(measurement(CODING), notes=(random,)), (SLOWER,))
    assert f"  note: {random}" in text_of(result)


@given(
    st.sampled_from(list(Verdict)),
    st.sampled_from([("acceptance_length", 64.0), ("speedup", 64.0), ("output_tps", 1e6)]),
    st.floats(0.01, 1),
    st.floats(0.01, 10),
    st.lists(st.text("abcdefghij ", min_size=1, max_size=200), max_size=3),
)
def test_every_line_of_a_failure_fits(
    verdict: Verdict, most: tuple[str, float], share: float, ratio: float, reasons: list[str]
) -> None:
    metric, baseline = most[0], most[1] * share
    one = check(
        verdict, metric, value=baseline * ratio, baseline=baseline, ratio=ratio, reasons=tuple(reasons)
    )
    result = cell_run(measurement(), (one,), DRAFTER)
    text = failure_text(result, (one,), TARGET, baseline="b.yaml", log=None, save_command=SAVE)
    words = max((len(word) for word in " ".join(reasons).split()), default=0)
    assert all(len(line) <= max(79, words + 22) for line in text.splitlines())


def test_a_check_without_a_comparison_shows_what_was_measured() -> None:
    assert change(check(Verdict.NO_BASELINE, baseline=None, ratio=None)) == "2.81"
    assert change(check(Verdict.INVALID, value=None, baseline=None, ratio=None)) == "not measured"
