"""What goes over the wire: requests as vLLM takes them, responses as it gives them. No I/O here."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_speedbench.engines.reference.batching import Batch, Tally
from pytest_speedbench.engines.reference.vocabulary import BOS, ROLES, Vocabulary

MODEL = "reference"
_DEFAULT_MAX_TOKENS = 16
_JSON = json.JSONEncoder(separators=(",", ":"), check_circular=False)
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "top_p": (1, 1.0),
    "top_k": (0, -1),
    "min_p": (0, 0.0),
    "echo": (False,),
    "logprobs": (False,),
    "stop": ([], ""),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
}
"""Fields that may be given, but only with what the engine does anyway: silence would be a wrong answer."""


class RequestError(Exception):
    """A request that cannot be served.

    Args:
        message: for the client.
        status: HTTP status.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    @property
    def body(self) -> dict[str, Any]:
        """The error as vLLM words it."""
        kinds = {400: "BadRequestError", 404: "NotFoundError", 503: "ServiceUnavailableError"}
        kind = kinds.get(self.status, "InternalServerError")
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.status}}


@dataclass(frozen=True)
class GenerationRequest:
    """One generation, checked."""

    chat: bool
    prompt: tuple[int, ...]
    output_length: int
    temperature: float
    seed: int
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool


def parse_generation(
    body: Any, vocabulary: Vocabulary, *, chat: bool, max_model_len: int
) -> GenerationRequest:
    """Check the body of `/v1/completions` or `/v1/chat/completions`.

    Raises:
        RequestError: 400 for a field that is missing, of the wrong type or not supported; 404 for another model.
    """
    body = _object(body)
    _check_model(body)
    for name, allowed in _ONLY.items():
        if body.get(name) is not None and body[name] not in allowed:
            raise RequestError(f"`{name}` may only be {allowed[0]!r} here, not {body[name]!r}")
    prompt = parse_prompt(body, vocabulary, chat=chat)
    room = max_model_len - len(prompt)
    default = room if chat else _DEFAULT_MAX_TOKENS
    output_length = _integer(body, "max_completion_tokens", _integer(body, "max_tokens", default))
    if output_length < 1:
        raise RequestError(f"`max_tokens` must be at least 1, not {output_length}")
    if output_length > room:
        raise RequestError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{len(prompt)} in the prompt and {output_length} in the completion."
        )
    temperature = body.get("temperature", 1.0)
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, (int, float))
        or not 0 <= temperature <= 2
    ):
        raise RequestError(f"`temperature` must be a number from 0 to 2, not {temperature!r}")
    options = _object(body.get("stream_options") or {})
    return GenerationRequest(
        chat=chat,
        prompt=tuple(prompt),
        output_length=output_length,
        temperature=float(temperature),
        seed=_integer(body, "seed", 0),
        ignore_eos=_flag(body, "ignore_eos"),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        continuous_usage=_flag(options, "continuous_usage_stats"),
        return_token_ids=_flag(body, "return_token_ids"),
    )


def parse_prompt(body: Mapping[str, Any], vocabulary: Vocabulary, *, chat: bool) -> list[int]:
    """Token ids of `messages`, or of `prompt` as text or token ids.

    Raises:
        RequestError: there is none, it is empty, or it holds what is no token.
    """
    if chat:
        return vocabulary.chat(
            _messages(body.get("messages")), generation_prompt=_flag(body, "add_generation_prompt", True)
        )
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        start = [BOS] if _flag(body, "add_special_tokens", True) else []
        prompt = start + vocabulary.encode(prompt)
    if not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
        raise RequestError("`prompt` must be one text or one list of token ids")
    return _tokens(prompt, vocabulary, "prompt")


def parse_tokenize(body: Any, vocabulary: Vocabulary) -> list[int]:
    """Token ids for `/tokenize`; raises as `parse_prompt`, save that a text may be empty."""
    body = _object(body)
    _check_model(body)
    if body.get("prompt") == "" and not _flag(body, "add_special_tokens", True):
        return []
    return parse_prompt(body, vocabulary, chat="messages" in body)


