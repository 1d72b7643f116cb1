"""vLLM's dialect of the OpenAI API: requests, response streams, token ids and counters.

Everything but `tokenize` and `prometheus_counters` is a pure function; streams are decoded after the clock
has stopped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from pytest_speedbench.engines.base import Counters, Generation, HttpCall, Message, Reply
from pytest_speedbench.errors import EngineError

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control


class StreamEvent(msgspec.Struct, gc=False):
    """Fields that the events of any server may have. A subclass adds those that an engine reads; others are skipped."""

    error: Any = None
    object: Any = None
    message: Any = None


class Delta(msgspec.Struct, gc=False):
    """What a chunk adds to a chat's reply."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct, gc=False):
    """The one choice of a chunk."""

    text: str | None = None
    delta: Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct, gc=False):
    """Tokens so far."""

    completion_tokens: int | None = None
    prompt_tokens: int | None = None


class SpeculativeDecoding(msgspec.Struct, gc=False):
    """Steps of a request by number of accepted drafts, and its drafts."""

    acceptance_histogram: list[int] | None = None
    num_draft_tokens: int | None = None


class RequestMetrics(msgspec.Struct, gc=False):
    """What vLLM measured of a request."""

    speculative_decoding: SpeculativeDecoding | None = None


class Chunk(StreamEvent, gc=False):
    """An event of `/v1/completions` or `/v1/chat/completions`."""

    choices: Sequence[Choice] | None = None
    usage: Usage | None = None
    metrics: RequestMetrics | None = None


EventType = TypeVar("EventType", bound=StreamEvent)

_SILENT_TOKENS = 1
"""The end-of-sequence token has no text."""
_NO_CHOICE = (Choice(),)
_NO_DELTA = Delta()


def completion_call(generation: Generation, model: str, extra: Mapping[str, Any] | None = None) -> HttpCall:
    """Encode one streaming generation: token ids to `/v1/completions`, messages to `/v1/chat/completions`.

    Args:
        generation: what to generate; exactly one of its `token_ids` and `messages` is set.
        model: name under which the server serves the model.
        extra: further fields of the request body, for one engine's own dialect.

    Raises:
        ValueError: both or neither of `token_ids` and `messages` are set.
    """
    if (generation.token_ids is None) == (generation.messages is None):
        raise ValueError("a generation has either token ids or messages")
    sampling = generation.sampling
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": sampling.output_length,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "seed": sampling.seed,
        "ignore_eos": sampling.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if generation.token_ids is not None:
        path = "/v1/completions"
        # The ids are the whole prompt: a server that would add its BOS must not.
        body |= {"prompt": list(generation.token_ids), "add_special_tokens": False}
    else:
        path = "/v1/chat/completions"
        body["messages"] = _messages(generation.messages or ())
    return HttpCall(path, json.dumps(body | dict(extra or {})).encode())


def read_stream(events: Sequence[bytes]) -> Reply:
    """Decode the `data:` payloads of one response stream, `[DONE]` left out.

    Raises:
        EngineError: as `decode_events` and `read_chunks`.
    """
    return read_chunks(decode_events(events, Chunk))


