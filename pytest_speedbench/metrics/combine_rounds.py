"""From the rounds of a cell to its measurement: every metric, or the reason why it is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from statistics import fmean, median

from pytest_speedbench.catalogue import ACCEPTANCE, METRICS
from pytest_speedbench.cells import Cell
from pytest_speedbench.metrics import acceptance
from pytest_speedbench.metrics.acceptance import StepCounts
from pytest_speedbench.metrics.measurement import Measurement, PromptTally, RoundFigures
from pytest_speedbench.metrics.one_round import BY_EVENT, MeasuredRound
from pytest_speedbench.metrics.problems import CLIENT_LATE_S, CLIENT_OVERLOADED
from pytest_speedbench.settings.methods import Method, method_of

_STEP_LATENCY = tuple(name for name in METRICS if name.startswith("step_latency_s_"))
_STEP_LATENCY_OF_REQUESTS = tuple(name for name in _STEP_LATENCY if name != "step_latency_s_mean")
"""How step latency is spread, for which the steps of each request have to be known."""
_EVENTS_UNKNOWN = (
    "the server reports how many tokens an output had, and not how many each event brought "
    "(stream_options.continuous_usage_stats)"
)
_CLIENT_BUSY = 0.5
"""Share of a round that the client's thread spent computing: above it, a note."""
_CLIENT_LATE_S = 0.02
"""Lateness (p99) of the client's event loop in seconds: above it, a note."""
_OTHER_PROCESSES_BUSY = 0.05
"""Share of the processors' time that went to neither engine nor client: above it in any round, a note."""
_FIRST_ARRIVAL_TOKENS = 1.5
"""Mean tokens of a request's first arrival: above it, a note. 1 where a server sends the first token by itself."""
_ACCEPTANCE = tuple(name for name, metric in METRICS.items() if metric.kind == ACCEPTANCE)


def combine(cell: Cell, method: Method | str, rounds: Sequence[MeasuredRound]) -> Measurement:
    """One cell's measurement.

    What is counted is pooled over turns, repeats and rounds (ratios of sums); what is timed is the median of
    the rounds. A metric that cannot be measured is absent, with its reason in `missing`.

    Args:
        cell: what was measured.
        method: how tokens were drafted.
        rounds: at least one.
    """
    metrics: dict[str, float] = {}
    missing: dict[str, str] = {}
    overload = "; ".join(_together([[round_.overload] if round_.overload else [] for round_ in rounds]))
    if not overload:
        for name in sorted({name for round_ in rounds for name in round_.times}):
            metrics[name] = median(round_.times[name] for round_ in rounds if name in round_.times)
    counts = _total([round_.counts for round_ in rounds])
    drafts = _total([round_.drafts for round_ in rounds])
    _accept(metrics, missing, method, counts, drafts)
    of_requests = _why_not_of_requests(rounds)
    if of_requests is None:
        metrics["mean_of_requests_acceptance_length"] = fmean(
            round_.mean_of_requests for round_ in rounds if round_.mean_of_requests is not None
        )
    elif counts is not None:
        for name in ("mean_of_requests_acceptance_length", *_STEP_LATENCY_OF_REQUESTS):
            metrics.pop(name, None)
            missing[name] = of_requests
    delivered = any(round_.delivered for round_ in rounds)
    tokens_per_event_known = all(round_.tokens_per_event_known for round_ in rounds)
    if not tokens_per_event_known:
        for name in BY_EVENT:
            metrics.pop(name, None)
    untimed = _why_untimed(
        cell, counts, method, delivered=delivered, tokens_per_event_known=tokens_per_event_known
    )
    for name, reason in untimed.items():
        if name not in metrics:
            missing[name] = overload or missing.get(name, reason)
    return Measurement(
        cell=cell,
        metrics=metrics,
        prompts=_merged([round_.tallies for round_ in rounds]),
        per_position={} if drafts is None else _per_position(drafts),
        rounds=tuple(round_.figures for round_ in rounds),
        sent=sum(round_.sent for round_ in rounds),
        finished=sum(round_.sent - round_.failed for round_ in rounds),
        failed=sum(round_.failed for round_ in rounds),
        missing=missing,
        overload=overload or None,
        problems=_together([round_.problems for round_ in rounds]),
        notes=tuple(_notes(method, rounds, counts)),
        counter_source=_listed(round_.counter_source for round_ in rounds),
        tokenization=_listed(round_.tokenization for round_ in rounds) or "",
        estimated=any(round_.estimated for round_ in rounds),
        prompt_tokens=sum(round_.prompt_tokens for round_ in rounds),
    )