def parse_detokenize(body: Any, vocabulary: Vocabulary) -> list[int]:
    """Token ids out of the body of `/detokenize`.

    Raises:
        RequestError: there are none, or they are no tokens.
    """
    body = _object(body)
    _check_model(body)
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise RequestError("`tokens` must be a list of token ids")
    return _tokens(tokens, vocabulary, "tokens") if tokens else []


class Reply:
    """Builds the response to one request, chunk by chunk or whole.

    Args:
        request: what was asked for.
        number: of the request, for its id.
    """

    def __init__(self, request: GenerationRequest, number: int) -> None:
        self._request = request
        self._completion_tokens = 0
        self._head = {
            "id": f"{'chatcmpl' if request.chat else 'cmpl'}-{number}",
            "object": "",
            "created": int(time.time()),
            "model": MODEL,
        }

    def opening(self) -> dict[str, Any] | None:
        """The first chunk of a chat, which names the role and brings no token."""
        if not self._request.chat:
            return None
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def chunk(self, text: str, tokens: Sequence[int], finish_reason: str | None) -> dict[str, Any]:
        """The chunk of one step."""
        self._completion_tokens += len(tokens)
        choice: dict[str, Any] = {"index": 0}
        choice.update({"delta": {"content": text}} if self._request.chat else {"text": text})
        choice.update(logprobs=None, finish_reason=finish_reason, stop_reason=None)
        if self._request.return_token_ids:
            choice["token_ids"] = list(tokens)
        return self._chunk([choice])

    def closing(self, tally: Tally | None) -> dict[str, Any]:
        """The usage chunk, with the request's counters unless it has none."""
        chunk = self._chunk([])
        chunk["usage"] = self._usage()
        chunk["metrics"] = metrics(tally)
        return chunk

    def whole(
        self, text: str, tokens: Sequence[int], finish_reason: str | None, tally: Tally | None
    ) -> dict[str, Any]:
        """The response where nothing is streamed."""
        self._completion_tokens = len(tokens)
        choice: dict[str, Any] = {"index": 0}
        if self._request.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice.update(logprobs=None, finish_reason=finish_reason, stop_reason=None)
        if self._request.return_token_ids:
            choice["token_ids"] = list(tokens)
        kind = "chat.completion" if self._request.chat else "text_completion"
        return self._head | {
            "object": kind,
            "choices": [choice],
            "usage": self._usage(),
            "metrics": metrics(tally),
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._request.chat else "text_completion"
        chunk: dict[str, Any] = self._head | {"object": kind, "choices": choices}
        if self._request.continuous_usage:
            chunk["usage"] = self._usage()
        return chunk

    def _usage(self) -> dict[str, int]:
        prompt = len(self._request.prompt)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + self._completion_tokens,
            "completion_tokens": self._completion_tokens,
        }


def metrics(tally: Tally | None) -> dict[str, Any] | None:
    """A request's counters under vLLM's names; None where there is no speculative decoding."""
    if tally is None or not tally.draft_length:
        return None
    steps, accepted, drafted = tally.drafted_steps, tally.accepted_tokens, tally.drafted_tokens
    return {
        "speculative_decoding": {
            "mean_acceptance_length": 1.0 + accepted / steps if steps else 1.0,
            "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
            "acceptance_histogram": list(tally.histogram),
            "num_spec_steps": steps,
            "num_accepted_draft_tokens": accepted,
            "num_draft_tokens": drafted,
            "num_spec_tokens": tally.draft_length,
        }
    }


