"""What a prompt is, on its way from a file to an engine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """One SPEED-Bench sample."""

    question_id: str
    category: str
    turns: tuple[str, ...]
    """What the user says, turn by turn (1 to 5); turn n+1 follows the engine's own reply to turn n."""

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the turns: names the text without holding it."""
        return hashlib.sha256(json.dumps(self.turns, ensure_ascii=False).encode()).hexdigest()[:16]

    @property
    def order(self) -> str:
        """SHA-256 of the `question_id`: prompts are taken in this order, whatever file they came from."""
        return hashlib.sha256(self.question_id.encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """The prompts of one split, as they are used in a run."""

    split: str
    source: str
    """`sample` for the bundled prompts, else the folder's file they came from."""
    prompts: tuple[Prompt, ...]
    """Category by category, each in `Prompt.order`."""
    warnings: tuple[str, ...] = ()
    """What a person should know of this data: for example that a category is short of prompts."""

    def of_category(self, category: str) -> tuple[Prompt, ...]:
        """The prompts of one category, in their order by `Prompt.order`."""
        return tuple(prompt for prompt in self.prompts if prompt.category == category)
