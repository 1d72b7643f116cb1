"""Whether the drafter or the system is to blame for a loss."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytest_speedbench.gate.explain.decomposition import (
    Breakdown,
    Compared,
    Part,
    breakdown_of,
    mean_breakdown,
    without_other_processes,
)
from pytest_speedbench.speed_bench import ACCEPTANCE, THROUGHPUT

TO_BLAME = 1 / 3
"""Share of the loss that a part must carry to be named."""
_ADVICE = {
    "drafter": "check the draft model, its weights and quantization, and the verification; a profile will not show it",
    "system": "profile a decode step: kernels, attention backend, graphs, scheduling, clocks",
    "both": "take the two apart: check the draft model, and profile a decode step",
    "unclear": "measure more rounds (--speedbench-rounds), on a quiet machine, before you bisect",
}
"""What to do next, by word."""
_ADVICE_OF_THE_REST = "look at prefill, queueing, the client's load, and whether the batch was full"
"""What to do next if it is none of the parts that have a name."""
_ADVICE_OF_PREFILL = "profile prefill: its kernels, chunking, and how requests are scheduled into the batch"
"""What to do next if the time to the first token explains the loss."""
_EXPLAINED = 0.5
"""Part of what prefill, queue and client lost that the time to the first token must explain to be named."""
_NOT_SPEED = "Fewer drafts are accepted, which no slow system causes"


@dataclass(frozen=True)
class PositionChange:
    """A draft position whose drafts are accepted less often than they were."""

    position: int
    """Counted from 1."""
    baseline: float
    """Conditional acceptance rate."""
    value: float


@dataclass(frozen=True)
class Cause:
    """Who is to blame for the losses of one cell, and what that rests on."""

    word: str
    """`drafter`, `system`, `both` or `unclear`."""
    reason: str
    """Why it is this word, in a sentence for a person."""
    advice: str
    """What to do next, for a person, without a capital or a full stop."""
    breakdown: Breakdown | None = None
    """Of the throughput that was lost; None where not all parts are known of both runs."""
    positions: tuple[PositionChange, ...] = ()


def explain(
    cell: Compared, group: Sequence[Compared], failed: Collection[str], *, paired: bool = False
) -> Cause:
    """Take the loss of one cell apart.

    The word, by rule, for the throughput metric that failed (the first of `speed_bench.THROUGHPUT` if several did):

    1. A part is *named* if its loss is sure, the 95 % interval as a whole below no change, and it carries at
       least a third (`TO_BLAME`) of all that was lost. Parts that gained carry nothing.
    2. Where the rest carries more than either of the two others, nothing is named.
    3. Named acceptance length: `drafter`; step latency: `system`; both of them: `both`; none: `unclear`.
    4. Where other processes left this run less of the processors than the baseline, slower steps are named only if they
       are so too once their latency is multiplied by the ratio of what was left
       (`decomposition.without_other_processes`): what may have come with other processes is not the system's. Where
       those shares are not known of every round, this rule is left out.
    5. Nothing named, the rest leading, surely lost, and at least half explained by a longer time to first token
       (`ttft_s_mean` over `end_to_end_s_mean` of this run): `system`, and prefill is what is to be profiled.
    6. Acceptance length knows nothing of time: where it failed, the drafter is a cause; the system is one too
       if throughput failed as well and step latency is named.

    Args:
        cell: with at least one regression.
        group: all cells of its split and batch size, the cell itself among them: they share their noise.
        failed: the metrics that regressed.
        paired: whether rounds of the run and of the baseline were measured in turn, as pairs.
    """
    metric = _metric(failed)
    breakdown = breakdown_of(metric, cell, group, paired=paired)
    alone = _without_others(
        [cell, *(each for each in group if each.measurement.cell != cell.measurement.cell)]
    )
    quiet = breakdown_of(metric, alone[0], alone, paired=paired) if alone else None
    return _cause(metric, breakdown, quiet, failed, [cell])


def explain_mean(group: Sequence[Compared], failed: Collection[str], *, paired: bool = False) -> Cause:
    """Take the loss of a mean over categories apart: as `explain`, with the mean of each part over the categories.

    Args:
        group: the categories of one split and batch size.
        failed: the metrics whose mean regressed.
        paired: as for `explain`.
    """
    metric = _metric(failed)
    breakdown = mean_breakdown(metric, group, paired=paired)
    alone = _without_others(group)
    quiet = mean_breakdown(metric, alone, paired=paired) if alone else None
    return _cause(metric, breakdown, quiet, failed, group)


def _without_others(cells: Sequence[Compared]) -> list[Compared]:
    """The cells without what other processes took; none where that is not known of all that have throughput."""
    found = [without_other_processes(cell) for cell in cells if cell.throughput is not None]
    known = [cell for cell in found if cell is not None]
    return known if len(known) == len(found) else []


def _metric(failed: Collection[str]) -> str:
    return next((metric for metric in THROUGHPUT if metric in failed), "output_tps")


def _unknown(cells: Sequence[Compared]) -> str:
    """Why a loss of these cells cannot be taken apart, if it cannot."""
    without = sum(cell.throughput is None for cell in cells)
    if not without:
        return "acceptance length and step latency are not known of every round"
    whose = "" if without == len(cells) else f" of {without} of {len(cells)} categories"
    return f"throughput{whose} has no baseline on this hardware"


def _cause(
    metric: str,
    breakdown: Breakdown | None,
    quiet: Breakdown | None,
    failed: Collection[str],
    cells: Sequence[Compared],
) -> Cause:
    """The cause of a breakdown, and of the same without what other processes took, if that is known."""
    by_acceptance = any(name in ACCEPTANCE for name in failed)
    by_throughput = any(name in THROUGHPUT for name in failed)
    positions = _fallen(cells)
    if breakdown is None:
        unknown = _unknown(cells)
        word, reason = (
            ("drafter", f"{_NOT_SPEED}. The system's part is not known: {unknown}.")
            if by_acceptance
            else ("unclear", f"The loss cannot be taken apart: {unknown}.")
        )
        return Cause(word, reason, _ADVICE[word], positions=positions)
    drafter, slower = _to_blame(breakdown)
    system = slower and (quiet is None or _still_slower(quiet))
    if by_acceptance and not by_throughput:
        word = "drafter"
        reason = f"{_NOT_SPEED} ({metric} changed by {_percent(breakdown.change.ratio - 1, '+')})."
        return Cause(word, reason, _ADVICE[word], breakdown, positions)
    lost = f"of the {metric} loss" if by_acceptance else "of the loss"
    if slower and not system and not drafter:
        word, reason = "unclear", ""
    else:
        word, reason = _named(breakdown, drafter, system, lost)
    advice = _ADVICE_OF_THE_REST if word == "unclear" and breakdown.rest_leads else _ADVICE[word]
    if word == "unclear" and (prefill := _prefill(metric, breakdown, cells)):
        word, reason, advice = "system", f"{prefill}: {_share(breakdown.rest)} {lost}.", _ADVICE_OF_PREFILL
    if by_acceptance and not drafter:
        word = "both" if word == "system" else "drafter"
        reason, advice = f"{_NOT_SPEED}. {reason}".strip(), _ADVICE[word]
    if slower and not system:
        reason = f"{reason} {_others(breakdown, cells)}".strip()
    return Cause(word, reason, advice, breakdown, positions)


def _to_blame(breakdown: Breakdown) -> tuple[bool, bool]:
    """Whether acceptance length and step latency are named: rules 1 and 2 of `explain`."""
    drafter, system = (
        not breakdown.rest_leads and part.surely_lost and (part.share or 0.0) >= TO_BLAME
        for part in (breakdown.acceptance_length, breakdown.step_latency)
    )
    return drafter, system


def _still_slower(quiet: Breakdown) -> bool:
    """Whether steps are named without what other processes took: rule 4 of `explain`."""
    return quiet.step_latency.surely_lost and (quiet.step_latency.share or 0.0) >= TO_BLAME


def _others(breakdown: Breakdown, cells: Sequence[Compared]) -> str:
    """What is said of slower steps that may have come with other processes."""
    now, then = (
        fmean(figures.other_processes_busy or 0.0 for side in sides for figures in side.rounds)
        for sides in (
            [cell.measurement for cell in cells],
            [cell.throughput for cell in cells if cell.throughput is not None],
        )
    )
    longer = _percent(1 / breakdown.step_latency.ratio - 1)
    return (
        f"A step takes {longer} longer, and other processes took {_percent(now)} of the processors "
        f"({_percent(then)} in the baseline): that can be all of it."
    )


def _prefill(metric: str, breakdown: Breakdown, cells: Sequence[Compared]) -> str | None:
    """What is said of a longer time to first token that explains the rest: rule 5 of `explain`."""
    if metric != "output_tps" or not (breakdown.rest_leads and breakdown.rest.surely_lost):
        return None
    now, then, whole = 0.0, 0.0, 0.0
    for cell in cells:
        metrics, before = cell.measurement.metrics, cell.throughput.metrics if cell.throughput else {}
        if not {"ttft_s_mean", "end_to_end_s_mean"} <= metrics.keys() or "ttft_s_mean" not in before:
            return None
        now += metrics["ttft_s_mean"] / len(cells)
        then += before["ttft_s_mean"] / len(cells)
        whole += metrics["end_to_end_s_mean"] / len(cells)
    if not then < now < whole:
        return None
    if math.log1p(-(now - then) / whole) > _EXPLAINED * math.log(breakdown.rest.ratio):
        return None
    return f"The first token takes {1000 * now:.3g} ms, and took {1000 * then:.3g} ms"


def _named(breakdown: Breakdown, drafter: bool, system: bool, lost: str) -> tuple[str, str]:
    """The word and its reason, as far as throughput tells: rule 3 of `explain`."""
    length, latency, rest = breakdown.acceptance_length, breakdown.step_latency, breakdown.rest
    plain = breakdown.without_speculation
    fewer = f"A step yields {_percent(1 - length.ratio)} fewer tokens"
    longer = f"{_percent(1 / latency.ratio - 1)} longer"
    if plain is not None:
        longer += ", measured in steps of plain decoding"
    if drafter and system:
        return "both", f"{fewer} ({_share(length)} {lost}) and takes {longer} ({_share(latency)})."
    if drafter:
        return "drafter", f"{fewer}: {_share(length)} {lost}."
    if system and plain is not None and plain.surely_gained and plain.ratio > latency.ratio**-0.5:
        faster = (
            f"Plain decoding became {_percent(plain.ratio - 1)} faster, and steps with drafts did not follow"
        )
        return "system", f"{faster}: {_share(latency)} {lost}."
    if system:
        return "system", f"A step takes {longer}: {_share(latency)} {lost}."
    if rest.share is None:
        return "unclear", f"The rounds of {breakdown.metric} show no loss that could be shared out."
    if breakdown.rest_leads:
        unsure = "" if rest.surely_lost else "; that itself is not sure"
        return "unclear", f"{_share(rest)} {lost} is neither fewer tokens a step nor slower steps{unsure}."
    if length.ci_high is None and latency.ci_high is None:
        return "unclear", "Single rounds do not tell what is noise."
    if not (length.surely_lost or latency.surely_lost):
        return "unclear", "Neither fewer tokens a step nor slower steps are sure: either may be noise."
    sure = "fewer tokens a step" if length.surely_lost else "slower steps"
    return "unclear", f"What is sure ({sure}) is less than a third {lost}, and the greater part is not sure."


def _percent(change: float, sign: str = "") -> str:
    return f"{round(100 * change, 1) + 0.0:{sign}.1f} %"  # + 0.0: there is no -0.0 %


def _share(part: Part) -> str:
    return f"{100 * (part.share or 0.0):.0f} %"


def _fallen(cells: Sequence[Compared]) -> tuple[PositionChange, ...]:
    """Positions whose conditional acceptance rate fell by at least half a thousandth, which is seen when printed.

    Of several cells, their mean at that position, if all have it.
    """
    if any(cell.acceptance is None for cell in cells):
        return ()
    now = [cell.measurement.per_position.get("conditional_acceptance_rate", ()) for cell in cells]
    then = [
        cell.acceptance.per_position.get("conditional_acceptance_rate", ())
        for cell in cells
        if cell.acceptance is not None
    ]
    rates = [
        (fmean(before), fmean(after))
        for before, after in zip(zip(*then, strict=False), zip(*now, strict=False), strict=False)
    ]
    return tuple(
        PositionChange(position, before, after)
        for position, (before, after) in enumerate(rates, start=1)
        if before - after >= 0.0005
    )
