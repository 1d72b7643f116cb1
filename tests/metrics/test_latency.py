from __future__ import annotations

import pytest

from pytest_speedbench.metrics.latency import (
    end_to_end_s,
    inter_token_latency_s,
    spread,
    step_latency_s,
    ttft_s,
)
from pytest_speedbench.metrics.throughput import user_tps
from tests.metrics.records import request


def test_ttft_is_from_sending_to_the_first_token() -> None:
    assert ttft_s([request(sent_s=10, ttft_s=0.25)]) == pytest.approx([0.25])


def test_end_to_end_is_from_sending_to_the_last_token() -> None:
    assert end_to_end_s([request(accepted_by_step=[0, 0], ttft_s=0.25, step_s=0.5)]) == pytest.approx([1.25])


def test_a_gap_is_shared_by_the_tokens_that_come_after_it() -> None:
    """A step with 3 accepted drafts delivers 4 tokens after 0.1 s."""
    gaps = inter_token_latency_s([request(accepted_by_step=[3, 0], step_s=0.1)])
    assert gaps == pytest.approx([0.025] * 4 + [0.1])


def test_step_latency_is_the_same_whether_drafts_are_accepted_or_not() -> None:
    for accepted in ([0, 0, 0], [3, 3, 3]):
        record = request(accepted_by_step=accepted, step_s=0.02)
        assert step_latency_s([record], [3]) == pytest.approx([0.02] * 3)


def test_the_mean_step_latency_is_over_steps_so_that_user_tps_follows_from_it() -> None:
    long = request(accepted_by_step=[1] * 30, step_s=0.01)
    short = request(accepted_by_step=[2] * 10, step_s=0.03)
    mean = spread("step_latency_s", step_latency_s([long, short], [30, 10]))["step_latency_s_mean"]
    assert mean == pytest.approx((30 * 0.01 + 10 * 0.03) / 40)
    assert user_tps([long, short]) == pytest.approx((90 / 40) / mean)


def test_requests_without_steps_have_no_step_latency() -> None:
    assert step_latency_s([request(accepted_by_step=[])], [0]).size == 0


def test_spread_is_mean_median_and_upper_percentiles() -> None:
    values = ttft_s([request(ttft_s=float(n)) for n in range(1, 101)])
    assert spread("ttft_s", values) == pytest.approx(
        {
            "ttft_s_mean": 50.5,
            "ttft_s_median": 50.5,
            "ttft_s_p90": 90.1,
            "ttft_s_p95": 95.05,
            "ttft_s_p99": 99.01,
        }
    )


def test_without_values_there_are_no_metrics() -> None:
    assert spread("ttft_s", ttft_s([])) == {}
