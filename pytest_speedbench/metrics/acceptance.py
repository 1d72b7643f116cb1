"""Acceptance: how many tokens a decode step delivers, and which drafts were accepted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

from pytest_speedbench.engines.base import Counters
from pytest_speedbench.load.records import RequestRecord
from pytest_speedbench.settings.methods import NONE, Method, method_of

_UNDRAFTED_STEPS = 2
_UNDRAFTED_SHARE = 0.05
"""Steps without a draft that a request may have where every step should have one: the larger of the two counts.
An engine that preempts a request resumes it with such a step, and drafts none for the last token of an output."""


@dataclass(frozen=True)
class StepCounts:
    """Decode steps and their drafts: of one request, or summed over requests."""

    requests: int
    output_tokens: int
    steps: int
    """Decode steps of the target model, with a draft or without."""
    drafted_steps: int | None
    """None where the engine does not report them, as with the two below."""
    drafted_tokens: int | None
    accepted_tokens: int
    """Drafts accepted by verification, those cut off at the end of the output included."""
    accepted_per_position: tuple[int, ...]
    """Steps in which the drafts at positions 1..i were all accepted, for i = 1, 2, ... k; empty where not reported."""
    spare_steps: int
    """How many decode steps more than `steps` the counters allow, if steps without a draft were among them."""
    every_step_drafts: bool
    """Whether the method has a draft for every step, but for those after a preemption."""

    @property
    def uncertain_steps(self) -> int:
        """How many decode steps there may be beyond `steps`: see `count_steps`.

        None of a method that drafts in every step, as long as no step without a draft shows; where one does, others may
        be hidden by an overshoot.
        """
        return 0 if self.every_step_drafts and self.steps == self.drafted_steps else self.spare_steps

    @property
    def decode_tokens(self) -> int:
        """Tokens that decode steps delivered: all but each request's first, which prefill yields."""
        return self.output_tokens - self.requests


def count_steps(
    method: Method | str, output_tokens: int, counters: Counters | None = None, requests: int = 1
) -> StepCounts:
    """Decode steps of one request, or of all requests that a server's counters cover.

    A step delivers one token and its accepted drafts, and the last step loses what goes past the end of the
    output (the overshoot, 0 to k tokens), so that

        output_tokens - requests = steps + accepted_tokens - overshoot.

    Where an engine counts all decode steps, these are the steps; where every step drafts, the drafted steps.
    Either way the overshoot follows. With `ngram` and `suffix` an engine that counts drafted steps only leaves both
    open, unless its server reports all of them (see `with_steps_of_server`); steps are then taken with an overshoot of
    0: the fewest that can have been, and at most k a request too few. That makes acceptance length an upper bound. How
    far it can be off was measured with a draft model on vLLM at 128 output tokens and k = 3, where the truth is known:
    2.2814 without the overshoot, 2.2588 with it (+1.0 %).

    The same holds of a method that drafts in every step once a request has more tokens than its drafted steps explain:
    the engine does leave steps without a draft, and in other requests the overshoot can hide up to k of them.

    Args:
        method: how tokens are drafted; `none` needs no counters.
        output_tokens: tokens delivered, each request's first included.
        counters: the engine's counts, covering the same requests.
        requests: how many requests these are.

    Raises:
        ValueError: no counters with a method other than `none`.
    """
    decode_tokens = output_tokens - requests
    drafts = method_of(method).drafts
    if drafts == "never":
        return StepCounts(requests, output_tokens, decode_tokens, 0, 0, 0, (), 0, every_step_drafts=False)
    if counters is None:
        raise ValueError(f"steps of method {method} cannot be known without counters")
    reported = counters.decode_steps
    fewest = max(counters.drafted_steps or 0, decode_tokens - counters.accepted_tokens)
    most = min(decode_tokens - counters.accepted_tokens + counters.draft_length * requests, decode_tokens)
    return StepCounts(
        requests,
        output_tokens,
        fewest if reported is None else reported,
        counters.drafted_steps,
        counters.drafted_tokens,
        counters.accepted_tokens,
        counters.accepted_per_position,
        max(most - fewest, 0) if reported is None else 0,
        drafts == "always" and counters.drafted_steps is not None,
    )


