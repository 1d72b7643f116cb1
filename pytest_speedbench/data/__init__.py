"""Prompts: SPEED-Bench splits read, checked and selected, and the sample that stands in for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_speedbench.data.prompts import Dataset, Prompt

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Dataset", "Prompt", "load"]


def load(
    split: str,
    folder: Path | None,
    categories: tuple[str, ...] | None = None,
    limit: int | None = None,
) -> Dataset:
    """The prompts of a split that a run needs. Reads and checks every row, and keeps only those.

    Args:
        split: one of `cells.SPLITS`.
        folder: prepared SPEED-Bench data, laid out as `reader.FORMS` says; None for the bundled sample.
        categories: the categories to keep; None for all of the split.
        limit: prompts to keep per category, the first by `Prompt.order`; None for all.

    Returns:
        The prompts, category by category, each in `Prompt.order`. `source` is `sample` for the bundled prompts, which carry no warnings
        (the name says that they are no SPEED-Bench), else the file.

    Raises:
        DataError: the data is missing, damaged or not resolved, its prompts are random tokens, or it holds
            nothing of a category that was asked for; one line that names file, row and cure.
    """
    from pytest_speedbench.data import reader, rows, sample

    wanted = rows.wanted_categories(split, categories, limit)
    if folder is None:
        return Dataset(split, sample.SOURCE, rows.select(sample.prompts(split), wanted, limit).prompts)
    source = reader.find(split, folder)
    selection = rows.select(rows.prompts(source, split), wanted, limit)
    rows.refuse_random(selection, split, source.label)
    if categories is not None:
        rows.refuse_absent(selection, wanted, source.label)
    return Dataset(
        split, source.label, selection.prompts, rows.shortages(selection, split, wanted, source.label)
    )
