"""From the records of a cell to its measurement: every metric, or the reason why it is missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from pytest_speedbench.cells import Cell
from pytest_speedbench.data.prompts import Prompt
from pytest_speedbench.engines.base import ESTIMATED
from pytest_speedbench.load.records import RequestRecord, RoundRecord
from pytest_speedbench.metrics import acceptance, latency, throughput
from pytest_speedbench.metrics.acceptance import StepCounts
from pytest_speedbench.metrics.measurement import Measurement, PromptTally
from pytest_speedbench.settings import UNKNOWN

_STEP_LATENCY = ("step_latency_s_mean", "step_latency_s_median", "step_latency_s_p99")
_CLIENT_OVERLOADED = 0.9
_CLIENT_BUSY = 0.5
"""Shares of a round that the client's thread spent computing: no measurement above the one, a note above the other."""
_ACCEPTANCE = (
    "acceptance_length",
    "drafted_acceptance_length",
    "mean_of_requests_acceptance_length",
    "draft_acceptance_rate",
)


def build(cell: Cell, method: str, rounds: Sequence[RoundRecord], prompts: Sequence[Prompt]) -> Measurement:
    """Measure one cell.

    Counts and times are pooled over turns, repeats and rounds (ratios of sums); `output_tps` is the median of
    the rounds. A metric that cannot be measured is absent, with its reason in `missing`. Whatever makes the
    numbers untrustworthy is a problem, and the measurement is then invalid.

    Args:
        cell: what was measured.
        method: how tokens were drafted; `none` needs no counters.
        rounds: the measured passes, warm-up left out.
        prompts: the prompts that were to be sent, all turns of each in every round.
    """
    requests = [request for round_ in rounds for request in round_.requests]
    finished = [request for request in requests if request.error is None]
    delivered = [request for request in finished if request.output_tokens > 0 and request.arrivals]
    counted = {id(r): counts for r in delivered if (counts := _counts_of(method, r)) is not None}
    every = [counted[id(r)] for r in delivered if id(r) in counted]
    complete = len(every) == len(delivered) > 0
    pooled = acceptance.total(every) if complete else _server_counts(method, rounds, delivered)
    if complete and pooled is not None:
        pooled = acceptance.with_steps_of_server(pooled, [round_.server_counters for round_ in rounds])
    drafts = pooled
    if pooled is not None and pooled.drafted_steps is None:
        drafts = _server_counts(method, rounds, delivered) or pooled

    metrics: dict[str, float] = {}
    missing: dict[str, str] = {}
    _time(metrics, missing, cell, rounds, delivered)
    _accept(metrics, missing, method, pooled, drafts)
    if complete:
        conversations: dict[tuple[int, str, int], list[StepCounts]] = defaultdict(list)
        for number, round_ in enumerate(rounds):
            for request in round_.requests:
                if id(request) in counted:
                    key = (number, request.question_id, request.repeat)
                    conversations[key].append(counted[id(request)])
        mean = acceptance.mean_of_requests_acceptance_length(map(acceptance.total, conversations.values()))
        assert mean is not None
        metrics["mean_of_requests_acceptance_length"] = mean
        steps = [counted[id(request)].steps for request in delivered]
        metrics.update(latency.spread("step_latency_s", latency.step_latency_s(delivered, steps)))
        if "step_latency_s_mean" in metrics and pooled is not None and pooled.steps:
            metrics["step_latency_s_mean"] *= (
                sum(steps) / pooled.steps
            )  # of all steps, some told by the server only
    elif pooled is not None:
        reason = "the engine counts per server only, not per request"
        missing.update(dict.fromkeys(("mean_of_requests_acceptance_length", *_STEP_LATENCY[1:]), reason))
        seconds = sum(map(throughput.decode_s, delivered))
        if pooled.steps and seconds > 0:
            metrics["step_latency_s_mean"] = seconds / pooled.steps
    for name in _STEP_LATENCY:
        if name not in metrics:
            missing.setdefault(name, _no_steps(pooled, method))

    return Measurement(
        cell=cell,
        metrics=metrics,
        prompts=_tallies(prompts, delivered, counted if complete else {}),
        per_position={} if drafts is None else _per_position(drafts),
        rounds=len(rounds),
        sent=len(requests),
        finished=len(finished),
        failed=len(requests) - len(finished),
        round_output_tps=tuple(tps for r in rounds if (tps := throughput.output_tps(r)) is not None),
        missing=missing,
        problems=tuple(_problems(method, rounds, prompts, delivered, complete)),
        notes=tuple(_notes(method, rounds, prompts, delivered, pooled)),
        counter_source=_counter_source(rounds, delivered),
        tokenization=", ".join(sorted({round_.tokenization for round_ in rounds})),
        prompt_tokens=sum(request.prompt_tokens or 0 for request in finished),
    )


