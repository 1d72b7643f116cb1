"""The marker: which cells a test runs, under which stable ids, and what is asked of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_speedbench.errors import SettingsError
from pytest_speedbench.speed_bench import (
    DEFAULT_BATCH_SIZES,
    GATED,
    MAX_BATCH_SIZE,
    QUALITATIVE,
    SPLITS,
    categories_of,
)

MEAN = "mean"
"""In place of a category: the mean over the categories of one split and batch size."""
_MARKER = "@pytest.mark.speedbench"


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
class Narrowing:
    """Which part of the grid a run keeps; None keeps all. Needs no engine."""

    splits: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Grid:
    """The cells that one marker names, and what it asks of them; `batch_sizes` None takes the run's."""

    splits: tuple[str, ...]
    categories: tuple[str, ...] | None = None
    batch_sizes: tuple[int, ...] | None = None
    speedup: bool = False
    metrics: tuple[str, ...] | None = None
    rounds: int | None = None
    limit: int | None = None
    output_length: int | None = None
    tolerance: Mapping[str, float] = field(default_factory=dict)
    """By metric, and by `mean_<metric>` for the mean."""
    exclude_from_mean: tuple[str, ...] = ()

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
            if len(set(categories) - set(self.exclude_from_mean)) > 1:
                categories.append(MEAN)
            cells += [
                Cell(split, category, batch_size)
                for batch_size in batch_sizes
                if narrowing.batch_sizes is None or batch_size in narrowing.batch_sizes
                for category in categories
            ]
        return tuple(cells)

    def plan(self, cell: Cell) -> Plan:
        """What is asked of one of the cells."""
        prefix = f"{MEAN}_" if cell.is_mean else ""
        return Plan(
            speedup=self.speedup,
            metrics=self.metrics,
            rounds=self.rounds,
            limit=self.limit,
            output_length=self.output_length,
            tolerance={
                metric: self.tolerance[prefix + metric]
                for metric in GATED
                if prefix + metric in self.tolerance
            },
            exclude_from_mean=self.exclude_from_mean if cell.is_mean else (),
        )

    def measured_for(self, cell: Cell, narrowing: Narrowing) -> tuple[Cell, ...]:
        """What is measured where a test of a cell runs: the cell, and for a mean first its categories."""
        if not cell.is_mean:
            return (cell,)
        return tuple(
            each
            for each in self.cells(narrowing)
            if each.shares_group(cell) and each.category not in self.exclude_from_mean
        )


@dataclass(frozen=True)
class Plan:
    """What tests ask of one cell. None takes what the run's settings say."""

    speedup: bool = False
    """Whether the cell is measured a second time with method `none`."""
    metrics: tuple[str, ...] | None = None
    """The metrics that may be judged; None: every gated one."""
    rounds: int | None = None
    """Measured passes over the cell."""
    limit: int | None = None
    """Prompts at most."""
    output_length: int | None = None
    """Output tokens of each request at most."""
    tolerance: Mapping[str, float] = field(default_factory=dict)
    """Allowed relative loss by metric, of this very cell: that of a mean is under `output_tps` too."""
    exclude_from_mean: tuple[str, ...] = ()
    """Of a mean cell: categories that are not part of it."""

    @property
    def judged(self) -> tuple[str, ...]:
        """The metrics that may be judged: the run's alpha is shared among them."""
        if self.metrics is not None:
            return self.metrics
        return tuple(metric for metric in GATED if self.speedup or metric != "speedup")


@dataclass(frozen=True)
class Asked:
    """One test that asks for a cell."""

    test: str
    """Its node id, without the cell."""
    cell: Cell
    plan: Plan


def merged(asked: Iterable[Asked]) -> dict[Cell, Plan]:
    """One plan for each cell, whichever tests ask for it: a cell is measured once.

    Args:
        asked: in the order of the tests, which is that of the result.

    Raises:
        SettingsError: tests ask for the same cell in ways that do not go together; names both.
    """
    plans: dict[Cell, Plan] = {}
    first: dict[Cell, str] = {}
    for each in asked:
        known = plans.get(each.cell)
        if known is None:
            plans[each.cell], first[each.cell] = each.plan, each.test
            continue
        difference = _difference(known, each.plan)
        if difference is not None:
            name, one, other = difference
            tests = (
                f"{each.test}: two marks name"
                if each.test == first[each.cell]
                else f"{first[each.cell]} and {each.test} name"
            )
            raise SettingsError(
                f"{tests} {each.cell.id} with {name}={one} and {name}={other}; "
                "a cell is measured and judged once: give both the same"
            )
        plans[each.cell] = _both(known, each.plan)
    return plans


def _difference(one: Plan, other: Plan) -> tuple[str, object, object] | None:
    """What keeps one measurement from serving both plans: its name and both values."""
    for name in ("rounds", "limit", "output_length", "exclude_from_mean"):
        values = getattr(one, name), getattr(other, name)
        if values[0] != values[1]:
            return (name, *values)
    for metric in (*one.tolerance, *other.tolerance):
        # a test that never judges the metric has no say in its tolerance
        if metric in one.judged and metric in other.judged:
            allowed = one.tolerance.get(metric), other.tolerance.get(metric)
            if allowed[0] != allowed[1]:
                return (f"tolerance of {metric}", *allowed)
    return None


