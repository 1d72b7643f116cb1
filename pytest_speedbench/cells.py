"""The grid: which cells a test runs, and their stable ids such as `qualitative-coding-bs32`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_speedbench.errors import SettingsError
from pytest_speedbench.speed_bench import (
    DEFAULT_BATCH_SIZES,
    MAX_BATCH_SIZE,
    QUALITATIVE,
    SPLITS,
    categories_of,
)

MEAN = "mean"
"""In place of a category: the mean over the categories of one split and batch size."""


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

    @property
    def is_mean(self) -> bool:
        """Whether this stands for all categories of its split and batch size, and not for one."""
        return self.category == MEAN

    def shares_group(self, other: Cell) -> bool:
        """Whether both are of one split and one batch size."""
        return (self.split, self.batch_size) == (other.split, other.batch_size)


def in_grid_order(cells: Iterable[Cell]) -> list[Cell]:
    """Cells by split, batch size and category, as SPEED-Bench lists them; a mean after its categories."""

    def place(cell: Cell) -> tuple[int, int, int]:
        categories = (*categories_of(cell.split), MEAN)
        return SPLITS.index(cell.split), cell.batch_size, categories.index(cell.category)

    return sorted(cells, key=place)


@dataclass(frozen=True)
class Grid:
    """The cells one test asks for, as its marker names them; `batch_sizes` None takes the run's."""

    splits: tuple[str, ...]
    categories: tuple[str, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    speedup: bool = False
    """Whether each cell is measured a second time with method `none`."""

    def cells(self, narrowing: Narrowing) -> tuple[Cell, ...]:
        """The cells, in the order of splits, batch sizes, categories; after several categories, their mean."""
        batch_sizes = self.batch_sizes or narrowing.batch_sizes or DEFAULT_BATCH_SIZES
        cells: list[Cell] = []
        for split in self.splits:
            if narrowing.splits is not None and split not in narrowing.splits:
                continue
            categories = [
                category
                for category in categories_of(split)
                if self.categories is None or category in self.categories
                if narrowing.categories is None or category in narrowing.categories
            ]
            if len(categories) > 1:
                categories.append(MEAN)
            cells += [
                Cell(split, category, batch_size)
                for batch_size in batch_sizes
                if narrowing.batch_sizes is None or batch_size in narrowing.batch_sizes
                for category in categories
            ]
        return tuple(cells)


@dataclass(frozen=True)
class Plan:
    """What tests ask of one cell; None where they leave it to the run's options."""

    speedup: bool = False
    metrics: tuple[str, ...] | None = None
    rounds: int | None = None
    limit: int | None = None
    output_length: int | None = None
    tolerance: Mapping[str, float] = field(default_factory=dict)
    exclude_from_mean: tuple[str, ...] = ()


@dataclass(frozen=True)
class Narrowing:
    """Which part of the grid a run keeps; None keeps all. Needs no engine."""

    splits: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None


def read_marker(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Grid:
    """What `@pytest.mark.speedbench(split=..., categories=..., batch_sizes=..., speedup=...)` asks for.

    Args:
        arguments: positional arguments of the marker; there may be none.
        keywords: its keyword arguments. `split` is a name or a sequence of names.

    Raises:
        SettingsError: an argument that is missing, unknown, or holds what it may not.
    """
    where = "@pytest.mark.speedbench"
    if arguments:
        raise SettingsError(
            f"{where}{arguments}: takes keyword arguments only, such as split={QUALITATIVE!r}"
        )
    unknown = sorted(set(keywords) - {"split", "categories", "batch_sizes", "speedup"})
    if unknown:
        raise SettingsError(
            f"{where}: unknown argument {unknown[0]!r}; allowed are split, categories, batch_sizes, speedup"
        )
    splits = _sequence(keywords.get("split", ()))
    if not splits or not set(splits) <= set(SPLITS):
        raise SettingsError(f"{where}(split={keywords.get('split')!r}): allowed are {', '.join(SPLITS)}")
    categories = _sequence(keywords["categories"]) if keywords.get("categories") is not None else None
    known = {category for split in splits for category in categories_of(split)}
    if categories is not None and (not categories or not set(categories) <= known):
        raise SettingsError(
            f"{where}(categories={keywords['categories']!r}): {splits[0]} has {', '.join(categories_of(splits[0]))}"
        )
    batch_sizes = keywords.get("batch_sizes")
    if batch_sizes is not None:
        batch_sizes = tuple(batch_sizes) if isinstance(batch_sizes, (list, tuple)) else (batch_sizes,)
        if not batch_sizes or not all(
            type(size) is int and 1 <= size <= MAX_BATCH_SIZE for size in batch_sizes
        ):
            raise SettingsError(
                f"{where}(batch_sizes={keywords['batch_sizes']!r}): whole numbers from 1 to {MAX_BATCH_SIZE} are allowed"
            )
        batch_sizes = tuple(dict.fromkeys(batch_sizes))
    speedup = keywords.get("speedup", False)
    if not isinstance(speedup, bool):
        raise SettingsError(f"{where}(speedup={speedup!r}): allowed are True and False")
    return Grid(tuple(dict.fromkeys(splits)), categories, batch_sizes, speedup)


def _sequence(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