def mean_over_categories(cell: Cell, measurements: Sequence[Measurement]) -> Measurement:
    """The unweighted mean of each metric over the categories of one split and batch size, as SPEED-Bench has it.

    It holds what can be averaged: metrics that all categories have. It has no prompts of its own. Its round i is the mean
    of the categories' rounds i, as many as all of them have.

    Args:
        cell: the mean cell.
        measurements: of all its categories.
    """
    shared = set.intersection(*(set(each.metrics) for each in measurements))
    missing = {
        name: f"{each.cell.category}: {reason}"
        for each in reversed(measurements)
        for name, reason in each.missing.items()
    }
    return Measurement(
        cell=cell,
        metrics={name: fmean(each.metrics[name] for each in measurements) for name in sorted(shared)},
        prompts=(),
        per_position={},
        rounds=tuple(map(_mean_figures, zip(*(each.rounds for each in measurements), strict=False))),
        sent=sum(each.sent for each in measurements),
        finished=sum(each.finished for each in measurements),
        failed=sum(each.failed for each in measurements),
        missing=missing,
        problems=tuple(
            f"{each.cell.category}: {problem}" for each in measurements for problem in each.problems
        ),
        counter_source=_listed(each.counter_source for each in measurements),
        tokenization=_listed(each.tokenization for each in measurements) or "",
        estimated=any(each.estimated for each in measurements),
        prompt_tokens=sum(each.prompt_tokens for each in measurements),
    )


def _mean_figures(rounds: Sequence[RoundFigures]) -> RoundFigures:
    """The mean of each figure over categories; None where one of them does not have it."""

    def mean(name: str) -> float | None:
        values = [getattr(figures, name) for figures in rounds]
        return None if None in values else fmean(values)

    return RoundFigures(**{item.name: mean(item.name) for item in fields(RoundFigures)})


def _total(counts: Sequence[StepCounts | None]) -> StepCounts | None:
    """The sum over rounds; not known if one of them is not."""
    known = [each for each in counts if each is not None]
    return acceptance.total(known) if known and len(known) == len(counts) else None


def _why_not_of_requests(rounds: Sequence[MeasuredRound]) -> str | None:
    """Why there is no metric that takes the steps of every single request; None where there is."""
    if any(round_.mean_of_requests is None for round_ in rounds):
        return "the engine counts per server only, not per request"
    if not all(round_.steps_of_requests for round_ in rounds):
        return "the engine does not report how many steps of a request had no draft"
    return None


def _why_untimed(
    cell: Cell,
    counts: StepCounts | None,
    method: Method | str,
    *,
    delivered: bool,
    tokens_per_event_known: bool,
) -> dict[str, str]:
    """The reason for each metric of the client's clock, if it is missing."""
    second = "no request delivered a second token" if delivered else "no request delivered a token"
    reasons = {
        "output_tps": "no request delivered a token",
        "steady_output_tps": f"the batch of {cell.batch_size} was never full",
        **dict.fromkeys(
            ("user_tps", "first_arrival_tokens", "tokens_per_arrival"),
            "no request's tokens arrived at more than one moment",
        ),
    }
    timed = (name for name, metric in METRICS.items() if metric.unit == "s")
    reasons = dict.fromkeys(timed, second) | reasons | dict.fromkeys(_STEP_LATENCY, _no_steps(counts, method))
    return reasons if tokens_per_event_known else reasons | dict.fromkeys(BY_EVENT, _EVENTS_UNKNOWN)


