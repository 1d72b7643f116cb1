"""The grid: splits, their categories, and cells with stable ids such as `qualitative-coding-bs32`."""

from __future__ import annotations

from dataclasses import dataclass

QUALITATIVE = "qualitative"
DOMAINS = (
    "coding",
    "humanities",
    "math",
    "multilingual",
    "qa",
    "rag",
    "reasoning",
    "roleplay",
    "stem",
    "summarization",
    "writing",
)
ENTROPY_TIERS = ("low_entropy", "mixed", "high_entropy")
INPUT_LENGTHS = {
    "throughput_1k": 1_000,
    "throughput_2k": 2_000,
    "throughput_8k": 8_000,
    "throughput_16k": 16_000,
    "throughput_32k": 32_000,
}
"""Nominal input sequence length in tokens (k = 1000) of each throughput split."""

SPLITS = (QUALITATIVE, *INPUT_LENGTHS)
MAX_BATCH_SIZE = 512


def categories_of(split: str) -> tuple[str, ...]:
    """The categories of a split, in SPEED-Bench's (alphabetical, low to high entropy) order."""
    return DOMAINS if split == QUALITATIVE else ENTROPY_TIERS


def prompts_per_category(split: str) -> int:
    """How many prompts SPEED-Bench has in each category of a split."""
    return 80 if split == QUALITATIVE else 512


@dataclass(frozen=True)
class Cell:
    """One (split, category, batch size): the unit that is measured, compared and reported."""

    split: str
    category: str
    batch_size: int
    """Requests in flight at once."""

    @property
    def id(self) -> str:
        """Stable name, used in test ids, baselines and reports."""
        return f"{self.split}-{self.category}-bs{self.batch_size}"
