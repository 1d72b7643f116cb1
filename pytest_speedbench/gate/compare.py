"""A measurement against its baseline: one check per metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from pytest_speedbench.gate.baseline import (
    AcceptanceCell,
    AcceptancePrompt,
    Baseline,
    Conditions,
    ThroughputCell,
)
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.decide import decide, detectable_loss
from pytest_speedbench.gate.estimate import Estimate, Pair, ratio_of_ratios, rounds_estimate
from pytest_speedbench.gate.pairing import Pairing, degenerate, matched, too_few
from pytest_speedbench.metrics.measurement import Measurement
from pytest_speedbench.speed_bench import ACCEPTANCE, GATED

DEGENERATE_SHARE = 0.1
"""Share of requests with degenerate output above which a cell is invalid."""
_SAMPLING = ("temperature", "ignore_eos", "output_length")
"""Conditions without which acceptance and throughput are other quantities."""
_NOT_TOLD = ("date", "commit", "rounds")
"""Conditions that always differ, or that a check tells by itself."""


@dataclass(frozen=True)
class _Found:
    """What the numbers came to."""

    estimate: Estimate | None
    reasons: tuple[str, ...] = ()
    value: float | None = None
    """In place of the measurement's."""
    baseline: float | None = None


def compare(
    metric: str,
    measurement: Measurement,
    baseline: Baseline | None,
    *,
    group: Sequence[Measurement],
    tolerance: float,
    alpha: float,
    conditions: Conditions,
    hardware_key: str,
    paired: bool = False,
    degenerate_share: float = DEGENERATE_SHARE,
) -> Check:
    """Judge one metric of one cell.

    *Acceptance length* is compared over the prompts that both runs have: its ratio and its error, and, where
    some are not paired, both values too. Where one of the runs has counters per server only, its rounds are compared
    as those of throughput are.

    *Throughput* belongs to the batch as a whole and is compared by its rounds: the median of this run's over that of
    the baseline's, with an error that the rounds of all cells of the group show (`estimate.rounds_estimate`).

    Args:
        metric: one of `speed_bench.GATED`.
        measurement: of this run.
        baseline: of the same target, or None where there is none.
        group: this run's measurements of the same split and batch size, this one included; invalid ones tell nothing
            of noise.
        tolerance: allowed relative loss.
        alpha: chance that this judgement fails an unchanged engine.
        conditions: of this run; what the measurement knows better is taken from it.
        hardware_key: `Hardware.key` of this run.
        paired: whether round i was measured beside round i of the baseline.
        degenerate_share: share of requests above which degenerate output makes the check invalid.

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
    both, pairing = matched(measurement.prompts, stored.prompts)
    if isinstance(stored, AcceptanceCell):
        differs += _prompt_tokens(measurement, stored, pairing)
    check = replace(
        check,
        verdict=Verdict.INCOMPARABLE,
        baseline=reference,
        paired=pairing.paired,
        baseline_rounds=baseline.runs[stored.run].rounds,
        differs=differs,
    )
    if metric not in ACCEPTANCE:  # a speedup may be known of some of the rounds only
        ours, theirs = rounds_of(metric, measurement, baseline, hardware_key)
        check = replace(check, rounds=len(ours), baseline_rounds=len(theirs))
    sampling = tuple(line for line in differs if line.split(" ", 1)[0] in _SAMPLING)
    if sampling:
        return replace(check, reasons=tuple(f"{line}: another quantity" for line in sampling))
    unpaired = too_few(pairing, both_ways=metric not in ACCEPTANCE)
    if unpaired:
        return replace(check, reasons=(unpaired,))
    suspect = degenerate(measurement.prompts, both)
    if suspect.share > degenerate_share:
        return replace(check, verdict=Verdict.INVALID, reasons=(f"degenerate output: {suspect.told()}",))

    pairs = [
        Pair(then.tokens - then.requests, then.steps, now.decode_tokens, now.steps)
        for now, then in both
        if isinstance(then, AcceptancePrompt) and then.steps is not None and now.steps is not None
    ]
    if metric not in ACCEPTANCE or (len(pairs) < pairing.paired and pairing.complete):
        rounds = [
            rounds_of(metric, each, baseline, hardware_key)
            for each in (measurement, *(each for each in group if not each.problems))
        ]
        found = _by_round(metric, rounds[0], rounds[1:], paired)
    elif len(pairs) == pairing.paired:
        found = _by_prompt(pairs, pairing)
    else:
        # such counters cannot be split by prompt, so that the totals have to be of the same prompts
        return replace(
            check,
            reasons=(
                "counters are per server only, and the prompts of the two runs are not all the same: "
                f"{pairing.run} in this run, {pairing.baseline} in the baseline, {pairing.paired} in both",
            ),
        )
    check = replace(check, value=found.value or value, baseline=found.baseline or reference)
    check = judged(replace(check, reasons=found.reasons), found.estimate, alpha)
    if check.verdict is Verdict.IMPROVEMENT and suspect.share:
        reason = f"part of this improvement may be degenerate output: {suspect.told()}"
        return replace(check, reasons=(*check.reasons, reason))
    return check


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


def _by_prompt(pairs: Sequence[Pair], pairing: Pairing) -> _Found:
    estimate = ratio_of_ratios(pairs)
    if estimate is None or estimate.standard_error is None:
        return _Found(estimate, ("no interval: too few prompts had a decode step",))
    if pairing.complete:
        return _Found(estimate)
    now = math.fsum(pair.numerator for pair in pairs) / math.fsum(pair.denominator for pair in pairs)
    then = math.fsum(p.baseline_numerator for p in pairs) / math.fsum(p.baseline_denominator for p in pairs)
    return _Found(estimate, (f"over the {pairing.paired} prompts that both runs have",), now, then)


def _by_round(
    metric: str,
    rounds: tuple[Sequence[float], Sequence[float]],
    group: Sequence[tuple[Sequence[float], Sequence[float]]],
    paired: bool,
) -> _Found:
    estimate = rounds_estimate(*rounds, group, paired=paired)
    if estimate is None:
        side = "the baseline" if rounds[0] else "this run"
        return _Found(None, (f"no interval: {side} has no {metric} of single rounds",))
    if estimate.standard_error is None:
        reason = "no interval: one round does not show how far rounds scatter; measure more with --speedbench-rounds"
        return _Found(estimate, (reason,))
    return _Found(estimate)


def rounds_of(
    metric: str, measurement: Measurement, baseline: Baseline | None, hardware_key: str
) -> tuple[list[float], list[float]]:
    """A metric in every round of this run, and of the baseline."""
    stored = [] if baseline is None else _stored_rounds(metric, measurement, baseline, hardware_key)
    return _rounds(metric, measurement), stored


def _rounds(metric: str, measurement: Measurement) -> list[float]:
    """A metric of every round, where it is a figure that can be compared."""
    values = (getattr(figures, metric) for figures in measurement.rounds)
    return [value for value in values if value is not None and math.isfinite(value) and value > 0]


def _stored_rounds(
    metric: str, measurement: Measurement, baseline: Baseline, hardware_key: str
) -> list[float]:
    cell_id = measurement.cell.id
    if metric in ACCEPTANCE:
        acceptance = baseline.acceptance.get(cell_id)
        return list(acceptance.round_acceptance_length) if acceptance else []
    throughput = baseline.throughput.get(hardware_key, {}).get(cell_id)
    values = (getattr(figures, metric) for figures in throughput.rounds) if throughput else ()
    return [value for value in values if value is not None]


def _differing(then: Conditions, now: Conditions) -> tuple[str, ...]:
    """What differs, one line each: `engine_version 0.31.0 -> 0.32.0`."""
    lines = []
    for item in fields(Conditions):
        before, after = getattr(then, item.name), getattr(now, item.name)
        if item.name not in _NOT_TOLD and before != after:
            lines.append(f"{item.name} {_shown(before)} -> {_shown(after)}")
    return tuple(lines)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


def _prompt_tokens(measurement: Measurement, stored: AcceptanceCell, pairing: Pairing) -> tuple[str, ...]:
    """Another number of input tokens for the same texts: another tokenizer or chat template."""
    requests = sum(tally.requests for tally in measurement.prompts)
    same = pairing.complete and requests == sum(prompt.requests for prompt in stored.prompts)
    if not same or measurement.prompt_tokens == stored.prompt_tokens:
        return ()
    return (f"prompt_tokens {stored.prompt_tokens} -> {measurement.prompt_tokens}",)
