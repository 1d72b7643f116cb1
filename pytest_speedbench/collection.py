"""Marked tests as pytest collected them: what each asks for, and which of them could never gate anything."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import pytest

from pytest_speedbench.cells import Asked, Cell, Grid, Narrowing, Plan, merged, read_marker
from pytest_speedbench.speed_bench import MARKER


def cell_of(item: pytest.Item) -> Cell | None:
    """The cell that a test was made for; None where options left none, or the test has none."""
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get(MARKER) if callspec is not None else None
    return cell if isinstance(cell, Cell) else None


def grids_of(node: pytest.Item) -> tuple[Grid, ...]:
    """What the marks on a test, its class and its module ask for, the outermost first.

    Raises:
        SettingsError: a mark holds something it may not.
    """
    marks = list(node.iter_markers(MARKER))
    return tuple(read_marker(mark.args, mark.kwargs) for mark in reversed(marks))


def cells_of(node: pytest.Item, narrowing: Narrowing) -> tuple[Cell, ...]:
    """The cells of all marks on a test together, each once.

    Raises:
        SettingsError: a mark holds something it may not, or two marks contradict each other.
    """
    grids = grids_of(node)
    cells = tuple(dict.fromkeys(cell for grid in grids for cell in grid.cells(narrowing)))
    merged(Asked(_name(node), cell, grid.plan(cell)) for grid in grids for cell in grid.cells(narrowing))
    return cells


def asked_by(item: pytest.Item, narrowing: Narrowing) -> list[Asked]:
    """The cells that a test needs measured: its own, and for a mean those of its categories."""
    cell = cell_of(item)
    return [
        Asked(_name(item), each, grid.plan(each))
        for grid in (grids_of(item) if cell is not None else ())
        if cell is not None and cell in grid.cells(narrowing)
        for each in grid.measured_for(cell, narrowing)
    ]


def plan_of(item: pytest.Item, cell: Cell, narrowing: Narrowing) -> Plan:
    """What one test asks of its cell."""
    return merged(asked_by(item, narrowing))[cell]


def misuse(collector: pytest.Collector, collected: Sequence[pytest.Item | pytest.Collector]) -> str | None:
    """Where marks below a collector could never gate anything, and why; None where all is well.

    Args:
        collector: a module or class.
        collected: what it holds.
    """
    items = [node for node in collected if isinstance(node, pytest.Item)]
    for item in items:
        reason = _misuse_on_test(item)
        if reason is not None:
            return f"{_name(item)}: {reason}"
    # a class or module may hold tests that do not take the fixture, but not those alone
    if items and len(items) == len(collected) and _is_marked(collector) and not any(map(_takes, items)):
        return f"{collector.nodeid}: marked with speedbench, but no test in it takes the speedbench fixture"
    return None


def _misuse_on_test(item: pytest.Item) -> str | None:
    unittest = sys.modules.get("unittest")
    cls = getattr(item, "cls", None)
    if unittest is not None and cls is not None and issubclass(cls, unittest.TestCase):
        marked = _is_marked(item) or (item.parent is not None and _is_marked(item.parent))
        if marked or (_takes(item) and item.get_closest_marker(MARKER) is not None):
            return (
                "a unittest.TestCase cannot be run once per cell; "
                "write a function or a plain class with the speedbench mark and fixture"
            )
        return None
    if any(mark.name == MARKER for mark in getattr(getattr(item, "callspec", None), "marks", ())):
        return "speedbench marks in pytest.param are not supported; mark the test function"
    if _is_marked(item) and not _takes(item):
        return "marked with speedbench, but it does not take the speedbench fixture; it would measure nothing"
    return None


def refuse_late_marks(items: Iterable[pytest.Item]) -> str | None:
    """Where a mark was added after collection, too late to make the test one of its cells; None where none was."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if _is_marked(item) and (callspec is None or MARKER not in callspec.params):
            return f"{item.nodeid}: the speedbench mark was added after collection; mark the test function"
    return None


def _is_marked(node: pytest.Item | pytest.Collector | pytest.Session) -> bool:
    """Whether the node bears the mark itself, not one that it inherits."""
    return any(mark.name == MARKER for mark in node.own_markers)


def _takes(item: pytest.Item) -> bool:
    return MARKER in getattr(item, "fixturenames", ())


def _name(node: pytest.Item) -> str:
    """A test's node id without its parameters."""
    name = getattr(node, "originalname", None) or node.name
    return f"{node.parent.nodeid}::{name}" if node.parent is not None else name