def counts_of(method: Method | str, request: RequestRecord) -> StepCounts | None:
    """A request's own counts; None where only its engine could have reported them and did not.

    Args:
        method: how its tokens were drafted; `none` needs no counters.
        request: one that delivered a token.
    """
    if method_of(method).drafts == "never" or request.output_tokens == 1:
        return count_steps(NONE, request.output_tokens)
    if request.counters is None:
        return None
    return count_steps(method, request.output_tokens, request.counters)


def with_steps_of_server(counts: StepCounts, on_server: Sequence[Counters | None]) -> StepCounts:
    """Counts of all requests with the decode steps that only their server reports.

    Args:
        counts: summed over what the responses of all rounds report.
        on_server: what the server counted in each round.

    Returns:
        The counts, exact where every round reports all its decode steps; as they were, if not or if nothing is open.
    """
    steps = _sum(None if counted is None else counted.decode_steps for counted in on_server)
    if steps is None or not on_server or not counts.uncertain_steps:
        return counts
    return replace(counts, steps=steps, spare_steps=0)


def disagreement(counts: StepCounts, on_server: Counters) -> str | None:
    """How a server's counts of a round contradict those of its responses, in words for a person; None if they do not.

    Args:
        counts: summed over the responses of the round.
        on_server: what the server counted in it.
    """
    for what, counted, own in (
        ("output tokens", on_server.output_tokens, counts.output_tokens),
        ("accepted drafts", on_server.accepted_tokens, counts.accepted_tokens),
    ):
        if counted is not None and counted != own:
            return f"the server counted {counted} {what}, and its responses {own}"
    steps, most = on_server.decode_steps, counts.steps + counts.uncertain_steps
    if steps is not None and not counts.steps <= steps <= most:
        allowed = f"{counts.steps}" if most == counts.steps else f"{counts.steps} to {most}"
        return f"the server counted {steps} decode steps, and its responses allow {allowed}"
    return None


def inconsistency(
    method: Method | str, output_tokens: int, counters: Counters, requests: int = 1
) -> str | None:
    """Why counters cannot be those of an output, in words for a person; None where they can.

    Args:
        method: how tokens are drafted.
        output_tokens: tokens delivered by the requests that the counters cover.
        counters: the engine's counts.
        requests: how many requests these are.
    """
    drafted, accepted = counters.drafted_steps, counters.accepted_tokens
    positions = counters.accepted_per_position
    if min(drafted or 0, accepted, counters.drafted_tokens or 0, *positions) < 0:
        return f"a count is negative: {counters}"
    drafts = method_of(method).drafts
    if drafts == "never":
        return f"{drafted} steps had a draft, with method none" if drafted else None
    if counters.drafted_tokens is not None and accepted > counters.drafted_tokens:
        return f"{accepted} drafts accepted of {counters.drafted_tokens}"
    if positions and sum(positions) != accepted:
        return f"{accepted} drafts accepted, but {sum(positions)} summed over the positions"
    at_most = (positions[:1] if drafted is None else (drafted,)) + positions
    if any(later > earlier for earlier, later in zip(at_most, positions, strict=False)):
        return (
            f"a later position was accepted more often than the one before it: {drafted} steps, {positions}"
        )

    decode_tokens = output_tokens - requests
    reported = counters.decode_steps
    steps = drafted if reported is None else reported
    if steps is None:
        return "neither all decode steps nor those with a draft are reported"
    if drafted is not None and drafted > steps:
        return f"{drafted} steps had a draft, of {steps} steps"
    if steps > decode_tokens:
        return f"{steps} steps for {decode_tokens} tokens after the first: a step yields at least one"
    overshoot = steps + accepted - decode_tokens
    if overshoot > counters.draft_length * requests:
        return (
            f"{steps} steps and {accepted} accepted drafts make {overshoot} tokens more than the "
            f"{decode_tokens} that came, and the last step can lose {counters.draft_length} at most"
        )
    if reported is None and drafts != "always":
        return None
    undrafted = max(_UNDRAFTED_STEPS * requests, int(_UNDRAFTED_SHARE * (steps - overshoot)))
    if -overshoot > (undrafted if reported is None else 0):
        why = "" if reported is not None else f", and with method {method} every step has a draft"
        return (
            f"{steps} steps and {accepted} accepted drafts leave {-overshoot} of {decode_tokens} tokens "
            f"unexplained{why}"
        )
    return None


