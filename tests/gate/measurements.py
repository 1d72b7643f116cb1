"""Builds measurements with chosen numbers, and the conditions they were measured under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.baseline import Baseline, Conditions, merge
from pytest_speedbench.metrics.acceptance import conditional_acceptance_rate, histogram, joint_acceptance_rate
from pytest_speedbench.metrics.measurement import Measurement, PromptTally, RoundFigures

CELL = Cell("qualitative", "coding", 32)
HARDWARE = "NVIDIA H100 80GB HBM3 x 8"
CONDITIONS = Conditions(
    date="2026-11-23T12:00:00+00:00",
    plugin_version="0.1.0",
    engine="vllm",
    engine_version="0.31.0",
    method="eagle3",
    draft_length=3,
    temperature=0.0,
    ignore_eos=True,
    seed=0,
    output_length=128,
    dataset="sample",
    commit="0123abc",
    model="meta-llama/Llama-3.3-70B-Instruct",
    draft_model="nvidia/Llama-3.3-70B-Instruct-Eagle3",
    engine_args=("--tensor-parallel-size=8",),
)
STEPS = (40, 45, 50, 55, 60, 65, 70, 75)
SPEEDS = (0.99, 1.0, 1.01)
"""Of three rounds, relative to their median: a machine that repeats itself within 1 %."""


def tally(question_id: str, steps: int, *, tokens: int = 128, latched: int | None = None) -> PromptTally:
    """One request of a prompt: prefill, then `steps` steps."""
    accepted = tokens - 1 - steps
    first = min(steps, accepted - accepted // 3 - accepted // 6)
    third = (accepted - first) // 3
    return PromptTally(
        question_id=question_id,
        digest=f"{question_id:0>16}",
        requests=1,
        output_tokens=tokens,
        steps=steps,
        drafted_steps=steps,
        accepted_per_position=(first, accepted - first - third, third),
        latched=latched,
    )


def measurement(
    steps: Sequence[int] = STEPS,
    *,
    cell: Cell = CELL,
    step_s: float = 0.01,
    wait_s: float = 0.05,
    speeds: Sequence[float] = SPEEDS,
    metrics: Mapping[str, float | None] | None = None,
    prompts: Sequence[PromptTally] | None = None,
    problems: tuple[str, ...] = (),
    missing: Mapping[str, str] | None = None,
) -> Measurement:
    """A cell whose prompts took these numbers of steps for 128 tokens each, one after the other.

    Args:
        steps: of each prompt, in the order of ids q0, q1, ...; the tallies are those of one round.
        cell: what was measured.
        step_s: seconds per step.
        wait_s: seconds to the first token.
        speeds: of every round, relative to the figures that the rest gives; the metrics hold their median.
        metrics: replace computed ones; None removes one.
        prompts: instead of those that `steps` give.
        problems: of the measurement.
        missing: reasons of absent metrics.
    """
    tallies = (
        tuple(tally(f"q{number}", count) for number, count in enumerate(steps))
        if prompts is None
        else tuple(prompts)
    )
    tokens = sum(item.output_tokens for item in tallies)
    decode_tokens = sum(item.decode_tokens for item in tallies)
    all_steps = sum(item.steps or 0 for item in tallies)
    decode_s = sum((item.steps or 0) * step_s for item in tallies)
    speed = median(speeds)
    computed: dict[str, float] = {
        "output_tps": speed * tokens / (len(tallies) * wait_s + decode_s),
        "step_latency_s_mean": step_s / speed,
    }
    if all_steps:
        computed["user_tps"] = speed * decode_tokens / decode_s
        computed["acceptance_length"] = decode_tokens / all_steps
        computed["drafted_acceptance_length"] = decode_tokens / all_steps
    for name, value in (metrics or {}).items():
        computed.pop(name, None)
        if value is not None:
            computed[name] = value
    positions = tuple(map(sum, zip(*(item.accepted_per_position or () for item in tallies), strict=True)))
    return Measurement(
        cell=cell,
        metrics=computed,
        prompts=tallies,
        per_position={
            "conditional_acceptance_rate": conditional_acceptance_rate(all_steps, positions),
            "joint_acceptance_rate": joint_acceptance_rate(all_steps, positions),
            "histogram": histogram(all_steps, positions),
        },
        rounds=tuple(_round(computed, each / speed) for each in speeds),
        sent=len(tallies),
        finished=len(tallies),
        failed=0,
        missing=missing or {},
        problems=problems,
        counter_source="response",
        tokenization="engine",
        prompt_tokens=10 * len(tallies),
    )


def _round(metrics: Mapping[str, float], speed: float) -> RoundFigures:
    """A round that was `speed` times as fast as the median one."""

    def of(metric: str, factor: float) -> float | None:
        return metrics[metric] * factor if metric in metrics else None

    return RoundFigures(
        output_tps=of("output_tps", speed),
        user_tps=of("user_tps", speed),
        acceptance_length=of("acceptance_length", 1.0),
        step_latency_s=of("step_latency_s_mean", 1 / speed),
        speedup=of("speedup", speed),
    )


def baseline_of(*measurements: Measurement, conditions: Conditions = CONDITIONS) -> Baseline:
    return merge("llama", None, measurements or (measurement(),), conditions, HARDWARE).baseline
