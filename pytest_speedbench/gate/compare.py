"""A measurement against its baseline: one check per metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from pytest_speedbench.gate.baseline import (
    AcceptanceCell,
    AcceptancePrompt,
    Baseline,
    Conditions,
    ThroughputCell,
    ThroughputPrompt,
)
from pytest_speedbench.gate.checks import Check, Verdict
from pytest_speedbench.gate.decide import decide
from pytest_speedbench.gate.statistics import Pair, RatioEstimate, ratio_of_ratios
from pytest_speedbench.metrics.measurement import Measurement, PromptTally
from pytest_speedbench.vocabulary import ACCEPTANCE, GATED

PAIRED_SHARE = 0.9
"""Share of the prompts that must be the baseline's, word for word."""
_SAMPLING = ("temperature", "ignore_eos", "output_length")
"""Conditions without which acceptance and throughput are other quantities."""
_ALWAYS_DIFFERENT = ("date", "commit")

_Stored = TypeVar("_Stored", AcceptancePrompt, ThroughputPrompt)


@dataclass(frozen=True)
class _Pairing:
    """Which prompts of a run its baseline has too."""

    paired: int
    run: int
    baseline: int
    changed: int
    """Of the run's prompts: the same id, another text."""

    @property
    def complete(self) -> bool:
        return self.paired == self.run == self.baseline


def compare(
    metric: str,
    measurement: Measurement,
    baseline: Baseline | None,
    *,
    tolerance: float,
    conditions: Conditions,
    hardware_key: str,
) -> Check:
    """Judge one metric of one cell.

    *Acceptance length* is compared over the prompts that both runs have: its ratio and its interval, and, where
    some are not paired, both values too.

    *Throughput* belongs to the batch as a whole, so that the ratio is that of the two headline values.
    Its interval is centred there, and its width comes from the paired prompts: tokens over elapsed seconds for
    `output_tps`, tokens after the first over decode seconds for `user_tps`. Requests share their batch and
    their machine: what slows all of them at once is not in this interval, and the tolerance stands for it. For
    `speedup`, the ratio of two runs on either side of which one is stored prompt by prompt, the error of
    `output_tps` is taken for both: times the root of 2.

    Args:
        metric: one of `metrics.names.GATED`.
        measurement: of this run.
        baseline: of the same target, or None where there is none.
        tolerance: allowed relative loss.
        conditions: of this run; what the measurement knows better is taken from it.
        hardware_key: `Hardware.key` of this run.

    Raises:
        ValueError: a metric that cannot be gated.
    """
    if metric not in GATED:
        raise ValueError(f"{metric} cannot be gated; there are {', '.join(GATED)}")
    value = measurement.metrics.get(metric)
    number = len(measurement.prompts)

    check = Check(metric, Verdict.INVALID, tolerance, value=value, prompts=number)
    if measurement.problems:
        return replace(check, reasons=measurement.problems)
    if value is None:
        reason = measurement.missing.get(metric, "it was not measured")
        return replace(check, reasons=(f"{metric} is missing: {reason}",))
    if not (math.isfinite(value) and value > 0):
        return replace(check, reasons=(f"{metric} is {value}",))

    cell_id = measurement.cell.id
    check = replace(check, verdict=Verdict.NO_BASELINE)
    if baseline is None:
        return replace(check, reasons=("no baseline is stored for this target",))
    stored: AcceptanceCell | ThroughputCell | None
    if metric in ACCEPTANCE:
        stored = baseline.acceptance.get(cell_id)
    else:
        stored = baseline.throughput.get(hardware_key, {}).get(cell_id)
        elsewhere = baseline.hardware_of(cell_id)
        if stored is None and elsewhere:
            reason = (
                f"throughput of this cell is stored for {' and '.join(elsewhere)}, and this is {hardware_key}"
            )
            return replace(check, verdict=Verdict.INCOMPARABLE, reasons=(reason,), across_machines=True)
    if stored is None:
        return replace(check, reasons=(f"the baseline of {baseline.target} has no {cell_id}",))
    reference: float | None = getattr(stored, metric)
    if reference is None:
        return replace(check, reasons=(f"the baseline has no {metric} for {cell_id}",))

    differs = _differing(baseline.runs[stored.run], conditions.of(measurement))
    pairs, pairing = _pair(measurement.prompts, stored, metric)
    if isinstance(stored, AcceptanceCell):
        differs += _prompt_tokens(measurement, stored, pairing)
    check = replace(
        check,
        verdict=Verdict.INCOMPARABLE,
        baseline=reference,
        paired=pairing.paired,
        differs=differs,
    )
    sampling = tuple(line for line in differs if line.split(" ", 1)[0] in _SAMPLING)
    if sampling:
        return replace(check, reasons=tuple(f"{line}: another quantity" for line in sampling))
    unpaired = _too_few(pairing, both_ways=metric not in ACCEPTANCE)
    if unpaired:
        return replace(check, reasons=(unpaired,))
    if metric in ACCEPTANCE and pairs is None and not pairing.complete:
        # such counters cannot be split by prompt, so that the totals have to be of the same prompts
        return replace(
            check,
            reasons=(
                "counters are per server only, and the prompts of the two runs are not all the same: "
                f"{pairing.run} in this run, {pairing.baseline} in the baseline, {pairing.paired} in both",
            ),
        )

    estimate = ratio_of_ratios(pairs) if pairs is not None else None
    reasons: list[str] = []
    ratio = value / reference
    if metric in ACCEPTANCE and estimate is not None and pairs is not None:
        ratio = estimate.ratio
        if not pairing.complete:
            value, reference = _over(pairs)
            reasons.append(f"over the {pairing.paired} prompts that both runs have")
    interval = _interval(metric, estimate, ratio)
    if interval is None:
        reasons.append("no interval: " + _why_no_interval(metric, pairs))
    low, high = interval or (None, None)
    return replace(
        check,
        verdict=decide(ratio, low, high, tolerance),
        value=value,
        baseline=reference,
        ratio=ratio,
        ci_low=low,
        ci_high=high,
        reasons=tuple(reasons),
    )