def total(counts: Iterable[StepCounts]) -> StepCounts:
    """The sum of counts; positions that a shorter draft did not have count as never accepted."""
    parts = list(counts)
    positions = zip_longest(*(part.accepted_per_position for part in parts), fillvalue=0)
    return StepCounts(
        sum(part.requests for part in parts),
        sum(part.output_tokens for part in parts),
        sum(part.steps for part in parts),
        _sum(part.drafted_steps for part in parts),
        _sum(part.drafted_tokens for part in parts),
        sum(part.accepted_tokens for part in parts),
        tuple(map(sum, positions)),
        sum(part.spare_steps for part in parts),
        any(part.every_step_drafts for part in parts),
    )


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Not known if one of them is not."""
    known = list(numbers)
    return None if None in known else sum(number or 0 for number in known)


def acceptance_length(counts: StepCounts) -> float | None:
    """Tokens delivered per decode step, over all decode steps; None without steps.

    SPEED-Bench (arXiv 2604.09557), eq. 1, pooled over steps: the bonus token counts; the prefill token and
    drafts accepted past the end of the output do not.
    """
    return counts.decode_tokens / counts.steps if counts.steps else None


def acceptance_length_low(counts: StepCounts) -> float | None:
    """The smallest acceptance length that agrees with the counters, in tokens per step; see `count_steps`."""
    return counts.decode_tokens / (counts.steps + counts.uncertain_steps) if counts.steps else None


def drafted_acceptance_length(counts: StepCounts) -> float | None:
    """1 + accepted drafts per drafted step, in tokens per step; None without drafted steps.

    What vLLM reports as `mean_acceptance_length`: steps without a draft are left out.
    """
    return 1 + counts.accepted_tokens / counts.drafted_steps if counts.drafted_steps else None


def draft_acceptance_rate(counts: StepCounts) -> float | None:
    """Share of all drafted tokens that were accepted (0..1); None without drafts."""
    return counts.accepted_tokens / counts.drafted_tokens if counts.drafted_tokens else None


def joint_acceptance_rate(drafted_steps: int, accepted_per_position: Sequence[int]) -> tuple[float, ...]:
    """P(the first i drafts are all accepted) for i = 1..k, over drafted steps; empty without drafted steps."""
    return tuple(count / drafted_steps for count in accepted_per_position) if drafted_steps else ()


def conditional_acceptance_rate(
    drafted_steps: int, accepted_per_position: Sequence[int]
) -> tuple[float, ...]:
    """P(draft i is accepted, given that those before it were) for i = 1..k.

    SPEED-Bench (arXiv 2604.09557), section 3: AR_i, so that the drafted acceptance length is
    1 + sum over i of the product of AR_1..AR_i. A step whose draft ended before position i counts as not accepted there.
    Ends before the first position that was never reached, where the rate has no meaning.
    """
    rates = []
    reached = drafted_steps
    for accepted in accepted_per_position:
        if not reached:
            break
        rates.append(accepted / reached)
        reached = accepted
    return tuple(rates)


def histogram(drafted_steps: int, accepted_per_position: Sequence[int]) -> tuple[int, ...]:
    """Drafted steps by number of accepted drafts: 0, 1, ... k; sums to `drafted_steps`."""
    at_least = (drafted_steps, *accepted_per_position, 0)
    return tuple(here - beyond for here, beyond in pairwise(at_least))


def mean_of_requests_acceptance_length(requests: Iterable[StepCounts]) -> float | None:
    """SPEED-Bench's own estimator, `Category_AL` of its code: the unweighted mean of each request's mean.

    Its request is a prompt with all its turns, and it averages over stream chunks, of which prefill sends
    one a turn with one token: output tokens / (decode steps + turns). Lower than the acceptance length, and
    the same for a prompt of 20 tokens and one of 4,000.

    Args:
        requests: one sum per prompt sent, over its turns.
    """
    lengths = [
        counts.output_tokens / (counts.steps + counts.requests) for counts in requests if counts.requests
    ]
    return sum(lengths) / len(lengths) if lengths else None