def _accept(
    metrics: dict[str, float],
    missing: dict[str, str],
    method: Method | str,
    pooled: StepCounts | None,
    drafts: StepCounts | None,
) -> None:
    """Fill in what the counters say of all requests together.

    `pooled` holds all steps, and `drafts` which of them had a draft: another sum where only the server reports that.
    """
    if pooled is None or drafts is None:
        missing.update(dict.fromkeys(_ACCEPTANCE, _no_steps(pooled, method)))
        return
    unreported = "the engine does not report {}"
    no_step, no_token = (
        unreported.format(what) if number is None else reason
        for what, number, reason in (
            ("which steps had a draft", drafts.drafted_steps, "no step had a draft"),
            ("how many tokens were drafted", drafts.drafted_tokens, "no token was drafted"),
        )
    )
    for name, value, reason in (
        ("acceptance_length", acceptance.acceptance_length(pooled), _no_steps(pooled, method)),
        ("drafted_acceptance_length", acceptance.drafted_acceptance_length(drafts), no_step),
        ("draft_acceptance_rate", acceptance.draft_acceptance_rate(drafts), no_token),
    ):
        if value is not None:
            metrics[name] = value
        else:
            missing[name] = (
                "method none drafts nothing"
                if method_of(method).drafts == "never" and pooled.steps
                else reason
            )


def _no_steps(pooled: StepCounts | None, method: Method | str) -> str:
    if pooled is None and method_of(method).drafts == "unknown":
        return (
            "not available: the endpoint reports neither its decode steps nor, event by event, how its output grew "
            "(stream_options.continuous_usage_stats)"
        )
    if pooled is None:
        return "the engine sent no counters of its decode steps"
    return "no request had a decode step" if not pooled.steps else "no decode step could be timed"


def _per_position(counts: StepCounts) -> dict[str, tuple[float, ...]]:
    drafted, positions = counts.drafted_steps, counts.accepted_per_position
    if not drafted or not positions:
        return {}
    return {
        "conditional_acceptance_rate": acceptance.conditional_acceptance_rate(drafted, positions),
        "joint_acceptance_rate": acceptance.joint_acceptance_rate(drafted, positions),
        "histogram": acceptance.histogram(drafted, positions),
    }


def _merged(rounds: Sequence[Sequence[PromptTally]]) -> tuple[PromptTally, ...]:
    """Each prompt's sum over rounds, sorted by question id."""
    of_prompt: dict[str, PromptTally] = {}
    for tally in (tally for tallies in rounds for tally in tallies):
        before = of_prompt.get(tally.question_id)
        of_prompt[tally.question_id] = tally if before is None else _sum_of(before, tally)
    return tuple(of_prompt[question_id] for question_id in sorted(of_prompt))


def _sum_of(one: PromptTally, other: PromptTally) -> PromptTally:
    def both(first: int | None, second: int | None) -> int | None:
        return None if first is None or second is None else first + second

    first, second = one.accepted_per_position, other.accepted_per_position
    return replace(
        one,
        requests=one.requests + other.requests,
        output_tokens=one.output_tokens + other.output_tokens,
        steps=both(one.steps, other.steps),
        steps_exact=one.steps_exact and other.steps_exact,
        drafted_steps=both(one.drafted_steps, other.drafted_steps),
        accepted_per_position=(
            None
            if first is None or second is None
            else tuple(map(sum, zip_longest(first, second, fillvalue=0)))
        ),
        latched=both(one.latched, other.latched),
    )


