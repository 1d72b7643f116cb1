"""Prompts of random token ids, to measure beside the real ones: how far do they overstate throughput?"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_speedbench.errors import SettingsError

if TYPE_CHECKING:
    from pytest_speedbench.data.prompts import Prompt
    from pytest_speedbench.engines.base import Engine, Generation
    from pytest_speedbench.load.conversation import Prepared


def random_control(engine: Engine, prepared: Prepared, seed: int = 0) -> Prepared:
    """As many prompts of as many input tokens as the first turns of the real ones, their token ids random.

    Each id is drawn uniformly from the distinct ids that the real prompts hold, special tokens of the chat template
    among them: those are valid for any engine, whatever its vocabulary. SPEED-Bench (arXiv 2604.09557) compares
    such prompts with real text of the same length.

    Args:
        engine: encodes the calls.
        prepared: the real prompts of a cell.
        seed: of the drawing; the same seed and prompts give the same ids.

    Returns:
        Prompts of one turn each. They keep their `question_id`; text and `digest` name the ids that were drawn, so that
        no baseline pairs them with the real ones.

    Raises:
        SettingsError: the prompts go out as chat messages.
    """
    known = sorted({token for generation in prepared.generations for token in generation.token_ids or ()})
    if not known or any(generation.token_ids is None for generation in prepared.generations):
        raise SettingsError(
            f"random-token prompts cannot be measured on engine {engine.name}: prompts go out to it as chat messages, "
            "not as token ids; leave the random control out, or use an engine that takes token ids"
        )
    chance = random.Random(seed)
    generations = tuple(_drawn(generation, known, chance) for generation in prepared.generations)
    return replace(
        prepared,
        prompts=tuple(map(_named, prepared.prompts, generations)),
        generations=generations,
        openings=tuple(engine.call(generation) for generation in generations),
        note="the prompts are random token ids, not text",
    )


def _drawn(generation: Generation, known: list[int], chance: random.Random) -> Generation:
    return replace(generation, token_ids=tuple(chance.choices(known, k=len(generation.token_ids or ()))))


def _named(prompt: Prompt, generation: Generation) -> Prompt:
    ids = " ".join(map(str, generation.token_ids or ()))
    return replace(prompt, turns=(f"random token ids, SHA-256 {hashlib.sha256(ids.encode()).hexdigest()}",))
