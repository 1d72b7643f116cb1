from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.errors import BaselineError
from pytest_speedbench.gate.baseline import Baseline, dirty_warning, merge, refuse
from tests.gate.measurements import CELL, CONDITIONS, HARDWARE, STEPS, baseline_of, measurement

MATH = Cell("qualitative", "math", 32)


def test_the_first_save_holds_both_halves_of_a_cell() -> None:
    baseline = baseline_of()
    found = baseline.acceptance[HARDWARE][CELL.id]
    acceptance, throughput = found.measurement, baseline.throughput[HARDWARE][CELL.id].measurement
    assert baseline.target == "llama"
    assert acceptance.metrics["acceptance_length"] == pytest.approx(127 * 8 / sum(STEPS), rel=1e-5)
    assert acceptance.prompts == throughput.prompts
    assert acceptance.prompts[0].steps == STEPS[0]
    assert throughput.metrics["step_latency_s_mean"] == 0.01
    assert throughput.metrics["output_tps"] == throughput.rounds[1].output_tps
    assert [round(figures.step_latency_s or 0, 5) for figures in throughput.rounds] == [0.0101, 0.01, 0.0099]
    assert len(acceptance.rounds) == 3
    assert (
        found.conditions.engine_version,
        found.conditions.tokenization,
        found.conditions.counter_source,
    ) == (
        "0.31.0",
        "engine",
        "response",
    )


def test_measured_cells_are_replaced_and_others_are_kept() -> None:
    both = baseline_of(measurement(), measurement(cell=MATH))
    newer = replace(CONDITIONS, engine_version="0.32.0")
    merged = merge("llama", both, [measurement([count + 4 for count in STEPS])], newer, HARDWARE).baseline
    assert merged.acceptance[HARDWARE][MATH.id] == both.acceptance[HARDWARE][MATH.id]
    assert merged.throughput[HARDWARE][MATH.id] == both.throughput[HARDWARE][MATH.id]
    before, after = (each.acceptance[HARDWARE][CELL.id] for each in (both, merged))
    assert after.measurement.metrics["acceptance_length"] < before.measurement.metrics["acceptance_length"]
    assert after.conditions.engine_version == "0.32.0"
    assert merged.acceptance[HARDWARE][MATH.id].conditions.engine_version == "0.31.0"


def test_another_machine_adds_both_halves_and_keeps_those_of_the_first() -> None:
    fewer = measurement([count + 4 for count in STEPS], step_s=0.5)
    merged = merge("llama", baseline_of(), [fewer], CONDITIONS, "CPU x 4").baseline
    assert list(merged.throughput) == list(merged.acceptance) == ["CPU x 4", HARDWARE]
    assert merged.throughput[HARDWARE] == baseline_of().throughput[HARDWARE]
    assert merged.acceptance[HARDWARE] == baseline_of().acceptance[HARDWARE]
    stored = merged.throughput["CPU x 4"][CELL.id].measurement
    assert stored.metrics["step_latency_s_mean"] == 0.5


def test_saving_the_same_again_changes_nothing() -> None:
    assert merge("llama", baseline_of(), [measurement()], CONDITIONS, HARDWARE).baseline == baseline_of()


def test_cells_are_in_the_order_of_the_grid() -> None:
    cells = [
        Cell("throughput_1k", "high_entropy", 1),
        Cell("throughput_1k", "low_entropy", 1),
        Cell("qualitative", "math", 32),
        Cell("qualitative", "coding", 128),
        Cell("qualitative", "coding", 32),
    ]
    baseline = baseline_of(*(measurement(cell=cell) for cell in cells))
    assert list(baseline.acceptance[HARDWARE]) == list(baseline.throughput[HARDWARE])
    assert list(baseline.acceptance[HARDWARE]) == [
        "qualitative-coding-bs32",
        "qualitative-coding-bs128",
        "qualitative-math-bs32",
        "throughput_1k-low_entropy-bs1",
        "throughput_1k-high_entropy-bs1",
    ]


def test_an_invalid_measurement_is_refused() -> None:
    with pytest.raises(
        BaselineError, match=r"qualitative-coding-bs32: not stored, .* invalid: 1 of 8 requests"
    ):
        refuse(measurement(problems=("1 of 8 requests failed",)), "eagle3")


@pytest.mark.parametrize("metric", ["acceptance_length", "output_tps"])
def test_a_measurement_without_what_is_gated_is_refused(metric: str) -> None:
    with pytest.raises(BaselineError, match=f"{metric} is missing: the server was silent"):
        refuse(measurement(metrics={metric: None}, missing={metric: "the server was silent"}), "eagle3")


def test_a_dead_drafter_is_refused() -> None:
    dead = measurement(metrics={"acceptance_length": 1.0097})
    with pytest.raises(
        BaselineError, match=r"an acceptance length of 1\.0097 with method eagle3 is that of a dead"
    ):
        refuse(dead, "eagle3")
    refuse(dead, "none")
    refuse(measurement(metrics={"acceptance_length": 1.02}), "eagle3")


def test_one_refused_measurement_keeps_all_of_them_out() -> None:
    baseline = baseline_of()
    with pytest.raises(BaselineError):
        merge("llama", baseline, [measurement(cell=MATH), measurement(problems=("x",))], CONDITIONS, HARDWARE)
    assert baseline == baseline_of()
    assert list(baseline.acceptance[HARDWARE]) == [CELL.id]


def test_nothing_measured_leaves_the_baseline_as_it_was() -> None:
    assert merge("llama", baseline_of(), [], CONDITIONS, "CPU x 4").baseline == baseline_of()
    assert merge("llama", None, [], CONDITIONS, HARDWARE).baseline == Baseline("llama")


def test_a_late_client_leaves_the_acceptance_half_to_be_stored() -> None:
    late = replace(
        measurement(metrics={"output_tps": None, "user_tps": None}),
        overload="the client was overloaded",
        missing={"output_tps": "the client was overloaded"},
    )
    stored = merge("llama", None, [late], CONDITIONS, HARDWARE)
    assert set(stored.baseline.acceptance[HARDWARE]) == {late.cell.id}
    assert stored.baseline.throughput == {}
    assert (stored.acceptance, stored.throughput) == ((late.cell.id,), ())
    assert stored.left_out == {late.cell.id: "throughput: the client was overloaded"}
    assert stored.omissions == (f"not stored of {late.cell.id}, throughput: the client was overloaded",)


def test_one_reason_is_said_of_all_its_cells_at_once() -> None:
    late = [
        measurement(cell=cell, metrics={"output_tps": None}, missing={"output_tps": "why"})
        for cell in (CELL, MATH)
    ]
    stored = merge("llama", None, [replace(each, overload="why") for each in late], CONDITIONS, HARDWARE)
    assert stored.omissions == ("not stored of 2 cells, throughput: why",)


def test_a_save_with_uncommitted_changes_is_warned_of() -> None:
    assert dirty_warning("d92e9d78206e") is dirty_warning(None) is None
    assert dirty_warning("d92e9d78206e-dirty") == (
        "measured with uncommitted changes (d92e9d78206e-dirty): no one can check out what this baseline is of"
    )
