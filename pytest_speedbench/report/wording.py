"""How numbers, targets and cells are written for a person, the same in every report."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_speedbench.catalogue import ACCEPTANCE, METRICS

if TYPE_CHECKING:
    from pytest_speedbench.cells import Cell
    from pytest_speedbench.gate.baseline import Conditions
    from pytest_speedbench.gate.check import Check
    from pytest_speedbench.settings.target import Target

WIDTH = 79
"""A terminal of 80 columns shows every line whole."""


def number(metric: str, value: float, *, estimated: bool = False) -> str:
    """A metric's value with as many digits as it deserves: `2.81`, `2363`, `41.7`.

    Args:
        metric: its name.
        value: in its unit.
        estimated: whether stream events were taken for steps: acceptance is then marked, `~2.81`.
    """
    mark = "~" if estimated and METRICS[metric].kind == ACCEPTANCE else ""
    decimals = METRICS[metric].decimals
    if decimals is None:
        decimals = 2 if value < 10 else 1 if value < 1000 else 0
    return f"{mark}{value:.{decimals}f}"


def values(check: Check, *, estimated: bool = False) -> str:
    """What a check compared: `3.00 -> 2.81`, or the value alone where nothing was.

    Args:
        check: of one metric.
        estimated: as `Measurement.estimated`.
    """
    if check.value is None:
        return "not measured"
    value = number(check.metric, check.value, estimated=estimated)
    if check.ratio is None or check.baseline is None:
        return value
    return f"{number(check.metric, check.baseline, estimated=estimated)} -> {value}"


def interval(low: float | None, high: float | None) -> str:
    """The limits of a ratio as changes: `-7.0 .. -5.6`; empty where they are not known."""
    if low is None or high is None:
        return ""
    return " .. ".join(percent(limit).removesuffix(" %") for limit in (low, high))


def counted(number_of: int, noun: str) -> str:
    """`1 check`, `2 checks`."""
    return f"{number_of} {noun}" if number_of == 1 else f"{number_of} {noun}s"


def percent(ratio: float, digits: int = 1) -> str:
    """A ratio as a signed change: 0.937 is `-6.3 %`."""
    change = round(100 * (ratio - 1), digits)
    return f"{change + 0.0:+.{digits}f} %"


def target_line(target: Target) -> str:
    """A target in one line: `vllm, llama-3.3-70b, eagle3 k=3`."""
    parts = [target.engine]
    if target.model:
        parts.append(Path(target.model).name)
    parts.append(method(target.method, target.draft_length))
    return ", ".join(parts)


def method(name: str, draft_length: int) -> str:
    """A method with its draft length: `eagle3 k=3`, or `none`."""
    return f"{name} k={draft_length}" if draft_length else name


def cell_line(cell: Cell) -> str:
    """A cell in words: `qualitative / coding / batch size 32`."""
    return f"{cell.split} / {cell.category} / batch size {cell.batch_size}"


def loss(share: float) -> str:
    """A relative loss without a sign: 0.021 is `2.1 %`."""
    return f"{100 * share:.1f} %"


def listed(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def wrapped(text: str, first: int = 0, rest: int = 2) -> list[str]:
    """A text in lines of at most 79 columns, no number apart from its unit.

    Args:
        text: one paragraph.
        first: columns to indent the first line by.
        rest: columns to indent the others by.
    """
    lines = textwrap.wrap(
        text.replace(" %", "\N{NO-BREAK SPACE}%"),
        WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def data_line(conditions: Conditions) -> str:
    """What the prompts were; the sample is never called SPEED-Bench."""
    return (
        "sample prompts (bundled, not SPEED-Bench)"
        if conditions.dataset == "sample"
        else f"SPEED-Bench ({conditions.dataset})"
    )
