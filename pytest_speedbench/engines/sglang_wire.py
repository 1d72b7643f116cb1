"""Response streams of SGLang, decoded: what was generated, and the counters of one request.

What SGLang (0.5.23) counts, read from its source and checked against recorded streams:

- `spec_verify_ct`: verification steps, which are all decode steps: with every method each of them verifies a draft.
  A request that was preempted ("retracted") resumes with a prefill that yields one token and is no verification;
  `num_retractions` counts these.
- `spec_correct_drafts_histogram`: steps by number of accepted drafts, from 0; zeros at its end are not sent. Drafts
  accepted past the end of the output are in it.
- With one output token there was no step, and there are no counters.

`spec_accept_length` (completion tokens / steps) counts the prefill token, `avg_spec_accept_length` covers the last
few steps of a server: neither is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec

from pytest_speedbench.engines import openai_wire
from pytest_speedbench.engines.base import Counters, Reply
from pytest_speedbench.errors import EngineError

_STEPS = ("spec_verify_ct",)
_ACCEPTED = ("spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
_DRAFTED = ("spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")
_HISTOGRAM = ("spec_correct_drafts_histogram", "spec_accept_histogram")
"""Names of the counters, the present one first. A version that sends two of them sends the same under both."""


class ChatExtension(msgspec.Struct, gc=False):
    """What SGLang adds to a chat's last event."""

    spec_tokens_details: dict[str, Any] | None = None


class Event(openai_wire.Chunk, gc=False):
    """An event of `/generate`, or of a chat."""

    text: str | None = None
    output_ids: list[int] | None = None
    meta_info: dict[str, Any] | None = None
    sglext: ChatExtension | None = None


def read_generate(chunks: Sequence[Event], draft_length: int) -> Reply:
    """Decode a stream of `/generate`, whose events hold what is new or, by default, all that there is so far.

    Args:
        chunks: its events.
        draft_length: tokens drafted per step.

    Raises:
        EngineError: the stream was aborted, or ends before its generation did.
    """
    infos = [chunk.meta_info or {} for chunk in chunks]
    last = infos[-1] if infos else {}
    finish = last.get("finish_reason")
    if not isinstance(finish, Mapping) or "type" not in finish or "completion_tokens" not in last:
        raise EngineError(
            f"the response stream ended after {len(chunks)} events, before its generation had ended"
        )
    reason = str(finish["type"])
    if reason == "abort":
        raise EngineError(f"the server aborted the request: {finish.get('message') or 'it did not say why'}")
    totals = [int(info.get("completion_tokens") or 0) for info in infos]
    if any(later < earlier for earlier, later in pairwise(totals)):
        raise EngineError(f"the response stream's number of tokens goes back: {totals}")
    ids = [chunk.output_ids or [] for chunk in chunks]
    texts = [chunk.text or "" for chunk in chunks]
    # Whoever repeats what there is so far has all of it in the last event. Versions without ids knew no other way.
    if not any(ids) or len(ids[-1]) == totals[-1]:
        ids, texts = ids[-1:], texts[-1:]
    token_ids = tuple(token for each in ids for token in each)
    return Reply(
        text="".join(texts),
        tokens_per_event=tuple(now - before for before, now in pairwise([0, *totals])),
        output_tokens=totals[-1],
        prompt_tokens=last.get("prompt_tokens"),
        token_ids=token_ids if len(token_ids) == totals[-1] else None,
        finish_reason=reason,
        counters=read_counters(last, draft_length),
    )


def read_chat(chunks: Sequence[Event], draft_length: int) -> Reply:
    """Decode a chat's stream, whose counters come in an event of their own.

    Args:
        chunks: of `openai_wire.decode_events`.
        draft_length: tokens drafted per step.

    Raises:
        EngineError: as `openai_wire.read_chunks`.
    """
    told = [
        chunk.sglext.spec_tokens_details
        for chunk in chunks
        if chunk.sglext is not None and chunk.sglext.spec_tokens_details
    ]
    reply = openai_wire.read_chunks(chunks)
    return replace(reply, counters=read_counters(told[-1], draft_length) if told else None)


def read_counters(told: Mapping[str, Any], draft_length: int) -> Counters | None:
    """The counters of one request, under the names of any version; None where there are none.

    Args:
        told: `meta_info`, or a chat's `spec_tokens_details`.
        draft_length: tokens drafted per step.
    """
    steps, accepted = _first(told, _STEPS), _first(told, _ACCEPTED)
    if steps is None or accepted is None:
        return None
    histogram = _first(told, _HISTOGRAM) or ()
    longest = max(draft_length, len(histogram) - 1)
    return Counters(
        source="response",
        drafted_steps=int(steps),
        drafted_tokens=int(_first(told, _DRAFTED) or 0),
        accepted_tokens=int(accepted),
        accepted_per_position=(
            tuple(sum(histogram[position:]) for position in range(1, longest + 1)) if histogram else ()
        ),
        draft_length=longest,
        decode_steps=int(steps) + int(told.get("num_retractions") or 0),
    )


def _first(told: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((told[name] for name in names if told.get(name) is not None), None)