def _counts_of(method: str, request: RequestRecord) -> StepCounts | None:
    """A request's own counts; None where only its engine could have told them and did not."""
    if method == "none" or request.output_tokens == 1:
        return acceptance.count_steps("none", request.output_tokens)
    if request.counters is None:
        return None
    return acceptance.count_steps(method, request.output_tokens, request.counters)


def _server_counts(
    method: str, rounds: Sequence[RoundRecord], delivered: Sequence[RequestRecord]
) -> StepCounts | None:
    """Counts of a server that counts for all requests at once, summed over rounds."""
    if not delivered or any(round_.server_counters is None for round_ in rounds):
        return None
    present = set(map(id, delivered))
    parts = []
    for round_ in rounds:
        requests = [request for request in round_.requests if id(request) in present]
        tokens = sum(request.output_tokens for request in requests)
        parts.append(acceptance.count_steps(method, tokens, round_.server_counters, len(requests)))
    return acceptance.total(parts)


def _time(
    metrics: dict[str, float],
    missing: dict[str, str],
    cell: Cell,
    rounds: Sequence[RoundRecord],
    delivered: Sequence[RequestRecord],
) -> None:
    """Fill in what the client's clock tells."""
    per_round = [tps for round_ in rounds if (tps := throughput.output_tps(round_)) is not None]
    steady = throughput.steady_output_tps(rounds)
    user = throughput.user_tps(delivered)
    if delivered and per_round:
        metrics["output_tps"] = median(per_round)
    else:
        missing["output_tps"] = "no request delivered a token"
    if steady is not None and steady > 0:
        metrics["steady_output_tps"] = steady
    else:
        missing["steady_output_tps"] = f"the batch of {cell.batch_size} was never full"
    if user is not None:
        metrics["user_tps"] = user
    else:
        missing["user_tps"] = "no request's tokens arrived at more than one moment"
    for name, values in (
        ("ttft_s", latency.ttft_s(delivered)),
        ("inter_token_latency_s", latency.inter_token_latency_s(delivered)),
        ("end_to_end_s", latency.end_to_end_s(delivered)),
    ):
        found = latency.spread(name, values)
        metrics.update(found)
        if not found:
            reason = "no request delivered a second token" if delivered else "no request delivered a token"
            missing.update({f"{name}_{statistic}": reason for statistic in ("mean", "median", "p99")})


def _accept(
    metrics: dict[str, float],
    missing: dict[str, str],
    method: str,
    pooled: StepCounts | None,
    drafts: StepCounts | None,
) -> None:
    """Fill in what the counters tell of all requests together.

    `pooled` tells all steps, and `drafts` which of them had a draft: another sum where only the server told that.
    """
    if pooled is None or drafts is None:
        missing.update(dict.fromkeys(_ACCEPTANCE, _no_steps(pooled, method)))
        return
    untold = "the engine does not tell {}"
    no_step, no_token = (
        untold.format(what) if number is None else reason
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
            missing[name] = "method none drafts nothing" if method == "none" and pooled.steps else reason


def _no_steps(pooled: StepCounts | None, method: str) -> str:
    if pooled is None and method == UNKNOWN:
        return (
            "not available: the endpoint tells neither its decode steps nor, event by event, how its output grew "
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


def _tallies(
    prompts: Sequence[Prompt], delivered: Sequence[RequestRecord], counted: Mapping[int, StepCounts]
) -> tuple[PromptTally, ...]:
    """Each prompt's share, sorted by question id; prompts that delivered nothing have none."""
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
                decode_s=sum(map(throughput.decode_s, requests)),
                elapsed_s=sum(map(throughput.elapsed_s, requests)),
            )
        )
    return tuple(tallies)