def _together(rounds: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The problems of all rounds: one that is in every round once, another with the first round it was in."""
    first: dict[str, int] = {}
    for number, problems in enumerate(rounds, start=1):
        for problem in problems:
            first.setdefault(problem, number)
    return tuple(
        problem if all(problem in problems for problems in rounds) else f"round {number}: {problem}"
        for problem, number in first.items()
    )


def _notes(method: Method | str, rounds: Sequence[MeasuredRound], pooled: StepCounts | None) -> list[str]:
    """What a reader of the numbers should know."""
    notes = []
    every_step_drafts = method_of(method).drafts == "always"
    if pooled is not None and pooled.uncertain_steps and pooled.steps:
        high, low = acceptance.acceptance_length(pooled), acceptance.acceptance_length_low(pooled)
        notes.append(
            "acceptance length is an upper bound: the engine counts drafted steps only, and "
            + (
                "some of its steps had no draft"
                if every_step_drafts
                else "not the drafts accepted past the end of an output"
            )
            + f"; it lies in {low:.4f} .. {high:.4f}"
        )
    if any(round_.estimated for round_ in rounds):
        notes.append(
            "acceptance length is estimated: each stream event was taken for a step, and servers put several "
            "steps into one event when they or the network are behind"
        )
    if pooled is not None and pooled.drafted_steps is not None and every_step_drafts:
        undrafted = pooled.steps - pooled.drafted_steps
        if undrafted:
            at_least = "at least " if pooled.uncertain_steps else ""
            notes.append(f"{at_least}{undrafted} of {pooled.steps} steps had no draft, as after a preemption")
    repeats = max(round_.repeats for round_ in rounds)
    if repeats:
        prompts = max(len(round_.tallies) for round_ in rounds)
        notes.append(f"a round sends more than its prompts ({prompts}): some were sent {repeats + 1} times")
    first = [
        round_.times["first_arrival_tokens"] for round_ in rounds if "first_arrival_tokens" in round_.times
    ]
    if first and median(first) > _FIRST_ARRIVAL_TOKENS:
        notes.append(
            f"the server sends its first token together with the next step's ({median(first):.2f} tokens in the first "
            "arrival): time to first token includes these; user TPS and step latency are corrected for them"
        )
    if not all(round_.tokens_per_event_known for round_ in rounds):
        notes.append(
            "the server does not report how many tokens an event brought: user TPS takes the first event for one token"
        )
    at_once = sum(round_.at_once for round_ in rounds)
    if at_once:
        notes.append(
            f"all tokens arrived at once of {_requests(at_once)}; user TPS and step latency leave them out"
        )
    busy = max(round_.client_busy for round_ in rounds)
    if _CLIENT_BUSY < busy <= CLIENT_OVERLOADED:
        notes.append(f"the client computed {busy:.0%} of the time: latencies may be its own")
    late_s = max(round_.loop_lag_s_p99 for round_ in rounds)
    if _CLIENT_LATE_S < late_s <= CLIENT_LATE_S:
        notes.append(f"the client came up to {1000 * late_s:.0f} ms late to what had arrived (p99)")
    others = [round_.other_processes_busy or 0.0 for round_ in rounds]
    if max(others) > _OTHER_PROCESSES_BUSY:
        notes.append(
            f"other processes took {max(others):.0%} of these processors in a round ({fmean(others):.0%} of all "
            "rounds): an unchanged engine is slower then"
        )
    streamed = sum(round_.streamed_tokens for round_ in rounds)
    usage = sum(tally.output_tokens for round_ in rounds for tally in round_.tallies)
    if streamed != usage:
        notes.append(f"the streams held {streamed} tokens, and the engine counted {usage}")
    if any(tally.latched is None for round_ in rounds for tally in round_.tallies):
        notes.append("the engine returns no token ids: whether outputs repeat themselves was not checked")
    uncounted = sum(round_.uncounted_prompt_tokens for round_ in rounds)
    if uncounted:
        notes.append(f"{_requests(uncounted)} came without a count of prompt tokens")
    return notes


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{number} requests"


def _listed(texts: Iterable[str | None]) -> str | None:
    """Each once, in alphabetical order; None where there is none."""
    return ", ".join(sorted({text for text in texts if text})) or None
