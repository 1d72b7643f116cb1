"""What makes the numbers of a round untrustworthy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pytest_speedbench.data.prompts import Prompt
from pytest_speedbench.load.records import RequestRecord, RoundRecord
from pytest_speedbench.metrics import acceptance
from pytest_speedbench.metrics.acceptance import counts_of
from pytest_speedbench.settings.methods import Method, method_of

CLIENT_OVERLOADED = 0.9
"""Share of a round in which the client computed or waited for a core: above it, it had no reserve."""
CLIENT_LATE_S = 0.25
"""Lateness (p99) of the client's event loop, in seconds: above it, what the engine is given to do depends on the client,
and where the kernel stamps nothing (`load.wire.kernel_stamps`) so do arrivals. On a quiet machine it is 1 to 5 ms at 512 streams;
of a client that is flooded, seconds."""
_LONG_ENOUGH_S = 1.0
"""A shorter round has no meaningful percentile of lateness."""


def problems_of(
    method: Method | str,
    round_: RoundRecord,
    prompts: Sequence[Prompt],
    delivered: Sequence[RequestRecord],
    complete: bool,
) -> list[str]:
    """Why no verdict can be drawn, one line for each kind of problem, naming its first case."""
    requests = round_.requests
    if not requests:
        return ["no request was sent"]
    problems = []
    failed = [request for request in requests if request.error is not None]
    if failed:
        problems.append(
            f"{len(failed)} of {len(requests)} requests failed, first {_name(failed[0])}: {failed[0].error}"
        )
    problems += _unaccounted(round_, prompts)
    silent = [r for r in requests if r.error is None and (r.output_tokens <= 0 or not r.arrivals)]
    if silent:
        problems.append(
            f"{len(silent)} of {len(requests)} requests delivered no token, first {_name(silent[0])}"
        )
    return problems + _miscounted(method, round_, delivered, complete, failed=bool(failed))


def overload_of(round_: RoundRecord) -> str | None:
    """Why the times of a round are the client's own; None where they are the engine's.

    Counters are the engine's in either case: acceptance length does not mind a late client.
    """
    if not round_.requests:
        return None
    busy, waiting = round_.client_busy, round_.client_waiting
    cure = (
        "use a smaller batch size, or a machine with faster cores"
        if busy >= waiting
        else "it had no free core: leave it one"
    )
    if busy + waiting > CLIENT_OVERLOADED:
        return (
            f"the client was overloaded: it computed {busy:.0%} of the time and waited {waiting:.0%} for a core, so "
            f"that its speed was measured and not the engine's; {cure}"
        )
    lasted_s = max(r.ended_s for r in round_.requests) - min(r.sent_s for r in round_.requests)
    if lasted_s > _LONG_ENOUGH_S and round_.loop_lag_s_p99 > CLIENT_LATE_S:
        return (
            f"the client was overloaded: it came {1000 * round_.loop_lag_s_p99:.0f} ms late to what had arrived (p99), "
            f"so that its speed was measured and not the engine's; {cure}"
        )
    return None


def _miscounted(
    method: Method | str,
    round_: RoundRecord,
    delivered: Sequence[RequestRecord],
    complete: bool,
    *,
    failed: bool,
) -> list[str]:
    """Counters that are not there, or cannot be true."""
    problems = []
    shared = round_.server_counters
    uncounted = [r for r in delivered if counts_of(method, r) is None]
    if uncounted and shared is None and method_of(method).drafts != "unknown":
        problems.append(
            "the engine sent no counters"
            if not any(request.counters for request in delivered)
            else f"the engine sent no counters for {len(uncounted)} of {len(delivered)} requests, "
            f"first {_name(uncounted[0])}"
        )
    if shared is not None and not complete and not failed:
        answered = [r for r in round_.requests if r.error is None and r.output_tokens > 0]
        tokens = sum(request.output_tokens for request in answered)
        why = acceptance.inconsistency(method, tokens, shared, len(answered))
        if why:
            problems.append(f"the server's counters are inconsistent: {why}")
    if shared is not None and complete and not failed:
        own = acceptance.total(counts for r in delivered if (counts := counts_of(method, r)) is not None)
        why = acceptance.disagreement(own, shared)
        if why:
            problems.append(f"{why}: is it serving somebody else?")
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


def _unaccounted(round_: RoundRecord, prompts: Sequence[Prompt]) -> list[str]:
    """Requests that should be there and are not, or are and should not: sent = finished + failed."""
    turns_of = {prompt.question_id: len(prompt.turns) for prompt in prompts}
    seen = Counter((r.question_id, r.repeat, r.turn) for r in round_.requests)
    broken = {(r.question_id, r.repeat) for r in round_.requests if r.error is not None}
    sent = {(r.question_id, r.repeat) for r in round_.requests}
    stray = [_called(*key) for key, times in seen.items() if times > 1 or key[2] >= turns_of.get(key[0], 0)]
    lost = [
        _called(question_id, repeat, turn)
        for question_id, repeat in sorted(sent | {(question_id, 0) for question_id in turns_of})
        if (question_id, repeat)
        not in broken  # its later turns cannot follow a failed one, which is reported already
        for turn in range(turns_of.get(question_id, 0))
        if (question_id, repeat, turn) not in seen
    ]
    problems = []
    if lost:
        problems.append(f"{len(lost)} requests are unaccounted for, first {lost[0]}")
    if stray:
        problems.append(f"{len(stray)} requests were not asked for or came twice, first {stray[0]}")
    return problems


def _name(request: RequestRecord) -> str:
    return _called(request.question_id, request.repeat, request.turn)


def _called(question_id: str, repeat: int, turn: int) -> str:
    again = f" repeat {repeat}" if repeat else ""
    return f"{question_id}{again} turn {turn + 1}"
