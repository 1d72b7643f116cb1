"""What a person reads fits a terminal of 80 columns, whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_speedbench.cells import Cell
from pytest_speedbench.engines.base import Hardware
from pytest_speedbench.gate.baseline import Conditions
from pytest_speedbench.gate.cause import Cause, PositionChange
from pytest_speedbench.gate.checks import Check, Verdict
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.report.failure import change, failure_text
from pytest_speedbench.report.outcome import outcome_of
from pytest_speedbench.report.results import CellResult, RunResult
from pytest_speedbench.report.terminal import summary, table
from pytest_speedbench.report.words import number, percent, target_line
from pytest_speedbench.settings import Target

WIDEST = Cell("throughput_32k", "high_entropy", 512)
TARGET = Target("t", "vllm", "eagle3", 3, model="/models/llama-3.3-70b")
SAVE = "pytest --speedbench-engine=vllm --speedbench-save"
METRICS = ("acceptance_length", "output_tps", "speedup")


def measurement(cell: Cell = WIDEST, problems: tuple[str, ...] = (), **metrics: float) -> Measurement:
    return Measurement(
        cell=cell,
        metrics=metrics,
        prompts=(),
        per_position={},
        rounds=1,
        sent=8,
        finished=8,
        failed=0,
        round_output_tps=(),
        missing={},
        problems=problems,
    )


def check(
    verdict: Verdict = Verdict.REGRESSION, metric: str = "acceptance_length", **changes: object
) -> Check:
    whole = Check(metric, verdict, 0.03, 2.81, 3.0, 0.937, 0.930, 0.944, paired=78, prompts=80)
    return replace(whole, **changes)  # type: ignore[arg-type]


def run(*cells: CellResult, saving: bool = False) -> RunResult:
    conditions = Conditions(
        "2026-11-23", "0.1.0", "vllm", "0.32.0", "eagle3", 3, 0.0, True, 0, 64, dataset="sample"
    )
    return RunResult(TARGET, None, conditions, Hardware("NVIDIA H100", 8), cells, (), (), saving, ())


@given(st.sampled_from(METRICS), st.floats(0.001, 999_999))
def test_a_number_has_the_digits_it_deserves(metric: str, value: float) -> None:
    text = number(metric, value)
    assert float(text) == pytest.approx(value, rel=0.005, abs=0.005)
    assert len(text) <= 9


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.937, "-6.3 %"), (1.0, "+0.0 %"), (0.99999, "+0.0 %"), (2.5, "+150.0 %")]
)
def test_a_ratio_is_shown_as_a_change(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_a_target_in_one_line() -> None:
    assert target_line(TARGET) == "vllm, llama-3.3-70b, eagle3 k=3"
    assert target_line(Target("t", "reference", "none", 0)) == "reference, none"


def test_a_failure_says_what_fell_how_sure_that_is_and_why() -> None:
    cause = Cause(
        "drafter",
        -0.063,
        0.001,
        -0.062,
        1.0,
        0.0,
        0.0,
        (PositionChange(1, 0.681, 0.640),),
        "acceptance length explains it.",
    )
    result = CellResult(measurement(Cell("qualitative", "coding", 32)), (check(),), cause)
    text = failure_text(
        result,
        (check(),),
        TARGET,
        baseline="baselines/t.yaml",
        log=".speedbench/logs/vllm-1.log",
        save_command=SAVE,
    )
    assert text.splitlines() == [
        "qualitative / coding / batch size 32: acceptance_length -6.3 %, drafter",
        "vllm, llama-3.3-70b, eagle3 k=3",
        "  acceptance_length 3.00 -> 2.81   -6.3 %  [95 % CI -7.0 .. -5.6]",
        "                    REGRESSION (tolerance -3 %)",
        "  cause: drafter. Acceptance length explains it.",
        "  accepted less often at position 1: 0.681 -> 0.640",
        "  78 of 0 prompts paired with baselines/t.yaml",
        "  engine log: .speedbench/logs/vllm-1.log",
        "  if this is intended, store it as the new baseline:",
        f"    {SAVE}",
    ]


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
    result = CellResult(measurement(), (one,))
    text = failure_text(result, (one,), TARGET, baseline="b.yaml", log=None, save_command=SAVE)
    words = max((len(word) for word in " ".join(reasons).split()), default=0)
    assert all(len(line) <= max(79, words + 22) for line in text.splitlines())


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_line_of_the_table_fits(verdict: Verdict) -> None:
    cell = CellResult(
        measurement(acceptance_length=2.81, output_tps=98_765.4, user_tps=123.4, speedup=1.25),
        (check(verdict, ratio=0.839),),
    )
    assert all(len(line) <= 80 for line, _ in summary(run(cell, cell)))


def test_the_table_shows_the_worst_verdict_and_the_greatest_loss() -> None:
    result = CellResult(
        measurement(output_tps=900.0, acceptance_length=2.0),
        (check(Verdict.PASS, "user_tps", ratio=0.99), check(Verdict.REGRESSION, "output_tps", ratio=0.8)),
    )
    (_, _), (line, color) = table([result])
    assert line.endswith("regression -20.0 %")
    assert color == "red"


def test_an_invalid_cell_is_red_even_if_nobody_judged_it() -> None:
    (_, _), (line, color) = table([CellResult(measurement(problems=("1 request failed",)), ())])
    assert line.endswith("invalid")
    assert color == "red"


def test_the_mean_is_over_categories_of_one_split_and_batch_size() -> None:
    cells = [
        CellResult(
            measurement(Cell("qualitative", category, 1), acceptance_length=value),
            (check(value=value, baseline=3.0),),
        )
        for category, value in (("coding", 3.0), ("qa", 2.0))
    ]
    *_, (line, _) = table(cells)
    assert line.split() == ["qualitative-mean-bs1", "2.50", "AL", "-16.7", "%"]


def test_a_mean_with_a_hole_is_no_mean() -> None:
    cells = [
        CellResult(measurement(Cell("qualitative", "coding", 1), acceptance_length=3.0), ()),
        CellResult(measurement(Cell("qualitative", "qa", 1)), ()),
    ]
    *_, (line, _) = table(cells)
    assert line.split() == ["qualitative-mean-bs1", "-"]


@pytest.mark.parametrize(
    ("verdict", "inconclusive", "saving", "what"),
    [
        (Verdict.PASS, "warn", False, ""),
        (Verdict.IMPROVEMENT, "warn", False, "notable"),
        (Verdict.REGRESSION, "warn", False, "failing"),
        (Verdict.INCONCLUSIVE, "warn", False, "notable"),
        (Verdict.INCONCLUSIVE, "fail", False, "failing"),
        (Verdict.INCOMPARABLE, "warn", False, "failing"),
        (Verdict.NO_BASELINE, "warn", False, "failing"),
        (Verdict.INVALID, "warn", False, "failing"),
        (Verdict.REGRESSION, "fail", True, ""),
        (Verdict.NO_BASELINE, "fail", True, ""),
        (Verdict.INVALID, "fail", True, "failing"),
    ],
)
def test_what_a_test_does_about_a_verdict(
    verdict: Verdict, inconclusive: str, saving: bool, what: str
) -> None:
    outcome = outcome_of([check(verdict)], inconclusive=inconclusive, saving=saving)
    assert [name for name in ("failing", "skipping", "notable") if getattr(outcome, name)] == [what] * bool(
        what
    )


def test_other_hardware_skips() -> None:
    outcome = outcome_of(
        [check(Verdict.INCOMPARABLE, across_machines=True)], inconclusive="fail", saving=False
    )
    assert outcome.skipping and not outcome.failing


def test_a_check_without_a_comparison_shows_what_was_measured() -> None:
    assert change(check(Verdict.NO_BASELINE, baseline=None, ratio=None)) == "2.81"
    assert change(check(Verdict.INVALID, value=None, baseline=None, ratio=None)) == "not measured"
