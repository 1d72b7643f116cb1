"""Names and units of all metrics."""

from __future__ import annotations

UNITS = {
    "acceptance_length": "tokens/step",
    "drafted_acceptance_length": "tokens/step",
    "mean_of_requests_acceptance_length": "tokens/step",
    "draft_acceptance_rate": "1",
    "output_tps": "tokens/s",
    "steady_output_tps": "tokens/s",
    "user_tps": "tokens/s",
    "speedup": "1",
    "ttft_s_mean": "s",
    "ttft_s_median": "s",
    "ttft_s_p99": "s",
    "inter_token_latency_s_mean": "s",
    "inter_token_latency_s_median": "s",
    "inter_token_latency_s_p99": "s",
    "step_latency_s_mean": "s",
    "step_latency_s_median": "s",
    "step_latency_s_p99": "s",
    "end_to_end_s_mean": "s",
    "end_to_end_s_median": "s",
    "end_to_end_s_p99": "s",
}