def read_chunks(chunks: Sequence[Chunk]) -> Reply:
    """What the events of one response stream say together.

    How many tokens an event brought is known exactly from its `token_ids`, else from the growth of
    `usage.completion_tokens` where every event carries it. Where a server offers neither, each event with
    text counts as one token and the last of them takes what `usage` says is left: right in total,
    approximate in time.

    Args:
        chunks: of `decode_events`.

    Raises:
        EngineError: the stream has no `usage`, or contradicts it.
    """
    # A column after the other: a stream has thousands of events, and nearly all of them are alike.
    usages = [chunk.usage for chunk in chunks]
    usage = next((reported for reported in reversed(usages) if reported is not None), None)
    if usage is None or usage.completion_tokens is None:
        raise EngineError(
            f"the response stream of {len(chunks)} events has no `usage`: its output tokens are not known"
        )
    output_tokens = usage.completion_tokens
    choices = [(chunk.choices or _NO_CHOICE)[0] for chunk in chunks]
    ids = [choice.token_ids for choice in choices]
    token_ids = tuple(chain.from_iterable(filter(None, ids)))
    text = [choice.text or (choice.delta or _NO_DELTA).content or "" for choice in choices]
    if token_ids:
        tokens = [len(of_event) if of_event else 0 for of_event in ids]
    else:
        tokens = _tokens_without_ids(usages, choices, text, output_tokens)
    known = bool(token_ids) or sum(tokens) >= output_tokens - _SILENT_TOKENS
    drafted = [chunk.metrics.speculative_decoding for chunk in chunks if chunk.metrics is not None]
    counters = [_response_counters(reported) for reported in drafted if reported is not None]
    return Reply(
        text="".join(text),
        tokens_per_event=_completed(tokens, output_tokens),
        output_tokens=output_tokens,
        prompt_tokens=usage.prompt_tokens,
        token_ids=token_ids if len(token_ids) == output_tokens else None,
        finish_reason=next(
            (choice.finish_reason for choice in reversed(choices) if choice.finish_reason), None
        ),
        counters=counters[-1] if counters else None,
        tokens_per_event_known=known,
    )


def tokenize(
    control: Control, messages: Sequence[Message], model: str, *, absent: Collection[int] = (404, 405)
) -> tuple[int, ...] | None:
    """Token ids of a chat from POST `/tokenize`, template and generation prompt applied once.

    Args:
        control: the server.
        messages: the chat.
        model: name under which the server serves the model.
        absent: statuses of a server that has no such route, or none that takes messages.

    Returns:
        The ids, or None where the server has no such route.

    Raises:
        EngineError: the server refused the messages, or its answer holds no token ids.
    """
    body = {"model": model, "messages": _messages(messages), "add_generation_prompt": True}
    response = control.post("/tokenize", body)
    if response.status_code in absent:
        return None
    where = f"POST {control.url}/tokenize"
    if response.status_code != 200:
        raise EngineError(f"{where} answered {response.status_code}: {_message_of(response.text)}")
    try:
        tokens = response.json()["tokens"]
        return tuple(int(token) for token in tokens)
    except (ValueError, TypeError, KeyError):
        raise EngineError(f"{where} answered without `tokens`: {response.text[:200]!r}") from None


def prometheus_counters(control: Control, prefix: str = "vllm:") -> Counters | None:
    """Counters since the server's start from GET `/metrics`, summed over its engines (data-parallel ranks).

    Args:
        control: the server.
        prefix: what the server puts before `spec_decode_num_drafts` and the like.

    Returns:
        The counters, or None where the server has no such route or does not count speculative decoding.
    """
    response = control.get("/metrics")
    return parse_prometheus(response.text, prefix) if response.status_code == 200 else None


