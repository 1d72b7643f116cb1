"""Every metric, once: its name, its unit, whether it is gated and how people read it.

A new metric is one entry here, and the function in `metrics/` that computes it. Left of all rooms, as settings read the
tolerances; constants only, as every pytest run imports them.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """One number of a cell. A named tuple, which costs less than a dataclass where nothing else does."""

    name: str
    unit: str
    label: str
    """In a sentence: `acceptance length`."""
    kind: str
    """`acceptance`: a property of models and prompts, which compares across machines. `throughput`: compares on the
    same hardware only; whatever the client's clock timed."""
    higher_is_better: bool | None = True
    """None where neither direction is better."""
    tolerance: float | None = None
    """Relative loss of a category that is allowed by default; None: not gated."""
    mean_tolerance: float | None = None
    """The same of the mean over categories; smaller, as noise averages out."""
    other_hardware_tolerance: float | None = None
    """At least this much is allowed where the baseline is of other hardware; None: it is not compared then."""
    column: str | None = None
    """Title of its column in the table; None: not in the table."""
    decimals: int | None = None
    """In text; None: as many as the size of the value calls for."""

    @property
    def gated(self) -> bool:
        """Whether a test may assert that it did not regress."""
        return self.tolerance is not None


ACCEPTANCE = "acceptance"
THROUGHPUT = "throughput"


def _latency(name: str, label: str) -> tuple[Metric, ...]:
    """The statistics of one latency; see `metrics.latency.spread`."""
    return tuple(
        Metric(f"{name}_{suffix}", "s", f"{words} {label}", THROUGHPUT, higher_is_better=False)
        for suffix, words in (
            ("mean", "mean"),
            ("median", "median"),
            ("p90", "p90"),
            ("p95", "p95"),
            ("p99", "p99"),
        )
    )


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "acceptance_length",
            "tokens/step",
            "acceptance length",
            ACCEPTANCE,
            tolerance=0.03,
            mean_tolerance=0.01,
            # kernels differ: vLLM's own tests expect 1.6 % less acceptance of one model on ROCm than on CUDA
            other_hardware_tolerance=0.03,
            column="AL",
            decimals=2,
        ),
        Metric(
            "drafted_acceptance_length", "tokens/step", "drafted acceptance length", ACCEPTANCE, decimals=2
        ),
        Metric(
            "mean_of_requests_acceptance_length",
            "tokens/step",
            "mean acceptance length of requests",
            ACCEPTANCE,
            decimals=2,
        ),
        Metric("draft_acceptance_rate", "1", "draft acceptance rate", ACCEPTANCE, decimals=3),
        Metric(
            "output_tps",
            "tokens/s",
            "output TPS",
            THROUGHPUT,
            tolerance=0.05,
            mean_tolerance=0.03,
            column="out TPS",
        ),
        Metric("steady_output_tps", "tokens/s", "steady output TPS", THROUGHPUT),
        Metric("user_tps", "tokens/s", "user TPS", THROUGHPUT, tolerance=0.05, mean_tolerance=0.03),
        Metric(
            "speedup",
            "1",
            "speedup",
            THROUGHPUT,
            tolerance=0.05,
            mean_tolerance=0.03,
            column="speedup",
            decimals=2,
        ),
        Metric("first_arrival_tokens", "tokens", "tokens of the first arrival", THROUGHPUT, None, decimals=2),
        Metric("tokens_per_arrival", "tokens", "tokens per later arrival", THROUGHPUT, None, decimals=2),
        *_latency("ttft_s", "time to first token"),
        *_latency("inter_token_latency_s", "inter-token latency"),
        *_latency("step_latency_s", "step latency"),
        *_latency("end_to_end_s", "end-to-end latency"),
    )
}
"""By name, in the order in which they are listed everywhere."""

UNITS = {name: metric.unit for name, metric in METRICS.items()}
GATED_ACCEPTANCE, GATED_THROUGHPUT = (
    tuple(metric.name for metric in METRICS.values() if metric.gated and metric.kind == kind)
    for kind in (ACCEPTANCE, THROUGHPUT)
)
DEFAULT_TOLERANCES: dict[str, float] = {
    prefix + name: loss
    for prefix, losses in (
        ("", {metric.name: metric.tolerance for metric in METRICS.values()}),
        ("mean_", {metric.name: metric.mean_tolerance for metric in METRICS.values()}),
        ("other_hardware_", {metric.name: metric.other_hardware_tolerance for metric in METRICS.values()}),
    )
    for name, loss in losses.items()
    if loss is not None
}
"""Allowed relative loss of each gated metric of a category, under `mean_<metric>` of its mean over categories, and under
`other_hardware_<metric>` of either, at least, against a baseline of other hardware."""
