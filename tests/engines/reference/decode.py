"""Decode whole outputs, as the server would but with no server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from pytest_speedbench.engines.reference.decoding import Decoding, Step
from pytest_speedbench.engines.reference.models import ModelPair
from pytest_speedbench.engines.reference.randomness import Randomness, digest
from pytest_speedbench.engines.reference.vocabulary import built_in


@cache
def models(draft_quality: float = 1.0, loop: bool = False) -> ModelPair:
    return ModelPair(built_in(), draft_quality, loop=loop)


def chat(text: str) -> list[int]:
    return built_in().chat([("user", text)])


def decoding(
    prompt: Sequence[int],
    method: str,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    draft_length: int = 3,
    pair: ModelPair | None = None,
    may_end: bool = False,
) -> Decoding:
    return Decoding(
        pair or models(),
        prompt,
        method=method,
        draft_length=draft_length,
        temperature=temperature,
        randomness=Randomness(digest(prompt, 0, seed)),
        may_end=may_end,
    )


def generate(state: Decoding, length: int) -> tuple[list[int], list[Step]]:
    """The first `length` tokens, and the steps that they took."""
    tokens = [state.first()]
    steps = []
    while len(tokens) < length:
        steps.append(state.step())
        tokens.extend(steps[-1].tokens)
    return tokens[:length], steps


def acceptance_length(steps: Sequence[Step]) -> float:
    return 1.0 + sum(step.accepted for step in steps) / len(steps)
