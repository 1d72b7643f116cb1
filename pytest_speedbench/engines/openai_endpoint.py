"""Any server that speaks the OpenAI API: attached to, never launched, and measured from its streams alone.

Prompts go out as chat messages. Speed comes from the stream and its `usage`. How such a server drafts, and in how
many steps, the API does not tell; nor can it ask a server to forget its prefix cache, which so is measured too. Where every event carries `usage` (`stream_options.continuous_usage_stats`, as
vLLM, SGLang and TensorRT-LLM have it), each event that brings tokens is taken for a step, and the acceptance length
is marked `estimated`: servers put several steps into one event when they are behind (7 to 10 % too high on a loaded
vLLM, and 3 % apart in two equal runs). Elsewhere acceptance length is not available, and a test that gates it fails.

The key is taken from `SPEEDBENCH_API_KEY`; or from `OPENAI_API_KEY`, which is likely to be set for other purposes
and so goes to https or to this machine only. It is in the headers of requests and nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from pytest_speedbench.engines.base import (
    ESTIMATED,
    Counters,
    Engine,
    Generation,
    Hardware,
    HttpCall,
    Launch,
    Reply,
)
from pytest_speedbench.engines.control import KEY_VARIABLE, refusal
from pytest_speedbench.engines.launch import hardware
from pytest_speedbench.engines.openai_wire import Chunk, decode_events, read_chunks
from pytest_speedbench.errors import EngineError, SettingsError
from pytest_speedbench.settings.methods import UNKNOWN, Method
from pytest_speedbench.settings.target import is_local

if TYPE_CHECKING:
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.settings.target import Target

_USUAL_KEY = "OPENAI_API_KEY"


class OpenAiEndpoint(Engine):
    """A running endpoint. Its base URL may end in `/v1` or not."""

    name = "openai"
    methods: ClassVar[Collection[Method | str]] = (UNKNOWN,)
    default_method: ClassVar[str] = UNKNOWN.name
    counts_per_request = True
    messages_only = True

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._model = target.model
        self._tells_growth = False

    @property
    def ready_path(self) -> str:
        """Lists the models."""
        return self._path("models")

    def check(self) -> None:
        """Refuse what cannot be measured, or would not be what it says.

        Raises:
            SettingsError: one line naming the option, its value and what is allowed.
        """
        target = self.target
        if target.url is None:
            raise SettingsError(
                "--speedbench-engine=openai needs --speedbench-url: it measures a server that already runs"
            )
        if "@" in urlsplit(target.url).netloc:
            raise SettingsError(f"--speedbench-url: holds a user name; give a key in ${KEY_VARIABLE} instead")
        _ = self.method

    def launch(self, port: int) -> Launch:
        """Nothing: `check` refuses a target without a URL.

        Raises:
            EngineError: always.
        """
        raise EngineError("engine openai launches nothing; name a server with --speedbench-url")

    def authorization(self) -> Mapping[str, str]:
        """The key as a header; none where there is no key, or none for this URL."""
        key = os.environ.get(KEY_VARIABLE)
        url = self.target.url or ""
        if not key and (urlsplit(url).scheme == "https" or is_local(url)):
            key = os.environ.get(_USUAL_KEY)
        return {"Authorization": f"Bearer {key.strip()}"} if key else {}

    def call(self, generation: Generation) -> HttpCall:
        """Encode one streaming generation; no field that the API does not have, but for `ignore_eos` if asked for.

        Raises:
            ValueError: it has no messages.
        """
        if generation.messages is None:
            raise ValueError("an OpenAI endpoint is sent chat messages")
        sampling = generation.sampling
        stream_options = {"include_usage": True}
        if self._tells_growth:
            stream_options["continuous_usage_stats"] = True
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [
                {"role": message.role, "content": message.content} for message in generation.messages
            ],
            "max_tokens": sampling.output_length,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": stream_options,
        }
        if sampling.ignore_eos:
            body["ignore_eos"] = True
        headers = {"Content-Type": "application/json", **self.authorization()}
        return HttpCall(self._path("chat/completions"), json.dumps(body).encode(), headers)

    def read(self, events: Sequence[bytes]) -> Reply:
        """Decode the `data:` payloads of one response stream, `[DONE]` left out.

        Raises:
            EngineError: as `openai_wire.read_stream`; among others, the stream has no `usage`.
        """
        chunks = decode_events(events, Chunk)
        reply = read_chunks(chunks)
        # What a server may tell beyond the API is for its own engine module, which knows what it means.
        return replace(reply, counters=_estimated(chunks, reply))

    def version(self, control: Control) -> str:
        """Not told by the API. Learns the model and what the endpoint understands, for this is asked first.

        Raises:
            EngineError: there is no such model, or the endpoint refuses a request of two tokens.
        """
        self._model = self._served_model(control)
        trial = {
            "model": self._model,
            "messages": [{"role": "user", "content": "Say yes."}],
            "max_tokens": 2,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        path = self._path("chat/completions")
        answer = control.post(path, trial)
        self._tells_growth = answer.status_code == 200
        if not self._tells_growth:
            trial["stream_options"] = {"include_usage": True}
            answer = control.post(path, trial)
        if answer.status_code != 200:
            raise refusal(answer)
        return "not told"

    def hardware(self, control: Control) -> Hardware:
        """This machine's, or the address of another one."""
        return hardware.attached(self.target)

    def _served_model(self, control: Control) -> str:
        listing = control.get_json(self.ready_path)
        entries = listing.get("data") if isinstance(listing, dict) else None
        ids = [str(entry.get("id")) for entry in entries or () if isinstance(entry, dict)]
        if self.target.model is not None:
            return self.target.model  # gateways serve more than they list
        if len(ids) != 1:
            raise EngineError(
                f"--speedbench-engine=openai needs --speedbench-model: {control.url} serves "
                f"{', '.join(ids[:5]) or 'no model'}{' and more' if len(ids) > 5 else ''}"
            )
        return ids[0]

    def _path(self, what: str) -> str:
        has_version = urlsplit(self.target.url or "").path.endswith("/v1")
        return f"/{what}" if has_version else f"/v1/{what}"


def _estimated(chunks: Sequence[Chunk], reply: Reply) -> Counters | None:
    """Each event that brought tokens taken for a step, the first for prefill; None where the growth is not told."""
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    growing = {usage.completion_tokens for usage in usages if usage.completion_tokens}
    steps = len(growing) - 1
    if steps < 1:
        return None
    return Counters(
        source=ESTIMATED,
        drafted_steps=None,
        drafted_tokens=None,
        accepted_tokens=reply.output_tokens - 1 - steps,
        accepted_per_position=(),
        draft_length=0,
        decode_steps=steps,
    )