def parse_prometheus(exposition: str, prefix: str = "vllm:") -> Counters | None:
    """Read speculative decoding's counters out of Prometheus' text format; None where it has none.

    Raises:
        EngineError: a line of one of these counters is not in that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    names = {
        f"{prefix}spec_decode_{what}_total": what
        for what in ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")
    }
    # Observed once for every decode step of every request, whatever the number of tokens that it delivers.
    names[f"{prefix}inter_token_latency_seconds_count"] = "decode_steps"
    names[f"{prefix}generation_tokens_total"] = "output_tokens"
    # A server has thousands of lines of histograms, which cost the parser 10 us each.
    ours = "\n".join(line for line in exposition.splitlines() if line.startswith(tuple(names)))
    totals: dict[str, int] = {}
    by_position: dict[int, int] = {}
    try:
        for family in text_string_to_metric_families(ours):
            for sample in family.samples:
                what = names.get(sample.name)
                if what is None:
                    continue
                value = int(sample.value)
                if what != "num_accepted_tokens_per_pos":
                    totals[what] = totals.get(what, 0) + value
                elif "position" in sample.labels:
                    position = int(sample.labels["position"])
                    by_position[position] = by_position.get(position, 0) + value
    except (ValueError, OverflowError) as error:
        raise EngineError(f"GET /metrics is not in Prometheus' text format: {error}") from None
    if "num_drafts" not in totals or "num_accepted_tokens" not in totals:
        return None
    draft_length = max(by_position, default=-1) + 1
    return Counters(
        source="prometheus",
        drafted_steps=totals["num_drafts"],
        drafted_tokens=totals.get("num_draft_tokens", 0),
        accepted_tokens=totals["num_accepted_tokens"],
        accepted_per_position=tuple(by_position.get(position, 0) for position in range(draft_length)),
        draft_length=draft_length,
        decode_steps=totals.get("decode_steps"),
        output_tokens=totals.get("output_tokens"),
    )


def decode_events(events: Sequence[bytes], event: type[EventType]) -> list[EventType]:
    """The events of a stream, with the fields that `event` names.

    Raises:
        EngineError: an event is not a JSON object, a field has another type, or a server reports an error.
    """
    decode = _decoder(event).decode
    try:
        decoded = list(map(decode, events))
    except msgspec.DecodeError:
        decoded = [
            _decode_odd(each, event, f"event {n} of {len(events)}") for n, each in enumerate(events, 1)
        ]
    for each in decoded:
        if each.error is not None or each.object == "error":
            raise _reported(each)
    return decoded


@lru_cache
def _decoder(event: type[EventType]) -> msgspec.json.Decoder[EventType]:
    return msgspec.json.Decoder(event)


def _decode_odd(data: bytes, event: type[EventType], which: str) -> EventType:
    """One event of a stream that holds what msgspec refuses.

    Python's own encoder writes NaN and halves of surrogate pairs, which JSON does not have: these are accepted.
    """
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EngineError(f"{which} in the response stream is no JSON object: {data[:200]!r}")
    try:
        return msgspec.convert(found, event)
    except msgspec.ValidationError as error:
        fault, _, field = str(error).partition(" - at `$.")
        raise EngineError(
            f"{which} in the response stream: `{field.rstrip('`')}` is not what it should be: {fault}"
        ) from None


def _reported(event: StreamEvent) -> EngineError:
    error = event.message if event.error is None else event.error
    message = error.get("message") if isinstance(error, Mapping) else None
    return EngineError(f"the server reported an error in the stream: {message or error}")


def _message_of(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:500]
    except (ValueError, TypeError, KeyError):
        return body[:500]


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _response_counters(reported: SpeculativeDecoding) -> Counters | None:
    histogram = reported.acceptance_histogram
    if not histogram:
        return None
    return Counters(
        source="response",
        drafted_steps=sum(histogram),
        drafted_tokens=reported.num_draft_tokens or 0,
        accepted_tokens=sum(accepted * steps for accepted, steps in enumerate(histogram)),
        accepted_per_position=tuple(sum(histogram[position:]) for position in range(1, len(histogram))),
        draft_length=len(histogram) - 1,
    )


def _tokens_without_ids(
    usages: Sequence[Usage | None],
    choices: Sequence[Choice],
    text: Sequence[str],
    output_tokens: int,
) -> list[int]:
    totals = [usage.completion_tokens if usage is not None else None for usage in usages]
    if sum(total is not None for total in totals) > 1:
        return list(_growth(totals))
    has_text = [bool(piece or _thought(choice)) for piece, choice in zip(text, choices, strict=True)]
    running = accumulate(has_text)
    return [int(some and total <= output_tokens) for some, total in zip(has_text, running, strict=True)]


def _thought(choice: Choice) -> str | None:
    delta = choice.delta or _NO_DELTA
    return delta.reasoning or delta.reasoning_content


def _completed(counts: list[int], output_tokens: int) -> tuple[int, ...]:
    """Tokens of each event; what `usage` counts beyond them came with the last that brought any."""
    told = sum(counts)
    if told > output_tokens:
        raise EngineError(
            f"the response stream carries {told} tokens, but its `usage` counts {output_tokens}"
        )
    if told < output_tokens:
        bearing = [index for index, count in enumerate(counts) if count] or [len(counts) - 1]
        counts[bearing[-1]] += output_tokens - told
    return tuple(counts)


def _growth(totals: Sequence[int | None]) -> Iterator[int]:
    before = 0
    for total in totals:
        now = max(total or 0, before)
        yield now - before
        before = now
