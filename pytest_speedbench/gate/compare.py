"""A measurement against its reference: one check per metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median

from pytest_speedbench.gate.baseline import Conditions, NotComparable, Reference
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.decide import decide, detectable_loss
from pytest_speedbench.gate.estimate import Estimate, Pair, ratio_of_ratios, rounds_estimate
from pytest_speedbench.gate.pairing import Degenerate, Pairing, degenerate, matched, too_few
from pytest_speedbench.metrics.measurement import Measurement, PromptTally
from pytest_speedbench.speed_bench import ACCEPTANCE, GATED

_SAMPLING = ("temperature", "ignore_eos", "output_length")
"""Conditions without which acceptance and throughput are other quantities."""
_STREAMED_OTHERWISE = 0.5
"""Tokens by which the first arrival differs, or steps by which a later one does, that are another way of streaming."""
_NOT_SHOWN = ("date", "commit", "rounds")
"""Conditions that always differ, or that a check shows by itself."""


@dataclass(frozen=True)
class _Found:
    """What the numbers came to: the two values whose ratio was judged, and the estimate of that ratio."""

    value: float
    baseline: float
    estimate: Estimate | None
    reasons: tuple[str, ...] = ()


def compare(
    metric: str,
    measurement: Measurement,
    reference: Reference | NotComparable,
    *,
    group: Sequence[tuple[Measurement, Measurement | None]],
    tolerance: float,
    alpha: float,
    conditions: Conditions,
    hardware_key: str,
    degenerate_share: float,
    paired: bool = False,
) -> Check:
    """Judge one metric of one cell.

    *Acceptance length* is compared over the prompts that both runs have: its ratio and its error, and, where
    some are not paired, both values too. Where one of the runs has counters per server only, its rounds are compared
    as those of throughput are.

    *Throughput* belongs to the batch as a whole and is compared by its rounds: the median of this run's over that of
    the baseline's, with an error that the rounds of all cells of the group show (`estimate.rounds_estimate`).

    The check's value over its baseline is its ratio, always: of paired rounds both are those of the pair whose ratio
    is the median.

    Args:
        metric: one of `speed_bench.GATED`.
        measurement: of this run.
        reference: what it is compared with, or why there is nothing.
        group: this run's measurements of the same split and batch size, each with what it is compared with (None:
            nothing); this one included. Invalid ones say nothing of noise.
        tolerance: allowed relative loss.
        alpha: chance that this judgement fails an unchanged engine.
        conditions: of this run; what the measurement knows better is taken from it.
        hardware_key: `Hardware.key` of this run.
        degenerate_share: share of requests above which degenerate output makes the check invalid.
        paired: whether round i was measured beside round i of the baseline.

    Raises:
        ValueError: a metric that cannot be gated.
    """
    if metric not in GATED:
        raise ValueError(f"{metric} cannot be gated; there are {', '.join(GATED)}")
    value = measurement.metrics.get(metric)
    check = Check(
        metric,
        Verdict.INVALID,
        tolerance,
        alpha,
        value=value,
        prompts=len(measurement.prompts),
        rounds=len(measurement.rounds),
    )
    problems = _problems(metric, measurement, degenerate_share)
    if problems or value is None:
        return replace(check, reasons=problems)
    if isinstance(reference, NotComparable):
        return _without(check, reference)

    then = reference.measurement
    both, pairing = matched(measurement.prompts, then.prompts)
    differing = _differing(reference, conditions.of(measurement), hardware_key, tolerance)
    if metric in ACCEPTANCE:
        differing |= _prompt_tokens(measurement, then, pairing)
    else:
        differing |= _streaming(measurement, then)
    check = replace(
        check,
        baseline=then.metrics[metric],
        paired=pairing.paired,
        baseline_rounds=len(then.rounds),
        differs=tuple(differing.values()),
    )
    if metric not in ACCEPTANCE:  # a speedup may be known of some of the rounds only
        ours, theirs = rounds_of(metric, measurement, then, paired=paired)
        check = replace(check, rounds=len(ours), baseline_rounds=len(theirs))
    suspect = degenerate(measurement.prompts, both)
    why_not = _why_not(metric, differing, both, pairing, suspect, degenerate_share)
    if why_not is not None:
        return _without(check, why_not)

    if metric in ACCEPTANCE and _by_prompt(both):
        found = _of_prompts(value, check.baseline or math.nan, both, pairing)
    else:
        cells = [(measurement, then), *(each for each in group if not each[0].problems)]
        found = _of_rounds(
            metric,
            value,
            check.baseline or math.nan,
            [rounds_of(metric, *each, paired=paired) for each in cells],
            paired,
        )
    check = replace(check, value=found.value, baseline=found.baseline, reasons=found.reasons)
    check = judged(check, found.estimate, alpha)
    if check.verdict is Verdict.IMPROVEMENT and suspect.share:
        reason = f"part of this improvement may be degenerate output: {suspect.told()}"
        return replace(check, reasons=(*check.reasons, reason))
    return check


def _without(check: Check, why: NotComparable) -> Check:
    return replace(check, verdict=why.verdict, reasons=why.reasons, across_machines=why.across_machines)


def _why_not(
    metric: str,
    differing: Mapping[str, str],
    both: Sequence[tuple[PromptTally, PromptTally]],
    pairing: Pairing,
    suspect: Degenerate,
    degenerate_share: float,
) -> NotComparable | None:
    """Why two measurements of a cell cannot be compared; None where they can."""
    sampling = tuple(f"{differing[name]}: another quantity" for name in _SAMPLING if name in differing)
    if sampling:
        return NotComparable(Verdict.INCOMPARABLE, sampling)
    unpaired = too_few(pairing, both_ways=metric not in ACCEPTANCE)
    if unpaired:
        return NotComparable(Verdict.INCOMPARABLE, (unpaired,))
    if suspect.share > degenerate_share:
        return NotComparable(Verdict.INVALID, (f"degenerate output: {suspect.told()}",))
    if metric in ACCEPTANCE and not pairing.complete and not _by_prompt(both):
        # such counters cannot be split by prompt, so that the totals have to be of the same prompts
        reason = (
            "counters are per server only, and the prompts of the two runs are not all the same: "
            f"{pairing.run} in this run, {pairing.baseline} in the baseline, {pairing.paired} in both"
        )
        return NotComparable(Verdict.INCOMPARABLE, (reason,))
    return None


def _by_prompt(both: Sequence[tuple[PromptTally, PromptTally]]) -> bool:
    """Whether the steps of every prompt are known in both runs."""
    return all(now.steps is not None and then.steps is not None for now, then in both)


def judged(check: Check, estimate: Estimate | None, alpha: float) -> Check:
    """A check with all that follows from an estimate.

    Args:
        check: whose tolerance counts.
        estimate: of value / baseline; None where there is none, which is inconclusive.
        alpha: chance that this judgement fails an unchanged engine.
    """
    if estimate is None:
        return replace(check, verdict=Verdict.INCONCLUSIVE, alpha=alpha)
    return replace(
        check,
        verdict=decide(estimate, check.tolerance, alpha),
        alpha=alpha,
        estimate=estimate,
        detectable_loss=detectable_loss(estimate, check.tolerance, alpha),
    )


def _problems(metric: str, measurement: Measurement, degenerate_share: float) -> tuple[str, ...]:
    """Why a metric is no measurement, whatever the baseline."""
    if measurement.problems:
        return measurement.problems
    value = measurement.metrics.get(metric)
    if value is None:
        return (f"{metric} is missing: {measurement.missing.get(metric, 'it was not measured')}",)
    if not (math.isfinite(value) and value > 0):
        return (f"{metric} is {value}",)
    suspect = degenerate(measurement.prompts)
    return (f"degenerate output: {suspect.told()}",) if suspect.share > degenerate_share else ()


def _of_prompts(
    value: float,
    baseline: float,
    both: Sequence[tuple[PromptTally, PromptTally]],
    pairing: Pairing,
) -> _Found:
    """Acceptance length by the prompts of both runs.

    Steps of single prompts may be bounds although their sum is known exactly (`PromptTally.steps_exact`). The ratio
    is then that of the sums, and the prompts give its error only.
    """
    pairs = [
        Pair(then.decode_tokens, then.steps or 0, now.decode_tokens, now.steps or 0) for now, then in both
    ]
    estimate = ratio_of_ratios(pairs)
    if estimate is None or estimate.standard_error is None:
        return _Found(value, baseline, estimate, ("no interval: too few prompts had a decode step",))
    exact = all(tally.steps_exact for each in both for tally in each)
    if pairing.complete:
        if not exact:
            estimate = replace(estimate, log_ratio=math.log(value / baseline))
        return _Found(value, baseline, estimate)
    now = math.fsum(pair.numerator for pair in pairs) / math.fsum(pair.denominator for pair in pairs)
    then = math.fsum(p.baseline_numerator for p in pairs) / math.fsum(p.baseline_denominator for p in pairs)
    reason = f"over the {pairing.paired} prompts that both runs have"
    if not exact:
        reason += ", whose single steps are known as bounds only"
    return _Found(now, then, estimate, (reason,))


def _of_rounds(
    metric: str,
    value: float,
    baseline: float,
    group: Sequence[tuple[Sequence[float], Sequence[float]]],
    paired: bool,
) -> _Found:
    """A metric by the rounds of both runs, those of the cell itself first in the group."""
    ours, theirs = group[0]
    estimate = rounds_estimate(ours, theirs, group[1:], paired=paired)
    if estimate is None:
        side = "the baseline" if ours else "this run"
        return _Found(value, baseline, None, (f"no interval: {side} has no {metric} of single rounds",))
    now, then = _middle_pair(ours, theirs) if paired else (median(ours), median(theirs))
    reasons: tuple[str, ...] = ()
    if estimate.standard_error is None:
        reasons = (
            "no interval: one round does not show how far rounds scatter; measure more with --speedbench-rounds",
        )
    return _Found(now, then, estimate, reasons)


def _middle_pair(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The two rounds whose ratio is the median of the pairs' ratios; of an even number, the middle two's mean."""
    pairs = sorted(zip(ours, theirs, strict=False), key=lambda pair: pair[0] / pair[1])
    low, high = pairs[(len(pairs) - 1) // 2], pairs[len(pairs) // 2]
    return math.sqrt(low[0] * high[0]), math.sqrt(low[1] * high[1])


def rounds_of(
    metric: str, now: Measurement, then: Measurement | None, *, paired: bool = False
) -> tuple[list[float], list[float]]:
    """A metric in every round of this run, and of what it is compared with, where it can be compared.

    Args:
        metric: a field of `RoundFigures`.
        now: of this run.
        then: what it is compared with, if anything.
        paired: whether round i was measured beside round i: a pair is whole, or it is left out.
    """
    ours = [_comparable(getattr(figures, metric)) for figures in now.rounds]
    theirs = [_comparable(getattr(figures, metric)) for figures in then.rounds] if then else []
    if paired:
        whole = [each for each in zip(ours, theirs, strict=False) if None not in each]
        ours, theirs = [one for one, _ in whole], [other for _, other in whole]
    return [one for one in ours if one is not None], [other for other in theirs if other is not None]


def _comparable(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _differing(then: Reference, now: Conditions, hardware_key: str, tolerance: float) -> dict[str, str]:
    """What differs, a line by name of the condition: `engine_version 0.31.0 -> 0.32.0`."""
    lines = {}
    for item in fields(Conditions):
        before, after = getattr(then.conditions, item.name), getattr(now, item.name)
        if item.name in _NOT_SHOWN or before == after:
            continue
        if isinstance(before, Mapping):
            for name in sorted({*before, *after}):
                if before.get(name) != after.get(name):
                    line = f"{item.name} {name} {_shown(before.get(name))} -> {_shown(after.get(name))}"
                    lines[f"{item.name} {name}"] = line
        else:
            lines[item.name] = f"{item.name} {_shown(before)} -> {_shown(after)}"
    if then.hardware_key != hardware_key:
        lines["hardware"] = (
            f"hardware {then.hardware_key} -> {hardware_key}: compared at a tolerance of {100 * tolerance:.3g} %"
        )
    return lines


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def _prompt_tokens(now: Measurement, then: Measurement, pairing: Pairing) -> dict[str, str]:
    """Another number of input tokens for the same texts: another tokenizer or chat template."""
    requests, before = (sum(tally.requests for tally in side.prompts) for side in (now, then))
    if not pairing.complete or requests != before or now.prompt_tokens == then.prompt_tokens:
        return {}
    return {"prompt_tokens": f"prompt_tokens {then.prompt_tokens} -> {now.prompt_tokens}"}


def _streaming(now: Measurement, then: Measurement) -> dict[str, str]:
    """Another way of streaming: the first token together with later steps, or several steps in one event.

    Both move user TPS and step latency as they are measured, and neither is a change of speed.
    """
    lines = {}
    first = [side.metrics.get("first_arrival_tokens") for side in (then, now)]
    if first[0] and first[1] and abs(first[1] - first[0]) >= _STREAMED_OTHERWISE:
        lines["first_arrival_tokens"] = (
            f"streaming: the first arrival of a request brings {first[1]:.2f} tokens, and brought {first[0]:.2f}"
        )
    steps = [_steps_per_arrival(side) for side in (then, now)]
    if steps[0] and steps[1] and abs(steps[1] - steps[0]) >= _STREAMED_OTHERWISE:
        lines["tokens_per_arrival"] = (
            f"streaming: a later arrival brings {steps[1]:.2f} steps, and brought {steps[0]:.2f}"
        )
    return lines


def _steps_per_arrival(side: Measurement) -> float | None:
    """Decode steps in an arrival after the first, by the acceptance length of the rounds."""
    tokens = side.metrics.get("tokens_per_arrival")
    lengths = [figures.acceptance_length for figures in side.rounds if figures.acceptance_length]
    return tokens / median(lengths) if tokens and lengths else None
