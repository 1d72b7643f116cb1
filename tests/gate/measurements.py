"""Builds measurements with chosen numbers, and the conditions they were measured under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_speedbench.cells import Cell
from pytest_speedbench.gate.baseline import Baseline, Conditions, merge
from pytest_speedbench.metrics.acceptance import conditional_acceptance_rate, histogram, joint_acceptance_rate
from pytest_speedbench.metrics.measurement import Measurement, PromptTally

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


def tally(
    question_id: str, steps: int, *, step_s: float = 0.01, wait_s: float = 0.05, tokens: int = 128
) -> PromptTally:
    """One request of a prompt: prefill, then `steps` steps of `step_s` seconds."""
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
        decode_s=steps * step_s,
        elapsed_s=wait_s + steps * step_s,
    )


def measurement(
    steps: Sequence[int] = STEPS,
    *,
    cell: Cell = CELL,
    step_s: float = 0.01,
    wait_s: float = 0.05,
    metrics: Mapping[str, float | None] | None = None,
    prompts: Sequence[PromptTally] | None = None,
    problems: tuple[str, ...] = (),
    missing: Mapping[str, str] | None = None,
) -> Measurement:
    """A cell whose prompts took these numbers of steps for 128 tokens each, one after the other.

    Args:
        steps: of each prompt, in the order of ids q0, q1, ...
        cell: what was measured.
        step_s: seconds per step.
        wait_s: seconds to the first token.
        metrics: replace computed ones; None removes one.
        prompts: instead of those that `steps` give.
        problems: of the measurement.
        missing: reasons of absent metrics.
    """
    tallies = (
        tuple(tally(f"q{number}", count, step_s=step_s, wait_s=wait_s) for number, count in enumerate(steps))
        if prompts is None
        else tuple(prompts)
    )
    tokens = sum(item.output_tokens for item in tallies)
    decode_tokens = sum(item.decode_tokens for item in tallies)
    all_steps = sum(item.steps or 0 for item in tallies)
    computed: dict[str, float] = {
        "output_tps": tokens / sum(item.elapsed_s for item in tallies),
        "user_tps": decode_tokens / sum(item.decode_s for item in tallies),
        "step_latency_s_mean": step_s,
    }
    if all_steps:
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
        rounds=1,
        sent=len(tallies),
        finished=len(tallies),
        failed=0,
        round_output_tps=(computed.get("output_tps", 0.0),),
        missing=missing or {},
        problems=problems,
        counter_source="response",
        tokenization="engine",
        prompt_tokens=10 * len(tallies),
    )


def baseline_of(*measurements: Measurement, conditions: Conditions = CONDITIONS) -> Baseline:
    return merge("llama", None, measurements or (measurement(),), conditions, HARDWARE)
