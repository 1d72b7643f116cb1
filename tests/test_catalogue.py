"""A metric stands in one place, and everything that lists metrics follows it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pytest_speedbench.catalogue import DEFAULT_TOLERANCES, METRICS, UNITS
from pytest_speedbench.gate.baseline import ACCEPTANCE_METRICS, THROUGHPUT_METRICS
from pytest_speedbench.metrics.measurement import RoundFigures
from pytest_speedbench.report.terminal import COLUMNS
from pytest_speedbench.report.wording import number
from pytest_speedbench.settings.options import BY_FIELD, TOLERATED
from pytest_speedbench.speed_bench import ACCEPTANCE, GATED, THROUGHPUT


def test_gated_metrics_are_those_with_a_tolerance() -> None:
    assert ACCEPTANCE == ("acceptance_length",)
    assert THROUGHPUT == ("output_tps", "user_tps", "speedup")
    of_means, across = [f"mean_{name}" for name in GATED], [f"other_hardware_{name}" for name in ACCEPTANCE]
    assert (*GATED, *of_means, *across) == TOLERATED == tuple(DEFAULT_TOLERANCES)
    assert all(METRICS[name].higher_is_better for name in GATED), "decisions are one-sided"


def test_a_gated_metric_has_a_tolerance_of_its_mean_too() -> None:
    for metric in METRICS.values():
        assert (metric.tolerance is None) == (metric.mean_tolerance is None)


def test_the_help_of_the_tolerance_holds_its_defaults() -> None:
    for metric, loss in DEFAULT_TOLERANCES.items():
        assert f"{metric}={loss:g}" in BY_FIELD["tolerance"].help


def test_a_gated_metric_is_known_of_every_round_and_stored_by_cell() -> None:
    stored = {*ACCEPTANCE_METRICS, *THROUGHPUT_METRICS}
    assert set(GATED) <= {item.name for item in fields(RoundFigures)} & stored


def test_columns_are_those_of_the_catalogue() -> None:
    assert COLUMNS == {"acceptance_length": "AL", "output_tps": "out TPS", "speedup": "speedup"}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("acceptance_length", 12.345, "12.35"), ("user_tps", 12.345, "12.3"), ("output_tps", 2363.4, "2363")],
)
def test_a_number_has_the_decimals_of_its_metric(name: str, value: float, text: str) -> None:
    assert number(name, value) == text


def test_latencies_are_better_when_they_are_lower() -> None:
    seconds = [metric for metric in METRICS.values() if metric.unit == "s"]
    assert len(seconds) == 20
    assert not any(metric.higher_is_better or metric.gated for metric in seconds)
    assert UNITS["ttft_s_p95"] == "s"
