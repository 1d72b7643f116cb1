"""One round of a cell, reduced to its figures as soon as it has ended.

Its records (every arrival of every request) need not be kept then, while further rounds are measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_speedbench.catalogue import METRICS
from pytest_speedbench.data.prompts import Prompt
from pytest_speedbench.engines.base import ESTIMATED
from pytest_speedbench.load.records import RequestRecord, RoundRecord
from pytest_speedbench.metrics import acceptance, latency, throughput
from pytest_speedbench.metrics.acceptance import StepCounts, counts_of
from pytest_speedbench.metrics.degenerate import repeats_itself
from pytest_speedbench.metrics.measurement import PromptTally, RoundFigures
from pytest_speedbench.metrics.problems import overload_of, problems_of
from pytest_speedbench.settings.methods import Method

BY_EVENT = tuple(
    name
    for name in METRICS
    if name in ("steady_output_tps", "first_arrival_tokens", "tokens_per_arrival")
    or name.startswith("inter_token_latency_s_")
)
"""What has to know how many tokens arrived when."""


@dataclass(frozen=True)
class MeasuredRound:
    """One round of a cell, reduced to what its measurement takes from it."""

    figures: RoundFigures
    times: Mapping[str, float]
    """Metrics of the client's clock; of several rounds the median counts."""
    counts: StepCounts | None
    """All decode steps; None where neither the responses nor the server report them."""
    drafts: StepCounts | None
    """Which steps had a draft: other sums than `counts` where only the server reports that."""
    steps_of_requests: bool
    """Whether the steps of each single request are known."""
    mean_of_requests: float | None
    """`mean_of_requests_acceptance_length`; None where the engine counts per server only."""
    tallies: tuple[PromptTally, ...]
    sent: int
    failed: int
    delivered: int
    """Requests that brought at least one token."""
    problems: tuple[str, ...]
    overload: str | None
    """Why nothing was timed: the client measured itself."""
    counter_source: str | None
    tokenization: str
    prompt_tokens: int
    tokens_per_event_known: bool
    """Whether it is known of every request how many tokens an event brought."""
    estimated: bool
    """Whether steps were guessed from stream events."""
    repeats: int
    """How often a prompt was sent again in this round, at most."""
    at_once: int
    """Requests all of whose tokens arrived at one moment."""
    streamed_tokens: int
    uncounted_prompt_tokens: int
    """Requests without a count of their prompt tokens."""
    client_busy: float
    loop_lag_s_p99: float
    other_processes_busy: float | None


def measure_round(method: Method | str, round_: RoundRecord, prompts: Sequence[Prompt]) -> MeasuredRound:
    """Reduce one round.

    Whatever makes its numbers untrustworthy is a problem, and the cell is then invalid.

    Args:
        method: how tokens were drafted; `none` needs no counters.
        round_: one measured pass, no warm-up.
        prompts: the prompts that were to be sent, all turns of each.
    """
    requests = round_.requests
    finished = [request for request in requests if request.error is None]
    delivered = [request for request in finished if request.output_tokens > 0 and request.arrivals]
    counted = {id(r): counts for r in delivered if (counts := counts_of(method, r)) is not None}
    complete = len(counted) == len(delivered) > 0
    own = acceptance.total(counted.values()) if complete else None
    pooled = own or _server_counts(method, round_, delivered)
    if own is not None:
        pooled = acceptance.with_steps_of_server(own, [round_.server_counters])
    drafts = pooled
    if pooled is not None and pooled.drafted_steps is None:
        of_server = _server_counts(method, round_, delivered)
        if of_server is not None and of_server.drafted_steps is not None:
            drafts = of_server
    tokens_per_event_known = all(request.tokens_per_event_known for request in delivered)
    overload = overload_of(round_)
    times: dict[str, float] = {}
    if overload is None:
        steps = [counted[id(r)].steps for r in delivered] if complete else None
        times = _times(round_, delivered, steps) | _step_latency(delivered, steps, pooled)
        if not tokens_per_event_known:
            times = {name: value for name, value in times.items() if name not in BY_EVENT}
    return MeasuredRound(
        figures=RoundFigures(
            output_tps=times.get("output_tps"),
            user_tps=times.get("user_tps"),
            acceptance_length=acceptance.acceptance_length(pooled) if pooled else None,
            step_latency_s=times.get("step_latency_s_mean"),
            other_processes_busy=round_.other_processes_busy,
        ),
        times=times,
        counts=pooled,
        drafts=drafts,
        steps_of_requests=own is not None and not (own.uncertain_steps and not own.every_step_drafts),
        mean_of_requests=_mean_of_requests(requests, counted) if complete else None,
        tallies=_tallies(prompts, delivered, counted if complete else {}, own),
        sent=len(requests),
        failed=len(requests) - len(finished),
        delivered=len(delivered),
        problems=tuple(problems_of(method, round_, prompts, delivered, complete)),
        overload=overload,
        counter_source=_counter_source(round_, delivered),
        tokenization=round_.tokenization,
        prompt_tokens=sum(request.prompt_tokens or 0 for request in finished),
        tokens_per_event_known=tokens_per_event_known,
        estimated=any(r.counters is not None and r.counters.source == ESTIMATED for r in delivered),
        repeats=max((request.repeat for request in requests), default=0),
        at_once=sum(request.output_tokens > 1 and not throughput.is_timed(request) for request in delivered),
        streamed_tokens=sum(request.arrivals.total_tokens for request in delivered),
        uncounted_prompt_tokens=sum(request.prompt_tokens is None for request in delivered),
        client_busy=round_.client_busy,
        loop_lag_s_p99=round_.loop_lag_s_p99,
        other_processes_busy=round_.other_processes_busy,
    )


