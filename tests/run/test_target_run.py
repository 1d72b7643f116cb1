"""How a cell is measured."""

from __future__ import annotations

import pytest

from pytest_speedbench.cells import Cell
from pytest_speedbench.run.target_run import conversations_of


@pytest.mark.parametrize(
    ("split", "category", "batch_size", "prompts", "conversations"),
    [
        ("qualitative", "coding", 1, 80, 80),
        ("qualitative", "coding", 32, 80, 80),
        ("qualitative", "coding", 128, 80, 128),
        ("throughput_1k", "mixed", 1, 512, 512),
        ("throughput_1k", "mixed", 128, 512, 512),
        ("throughput_1k", "mixed", 512, 512, 2048),
        ("throughput_32k", "mixed", 8, 12, 32),
    ],
)
def test_how_many_conversations_a_round_has(
    split: str, category: str, batch_size: int, prompts: int, conversations: int
) -> None:
    """One pass for acceptance length; for throughput at least four batches, so that there is a steady state."""
    assert conversations_of(Cell(split, category, batch_size), prompts) == conversations
