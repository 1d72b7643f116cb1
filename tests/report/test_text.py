"""What a person reads fits a terminal of 80 columns, whatever the numbers are."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import MEAN, Cell
from pytest_speedbench.engines.base import Hardware
from pytest_speedbench.gate.baseline import Conditions
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.estimate import Estimate
from pytest_speedbench.gate.explain.break_even import BreakEven
from pytest_speedbench.gate.explain.cause import Cause, PositionChange
from pytest_speedbench.gate.explain.decomposition import Breakdown, Part
from pytest_speedbench.gate.explain.pattern import Pattern
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.metrics.pareto import ParetoCurve, ParetoPoint
from pytest_speedbench.report.cause_text import cause_lines
from pytest_speedbench.report.failure import change, failure_text
from pytest_speedbench.report.markdown import text
from pytest_speedbench.report.terminal import summary, table
from pytest_speedbench.report.wording import number, percent, target_line
from pytest_speedbench.run.ledger import CellRun
from pytest_speedbench.run.provenance import Provenance
from pytest_speedbench.run.results import RunResult
from pytest_speedbench.settings.target import Target
from tests.run.cell_runs import cell_run

WIDEST = Cell("throughput_32k", "high_entropy", 512)
CODING = Cell("qualitative", "coding", 32)
MEAN_CELL = Cell("qualitative", MEAN, 32)
TARGET = Target("t", "vllm", "eagle3", 3, model="/models/llama-3.3-70b")
SAVE = "pytest --speedbench-engine=vllm --speedbench-save"
METRICS = ("acceptance_length", "output_tps", "speedup")
POSITIONS = (PositionChange(1, 0.681, 0.640), PositionChange(2, 0.698, 0.690))
DRAFTER = Cause(
    "drafter",
    "A step yields 6.3 % fewer tokens: 94 % of the loss.",
    "check the draft model.",
    Breakdown(
        "output_tps",
        change=Part(0.933, 0.911, 0.956, None),
        acceptance_length=Part(0.937, 0.93, 0.944, 0.94),
        step_latency=Part(1.0001, 0.98, 1.02, 0.0),
        rest=Part(0.9957, 0.981, 1.011, 0.06),
        without_speculation=None,
    ),
    positions=POSITIONS,
)


PATTERN = Pattern(
    "qualitative",
    32,
    "few",
    ("multilingual", "rag"),
    11,
    False,
    "2 of 11 categories fell: multilingual -10.2 % and rag -9.5 %. Ask what these prompts have in common.",
)
BREAK_EVEN = BreakEven(
    "throughput_1k",
    {16: 1.12, 64: 0.93},
    37.4,
    27.1,
    50.2,
    True,
    "throughput_1k: speculation pays up to batch size 37 [95 % CI 27 .. 50] (speedup 1.12 at 16, 0.93 at 64)",
)

CURVE = ParetoCurve(
    "throughput_1k",
    (
        ParetoPoint(1, 350.3, 508.8, on_frontier=True),
        ParetoPoint(8, 1303.4, 439.7, on_frontier=True),
        ParetoPoint(32, 1290.2, 101.5, on_frontier=False),
    ),
)


def measurement(cell: Cell = WIDEST, problems: tuple[str, ...] = (), **metrics: float) -> Measurement:
    return Measurement(
        cell=cell,
        metrics=metrics,
        prompts=(),
        per_position={},
        rounds=(),
        sent=8,
        finished=8,
        failed=0,
        missing={},
        problems=problems,
    )


def estimate(ratio: float, error: float | None) -> Estimate:
    return Estimate(math.log(ratio), error, 77.0, "prompt")


def check(
    verdict: Verdict = Verdict.REGRESSION,
    metric: str = "acceptance_length",
    *,
    ratio: float | None = 0.937,
    error: float | None = 0.0038,
    **changes: object,
) -> Check:
    whole = Check(
        metric,
        verdict,
        tolerance=0.03,
        alpha=0.0001,
        value=2.81,
        baseline=3.0,
        estimate=None if ratio is None else estimate(ratio, error),
        detectable_loss=0.037,
        paired=78,
        prompts=80,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


SLOWER = check(
    metric="output_tps",
    value=2349.0,
    baseline=2518.0,
    ratio=0.933,
    error=0.0121,
    tolerance=0.05,
    detectable_loss=0.061,
    rounds=3,
    baseline_rounds=9,
)


def run(*cells: CellRun, saving: bool = False, **changes: object) -> RunResult:
    conditions = Conditions(
        "2026-11-23", "0.1.0", "vllm", "0.32.0", "eagle3", 3, 0.0, True, 0, 64, dataset="sample"
    )
    result = RunResult(
        target=TARGET,
        against=None,
        compared_with="baselines/t.yaml",
        save_command=SAVE,
        log=None,
        conditions=conditions,
        hardware=Hardware("NVIDIA H100", 8),
        provenance=Provenance(None, False, None, None, {}),
        cells=cells,
        warnings=(),
        saving=saving,
        messages=(),
        failures={},
        failed_tests=(),
        not_measured_tests=(),
        not_made=(),
        measuring_s=0.0,
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def text_of(result: CellRun, *, log: str | None = None, save: str | None = None) -> list[str]:
    text = failure_text(
        result, result.checks, TARGET, baseline="baselines/t.yaml", log=log, save_command=save
    )
    return text.splitlines()


@given(st.sampled_from(METRICS), st.floats(0.001, 999_999))
def test_a_number_has_the_digits_it_deserves(metric: str, value: float) -> None:
    text = number(metric, value)
    exact = Decimal(value)  # half a unit of the last digit is allowed, and 0.875 lies half-way
    assert abs(Decimal(text) - exact) <= Decimal("0.005") * max(exact, Decimal(1))
    assert len(text) <= 9


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.937, "-6.3 %"), (1.0, "+0.0 %"), (0.99999, "+0.0 %"), (2.5, "+150.0 %")]
)
def test_a_ratio_is_shown_as_a_change(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_a_target_in_one_line() -> None:
    assert target_line(TARGET) == "vllm, llama-3.3-70b, eagle3 k=3"
    assert target_line(Target("t", "reference", "none", 0)) == "reference, none"


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


def test_user_tps_has_no_rest_to_speak_of() -> None:
    assert DRAFTER.breakdown is not None
    breakdown = replace(DRAFTER.breakdown, metric="user_tps", rest=Part(1.0, 1.0, 1.0, 0.0))
    lines = cause_lines(replace(DRAFTER, breakdown=breakdown), parts=True)
    assert not any("all else" in line for line in lines)


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


PARTS = st.builds(
    Part,
    st.floats(0.01, 9),
    st.none() | st.floats(0.01, 9),
    st.floats(0.01, 9),
    st.none() | st.floats(0, 1),
)


@given(st.sampled_from(["output_tps", "user_tps", "speedup"]), st.lists(PARTS, min_size=5, max_size=5))
def test_every_line_of_a_cause_fits(metric: str, parts: list[Part]) -> None:
    change, length, latency, rest, plain = parts
    cause = Cause(
        "both",
        "A step yields 99.9 % fewer tokens (50 % of the output_tps loss) and takes 99.9 % longer (50 %).",
        "check the draft model.",
        Breakdown(metric, change, length, latency, rest, plain if metric == "speedup" else None),
        tuple(PositionChange(position, 0.9, 0.8) for position in range(1, 16)),
    )
    assert all(len(line) <= 79 for line in cause_lines(cause, parts=True))


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_line_of_the_table_fits(verdict: Verdict) -> None:
    cell = cell_run(
        measurement(acceptance_length=2.81, output_tps=98_765.4, user_tps=123.4, speedup=1.25),
        (check(verdict, ratio=0.839),),
    )
    assert all(len(line) <= 80 for line, _ in summary(run(cell, cell)))


def test_the_table_shows_the_worst_verdict_and_the_greatest_loss_that_has_it() -> None:
    result = cell_run(
        measurement(output_tps=900.0, acceptance_length=2.0),
        (
            check(Verdict.INCONCLUSIVE, "speedup", ratio=0.7),
            check(Verdict.REGRESSION, "output_tps", ratio=0.8),
            check(Verdict.REGRESSION, "user_tps", ratio=0.9),
        ),
    )
    (_, _), (line, color) = table([result])
    assert line.endswith("regression -20.0 %")
    assert color == "red"


class TestSummary:
    """What is said at the end of a run, below the table."""

    @staticmethod
    def below_the_table(result: RunResult) -> list[str]:
        lines = [line for line, _ in summary(result)]
        heading = lines.index("sample prompts (bundled, not SPEED-Bench)") + 1
        return lines[heading + (len(table(result.cells)) if result.cells else 0) :]

    def test_it_states_the_sensitivity_of_each_metric(self) -> None:
        cells = [
            cell_run(measurement(CODING), (check(Verdict.PASS, detectable_loss=0.034), SLOWER)),
            cell_run(
                measurement(MEAN_CELL),
                (check(Verdict.PASS, detectable_loss=0.012), replace(SLOWER, detectable_loss=0.0221)),
            ),
        ]
        assert self.below_the_table(run(*cells)) == [
            "sensitivity (95 % power): acceptance length 3.4 % per category, 1.2 % on the",
            "  mean; output TPS 6.1 % per category, 2.2 % on the mean",
        ]
        assert self.below_the_table(run(*cells[:1])) == [
            "sensitivity (95 % power): acceptance length 3.4 % per category; output TPS",
            "  6.1 % per category",
        ]

    def test_it_counts_underpowered_checks(self) -> None:
        blind = replace(
            SLOWER, verdict=Verdict.INCONCLUSIVE, estimate=estimate(0.933, 0.03), detectable_loss=0.17
        )
        worse = replace(blind, metric="user_tps", detectable_loss=0.2)
        unknown = replace(SLOWER, estimate=estimate(0.933, None), detectable_loss=None)
        result = run(
            cell_run(measurement(CODING), (check(Verdict.PASS), blind, worse)),
            cell_run(measurement(WIDEST), (unknown,)),
        )
        assert self.below_the_table(result)[2:] == [
            "2 of 4 checks are underpowered. Worst: user_tps of qualitative-coding-bs32,",
            "  tolerance 5 %, smallest detectable loss 20.0 %. Add rounds or raise the",
            "  tolerance",
            "1 of 4 checks is of unknown sensitivity: the noise between rounds is not known",
        ]

    def test_a_run_that_judged_nothing_saw_nothing(self) -> None:
        assert self.below_the_table(run(cell_run(measurement(CODING), ()))) == []
        judged = cell_run(measurement(CODING), (SLOWER,))
        assert self.below_the_table(run(judged, saving=True)) == []

    def test_it_tells_the_pattern_unless_the_failure_of_the_mean_does(self) -> None:
        told = [
            "qualitative, batch size 32: 2 of 11 categories fell: multilingual -10.2 % and",
            "  rag -9.5 %. Ask what these prompts have in common.",
        ]
        assert self.below_the_table(run(patterns=(PATTERN,))) == told
        passed = cell_run(measurement(MEAN_CELL), (), pattern=PATTERN)
        assert self.below_the_table(run(passed, patterns=(PATTERN,))) == told
        failed = cell_run(measurement(MEAN_CELL), (), failure="...", pattern=PATTERN)
        assert self.below_the_table(run(failed, patterns=(PATTERN,))) == []

    def test_it_tells_up_to_which_batch_size_speculation_pays(self) -> None:
        assert self.below_the_table(run(break_evens=(BREAK_EVEN,))) == [
            "throughput_1k: speculation pays up to batch size 37 [95 % CI 27 .. 50] (speedup",
            "  1.12 at 16, 0.93 at 64)",
        ]

    def test_it_tells_what_a_batch_buys_and_costs(self) -> None:
        assert self.below_the_table(run(pareto_curves=(CURVE,))) == [
            "throughput_1k, tokens/s of the batch and of a user: 350.3 and 508.8 at batch",
            "  size 1, 1303 and 439.7 at 8, 1290 and 101.5 at 32; another batch size beats",
            "  32",
        ]

    def test_the_page_tells_it_too(self) -> None:
        cell = cell_run(measurement(CODING), (SLOWER,))
        page = text(run(cell, patterns=(PATTERN,), break_evens=(BREAK_EVEN,)))
        assert f"\n- qualitative, batch size 32: {PATTERN.sentence}\n" in page
        assert f"\n- {BREAK_EVEN.text}\n" in page
        assert "\n- sensitivity (95 % power): output TPS 6.1 % per category\n" in page


def test_an_invalid_cell_is_red_even_if_it_was_not_judged() -> None:
    (_, _), (line, color) = table([cell_run(measurement(problems=("1 request failed",)), ())])
    assert line.endswith("invalid")
    assert color == "red"


def test_a_mean_is_a_line_like_others_with_its_own_verdict() -> None:
    mean = cell_run(measurement(MEAN_CELL, acceptance_length=2.5), (check(ratio=0.98, value=2.5),))
    *_, (line, color) = table([cell_run(measurement(CODING, acceptance_length=2.5), ()), mean])
    assert line.split() == ["qualitative-mean-bs32", "2.50", "regression", "-2.0", "%"]
    assert color == "red"


def test_a_check_without_a_comparison_shows_what_was_measured() -> None:
    assert change(check(Verdict.NO_BASELINE, baseline=None, ratio=None)) == "2.81"
    assert change(check(Verdict.INVALID, value=None, baseline=None, ratio=None)) == "not measured"