def _server_counts(
    method: Method | str, round_: RoundRecord, delivered: Sequence[RequestRecord]
) -> StepCounts | None:
    """Counts of a server that counts for all requests together."""
    if not delivered or round_.server_counters is None:
        return None
    tokens = sum(request.output_tokens for request in delivered)
    return acceptance.count_steps(method, tokens, round_.server_counters, len(delivered))


def _mean_of_requests(requests: Sequence[RequestRecord], counted: Mapping[int, StepCounts]) -> float | None:
    conversations: dict[tuple[str, int], list[StepCounts]] = defaultdict(list)
    for request in requests:
        if id(request) in counted:
            conversations[request.question_id, request.repeat].append(counted[id(request)])
    return acceptance.mean_of_requests_acceptance_length(map(acceptance.total, conversations.values()))


def _times(
    round_: RoundRecord, delivered: Sequence[RequestRecord], steps: Sequence[int] | None
) -> dict[str, float]:
    """What the client's clock measured in a round.

    Args:
        round_: one measured pass.
        delivered: its requests that brought a token.
        steps: decode steps of each of these, where the engine reports them.
    """
    times = throughput.streaming_pattern(delivered)
    for name, value in (
        ("output_tps", throughput.output_tps(round_) if delivered else None),
        ("steady_output_tps", throughput.steady_output_tps([round_]) or None),
        ("user_tps", throughput.user_tps(delivered, steps)),
    ):
        if value is not None:
            times[name] = value
    for name, values in (
        ("ttft_s", latency.ttft_s(delivered)),
        ("inter_token_latency_s", latency.inter_token_latency_s(delivered)),
        ("end_to_end_s", latency.end_to_end_s(delivered)),
    ):
        times |= latency.spread(name, values)
    return times


def _step_latency(
    delivered: Sequence[RequestRecord], steps: Sequence[int] | None, pooled: StepCounts | None
) -> dict[str, float]:
    """Seconds per step: of every request where each reports its steps, and the mean of all steps together."""
    times = {}
    if steps is not None:
        times = latency.spread("step_latency_s", latency.step_latency_s(delivered, steps))
    if pooled is None or not pooled.steps:
        return times
    if steps is None:
        seconds = sum(throughput.decode_s(request) for request in delivered)
        return {"step_latency_s_mean": seconds / pooled.steps} if seconds > 0 else {}
    if times:
        times["step_latency_s_mean"] *= sum(steps) / pooled.steps  # some may be reported by the server only
    return times


def _tallies(
    prompts: Sequence[Prompt],
    delivered: Sequence[RequestRecord],
    counted: Mapping[int, StepCounts],
    whole: StepCounts | None,
) -> tuple[PromptTally, ...]:
    """Each prompt's share, sorted by question id; prompts that delivered nothing have none.

    Args:
        prompts: that were to be sent.
        delivered: requests that brought a token.
        counted: their counts by the record's identity; empty where those of one are missing.
        whole: the sum of these.
    """
    exact = whole is None or not whole.uncertain_steps
    of_prompt: dict[str, list[RequestRecord]] = defaultdict(list)
    for request in delivered:
        of_prompt[request.question_id].append(request)
    tallies = []
    for prompt in sorted(prompts, key=lambda prompt: prompt.question_id):
        requests = of_prompt.get(prompt.question_id)
        if not requests:
            continue
        counts = acceptance.total(counted[id(r)] for r in requests) if counted else None
        tallies.append(
            PromptTally(
                question_id=prompt.question_id,
                digest=prompt.digest,
                requests=len(requests),
                output_tokens=sum(request.output_tokens for request in requests),
                steps=counts.steps if counts else None,
                drafted_steps=counts.drafted_steps if counts else None,
                accepted_per_position=(
                    counts.accepted_per_position if counts and counts.drafted_steps is not None else None
                ),
                steps_exact=exact or counts is None or not counts.spare_steps,
                latched=_latched(requests),
            )
        )
    return tuple(tallies)


def _latched(requests: Sequence[RequestRecord]) -> int | None:
    """How many outputs repeat themselves; None where the engine returns no token ids."""
    outputs = [request.token_ids for request in requests if request.token_ids is not None]
    return sum(map(repeats_itself, outputs)) if len(outputs) == len(requests) else None


def _counter_source(round_: RoundRecord, delivered: Sequence[RequestRecord]) -> str | None:
    own = {request.counters.source for request in delivered if request.counters is not None}
    shared = {round_.server_counters.source} if round_.server_counters is not None else set()
    return ", ".join(sorted(own or shared)) or None