def _problems(
    method: str,
    rounds: Sequence[RoundRecord],
    prompts: Sequence[Prompt],
    delivered: Sequence[RequestRecord],
    complete: bool,
) -> list[str]:
    """Why no verdict can be drawn, one line for each kind of problem, naming its first case."""
    requests = [request for round_ in rounds for request in round_.requests]
    if not requests:
        return ["no request was sent"]
    problems = []
    failed = [request for request in requests if request.error is not None]
    if failed:
        problems.append(
            f"{len(failed)} of {len(requests)} requests failed, first {_name(failed[0])}: {failed[0].error}"
        )
    problems += _unaccounted(rounds, prompts)
    silent = [r for r in requests if r.error is None and (r.output_tokens <= 0 or not r.arrivals)]
    if silent:
        problems.append(
            f"{len(silent)} of {len(requests)} requests delivered no token, first {_name(silent[0])}"
        )

    busy = max(round_.client_busy for round_ in rounds)
    if busy > _CLIENT_OVERLOADED:
        problems.append(
            f"the client was overloaded: it computed {busy:.0%} of the time, so that its speed was measured and not "
            "the engine's; use a smaller batch size, or a machine with a free core"
        )

    uncounted = [r for r in delivered if _counts_of(method, r) is None]
    per_server = not complete and all(round_.server_counters is not None for round_ in rounds)
    if uncounted and not per_server and method != UNKNOWN:
        problems.append(
            "the engine sent no counters"
            if not any(request.counters for request in delivered)
            else f"the engine sent no counters for {len(uncounted)} of {len(delivered)} requests, "
            f"first {_name(uncounted[0])}"
        )
    if per_server:
        for number, round_ in enumerate(rounds):
            assert round_.server_counters is not None
            answered = [r for r in round_.requests if r.error is None and r.output_tokens > 0]
            tokens = sum(request.output_tokens for request in answered)
            why = acceptance.inconsistency(method, tokens, round_.server_counters, len(answered))
            if why and not failed:
                problems.append(f"the server's counters of round {number + 1} are inconsistent: {why}")
    if complete and not failed:
        for number, round_ in enumerate(rounds):
            own = acceptance.total(c for r in round_.requests if (c := _counts_of(method, r)) is not None)
            shared = round_.server_counters
            if shared is not None and (why := acceptance.disagreement(own, shared)):
                problems.append(f"in round {number + 1} {why}: is it serving somebody else?")
    wrong = [
        (request, why)
        for request in delivered
        if request.counters is not None
        and (why := acceptance.inconsistency(method, request.output_tokens, request.counters))
    ]
    if wrong:
        request, why = wrong[0]
        problems.append(
            f"inconsistent counters in {len(wrong)} of {len(delivered)} requests, first {_name(request)}: {why}"
        )
    return problems