def _pair(
    tallies: Sequence[PromptTally], stored: AcceptanceCell | ThroughputCell, metric: str
) -> tuple[list[Pair] | None, _Pairing]:
    """Pair prompts by question id and text; no pairs where one side has no steps per prompt."""
    if isinstance(stored, AcceptanceCell):
        both, pairing = _matched(tallies, stored.prompts)
        pairs = [
            Pair(then.tokens - then.requests, then.steps, now.decode_tokens, now.steps)
            for now, then in both
            if then.steps is not None and now.steps is not None
        ]
        return (pairs if len(pairs) == len(both) else None), pairing
    timed, pairing = _matched(tallies, stored.prompts)
    if metric == "user_tps":
        return [
            Pair(then.tokens - then.requests, then.decode_s, now.decode_tokens, now.decode_s)
            for now, then in timed
        ], pairing
    return [
        Pair(then.tokens, then.elapsed_s, now.output_tokens, now.elapsed_s) for now, then in timed
    ], pairing


def _matched(
    tallies: Sequence[PromptTally], prompts: Sequence[_Stored]
) -> tuple[list[tuple[PromptTally, _Stored]], _Pairing]:
    known: Mapping[str, _Stored] = {prompt.id: prompt for prompt in prompts}
    same_id = [(tally, known[tally.question_id]) for tally in tallies if tally.question_id in known]
    same = [(tally, prompt) for tally, prompt in same_id if tally.digest == prompt.digest]
    return same, _Pairing(len(same), len(tallies), len(prompts), len(same_id) - len(same))


def _too_few(pairing: _Pairing, *, both_ways: bool) -> str | None:
    """Why the prompts are not those of the baseline; None where enough of them are.

    Args:
        pairing: what was found.
        both_ways: whether prompts that the baseline has and the run has not count too, as they do for throughput,
            where they made up the batch.
    """
    if pairing.paired < PAIRED_SHARE * pairing.run or pairing.paired < 2:
        new = pairing.run - pairing.paired - pairing.changed
        why = [f"{pairing.changed} changed text"] if pairing.changed else []
        why += [f"{new} {'is' if new == 1 else 'are'} not in it"] if new else []
        tail = f": {', '.join(why)}" if why else ", and a comparison takes 2"
        return f"only {pairing.paired} of {pairing.run} prompts are those of the baseline{tail}"
    if both_ways and pairing.paired < PAIRED_SHARE * pairing.baseline:
        return (
            f"only {pairing.paired} of the baseline's {pairing.baseline} prompts were run, and the others were part of "
            "its batch"
        )
    return None


def _over(pairs: Sequence[Pair]) -> tuple[float, float]:
    now = math.fsum(pair.numerator for pair in pairs) / math.fsum(pair.denominator for pair in pairs)
    then = math.fsum(p.baseline_numerator for p in pairs) / math.fsum(p.baseline_denominator for p in pairs)
    return now, then


def _interval(metric: str, estimate: RatioEstimate | None, ratio: float) -> tuple[float, float] | None:
    if estimate is None or estimate.standard_error is None:
        return None
    if metric == "speedup":
        estimate = RatioEstimate(estimate.ratio, estimate.standard_error * math.sqrt(2), estimate.pairs)
    return estimate.interval(around=ratio)


def _why_no_interval(metric: str, pairs: Sequence[Pair] | None) -> str:
    if pairs is None:
        return "one of the runs has counters per server only, not per prompt"
    return (
        "too few prompts had a decode step"
        if metric in (*ACCEPTANCE, "user_tps")
        else "too few prompts had output"
    )


def _differing(then: Conditions, now: Conditions) -> tuple[str, ...]:
    """What differs, one line each: `engine_version 0.31.0 -> 0.32.0`."""
    lines = []
    for item in fields(Conditions):
        before, after = getattr(then, item.name), getattr(now, item.name)
        if item.name not in _ALWAYS_DIFFERENT and before != after:
            lines.append(f"{item.name} {_shown(before)} -> {_shown(after)}")
    return tuple(lines)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def _prompt_tokens(measurement: Measurement, stored: AcceptanceCell, pairing: _Pairing) -> tuple[str, ...]:
    """Another number of input tokens for the same texts: another tokenizer or chat template."""
    requests = sum(tally.requests for tally in measurement.prompts)
    same = pairing.complete and requests == sum(prompt.requests for prompt in stored.prompts)
    if not same or measurement.prompt_tokens == stored.prompt_tokens:
        return ()
    return (f"prompt_tokens {stored.prompt_tokens} -> {measurement.prompt_tokens}",)
