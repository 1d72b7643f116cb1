"""The smallest engine: speaks JSON events that the tests' own server writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pytest_speedbench.data.prompts import Prompt
from pytest_speedbench.engines.base import (
    Counters,
    Engine,
    Generation,
    Hardware,
    HttpCall,
    Launch,
    Message,
    Reply,
)
from pytest_speedbench.engines.control import Control
from pytest_speedbench.errors import EngineError
from pytest_speedbench.settings.target import Sampling, Target

TARGET = Target(name="stub", engine="stub", method="draft_model", draft_length=3)


def prompts(count: int, turns: int = 1) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"q{number}", "coding", tuple(f"question {number}.{turn}" for turn in range(turns)))
        for number in range(count)
    )


def sampling(output_length: int = 8) -> Sampling:
    return Sampling.exactly(output_length)


def spoken(chat: Sequence[Message]) -> str:
    return "|".join(f"{message.role}:{message.content}" for message in chat)


class StubEngine(Engine):
    """Tokenizes to UTF-8 bytes, or not at all; keeps a diary of its control calls.

    Counters read as `counter_readings` has them, in turn, and the last one for good.
    """

    name = "stub"
    methods = ("draft_model",)

    def __init__(
        self, target: Target = TARGET, *, tokenizes: bool = True, counts_per_request: bool = True
    ) -> None:
        super().__init__(target)
        self.tokenizes = tokenizes
        self._counts_per_request = counts_per_request
        self.diary: list[str] = []
        self.counter_readings: list[Counters | EngineError | None] = []

    @property
    def counts_per_request(self) -> bool:
        return self._counts_per_request

    def launch(self, port: int) -> Launch:
        raise NotImplementedError

    def call(self, generation: Generation) -> HttpCall:
        chat = generation.messages
        body: dict[str, Any] = {
            "output_length": generation.sampling.output_length,
            "token_ids": generation.token_ids,
            "messages": None if chat is None else spoken(chat),
        }
        return HttpCall("/generate", json.dumps(body).encode())

    def read(self, events: Sequence[bytes]) -> Reply:
        texts, tokens = [], []
        usage, finish = 0, None
        for event in events:
            decoded = json.loads(event)
            if "error" in decoded:
                raise EngineError(f"stub: {decoded['error']}")
            texts.append(decoded.get("text", ""))
            tokens.append(decoded.get("tokens", 0))
            usage = decoded.get("usage", usage)
            finish = decoded.get("finish", finish)
        return Reply("".join(texts), tuple(tokens), usage, 1, None, finish, None)

    def tokenize(self, control: Control, messages: Sequence[Message]) -> tuple[int, ...] | None:
        return tuple(spoken(messages).encode()) if self.tokenizes else None

    def reset(self, control: Control) -> None:
        self.diary.append("reset")

    def server_counters(self, control: Control) -> Counters | None:
        self.diary.append("counters")
        readings = self.counter_readings
        reading = readings.pop(0) if len(readings) > 1 else readings[0]
        if isinstance(reading, EngineError):
            raise reading
        return reading

    def version(self, control: Control) -> str:
        return "1"

    def hardware(self, control: Control) -> Hardware:
        return Hardware("stub")


def counters(steps: int, accepted_per_position: tuple[int, ...]) -> Counters:
    return Counters(
        source="prometheus",
        drafted_steps=steps,
        drafted_tokens=3 * steps,
        accepted_tokens=sum(accepted_per_position),
        accepted_per_position=accepted_per_position,
        draft_length=3,
    )


def spoken_to(body: dict[str, Any]) -> str:
    """What a request asked, whichever way it was written."""
    return str(body["messages"]) if body["token_ids"] is None else bytes(body["token_ids"]).decode()