def _unaccounted(rounds: Sequence[RoundRecord], prompts: Sequence[Prompt]) -> list[str]:
    """Requests that should be there and are not, or are and should not: sent = finished + failed."""
    turns_of = {prompt.question_id: len(prompt.turns) for prompt in prompts}
    lost: list[str] = []
    stray: list[str] = []
    for number, round_ in enumerate(rounds, start=1):
        seen = Counter((r.question_id, r.repeat, r.turn) for r in round_.requests)
        broken = {(r.question_id, r.repeat) for r in round_.requests if r.error is not None}
        sent = {(r.question_id, r.repeat) for r in round_.requests}
        stray += [
            f"{_called(*key)}, round {number}"
            for key, times in seen.items()
            if times > 1 or key[2] >= turns_of.get(key[0], 0)
        ]
        for question_id, repeat in sorted(sent | {(question_id, 0) for question_id in turns_of}):
            if (question_id, repeat) in broken:
                continue  # its later turns cannot follow a failed one, and the failure is told already
            lost += [
                f"{_called(question_id, repeat, turn)}, round {number}"
                for turn in range(turns_of.get(question_id, 0))
                if (question_id, repeat, turn) not in seen
            ]
    problems = []
    if lost:
        problems.append(f"{len(lost)} requests are unaccounted for, first {lost[0]}")
    if stray:
        problems.append(f"{len(stray)} requests were not asked for or came twice, first {stray[0]}")
    return problems


def _notes(
    method: str,
    rounds: Sequence[RoundRecord],
    prompts: Sequence[Prompt],
    delivered: Sequence[RequestRecord],
    pooled: StepCounts | None,
) -> list[str]:
    """What a reader of the numbers should know."""
    notes = []
    if pooled is not None and pooled.uncertain_steps and pooled.steps:
        high, low = acceptance.acceptance_length(pooled), acceptance.acceptance_length_low(pooled)
        notes.append(
            f"acceptance length is an upper bound: the engine counts drafted steps only, and does not tell the "
            f"drafts accepted past the end of the output; it lies in {low:.4f} .. {high:.4f}"
        )
    if any(request.counters is not None and request.counters.source == ESTIMATED for request in delivered):
        notes.append(
            "acceptance length is estimated: each stream event was taken for a step, and servers put several "
            "steps into one event when they or the network are behind"
        )
    every_step_drafts = method not in acceptance.SOMETIMES_DRAFTING and method != "none"
    if pooled is not None and pooled.drafted_steps is not None and every_step_drafts:
        undrafted = pooled.steps - pooled.drafted_steps
        if undrafted:
            notes.append(f"{undrafted} of {pooled.steps} steps had no draft, as after a preemption")
    repeats = max((request.repeat for round_ in rounds for request in round_.requests), default=0)
    if repeats:
        notes.append(
            f"{len(prompts)} prompts are fewer than the batch holds: some were sent {repeats + 1} times a round"
        )
    at_once = sum(request.output_tokens > 1 and not throughput.is_timed(request) for request in delivered)
    if at_once:
        notes.append(
            f"{at_once} requests' tokens arrived all at once; user TPS and step latency leave them out"
        )
    busy = max((round_.client_busy for round_ in rounds), default=0.0)
    if _CLIENT_BUSY < busy <= _CLIENT_OVERLOADED:
        notes.append(f"the client computed {busy:.0%} of the time: latencies may be its own")
    streamed = sum(arrival.tokens for request in delivered for arrival in request.arrivals)
    usage = sum(request.output_tokens for request in delivered)
    if streamed != usage:
        notes.append(f"the streams held {streamed} tokens, and the engine counted {usage}")
    untold = sum(request.prompt_tokens is None for request in delivered)
    if untold:
        notes.append(f"{untold} requests came without a count of their prompt tokens")
    return notes


def _counter_source(rounds: Sequence[RoundRecord], delivered: Sequence[RequestRecord]) -> str | None:
    own = {request.counters.source for request in delivered if request.counters is not None}
    shared = {round_.server_counters.source for round_ in rounds if round_.server_counters is not None}
    return ", ".join(sorted(own or shared)) or None


def _name(request: RequestRecord) -> str:
    return _called(request.question_id, request.repeat, request.turn)


def _called(question_id: str, repeat: int, turn: int) -> str:
    again = f" repeat {repeat}" if repeat else ""
    return f"{question_id}{again} turn {turn + 1}"
