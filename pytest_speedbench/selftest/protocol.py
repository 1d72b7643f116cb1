"""What the loopback server reads and writes: requests and event streams as vLLM has them. No I/O here."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_speedbench import __version__

MODEL = "loopback"
GENERATIONS = ("/v1/completions", "/v1/chat/completions")
MAX_MODEL_LEN = 1_048_576

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:")
_CLOSE = re.compile(rb"(?i)\r\nconnection:[ \t]*close")
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 411: "Length Required"}
_STAMP = b"%17.6f"
"""As wide for every uptime: the length of an event is part of what is sent, and prepared beforehand."""
_UNFINISHED = b'"finish_reason":null    '
_FINISHED = b'"finish_reason":"length"'


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        message: for the client.
        ends_connection: whether where the next request would begin is not known.
    """

    def __init__(self, status: int, message: str, *, ends_connection: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.ends_connection = ends_connection


@dataclass(frozen=True)
class Request:
    """One HTTP request, complete."""

    method: str
    path: str
    body: bytes
    length: int
    """Bytes of head and body."""
    closes: bool
    """Whether the client wants the connection closed after the answer."""


@dataclass(frozen=True)
class Asked:
    """One generation."""

    chat: bool
    model: str
    prompt_tokens: int
    output_length: int
    include_usage: bool
    continuous_usage: bool
    """Whether every event tells the usage so far."""
    return_token_ids: bool


def parse_request(received: bytes | bytearray) -> Request | None:
    """The first request of what was received; None while it is not complete.

    Raises:
        Refusal: 400 where it is no HTTP; 411 where the body's length is not told.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end])
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise Refusal(400, "the request is no HTTP/1", ends_connection=True)
    told = _LENGTH.search(head)
    if told is None and _CHUNKED.search(head):
        raise Refusal(411, "the body's length must be told in Content-Length", ends_connection=True)
    length = end + 4 + (int(told[1]) if told else 0)
    if len(received) < length:
        return None
    return Request(
        method=words[0].decode("latin-1"),
        path=words[1].decode("latin-1").partition("?")[0],
        body=bytes(received[end + 4 : length]),
        length=length,
        closes=bool(_CLOSE.search(head)),
    )


def asked(request: Request) -> Asked:
    """The generation that a request asks for. Any model name will do, and so will any prompt.

    Raises:
        Refusal: 400 where it is no JSON object, asks for no stream, or for less than one token.
    """
    body = _object(request)
    chat = request.path == GENERATIONS[1]
    options = body.get("stream_options") or {}
    output_length = body.get("max_completion_tokens") or body.get("max_tokens") or 16
    if not body.get("stream"):
        raise Refusal(400, "`stream` must be true: this server does nothing but stream")
    if type(output_length) is not int or not 1 <= output_length <= MAX_MODEL_LEN:
        raise Refusal(400, f"`max_tokens` must be a whole number from 1 to {MAX_MODEL_LEN}")
    return Asked(
        chat=chat,
        model=str(body.get("model") or MODEL),
        prompt_tokens=len(_tokens(body)),
        output_length=output_length,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        return_token_ids=bool(body.get("return_token_ids")),
    )


def document(request: Request) -> dict[str, Any]:
    """The answer to what is no generation.

    Raises:
        Refusal: 404 for a path that is not served; 400 as `asked`.
    """
    if request.path in ("/health", "/ping"):
        return {}
    if request.path == "/version":
        return {"version": __version__}
    if request.path == "/v1/models":
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "pytest-speedbench", "root": MODEL}
        return {"object": "list", "data": [model | {"max_model_len": MAX_MODEL_LEN}]}
    if request.path == "/tokenize":
        tokens = _tokens(_object(request))
        return {"count": len(tokens), "max_model_len": MAX_MODEL_LEN, "tokens": tokens}
    raise Refusal(404, f"{request.method} {request.path} is not served by the loopback server")


def response(status: int, body: Mapping[str, Any]) -> bytes:
    """A whole response with a JSON body."""
    encoded = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(encoded)}\r\n\r\n"
    )
    return head.encode() + encoded


def opening(asked: Asked, number: int) -> bytes:
    """The head of a streaming response, and of a chat the event that names the role."""
    if not asked.chat:
        return _STREAM_HEAD
    delta = {"role": "assistant", "content": ""}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return _STREAM_HEAD + _chunk(_data(_head(asked, number) | {"choices": [choice]}))


def template(asked: Asked, number: int) -> bytes:
    """An event of one token, to be completed by `%`.

    Its text and its token id are the stream's number. What is left open are the moment of sending in seconds
    and, before it, if every event tells the usage, the tokens in all and those of the output.
    """
    text = f" {number}"
    choice: dict[str, Any] = {"index": 0}
    choice.update({"delta": {"content": text}} if asked.chat else {"text": text})
    choice.update(logprobs=None, finish_reason=None, stop_reason=None)
    if asked.return_token_ids:
        choice["token_ids"] = [number]
    event = _data(_head(asked, number) | {"choices": [choice]})
    event = event.replace(b"%", b"%%").replace(b'"finish_reason":null', _UNFINISHED)
    more, sample = b"", (0.0,)
    if asked.continuous_usage:
        more = (
            b',"usage":{"prompt_tokens":%d,"total_tokens":%%8d,"completion_tokens":%%8d}'
            % asked.prompt_tokens
        )
        sample = (0, 0, 0.0)  # type: ignore[assignment]
    event = event[: -len(b"}\n\n")] + more + b',"sent_s":' + _STAMP + b"}\n\n"
    return b"%x\r\n" % len(event % sample) + event + b"\r\n"


def finished(event: bytes) -> bytes:
    """An event of `template` as the last one of its stream: of the same length."""
    return event.replace(_UNFINISHED, _FINISHED)


def ending(asked: Asked, number: int) -> bytes:
    """What follows the last event: usage if it was asked for, `[DONE]`, and the end of the body."""
    end = b""
    if asked.include_usage:
        usage = {
            "prompt_tokens": asked.prompt_tokens,
            "total_tokens": asked.prompt_tokens + asked.output_length,
            "completion_tokens": asked.output_length,
        }
        end = _chunk(_data(_head(asked, number) | {"choices": [], "usage": usage}))
    return end + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _head(asked: Asked, number: int) -> dict[str, Any]:
    return {
        "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{number:016x}",
        "object": "chat.completion.chunk" if asked.chat else "text_completion",
        "created": int(time.time()),
        "model": asked.model,
    }


def _data(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


def _object(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(request.body)
    except ValueError as error:
        raise Refusal(400, f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "the body is no JSON object")
    return body


def _tokens(body: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt: those that were sent, or the bytes of its text."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return prompt
    if not isinstance(prompt, str):
        messages = body.get("messages") or ()
        prompt = "".join(_text(message.get("content")) for message in messages if isinstance(message, dict))
    return list(prompt.encode())


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
