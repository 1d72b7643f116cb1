"""The words that have one meaning everywhere: splits, categories, gated metrics.

Constants only: every pytest run imports them.
"""

from __future__ import annotations

from pytest_speedbench.catalogue import GATED_ACCEPTANCE, GATED_THROUGHPUT

MARKER = "speedbench"
"""Name of the marker, and of the fixture that a marked test takes."""

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
DEFAULT_BATCH_SIZES = (1, 32)
"""For tests that name none, in runs that name none."""

ACCEPTANCE = GATED_ACCEPTANCE
"""Gated metrics that are a property of models and prompts, and compare across machines."""
THROUGHPUT = GATED_THROUGHPUT
"""Gated metrics that compare only on the same hardware. More is better in all of them."""
GATED = ACCEPTANCE + THROUGHPUT


def categories_of(split: str) -> tuple[str, ...]:
    """The categories of a split, in SPEED-Bench's (alphabetical, low to high entropy) order."""
    return DOMAINS if split == QUALITATIVE else ENTROPY_TIERS


def prompts_per_category(split: str) -> int:
    """How many prompts SPEED-Bench has in each category of a split."""
    return 80 if split == QUALITATIVE else 512