def _both(one: Plan, other: Plan) -> Plan:
    metrics = None
    if one.metrics is not None and other.metrics is not None:
        metrics = tuple(dict.fromkeys((*one.metrics, *other.metrics)))
    return replace(
        one,
        speedup=one.speedup or other.speedup,
        metrics=metrics,
        tolerance={**one.tolerance, **other.tolerance},
    )


ARGUMENTS = (
    "split",
    "categories",
    "batch_sizes",
    "speedup",
    "metrics",
    "rounds",
    "limit",
    "output_length",
    "tolerance",
    "exclude_from_mean",
)
"""What the marker takes, all by keyword."""


def read_marker(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Grid:
    """What one `@pytest.mark.speedbench(split=..., ...)` asks for.

    Args:
        arguments: positional arguments of the marker; none are allowed.
        keywords: its keyword arguments, of `ARGUMENTS`. `split` is a name or a sequence of names.

    Raises:
        SettingsError: an argument that is missing, unknown, or holds what it may not.
    """
    if arguments:
        raise SettingsError(
            f"{_MARKER}{arguments}: takes keyword arguments only, such as split={QUALITATIVE!r}"
        )
    unknown = sorted(set(keywords) - set(ARGUMENTS))
    if unknown:
        raise SettingsError(f"{_MARKER}: unknown argument {unknown[0]!r}; allowed are {', '.join(ARGUMENTS)}")
    splits = _sequence(keywords.get("split", ()))
    if not splits or not set(splits) <= set(SPLITS):
        raise _refused("split", keywords.get("split"), f"allowed are {', '.join(SPLITS)}")
    speedup = keywords.get("speedup", False)
    if not isinstance(speedup, bool):
        raise _refused("speedup", speedup, "allowed are True and False")
    metrics = _names(keywords, "metrics", GATED, "the gated metrics are")
    return Grid(
        splits=tuple(dict.fromkeys(splits)),
        categories=_categories(keywords, "categories", splits),
        batch_sizes=_batch_sizes(keywords.get("batch_sizes")),
        speedup=speedup or "speedup" in (metrics or ()),
        metrics=metrics,
        rounds=_whole(keywords, "rounds", 1),
        limit=_whole(keywords, "limit", 1),
        output_length=_whole(keywords, "output_length", 2),
        tolerance=_tolerance(keywords.get("tolerance"), metrics),
        exclude_from_mean=_categories(keywords, "exclude_from_mean", splits) or (),
    )


def _refused(name: str, value: object, allowed: str) -> SettingsError:
    return SettingsError(f"{_MARKER}({name}={value!r}): {allowed}")


def _categories(keywords: Mapping[str, Any], name: str, splits: tuple[str, ...]) -> tuple[str, ...] | None:
    known = tuple(dict.fromkeys(category for split in splits for category in categories_of(split)))
    return _names(keywords, name, known, f"{splits[0]} has", shown=categories_of(splits[0]))


def _names(
    keywords: Mapping[str, Any],
    name: str,
    known: tuple[str, ...],
    introduction: str,
    shown: tuple[str, ...] | None = None,
) -> tuple[str, ...] | None:
    if keywords.get(name) is None:
        return None
    values = _sequence(keywords[name])
    if not values or not set(values) <= set(known):
        raise _refused(name, keywords[name], f"{introduction} {', '.join(shown or known)}")
    return tuple(dict.fromkeys(values))


def _batch_sizes(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    sizes = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not sizes or not all(type(size) is int and 1 <= size <= MAX_BATCH_SIZE for size in sizes):
        raise _refused("batch_sizes", value, f"whole numbers from 1 to {MAX_BATCH_SIZE} are allowed")
    return tuple(dict.fromkeys(sizes))


def _whole(keywords: Mapping[str, Any], name: str, least: int) -> int | None:
    value = keywords.get(name)
    if value is None:
        return None
    if type(value) is not int or value < least:
        raise _refused(name, value, f"a whole number from {least} is allowed")
    return value


def _tolerance(value: Any, metrics: tuple[str, ...] | None) -> dict[str, float]:
    """By metric and `mean_<metric>`; a number stands for all that the test may judge."""
    if value is None:
        return {}
    judged = metrics or GATED
    known = (*judged, *(f"{MEAN}_{metric}" for metric in judged))
    by_metric = dict(value) if isinstance(value, Mapping) else dict.fromkeys(known, value)
    unknown = [name for name in by_metric if name not in known]
    losses_allowed = all(type(loss) in (int, float) and 0 < loss <= 1 for loss in by_metric.values())
    if not by_metric or unknown or not losses_allowed:
        raise _refused(
            "tolerance", value, f"a loss above 0 and at most 1, or one for each of {', '.join(known)}"
        )
    return {name: float(loss) for name, loss in by_metric.items()}


def _sequence(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