def exposition(batch: Batch, *, counters: bool) -> str:
    """Prometheus text of a server, under vLLM's names where vLLM has the thing.

    Args:
        batch: the server's batch.
        counters: whether those of speculative decoding are shown (never with method `none`).
    """
    labels = f'engine="0",model_name="{MODEL}"'
    lines: list[str] = []

    def add(name: str, kind: str, what: str, samples: Sequence[tuple[str, float]]) -> None:
        lines.extend((f"# HELP {name} {what}", f"# TYPE {name} {kind}"))
        lines.extend(f"{name}{{{labels}{more}}} {float(value)}" for more, value in samples)

    add("vllm:num_requests_running", "gauge", "Requests in decode.", [("", len(batch.running))])
    add("vllm:num_requests_waiting", "gauge", "Requests before prefill.", [("", len(batch.waiting))])
    add("vllm:prompt_tokens_total", "counter", "Tokens prefilled.", [("", batch.prompt_tokens)])
    add("vllm:generation_tokens_total", "counter", "Tokens generated.", [("", batch.generated_tokens)])
    latency = "vllm:inter_token_latency_seconds"
    lines.extend((f"# HELP {latency} Modelled latency of decode steps.", f"# TYPE {latency} histogram"))
    lines.append(f'{latency}_bucket{{{labels},le="+Inf"}} {float(batch.decode_steps)}')
    lines.append(f"{latency}_count{{{labels}}} {float(batch.decode_steps)}")
    lines.append(f"{latency}_sum{{{labels}}} {batch.decode_s}")
    tally = batch.tally
    if counters and tally.draft_length:
        spec = "vllm:spec_decode_num"
        add(f"{spec}_drafts_total", "counter", "Steps that had a draft.", [("", tally.drafted_steps)])
        add(f"{spec}_draft_tokens_total", "counter", "Tokens drafted.", [("", tally.drafted_tokens)])
        add(f"{spec}_accepted_tokens_total", "counter", "Drafts accepted.", [("", tally.accepted_tokens)])
        add(
            f"{spec}_accepted_tokens_per_pos_total",
            "counter",
            "Drafts accepted, by position.",
            [(f',position="{i}"', count) for i, count in enumerate(tally.accepted_per_position)],
        )
    clock = batch.clock
    add("reference:clock_passes_total", "counter", "Forward passes.", [("", clock.passes)])
    add(
        "reference:clock_late_passes_total",
        "counter",
        "Passes that ended later than due by more than their latency.",
        [("", clock.late_passes)],
    )
    add(
        "reference:clock_late_seconds_total",
        "counter",
        "Seconds by which passes ended later than due.",
        [("", clock.late_s)],
    )
    return "\n".join(lines) + "\n"


def encode(document: Mapping[str, Any]) -> bytes:
    """JSON, compact."""
    return _JSON.encode(document).encode()


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise RequestError(f"a JSON object is wanted, not {type(body).__name__}")
    return body


def _check_model(body: Mapping[str, Any]) -> None:
    model = body.get("model")
    if model not in (None, "", MODEL):
        raise RequestError(f"The model `{model}` does not exist; this server serves `{MODEL}`.", 404)


def _integer(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise RequestError(f"`{name}` must be an integer, not {value!r}")
    return value


def _flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(f"`{name}` must be true or false, not {value!r}")
    return value


def _messages(messages: Any) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise RequestError("`messages` must be a list of at least one message")
    pairs = []
    for message in messages:
        message = _object(message)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise RequestError(f"unknown role {role!r}; known are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise RequestError("`content` of a message must be a text")
        pairs.append((str(role), content))
    return pairs


def _tokens(tokens: list[int], vocabulary: Vocabulary, name: str) -> list[int]:
    if not tokens:
        raise RequestError(f"`{name}` is empty")
    if min(tokens) < 0 or max(tokens) >= len(vocabulary):
        wrong = next(token for token in tokens if not 0 <= token < len(vocabulary))
        raise RequestError(f"token id {wrong} in `{name}` is out of the vocabulary of {len(vocabulary)}")
    return tokens
